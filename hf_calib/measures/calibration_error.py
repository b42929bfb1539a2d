"""Calibration errors of option probabilities, and a report of all measures."""

from __future__ import annotations

import numpy as np

from .binning import BinSums, OptionBins, ReliabilityBins, bin_edges, bins_of, reliability_bins, top_label
from .checked import Examples, Predictions, check_examples, check_predictions, target_confidence
from .chunks import iterate_rows
from .noise_floor import NoiseFloor, bootstrap_interval, cells_of, noise_floor
from .options import MeasureOptions
from .proper_scores import (
    BrierDecomposition,
    aurc,
    brier_decomposition,
    brier_score,
    confidence_auroc,
    negative_log_likelihood,
)
from .selective import TieGroups
from .streaming import ConfidenceSums, OptionSums, SmoothGrid, StreamingCalibration
from .validation import as_weights


__all__ = [
    "BrierDecomposition",
    "MeasureOptions",
    "NoiseFloor",
    "ReliabilityBins",
    "StreamingCalibration",
    "aurc",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_score",
    "calibration_report",
    "classwise_calibration_error",
    "confidence_report",
    "confidence_auroc",
    "debiased_calibration_error",
    "expected_calibration_error",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "noise_floor",
    "reliability_bins",
    "smooth_calibration_error",
    "sweep_calibration_error",
    "target_calibration_error",
    "top_label",
]


def expected_calibration_error(
    probabilities, labels, n_bins: int = 10, binning: str = "equal_width", sample_weight=None
) -> float:
    r"""
    Compute the expected calibration error (conf-ECE) of the predicted option.

    .. math::
        \sum_b \frac{n_b}{N} \, |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    over bins b of the confidence. A measured ECE is biased upwards: compare it with [`noise_floor`], or use
    [`calibration_report`].

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1, padded with zeros where a question has fewer than K options.
        labels (array-like of shape `(N,)`):
            Index of the right option, in `[0, K)`.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"`: bins `[b / n_bins, (b + 1) / n_bins)`; the last one includes 1.0. `"equal_mass"`: the same
            number of examples in each bin, equal confidences together.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row, at least 0. All means are weighted, and only ratios of weights matter.

    Returns:
        `float` in [0, 1].

    Raises:
        TypeError: An array has the wrong type.
        ValueError: Logits, NaN, empty input, a label out of range, or shapes that do not fit. The row is named.

    References:
        Naeini, Cooper & Hauskrecht (2015), "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 29.
        Guo et al. (2017), "On Calibration of Modern Neural Networks", eq. 3, arXiv 1706.04599.

    Example:

    ```python
    >>> from hf_calib.measures.calibration_error import expected_calibration_error
    >>> round(expected_calibration_error([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1]), 4)
    0.3333

    ```
    """
    return _top_label_bins(probabilities, labels, n_bins, binning, sample_weight).error


def _top_label_bins(probabilities, labels, n_bins: int, binning: str, sample_weight) -> ReliabilityBins:
    if binning != "equal_width":
        predictions = check_predictions(probabilities, labels, sample_weight)
        return bins_of(predictions.confidences, predictions.correct, predictions.weights, n_bins, binning)
    sums = BinSums(bin_edges(np.empty(0), n_bins))  # known edges: one pass, no array of length N
    for rows in iterate_rows(probabilities, labels, sample_weight):
        sums.add(*rows.top_label(), rows.weights)
    return sums.bins()


def maximum_calibration_error(
    probabilities, labels, n_bins: int = 10, binning: str = "equal_width", sample_weight=None
) -> float:
    """
    Compute the maximum calibration error (MCE): the largest gap between accuracy and confidence of a bin.

    A bin of one example counts as much as a full one, so the MCE is noisy. Arguments, errors and references as in
    [`expected_calibration_error`].

    Returns:
        `float` in [0, 1].
    """
    return _top_label_bins(probabilities, labels, n_bins, binning, sample_weight).largest_gap


def classwise_calibration_error(probabilities, labels, n_bins: int = 10, sample_weight=None) -> float:
    """
    Compute the classwise calibration error (cw-ECE).

    It is the binned error of the probability of option k against `label == k`, averaged over the options k. With mixed
    K, padding adds nothing to the error of its option, and an option that is padding in all rows is left out.
    Arguments and errors as in [`expected_calibration_error`], with equal-width bins.

    Returns:
        `float` in [0, 1].

    References:
        Kull et al. (2019), "Beyond temperature scaling", arXiv 1910.12656.
    """
    options = OptionBins(n_bins)
    for rows in iterate_rows(probabilities, labels, sample_weight):
        options.add(rows)
    return options.error


def target_calibration_error(
    probabilities, target_probabilities, n_bins: int = 10, binning: str = "equal_width", sample_weight=None
) -> float:
    """
    Compute the target calibration error (TCE).

    It is the ECE in which the outcome of a prediction is replaced by the probability that the target gives to it.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities of the model, rows summing to 1.
        target_probabilities (array-like of shape `(N, K)`):
            Option probabilities of the target for the same questions.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        `float` in [0, 1].

    References:
        Xiao et al. (2025), "Restoring Calibration for Aligned Large Language Models", arXiv 2505.01997.
    """
    confidences, expected = target_confidence(probabilities, target_probabilities)
    weights = as_weights(sample_weight, len(confidences))
    return bins_of(confidences, expected, weights, n_bins, binning).error


def debiased_calibration_error(
    probabilities,
    labels,
    n_bins: int = 10,
    binning: str = "equal_width",
    norm: str = "l1",
    sample_weight=None,
) -> float:
    r"""
    Compute the ECE less its upward bias from sampling noise, at least 0.

    With the gap g_b, the accuracy a_b and the number of examples n_b of bin b, `norm="l1"` subtracts
    [`~hf_calib.measures.ece_interval.BinGaps.bias`] from the ECE. `norm="l2"` is

    .. math::
        \sqrt{\sum_b \frac{n_b}{N} \left( g_b^2 - \frac{a_b (1 - a_b)}{n_b - 1} \right)}

    whose square is unbiased; bins of one example are left out. With weights n_b is the effective number of examples,
    `(sum w)^2 / sum w^2`.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"`, comparable with the ECE, or `"l2"`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        `float` in [0, 1].

    Raises:
        ValueError: `norm` is unknown; otherwise as in [`expected_calibration_error`].

    References:
        Kumar, Liang & Ma (2019), "Verified Uncertainty Calibration", arXiv 1909.10155.
        Roelofs et al. (2022), "Mitigating Bias in Calibration Error Estimation", arXiv 2012.08668.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"`norm` must be 'l1' or 'l2', got {norm!r}.")
    cells = cells_of(check_predictions(probabilities, labels, sample_weight), n_bins, binning)
    if norm == "l1":
        return max(0.0, cells.measured - cells.bias)
    bins = cells.bins
    several = bins.counts > 1 + 1e-9  # tolerance for the rounding of effective counts
    variance = bins.accuracy * (1 - bins.accuracy) / np.where(several, bins.counts - 1, 1)
    squares = (bins.gaps**2 - variance)[several]
    return float(np.sqrt(max(0.0, bins.weights[several] @ squares / bins.weights.sum())))


def sweep_calibration_error(probabilities, labels, sample_weight=None) -> float:
    """
    Compute ECE-sweep: the equal-mass ECE with the largest number of bins for which the accuracy rises from bin to bin.

    Equal confidences share a bin, and at most 1,000 bins are tried. Errors as in [`expected_calibration_error`].

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        `float` in [0, 1].

    References:
        Roelofs et al. (2022), "Mitigating Bias in Calibration Error Estimation", arXiv 2012.08668.
    """
    return TieGroups.of(check_predictions(probabilities, labels, sample_weight)).sweep_error()


def smooth_calibration_error(probabilities, labels, sample_weight=None) -> float:
    """
    Compute the smooth ECE, which has no bins.

    The residuals `correct - confidence` are smoothed over the confidence by a Gaussian kernel reflected at 0 and 1.
    The error at a bandwidth is the integral of their absolute value. The smooth ECE is the error at the bandwidth that
    equals it. The residuals are put on a grid of 4,096 cells, so that the cost after one pass does not depend on N.
    Errors as in [`expected_calibration_error`].

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        `float` in [0, 1].

    References:
        Blasiok & Nakkiran (2023), "Smooth ECE", arXiv 2309.12236.
    """
    grid = SmoothGrid()
    for rows in iterate_rows(probabilities, labels, sample_weight):
        grid.add(*rows.top_label(), rows.weights)
    return grid.error()


def calibration_report(
    probabilities, labels, target_probabilities=None, sample_weight=None, **options
) -> dict[str, float]:
    """
    Compute all calibration measures of a set of predictions.

    For predictions that arrive in batches see [`StreamingCalibration`].

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1, padded with zeros where a question has fewer than K options.
        labels (array-like of shape `(N,)`):
            Index of the right option, in `[0, K)`.
        target_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of a calibrated target. Adds `tce` and `critical_accuracy`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row. All means are weighted, and the noise floor and the interval use the
            effective number of examples, `(sum w)^2 / sum w^2`.
        options:
            `n_bins`, `binning`, `n_bootstrap` and `seed`, see [`~hf_calib.measures.options.MeasureOptions`]. `binning`
            applies to `ece`, its interval and noise floor, `debiased_ece`, `mce` and `tce`.

    Returns:
        `dict[str, float]` with the keys

        - `n` (an `int`) and `n_effective`: number of rows with a weight above 0, and effective number;
        - `accuracy`, `confidence` and `overconfidence` (confidence less accuracy);
        - `ece` with `ece_low` and `ece_high` (95% interval), `ece_noise_floor`, `ece_noise_floor_p95`, `ece_p_value`;
        - `ece_equal_mass`, `ece_sweep`, `debiased_ece`, `smooth_ece`, `mce`, `cw_ece`;
        - `auroc` (NaN if all or no predictions are right) and `aurc`, each with its 95% interval: `auroc_low`,
          `auroc_high`, `aurc_low`, `aurc_high`;
        - `e_aurc` (AURC less that of the best order) and `augrc` (mean share of all questions answered wrongly);
        - `nll` and `brier`, each with its 95% interval (`nll_low`, ...), `brier_calibration`, `brier_refinement`;
        - with a target `tce` and `critical_accuracy`, the mean confidence of the target.

        The 95% intervals cover in simulation (docs/results/coverage.md): `ece` 93 to 98% for each kind of model with
        ten equal-width bins, and as little as 80% with 15 equal-mass bins; `nll`, `brier`, `auroc` and `aurc` 92 to
        97% for each kind from 100 rows on.

    Raises:
        TypeError: An array has the wrong type, or an option is unknown.
        ValueError: Logits, NaN, empty input, a label out of range, or shapes that do not fit. The row is named.

    Example:

    ```python
    >>> from hf_calib.measures.calibration_error import calibration_report
    >>> report = calibration_report([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1])
    >>> report["n"], round(report["ece"], 4), round(report["overconfidence"], 4)
    (3, 0.3333, 0.1333)

    ```
    """
    options = MeasureOptions(**options)
    predictions = check_predictions(probabilities, labels, sample_weight, target_probabilities)
    report = report_predictions(predictions, options)
    return report if target_probabilities is None else report | report_target(predictions, options)


def confidence_report(confidences, correct, sample_weight=None, **options) -> dict[str, float]:
    """
    Compute the calibration measures of confidences without option probabilities.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
        options:
            `n_bins`, `binning`, `n_bootstrap` and `seed`, see [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        `dict[str, float]`: the keys of [`calibration_report`] but `cw_ece`, `nll` and `brier` with their intervals,
        `brier_calibration` and `brier_refinement`.

    Raises:
        TypeError: An option is unknown.
        ValueError: A value is outside its range, or the shapes do not fit. The row is named.

    Example:

    ```python
    >>> from hf_calib.measures.calibration_error import confidence_report
    >>> round(confidence_report([0.9, 0.7, 0.8], [1, 0, 1])["ece"], 4)
    0.3333

    ```
    """
    options = MeasureOptions(**options)
    return report_examples(check_examples(confidences, correct, sample_weight), options)


def report_predictions(predictions: Predictions, options: MeasureOptions) -> dict[str, float]:
    """Compute the report of checked predictions, see [`calibration_report`]."""
    sums = OptionSums(options.n_bins)
    for rows in predictions.rows():
        sums.add(rows)
    return report_examples(predictions, options) | sums.report()


def report_target(predictions: Predictions, options: MeasureOptions) -> dict[str, float]:
    """Compute `tce` and `critical_accuracy` of checked predictions with a target."""
    bins = bins_of(predictions.confidences, predictions.expected, predictions.weights, options.n_bins, options.binning)
    return {"tce": bins.error, "critical_accuracy": predictions.mean(predictions.other.confidences)}


def report_examples(examples: Examples, options: MeasureOptions) -> dict[str, float]:
    """Compute the report of checked examples, see [`confidence_report`]."""
    edges = bin_edges(examples.confidences, options.n_bins, options.binning, examples.weights)
    sums = ConfidenceSums(edges)
    for chunk in examples.chunks():
        sums.add(*chunk)
    return sums.report(TieGroups.of(examples), options)
