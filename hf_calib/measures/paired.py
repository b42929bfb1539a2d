"""Comparison of two sets of predictions for the same questions, in any measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from .bootstrap import LEVEL
from .checked import Examples, Predictions, check_scores
from .options import MeasureOptions
from .validation import as_weights
from .weighted_measures import OF_CONFIDENCES, OF_PROBABILITIES, OfWeights


MEASURES = (*OF_CONFIDENCES, *OF_PROBABILITIES)
# Of a comparison, unless others are given; and of each group, where many groups must not take long.
_USUAL = ("accuracy", "confidence", "ece", "auroc", "aurc", "cw_ece", "nll", "brier")
_OF_GROUPS = ("accuracy", "confidence", "overconfidence", "ece", "nll", "brier")
_DRAWN_ROWS = 8192  # most rows of a draw


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


def compare_predictions(first, second, measure="nll", sample_weight=None, **options) -> PairedDifference:
    """
    Compare two sets of predictions for the same questions.

    The questions are resampled by the Bayesian bootstrap, with the same weights for both sets. The draws of the
    difference are centred on the measured one, because resampling raises binned errors. The p-value is the share of
    centred draws at least as far from 0 as the difference, so it agrees with the interval. The draws are widened as in
    a t-test, because those of few questions are too narrow; of one question interval and p-value are NaN. Those of the
    accuracy include two additional questions, one half for each pair of outcomes. Beyond 8,192 questions the draws are
    of a random sample of so many, and scaled to the number of all.

    A measured ECE is too high by its noise, which is smaller for the worse model. So the difference of a calibrated
    and a miscalibrated model is too small in `"ece"` and `"cw_ece"`. The other measures have no such bias.

    Args:
        first (`tuple` of two array-likes):
            Probabilities `(N, K)` and labels `(N,)`, or confidences `(N,)` and outcomes `(N,)` (1 right, 0 wrong).
            `OptionPredictions.outcomes` has this form.
        second (`tuple` of two array-likes):
            The same of the other predictions, with the questions in the same order.
        measure (`str` or `Callable`, *optional*, defaults to `"nll"`):
            `"accuracy"`, `"confidence"`, `"overconfidence"`, `"ece"`, `"auroc"`, `"aurc"`, `"e_aurc"`, `"augrc"`; of
            probabilities also `"cw_ece"`, `"nll"`, `"brier"`. Or a function of the two arrays and the weights `(N,)`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each question.
        options:
            `n_bins` and `binning` of the binned measures, `n_bootstrap` and `seed`, see
            [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        [`PairedDifference`]: `first`, `second`, `difference` (second less first), `low`, `high`, `p_value`.

    Raises:
        TypeError: An array has the wrong type, or an option is unknown.
        ValueError: The measure is unknown or needs probabilities, the predictions are not of the same questions, or a
            value is outside its range.

    Example:

    ```python
    >>> from hf_calib.measures.paired import compare_predictions
    >>> before, after = ([0.9, 0.8, 0.6], [1, 0, 1]), ([0.9, 0.6, 0.7], [1, 0, 1])
    >>> round(compare_predictions(before, after, "confidence").difference, 4)
    -0.0333

    ```
    """
    options = MeasureOptions(**options)
    if not callable(measure):
        pair = _checked_pair(first, second, sample_weight)
        return _compare(pair, [measure], options)[measure]
    arrays = [tuple(map(np.asarray, one)) for one in (first, second)]
    n = len(arrays[0][1])
    _check_lengths(n, len(arrays[1][1]))
    weights = as_weights(sample_weight, n)

    def of_rows(rows: slice | np.ndarray) -> list[tuple[OfWeights, OfWeights]]:
        parts = [tuple(array[rows] for array in one) for one in arrays]
        return [tuple((lambda drawn, part=part: measure(*part, drawn)) for part in parts)]

    # a function may tell equal weights from none
    values = [measure(*one, weights) for one in arrays]
    drawn = _draws(of_rows, np.ones(n) if weights is None else weights, options)
    return _difference(*values, drawn[:, 0])


def comparison_report(
    other, predictions, measures: Sequence[str] | None = None, sample_weight=None, groups=None, **options
) -> dict[str, float]:
    """
    Compare two sets of predictions in several measures, with the same draws for all.

    Args:
        other (`tuple` of two array-likes):
            Predictions to compare with, e.g. of another model; see [`compare_predictions`].
        predictions (`tuple` of two array-likes):
            Predictions for the same questions in the same order.
        measures (`Sequence[str]`, *optional*):
            Names of [`compare_predictions`]. Defaults to `accuracy`, `confidence`, `ece`, `auroc` and `aurc`, and with
            probabilities on both sides `cw_ece`, `nll` and `brier`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each question.
        groups (array-like of shape `(N,)`, *optional*):
            Group of each question, e.g. its subject. Adds the differences in each, for measures that do not depend on
            the order of the confidences. The p-values are not corrected for the number of groups.
        options:
            As in [`compare_predictions`].

    Returns:
        `dict[str, float]`: `other/<measure>`, and `difference/<measure>` (predictions less other) with
        `difference/<measure>_low`, `_high` and `_p_value`; the same for each group after `group/<name>/`.

    Raises:
        TypeError: An array has the wrong type, or an option is unknown.
        ValueError: As in [`compare_predictions`].

    Example:

    ```python
    >>> from hf_calib.measures.paired import comparison_report
    >>> report = comparison_report(([0.9, 0.8], [1, 0]), ([0.9, 0.6], [1, 0]), ["confidence"])
    >>> round(report["other/confidence"], 2), round(report["difference/confidence"], 2)
    (0.85, -0.1)

    ```
    """
    options = MeasureOptions(**options)
    pair = _checked_pair(other, predictions, sample_weight)
    if measures is None:
        measures = [name for name in _USUAL if name in OF_CONFIDENCES or _have_probabilities(pair)]
    report = _named(_compare(pair, measures, options))
    if groups is None:
        return report
    groups = np.asarray(groups).astype(str)
    kept = pair[0].kept
    n = len(pair[0]) if kept is None else len(kept)
    if groups.shape != (n,):
        raise ValueError(f"`groups` has shape {groups.shape} for {n} rows: give one name per row.")
    groups = groups if kept is None else groups[kept]
    measures = [name for name in measures if name in _OF_GROUPS]
    for name in np.unique(groups):
        part = tuple(_rows_of(one, groups == name) for one in pair)
        report |= {f"group/{name}/{key}": value for key, value in _named(_compare(part, measures, options)).items()}
    return report


def _named(differences: Mapping[str, PairedDifference]) -> dict[str, float]:
    named = {}
    for name, found in differences.items():
        named |= {f"other/{name}": found.first, f"difference/{name}": found.difference}
        named |= {f"difference/{name}_{end}": getattr(found, end) for end in ("low", "high", "p_value")}
    return named


def _checked_pair(first, second, sample_weight) -> tuple[Examples, Examples]:
    """Check two sets of predictions for the same questions."""
    pair = tuple(check_scores(*each, sample_weight) for each in (first, second))
    _check_lengths(*map(len, pair))
    if _have_probabilities(pair) and (pair[0].labels != pair[1].labels).any():
        row = int(np.argmax(pair[0].labels != pair[1].labels))
        raise ValueError(
            f"the right option of row {row} is {pair[0].labels[row]} in the first predictions and "
            f"{pair[1].labels[row]} in the second: both must be of the same questions in the same order."
        )
    return pair


def _check_lengths(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"the first predictions are of {first} questions, the second of {second}.")


def _have_probabilities(pair: Sequence[Examples]) -> bool:
    return all(isinstance(one, Predictions) for one in pair)


def _rows_of(examples: Examples, rows: np.ndarray | slice) -> Examples:
    """Some rows of checked predictions, with what the measures use."""
    arrays = {"confidences": examples.confidences[rows], "correct": examples.correct[rows]}
    arrays["weights"] = None if examples.weights is None else examples.weights[rows]
    if not isinstance(examples, Predictions):
        return Examples(**arrays)
    return Predictions(**arrays, probabilities=examples.probabilities[rows], labels=examples.labels[rows])


def _compare(
    pair: tuple[Examples, Examples], measures: Sequence[str], options: MeasureOptions
) -> dict[str, PairedDifference]:
    """Compare checked predictions in each measure."""
    for name in measures:
        if name not in MEASURES:
            raise ValueError(f"the measure {name!r} is not known; use one of {', '.join(MEASURES)}, or a function.")
        if name in OF_PROBABILITIES and not _have_probabilities(pair):
            raise ValueError(f"the measure {name!r} needs probabilities of all options, not confidences.")

    def of_rows(rows: slice | np.ndarray) -> list[tuple[Any, ...]]:
        parts = [_rows_of(one, rows) for one in pair]
        return [tuple((OF_CONFIDENCES | OF_PROBABILITIES)[name](part, options) for part in parts) for name in measures]

    weights = np.ones(len(pair[0])) if pair[0].weights is None else pair[0].weights
    values = [[function(weights) for function in functions] for functions in of_rows(slice(None))]
    drawn = _draws(of_rows, weights, options, [index for index, name in enumerate(measures) if name == "accuracy"])
    return {name: _difference(*values[index], drawn[:, index]) for index, name in enumerate(measures)}


def _draws(of_rows: Callable, weights: np.ndarray, options: MeasureOptions, shares: Sequence[int] = ()) -> np.ndarray:
    """
    Draw the differences.

    Args:
        of_rows (`Callable`):
            From an index of rows to the measures of both sets on these rows, as functions of their weights.
        weights (`np.ndarray` of shape `(N,)`):
            Weight of each row.
        options ([`MeasureOptions`]):
            `n_bootstrap` and `seed`.
        shares (`Sequence[int]`, *optional*, defaults to `()`):
            Indices of the measures that are shares of questions.

    Returns:
        `np.ndarray` of shape `(n_bootstrap, measures)`: differences with the spread of N rows.
    """
    rng, rows = options.generator(4), slice(None)
    if len(weights) > _DRAWN_ROWS:
        rows = np.sort(rng.choice(len(weights), _DRAWN_ROWS, replace=False))
    every, effective = (one.sum() ** 2 / (one @ one) for one in (weights, weights[rows]))
    scale = sqrt(effective / every) * _widening(effective)
    base, functions = weights[rows], of_rows(rows)
    draws = np.empty((options.n_bootstrap, len(functions)))
    for draw in draws:
        drawn = base * rng.standard_exponential(len(base))
        draw[:] = [second(drawn) - first(drawn) for first, second in functions]
    for index in shares:
        draws[:, index] = _with_two_more(draws[:, index], effective, rng)
    return (draws - draws.mean(axis=0)) * scale


def _with_two_more(draws: np.ndarray, n: float, rng: np.random.Generator) -> np.ndarray:
    """
    Add two questions to the draws of a difference of two shares of n questions: one half for each pair of outcomes, as
    in [`~hf_calib.measures.bootstrap.ResampledMeans`]. Two models that differ on all questions may not on the next.
    """
    mass, added = rng.standard_gamma(n, len(draws)), rng.standard_gamma(0.5, (4, len(draws)))
    return (mass * draws + added[0] - added[1]) / (mass + added.sum(axis=0))


def _widening(n: float) -> float:
    """
    Factor by which the draws of n questions are too narrow: their variance by (n - 1) / (n + 1), and the quantiles by
    those of Student's t. One question, or an effective number below 1.5, says nothing about the spread: NaN.
    """
    from scipy.special import stdtrit

    if n < 1.5:
        return nan
    end = (1 + LEVEL) / 2
    return float(stdtrit(n - 1, end) / NormalDist().inv_cdf(end)) * sqrt((n + 1) / (n - 1))


def _difference(first: float, second: float, noise: np.ndarray) -> PairedDifference:
    """The difference of two values, with its interval and p-value from centred draws."""
    difference = second - first
    low, high = difference + np.quantile(noise, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # the tolerance keeps the rounding of sums from breaking ties
    as_far = int((np.abs(noise) >= abs(difference) - 1e-12).sum())
    known = np.isfinite(difference) and np.isfinite(noise).all()
    p_value = (1 + as_far) / (1 + len(noise)) if known else float("nan")
    return PairedDifference(float(first), float(second), float(difference), float(low), float(high), p_value)
