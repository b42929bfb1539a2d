"""Measures of predictions that other tools saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.predictions import OptionPredictions
from ..measures.binning import top_label
from ..measures.paired import comparison_report
from ..prediction_files.confidences import ConfidencePredictions
from .evaluate import evaluate_confidences
from .options import EvaluationOptions
from .protocol import questions_digest
from .tables import evaluation_results


# What evaluations report and confidences alone do not give.
NEEDS_PROBABILITIES = "cw-ECE, NLL, Brier and its parts, the option mass, and the comparison with a reference"


def measure_predictions(
    predictions: OptionPredictions | ConfidencePredictions,
    reference: OptionPredictions | None = None,
    num_options: int | None = None,
    other: OptionPredictions | ConfidencePredictions | None = None,
    **options,
) -> dict[str, Any]:
    """
    Compute everything that an evaluation reports.

    Args:
        predictions ([`OptionPredictions`] or [`~hf_calib.prediction_files.confidences.ConfidencePredictions`]):
            Predictions with their right options.
        reference ([`OptionPredictions`], *optional*):
            Predictions of the model before alignment for the same questions. They decide the regime.
        num_options (`int`, *optional*):
            Number of options of each question, for the regime of confidences.
        other ([`OptionPredictions`] or [`~hf_calib.prediction_files.confidences.ConfidencePredictions`], *optional*):
            Predictions of another model for the same questions. Adds the keys of
            [`~hf_calib.measures.paired.comparison_report`].
        options:
            Options of [`~hf_calib.evaluation.options.EvaluationOptions`].

    Returns:
        `dict`: flat; see [`~hf_calib.evaluation.evaluate.evaluate_probabilities`]. Further keys: `model`, `dataset`,
        `questions` (digest), the options of the measures, `predictions_format`, `files`, `option_normalization`,
        `option_mass` (mean probability of all options together, where it is known), `left_out` and `notes`.

    Raises:
        `ValueError`: a value is outside its range, or the reference is of other questions.
    """
    several = predictions.subjects is not None and len(np.unique(predictions.subjects)) > 1
    groups = {"groups": predictions.subjects} if several else {}
    described = _description(predictions, EvaluationOptions(**options))
    compared = {} if other is None else _comparison(predictions, other, groups, EvaluationOptions(**options))
    if isinstance(predictions, OptionPredictions):
        results = evaluation_results(predictions, reference, **options, **groups)
        if predictions.metadata.get("letters"):
            described["option_mass"] = float(predictions.option_mass.mean())
        return {**described, **results, **compared}
    if reference is not None:
        raise ValueError("a reference needs probabilities of all options, and these predictions are confidences")
    arrays = predictions.confidences, predictions.correct
    return {**described, **evaluate_confidences(*arrays, num_options, **options, **groups), **compared}


def _comparison(
    predictions: OptionPredictions | ConfidencePredictions,
    other: OptionPredictions | ConfidencePredictions,
    groups: Mapping[str, Any],
    options: EvaluationOptions,
) -> dict[str, float]:
    """Compare with the predictions of another model, matched by the ids of the questions."""
    other = other.select(predictions.ids)
    sides = [one.outcomes for one in (other, predictions)]
    if len({scores.ndim for scores, _ in sides}) > 1:  # one of them has confidences alone
        sides = [side if side[0].ndim == 1 else top_label(*side) for side in sides]
    named = {name: getattr(options, name) for name in ("n_bins", "binning", "n_bootstrap", "seed")}
    return comparison_report(*sides, **groups, **named)


def _description(predictions: OptionPredictions | ConfidencePredictions, options: EvaluationOptions) -> dict[str, Any]:
    """Where predictions are from and how they are measured."""
    metadata: Mapping[str, Any] = predictions.metadata
    files = metadata.get("files", [])
    prompt = metadata.get("prompt_format") or {"scoring": None}  # known of this package's own predictions alone
    described = {
        "model": metadata.get("model"),
        "dataset": metadata.get("task") or ", ".join(Path(name).stem for name in files[:3]) or None,
        "questions": questions_digest(predictions.ids, predictions.labels),
        **prompt,
        **{name: getattr(options, name) for name in ("n_bins", "binning", "n_bootstrap", "seed", "alpha")},
        "predictions_format": metadata.get("format", "hf_calib"),
        "files": files,
        "option_normalization": metadata.get("option_normalization"),
        "left_out": metadata.get("left_out", 0),
    }
    if metadata.get("notes"):
        described["notes"] = metadata["notes"]
    return described
