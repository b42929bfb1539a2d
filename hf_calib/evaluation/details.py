"""Further measures of an evaluation: kernel tests, CORP split and calibration loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..measures.checked import Examples, Predictions
from ..measures.corp import corp_curve, corp_decomposition
from ..measures.kernel_test import KernelTest, kernel_test_of
from ..measures.options import MeasureOptions
from ..measures.validation import SMALLEST_PROBABILITY
from ..posthoc import METHODS, recalibration_gain


_GAIN_ROWS = 20_000  # most rows on which maps are fitted
_FOLDS = 5


def confidence_details(examples: Examples, options: MeasureOptions) -> dict[str, Any]:
    """
    Compute the kernel test and the CORP split of confidences.

    Args:
        examples ([`~hf_calib.measures.checked.Examples`]):
            Checked confidences and outcomes.
        options ([`~hf_calib.measures.options.MeasureOptions`]):
            `n_bootstrap` and `seed`.

    Returns:
        `dict`: `skce` with `skce_low`, `skce_high` and `skce_p_value`; `corp_brier` and `corp_nll`, the scores of the
        confidence, each with `_miscalibration`, `_discrimination` and `_uncertainty`; `corp_noise_floor` and
        `corp_p_value` of the miscalibration in the Brier score. A kernel test of one row is `None`.
    """
    arrays, weights = (examples.confidences, examples.correct), examples.weights
    curve = corp_curve(*arrays, sample_weight=weights, n_bootstrap=options.n_bootstrap, seed=options.seed)
    details: dict[str, Any] = _kernel_keys("skce", examples, options, all_options=False)
    for score, parts in {"brier": curve.decomposition, "nll": corp_decomposition(*arrays, "nll", weights)}.items():
        details[f"corp_{score}"] = parts.score
        details |= {f"corp_{score}_{name}": getattr(parts, name) for name in parts._fields[1:]}
    return details | {"corp_noise_floor": curve.noise_floor, "corp_p_value": curve.p_value}


def probability_details(predictions: Predictions, options: MeasureOptions) -> dict[str, Any]:
    """
    Compute [`confidence_details`], the kernel test of all options, and the calibration loss.

    Args:
        predictions ([`~hf_calib.measures.checked.Predictions`]):
            Checked option probabilities and labels.
        options ([`~hf_calib.measures.options.MeasureOptions`]):
            `n_bootstrap` and `seed`.

    Returns:
        `dict`: also `option_skce` with `option_skce_low`, `option_skce_high` and `option_skce_p_value`;
        `recalibration_gain` with `recalibration_gain_low` and `recalibration_gain_high`, and `recalibration_method`,
        of at most 20,000 questions drawn at random. What needs more questions is `None`.
    """
    details = confidence_details(predictions, options)
    return details | _kernel_keys("option_skce", predictions, options, all_options=True) | _gain(predictions, options)


def _kernel_keys(name: str, examples: Examples, options: MeasureOptions, all_options: bool) -> dict[str, Any]:
    keys = {"skce": name, "low": f"{name}_low", "high": f"{name}_high", "p_value": f"{name}_p_value"}
    if len(examples) < 2:
        return dict.fromkeys(keys.values())
    found: KernelTest = kernel_test_of(examples, options, all_options=all_options)
    return {key: getattr(found, field) for field, key in keys.items()}


def _gain(predictions: Predictions, options: MeasureOptions) -> dict[str, Any]:
    rows = np.arange(len(predictions))
    if len(rows) > _GAIN_ROWS:
        rows = np.sort(options.generator(7).choice(rows, _GAIN_ROWS, replace=False))
    names = ("recalibration_gain", "recalibration_gain_low", "recalibration_gain_high")
    n_folds = min(_FOLDS, len(rows) // 2)
    if n_folds < 2:
        return {**dict.fromkeys(names), "recalibration_method": None}
    log_probabilities = np.log(np.maximum(predictions.probabilities[rows].astype(np.float64), SMALLEST_PROBABILITY))
    lengths = np.broadcast_to(predictions.num_options, len(predictions))[rows]
    log_probabilities[np.arange(log_probabilities.shape[1]) >= lengths[:, None]] = -np.inf
    weights = None if predictions.weights is None else predictions.weights[rows]
    found = recalibration_gain(
        log_probabilities, predictions.labels[rows], sample_weight=weights, n_folds=n_folds, seed=options.seed
    )
    return {**dict(zip(names, found[:3], strict=True)), "recalibration_method": found.method}


def details_sentences(results: dict[str, Any]) -> list[str]:
    """Describe the further measures of an evaluation in a sentence or two."""
    sentences = []
    if results.get("recalibration_gain") is not None:
        interval = f"[{results['recalibration_gain_low']:.3f}, {results['recalibration_gain_high']:.3f}]"
        sentences.append(
            f"recalibration ({METHODS[results['recalibration_method']].title}, cross-fitted) lowers the NLL by "
            f"{results['recalibration_gain']:.3f} {interval}"
        )
    tests = {"skce_p_value": "the confidence", "option_skce_p_value": "all options"}
    found = [f"{results[key]:.3f} of {of}" for key, of in tests.items() if results.get(key) is not None]
    if found:
        sentences.append(f"p-values of perfect calibration (kernel test): {', '.join(found)}")
    return sentences
