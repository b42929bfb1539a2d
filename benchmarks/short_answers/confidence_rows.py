"""Rows of the benchmark of short answers: each confidence as it is, recalibrated, and all of them combined."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_calib.evaluation.compare import compare_calibrators
from hf_calib.evaluation.tables import evaluation_results
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.posthoc import fit_calibrator


sys.path.append(str(Path(__file__).parents[1] / "rivals"))

from confidence_combination import combine, fit_combination  # noqa: E402


TITLES = {
    "likelihood": "likelihood, mean",
    "sequence_likelihood": "likelihood, sum",
    "agreement": "agreement of samples",
    "p_true": "P(True)",
}
COMBINED = ("likelihood", "agreement", "p_true")
KEYS = ("n", "accuracy", "confidence", "ece", "ece_low", "ece_high", "ece_noise_floor", "nll", "brier", "auroc")


def post_hoc(
    labels: Mapping[str, OptionPredictions], test: Mapping[str, OptionPredictions]
) -> dict[str, OptionPredictions]:
    """
    Every confidence as it is, with a temperature, and with the calibrator that `hf-calib calibrate` chooses; and the
    logistic regression of all.

    Args:
        labels (`Mapping[str, OptionPredictions]`):
            Predictions of each confidence to fit on.
        test (`Mapping[str, OptionPredictions]`):
            Predictions of each confidence to calibrate.
    """
    found = {}
    for name, title in TITLES.items():
        known, unknown = labels[name], test[name]
        found[title] = unknown
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            temperature = fit_calibrator("temperature", known.option_logits, known.labels)
            comparison = compare_calibrators(known, unknown, methods=None)
        found[f"{title} + temperature"] = unknown.recalibrated(temperature)
        found[f"{title} + chosen calibrator"] = comparison.predictions[comparison.chosen]
        found[f"{title} + chosen calibrator"].metadata["calibrator"] = comparison.chosen
    fitted = fit_combination([labels[name].outcomes[0] for name in COMBINED], labels["p_true"].outcomes[1])
    combined = combine(fitted, [test[name].outcomes[0] for name in COMBINED])
    found["logistic regression of three"] = with_confidences(test["likelihood"], combined)
    return found


def with_confidences(predictions: OptionPredictions, confidences: np.ndarray) -> OptionPredictions:
    """Predictions for the same answers with other confidences `(N,)`."""
    return predictions.with_probabilities(np.stack([confidences, 1 - confidences], axis=1))


def measure(predictions: OptionPredictions, n_bootstrap: int = 1000) -> dict[str, Any]:
    """The measures of a row."""
    results = evaluation_results(predictions, n_bootstrap=n_bootstrap)
    return {key: results[key] for key in KEYS}
