"""Comparison of two sets of predictions for the same questions, in any measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .bootstrap import LEVEL
from .calibration_error import (
    aurc,
    bins_of,
    brier_score,
    classwise_calibration_error,
    confidence_auroc,
    negative_log_likelihood,
)
from .checked import check_examples, check_predictions
from .options import MeasureOptions
from .risk_coverage import risk_coverage
from .validation import as_weights


class PairedDifference(NamedTuple):
    """
    Two values of a measure on the same questions, and their difference.

    Attributes:
        first (`float`): Value of the first predictions.
        second (`float`): Value of the second predictions.
        difference (`float`): `second - first`.
        low (`float`): Lower end of the 95% interval of the difference.
        high (`float`): Upper end.
        p_value (`float`): Two-sided p-value of the hypothesis that the difference is 0.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float


def _accuracy(confidences, correct, sample_weight=None) -> float:
    return float(np.average(correct, weights=sample_weight))


def _confidence(confidences, correct, sample_weight=None) -> float:
    return float(np.average(confidences, weights=sample_weight))


def _ece(confidences, correct, sample_weight=None) -> float:
    return bins_of(confidences, correct, sample_weight, 10, "equal_width").error


# Measures of confidences and outcomes, and measures of probabilities and labels.
OF_CONFIDENCES: dict[str, Callable[..., float]] = {
    "accuracy": _accuracy,
    "confidence": _confidence,
    "ece": _ece,
    "auroc": confidence_auroc,
    "aurc": aurc,
    "e_aurc": lambda *arrays: risk_coverage(*arrays).e_aurc,
    "augrc": lambda *arrays: risk_coverage(*arrays).augrc,
}
OF_PROBABILITIES: dict[str, Callable[..., float]] = {
    "cw_ece": lambda probabilities, labels, weights: classwise_calibration_error(
        probabilities, labels, sample_weight=weights
    ),
    "nll": negative_log_likelihood,
    "brier": brier_score,
}


def compare_predictions(first, second, measure="nll", sample_weight=None, **options) -> PairedDifference:
    """
    Compare two sets of predictions for the same questions.

    The questions are resampled by the Bayesian bootstrap, with the same weights for both sets. The draws of the
    difference are centred on the measured one, because resampling raises binned errors. The p-value is the share of
    centred draws at least as far from 0 as the difference, so it agrees with the interval.

    Args:
        first (`tuple` of two array-likes):
            Probabilities `(N, K)` and labels `(N,)`, or confidences `(N,)` and outcomes `(N,)` (1 right, 0 wrong).
            `OptionPredictions.outcomes` has this form.
        second (`tuple` of two array-likes):
            The same of the other predictions, with the questions in the same order.
        measure (`str` or `Callable`, *optional*, defaults to `"nll"`):
            `"accuracy"`, `"confidence"`, `"ece"`, `"auroc"`, `"aurc"`, `"e_aurc"`, `"augrc"`; of probabilities also
            `"cw_ece"`, `"nll"`, `"brier"`. Or a function of the two arrays and the weights `(N,)`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each question.
        options:
            `n_bootstrap` and `seed`, see [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        [`PairedDifference`]: `first`, `second`, `difference` (second less first), `low`, `high`, `p_value`.

    Raises:
        ValueError: The measure is unknown or needs probabilities, or the predictions are not of the same questions.

    Example:

    ```python
    >>> from hf_calib.measures.paired import compare_predictions
    >>> before, after = ([0.9, 0.8, 0.6], [1, 0, 1]), ([0.9, 0.6, 0.7], [1, 0, 1])
    >>> round(compare_predictions(before, after, "confidence").difference, 4)
    -0.0333

    ```
    """
    options = MeasureOptions(**options)
    function, pairs = _resolve(measure, first, second)
    n = len(pairs[0][1])
    if len(pairs[1][1]) != n:
        raise ValueError(f"the first predictions are of {n} questions, the second of {len(pairs[1][1])}.")
    weights = as_weights(sample_weight, n)
    values = [function(*pair, weights) for pair in pairs]
    base = np.ones(n) if weights is None else weights
    rng, draws = options.generator(4), np.empty(options.n_bootstrap)
    for index in range(options.n_bootstrap):
        drawn = base * rng.standard_exponential(n)
        draws[index] = function(*pairs[1], drawn) - function(*pairs[0], drawn)
    difference = values[1] - values[0]
    noise = draws - draws.mean()
    low, high = difference + np.quantile(noise, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    as_far = int((np.abs(noise) >= abs(difference)).sum())
    p_value = (1 + as_far) / (1 + len(noise)) if np.isfinite(difference) else float("nan")
    return PairedDifference(values[0], values[1], difference, float(low), float(high), p_value)


def _resolve(measure, first, second) -> tuple[Callable[..., float], list[tuple[np.ndarray, np.ndarray]]]:
    """The measure as a function, and the arrays that it takes, checked once."""
    if callable(measure):
        return measure, [tuple(map(np.asarray, pair)) for pair in (first, second)]
    if measure not in OF_CONFIDENCES | OF_PROBABILITIES:
        known = ", ".join([*OF_CONFIDENCES, *OF_PROBABILITIES])
        raise ValueError(f"the measure {measure!r} is not known; use one of {known}, or a function.")
    of_confidences, pairs = [np.ndim(pair[0]) == 1 and np.ndim(pair[0][0]) == 0 for pair in (first, second)], []
    if measure in OF_PROBABILITIES:
        if any(of_confidences):
            raise ValueError(f"the measure {measure!r} needs probabilities of all options, not confidences.")
        return OF_PROBABILITIES[measure], [_of_probabilities(*pair) for pair in (first, second)]
    for pair, plain in zip((first, second), of_confidences, strict=True):
        checked = check_examples(*pair) if plain else check_predictions(*pair)
        pairs.append((checked.confidences.astype(np.float64), checked.correct))
    return OF_CONFIDENCES[measure], pairs


def _of_probabilities(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    checked = check_predictions(probabilities, labels)
    return checked.probabilities, checked.labels
