"""Choices of `hf-calib restore`: the scoring, and the method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..inference.predictions import OptionPredictions
from ..posthoc import cross_validate
from ..regime.report import TARGET_CONTRADICTED
from .restore_plan import SCORING_QUESTIONS
from .restore_work import RestoreWork


_NAMES = {"letter": "the letters of the options", "text": "the texts of the options"}


def choose_scoring(work: RestoreWork) -> dict[str, Any]:
    """
    Choose the scoring by which the model answers better on some of the labels.

    The accuracies are compared. If their difference is within its standard error, the negative log-likelihoods under a
    cross-validated temperature decide.

    Args:
        work ([`~hf_calib.training.restore_work.RestoreWork`]):
            The restoration.

    Returns:
        `dict`: `scoring`, and a `sentence` with the reason.
    """
    labels = work.questions.labels
    sample = labels.select(range(min(len(labels), SCORING_QUESTIONS)))
    correct, losses = {}, {}
    for scoring in work.scorings:
        prompt_format = replace(work.options, scoring=scoring).prompt_format()
        predictions = work.predict(work.model, sample, prompt_format=prompt_format)
        correct[scoring], losses[scoring] = _outcomes(predictions, work.options.seed)
    difference = correct["letter"] - correct["text"]
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    if abs(difference.mean()) > error:
        scoring = "letter" if difference.mean() > 0 else "text"
        reason = "the model answers better by them"
    else:
        scoring = min(losses, key=losses.get)
        reason = "the accuracies are equal within chance, and the likelihood after a temperature is better"
    other = "text" if scoring == "letter" else "letter"
    sentence = (
        f"Scoring: {_NAMES[scoring]}, because {reason} (on {len(difference)} labels accuracy "
        f"{correct[scoring].mean():.3f} and NLL {losses[scoring]:.3f}; with {_NAMES[other]} "
        f"{correct[other].mean():.3f} and {losses[other]:.3f})."
    )
    return {"scoring": scoring, "sentence": sentence}


def _outcomes(predictions: OptionPredictions, seed: int) -> tuple[np.ndarray, float]:
    """Whether each answer is right, `(N,)`, and the mean NLL under a cross-validated temperature."""
    logits, labels = predictions.option_logits, predictions.labels
    calibrated = cross_validate(["temperature"], logits, labels, seed=seed)["temperature"]
    nll = -np.log(np.maximum(calibrated[np.arange(len(labels)), labels], 1e-12)).mean()
    return (logits.argmax(1) == labels).astype(float), float(nll)


def choose_objective(
    work: RestoreWork, labels: OptionPredictions, reference: OptionPredictions | None
) -> dict[str, Any]:
    """
    Choose the method by the regime on the labels.

    Args:
        work ([`~hf_calib.training.restore_work.RestoreWork`]):
            The restoration.
        labels ([`OptionPredictions`]), reference ([`OptionPredictions`], *optional*):
            Predictions of the aligned model, and of the model before alignment, for the labels.

    Returns:
        `dict`: `objective` (`"cft"`, `"rcft"` or `None`), a `sentence` with the reason, and the results on the labels.
    """
    results = work.protocol.measure(labels, reference)
    objective, why = results["recommended_method"], results["explanation"]
    if "objective" in work.config:
        objective, why = work.config["objective"], f"{work.options.config} says so."
    elif results["ece_p_value"] >= results["alpha"]:
        objective = None
        why = (
            f"conf-ECE {results['ece']:.3f} on {results['n']:,} labels is within noise (noise floor "
            f"{results['ece_noise_floor']:.3f}, p = {results['ece_p_value']:.2g}). Nothing is trained."
        )
    names = {None: "Nothing to repair", "cft": "Method: CFT", "rcft": "Method: RCFT"}
    sentence = f"{names[objective]}{': ' if objective is None else '. '}{why}"
    if objective and work.options.reference:
        sentence += f" The training is anchored to the reference {work.options.reference}"
        contradicted = reference is not None and results["regime"] == TARGET_CONTRADICTED  # else by the target
        below = contradicted and results["accuracy"] < results["expected_accuracy"]
        sentence += ", which these labels contradict: check it, or leave it out." if below else "."
    return {"objective": objective, "sentence": sentence, "labels": results}
