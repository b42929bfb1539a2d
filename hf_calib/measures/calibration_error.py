"""Calibration measures: option probabilities and labels in, floats out. NumPy only."""

from __future__ import annotations

import numpy as np

from .binning import BinSums, OptionBins, ReliabilityBins, bin_edges, reliability_bins, top_label
from .noise_floor import NoiseFloor, bootstrap_interval, group_cells, noise_floor
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
from .validation import (
    as_examples,
    as_matrix,
    as_probabilities,
    as_weights,
    best_option,
    iterate_columns,
    iterate_outcomes,
    iterate_rows,
)


__all__ = [
    "BrierDecomposition",
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
    """
    Confidence calibration error (conf-ECE): `sum_b n_b / N * |accuracy_b - confidence_b|` over bins of the confidence
    of the predicted option.

    A measured ECE is biased upwards: read it next to [`noise_floor`] and N, or use [`calibration_report`].

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1, padded with zeros where a question has fewer than K options.
        labels (array-like of shape `(N,)`):
            Index of the right option, in `[0, K)`.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"`: bins `[b / n_bins, (b + 1) / n_bins)`, the last one closed: a confidence of exactly 1.0
            belongs to the last bin. `"equal_mass"`: the same number of examples in each bin, ties together.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row, not negative: every mean becomes a weighted one. Only ratios matter, and a
            row of weight 0 counts for nothing.

    Returns:
        `float` in [0, 1]. Source: Naeini et al. (2015), Guo et al. (arXiv 1706.04599).

    Raises:
        ValueError: Logits, NaN, empty input, labels out of range, lengths that differ: named with their row.

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
        return reliability_bins(*top_label(probabilities, labels), n_bins, binning, sample_weight)
    sums = BinSums(bin_edges(np.empty(0), n_bins))  # the borders are known: one pass, and nothing of length N
    for rows in iterate_rows(probabilities, labels, sample_weight):
        sums.add(*rows.top_label(), rows.weights)
    return sums.bins()


def maximum_calibration_error(
    probabilities, labels, n_bins: int = 10, binning: str = "equal_width", sample_weight=None
) -> float:
    """
    Largest gap `|accuracy_b - confidence_b|` over the bins that hold examples (MCE). A bin of one example counts as
    much as a full one, so it is a noisy number. Arguments as in [`expected_calibration_error`].
    """
    return _top_label_bins(probabilities, labels, n_bins, binning, sample_weight).largest_gap


def classwise_calibration_error(probabilities, labels, n_bins: int = 10, sample_weight=None) -> float:
    """
    Classwise ECE: the binned error of the probability of option k against `label == k`, in equal-width bins of its
    own for every k, averaged over the options (Kull et al., arXiv 1910.12656).

    With mixed K, a padded entry adds nothing to its option's error, and a column that is padding throughout is left
    out of the average. Arguments as in [`expected_calibration_error`].
    """
    options = OptionBins(n_bins)
    for rows in iterate_rows(probabilities, labels, sample_weight):
        options.add(rows)
    return options.error


def target_calibration_error(
    probabilities, target_probabilities, n_bins: int = 10, binning: str = "equal_width", sample_weight=None
) -> float:
    """
    Target calibration error (TCE): the ECE in which "correct" is replaced by `target(predicted option | x)`, the
    probability that a calibrated reference gives to the model's choice (Xiao et al., arXiv 2505.01997).

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities of the model.
        target_probabilities (array-like of shape `(N, K)`):
            Option probabilities of the reference, row by row for the same questions.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
    """
    confidences, target = target_confidence(probabilities, target_probabilities)
    return reliability_bins(confidences, target, n_bins, binning, sample_weight).error


def target_confidence(
    probabilities, target_probabilities, name: str = "target_probabilities"
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of the model and target probability of its choice, both float64 of shape `(N,)`."""
    model, model_options = as_matrix(probabilities)
    target, target_options = as_matrix(target_probabilities, name)
    if model.shape != target.shape:
        raise ValueError(
            f"`{name}` has shape {target.shape}, `probabilities` {model.shape}: "
            "both must hold the same questions and options."
        )
    if np.ndim(model_options) or np.ndim(target_options):  # rows of different lengths know their options
        fewest = _fewest_options(model, model_options), _fewest_options(target, target_options)
        bad = (fewest[0] > target_options) | (fewest[1] > model_options)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"`{name}` row {row} has {fewest[1][row]} options, `probabilities` row {row} has {fewest[0][row]}: "
                "both must hold the same questions and options."
            )
    confidences, picked = [], []
    chunks = zip(iterate_columns(model), iterate_columns(target, name), strict=True)
    for (_, columns), (_, target_columns) in chunks:
        confidence, choice = best_option(columns)
        confidences.append(confidence)
        picked.append(target_columns[choice, np.arange(len(choice))])
    return np.concatenate(confidences), np.concatenate(picked)


def _fewest_options(array: np.ndarray, num_options) -> np.ndarray:
    """K of each row where it is known, else the least that it can be: zeros at the end may be padding."""
    if np.ndim(num_options):
        return num_options
    return array.shape[1] - (array[:, ::-1] != 0).argmax(axis=1)


def debiased_calibration_error(
    probabilities,
    labels,
    n_bins: int = 10,
    binning: str = "equal_width",
    norm: str = "l1",
    sample_weight=None,
) -> float:
    """
    ECE less the part that sampling noise adds to it; 0 where that would be negative.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"`, comparable with the ECE: the bias `E|gap_b + noise_b| - |gap_b|` under normal noise of variance
            `accuracy_b (1 - accuracy_b) / n_b` is subtracted; Kumar et al. simulate it, here it is the mean of a
            folded normal in closed form. `"l2"`: root of
            `sum_b n_b / N (gap_b^2 - accuracy_b (1 - accuracy_b) / (n_b - 1))`, whose square is unbiased; bins of
            one example have no variance estimate and are left out. With weights n_b is the effective number of
            examples, `(sum w)^2 / sum w^2`.
            Sources: Kumar et al. (arXiv 1909.10155), Roelofs et al. (arXiv 2012.08668).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"`norm` must be 'l1' or 'l2', got {norm!r}.")
    cells = group_cells(*top_label(probabilities, labels), n_bins, binning, sample_weight)
    if norm == "l1":
        return max(0.0, cells.measured - cells.bias)
    bins = cells.bins
    several = bins.counts > 1 + 1e-9  # effective counts round
    variance = bins.accuracy * (1 - bins.accuracy) / np.where(several, bins.counts - 1, 1)
    squares = (bins.gaps**2 - variance)[several]
    return float(np.sqrt(max(0.0, bins.weights[several] @ squares / bins.weights.sum())))


def sweep_calibration_error(probabilities, labels, sample_weight=None) -> float:
    """
    ECE-sweep: equal-mass ECE with the largest number of bins up to which the accuracy rises from bin to bin
    (Roelofs et al., arXiv 2012.08668). Equal confidences share a bin and at most 1,000 bins are tried.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
    """
    return TieGroups.sort(*as_examples(*top_label(probabilities, labels), sample_weight)).sweep_error()


def smooth_calibration_error(probabilities, labels, sample_weight=None) -> float:
    """
    Smooth ECE (Blasiok & Nakkiran, arXiv 2309.12236): no bins, no parameter.

    The residuals `correct - confidence` are smoothed over the confidence with a Gaussian kernel reflected at 0 and 1;
    the error at bandwidth s is the integral of the absolute value, and the measure is the error at the bandwidth that
    equals its own error. Residuals are put on a grid of 4,096 cells (linearly split between two), where the reflected
    kernel is a product in Fourier space: the cost beyond one pass over the data does not depend on N.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
    """
    grid = SmoothGrid()
    for rows in iterate_rows(probabilities, labels, sample_weight):
        grid.add(*rows.top_label(), rows.weights)
    return grid.error()


def calibration_report(
    probabilities,
    labels,
    target_probabilities=None,
    n_bins: int = 10,
    binning: str = "equal_width",
    n_bootstrap: int = 1000,
    seed: int | None = 0,
    sample_weight=None,
) -> dict[str, float]:
    """
    All measures of a set of predictions. For predictions that come in batches see [`StreamingCalibration`].

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1, padded with zeros where a question has fewer than K options.
        labels (array-like of shape `(N,)`):
            Index of the right option, in `[0, K)`.
        target_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of a calibrated reference; adds `tce` and `critical_accuracy`.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the binned measures.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            Bins behind `ece`, its interval and noise floor, `debiased_ece`, `mce` and `tce`: `"equal_width"` or
            `"equal_mass"`.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Resamples behind the 95% interval, and simulations behind the noise floor.
        seed (`int`, *optional*, defaults to `0`):
            Seed of both; `None` for fresh randomness.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row: every mean becomes a weighted one, and noise floor and interval work with
            the effective number of examples, `(sum w)^2 / sum w^2`. Only ratios matter, and a row of weight 0 counts
            for nothing.

    Returns:
        `dict[str, float]`: `n` (an `int`), `n_effective` (with weights `(sum w)^2 / sum w^2`, else the same), `accuracy`,
        `confidence`, `overconfidence` (confidence less accuracy),
        `ece` with `ece_low` and `ece_high` (95% interval), `ece_noise_floor`, `ece_noise_floor_p95`, `ece_p_value`,
        `ece_equal_mass`, `ece_sweep`, `debiased_ece`, `smooth_ece`, `mce`, `auroc` (NaN when all or no predictions are
        right), `aurc`, `cw_ece`, `nll`, `brier`, `brier_calibration`, `brier_refinement`; with a target also `tce` and
        `critical_accuracy`.

    Example:

    ```python
    >>> from hf_calib.measures.calibration_error import calibration_report
    >>> report = calibration_report([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1])
    >>> report["n"], round(report["ece"], 4), round(report["overconfidence"], 4)
    (3, 0.3333, 0.1333)

    ```
    """
    options, chunks = OptionSums(n_bins), []
    for rows in iterate_rows(probabilities, labels, sample_weight):
        options.add(rows)
        chunks.append((*rows.top_label(), rows.weights))
    confidences, correct = (np.concatenate([chunk[i] for chunk in chunks]) for i in (0, 1))
    weights = None if sample_weight is None else np.concatenate([chunk[2] for chunk in chunks])
    del chunks
    report = (
        _report_by_confidence(confidences, correct, weights, n_bins, binning, n_bootstrap, seed) | options.report()
    )
    if target_probabilities is not None:
        confidences, target = target_confidence(probabilities, target_probabilities)
        report["tce"] = reliability_bins(confidences, target, n_bins, binning, sample_weight).error
        ceilings = as_probabilities(target_probabilities, "target_probabilities").max(axis=1)
        weights = as_weights(sample_weight, len(ceilings))
        report["critical_accuracy"] = float(np.average(ceilings.astype(np.float64), weights=weights))
    return report


def confidence_report(
    confidences,
    correct,
    n_bins: int = 10,
    binning: str = "equal_width",
    n_bootstrap: int = 1000,
    seed: int | None = 0,
    sample_weight=None,
) -> dict[str, float]:
    """
    [`calibration_report`] of predictions of which the confidence is known and the options are not: without `cw_ece`,
    `nll`, `brier` and its split, which need them.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        n_bins, binning, n_bootstrap, seed, sample_weight:
            As in [`calibration_report`].

    Example:

    ```python
    >>> from hf_calib.measures.calibration_error import confidence_report
    >>> round(confidence_report([0.9, 0.7, 0.8], [1, 0, 1])["ece"], 4)
    0.3333

    ```
    """
    examples = as_examples(confidences, correct, sample_weight)
    return _report_by_confidence(*examples, n_bins, binning, n_bootstrap, seed)


def _report_by_confidence(
    confidences: np.ndarray,
    correct: np.ndarray,
    weights: np.ndarray | None,
    n_bins: int,
    binning: str,
    n_bootstrap: int,
    seed: int | None,
) -> dict[str, float]:
    """Report of checked examples of which none has weight 0."""
    sums = ConfidenceSums(bin_edges(confidences, n_bins, binning, weights))
    for chunk in iterate_outcomes(confidences, correct, weights):
        sums.add(*chunk)
    return sums.report(TieGroups.sort(confidences, correct, weights), n_bootstrap, seed)
