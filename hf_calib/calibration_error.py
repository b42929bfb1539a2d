"""Calibration measures: option probabilities and labels in, floats out. NumPy only."""

from __future__ import annotations

import numpy as np

from .binning import (
    ReliabilityBins,
    as_labels,
    as_probabilities,
    reliability_bins,
    take_confidence,
    top_label,
)
from .scores import (
    BrierDecomposition,
    aurc,
    aurc_of_sorted,
    auroc_of_sorted,
    brier_decomposition,
    brier_score,
    confidence_auroc,
    negative_log_likelihood,
    sort_by_confidence,
    used_columns,
)
from .uncertainty import (
    NoiseFloor,
    bootstrap_interval,
    floor_of_cells,
    group_cells,
    interval_of_cells,
    noise_floor,
    sampling_bias,
)


__all__ = [
    "BrierDecomposition",
    "NoiseFloor",
    "ReliabilityBins",
    "aurc",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_score",
    "calibration_report",
    "classwise_calibration_error",
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

_SMOOTH_GRID = 4096  # smooth ECE: cells of [0, 1]
_SWEEP_LIMIT = 1000  # ECE-sweep: most bins tried


def expected_calibration_error(probabilities, labels, n_bins: int = 10, binning: str = "equal_width") -> float:
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

    Returns:
        `float` in [0, 1]. Source: Naeini et al. (2015), Guo et al. (arXiv 1706.04599).

    Raises:
        ValueError: Logits, NaN, empty input, labels out of range, lengths that differ: named with their row.

    Example:

    ```python
    >>> from hf_calib.calibration_error import expected_calibration_error
    >>> round(expected_calibration_error([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1]), 4)
    0.3333

    ```
    """
    return reliability_bins(*top_label(probabilities, labels), n_bins, binning).error


def maximum_calibration_error(probabilities, labels, n_bins: int = 10, binning: str = "equal_width") -> float:
    """
    Largest gap `|accuracy_b - confidence_b|` over the bins that hold examples (MCE). A bin of one example counts as
    much as a full one, so it is a noisy number. Arguments as in [`expected_calibration_error`].
    """
    return float(np.nanmax(np.abs(reliability_bins(*top_label(probabilities, labels), n_bins, binning).gaps)))


def classwise_calibration_error(probabilities, labels, n_bins: int = 10) -> float:
    """
    Classwise ECE: the binned error of the probability of option k against `label == k`, in equal-width bins of its
    own for every k, averaged over the options (Kull et al., arXiv 1910.12656).

    With mixed K, a padded entry adds nothing to its option's error, and a column that is padding throughout is left
    out of the average. Arguments as in [`expected_calibration_error`].
    """
    probabilities = as_probabilities(probabilities)
    labels = as_labels(labels, *probabilities.shape)
    errors = [reliability_bins(column, hits, n_bins).error for column, hits in used_columns(probabilities, labels)]
    return float(np.mean(errors))


def target_calibration_error(
    probabilities, target_probabilities, n_bins: int = 10, binning: str = "equal_width"
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
    """
    confidences, target = target_confidence(probabilities, target_probabilities)
    return reliability_bins(confidences, target, n_bins, binning).error


def target_confidence(probabilities, target_probabilities) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of the model and target probability of its choice, both float64 of shape `(N,)`."""
    probabilities = as_probabilities(probabilities)
    target_probabilities = as_probabilities(target_probabilities, "target_probabilities")
    if probabilities.shape != target_probabilities.shape:
        raise ValueError(
            f"`target_probabilities` has shape {target_probabilities.shape}, `probabilities` {probabilities.shape}: "
            "both must hold the same questions and options."
        )
    prediction = probabilities.argmax(axis=1)
    return take_confidence(probabilities, prediction), take_confidence(target_probabilities, prediction)


def debiased_calibration_error(
    probabilities, labels, n_bins: int = 10, binning: str = "equal_width", norm: str = "l1"
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
            one example have no variance estimate and are left out.
            Sources: Kumar et al. (arXiv 1909.10155), Roelofs et al. (arXiv 2012.08668).
    """
    return _debiased(reliability_bins(*top_label(probabilities, labels), n_bins, binning), norm)


def _debiased(bins: ReliabilityBins, norm: str = "l1") -> float:
    if norm not in ("l1", "l2"):
        raise ValueError(f"`norm` must be 'l1' or 'l2', got {norm!r}.")
    filled = bins.counts > (0 if norm == "l1" else 1)
    counts, accuracy, gaps = bins.counts[filled], bins.accuracy[filled], bins.gaps[filled]
    if norm == "l1":
        return max(0.0, bins.error - sampling_bias(counts, accuracy, gaps))
    square = counts @ (gaps**2 - accuracy * (1 - accuracy) / (counts - 1)) / bins.counts.sum()
    return float(np.sqrt(max(0.0, square)))


def sweep_calibration_error(probabilities, labels) -> float:
    """
    ECE-sweep: equal-mass ECE with the largest number of bins up to which the accuracy rises from bin to bin
    (Roelofs et al., arXiv 2012.08668). Equal confidences share a bin and at most 1,000 bins are tried.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
    """
    return _sweep(*sort_by_confidence(*top_label(probabilities, labels)))


def _sweep(confidences: np.ndarray, correct: np.ndarray) -> float:
    n = len(confidences)
    hits = np.concatenate([[0.0], np.cumsum(correct)])
    gaps = np.concatenate([[0.0], np.cumsum(confidences - correct)])
    error = abs(gaps[-1]) / n
    for n_bins in range(2, min(n, _SWEEP_LIMIT) + 1):
        firsts = np.arange(1, n_bins) * n // n_bins
        borders = np.searchsorted(confidences, confidences[firsts])  # ties: all of them to the right of the border
        borders = np.unique(np.concatenate([[0], borders, [n]]))
        accuracy = np.diff(hits[borders]) / np.diff(borders)
        if np.any(np.diff(accuracy) < 0):
            break
        error = np.abs(np.diff(gaps[borders])).sum() / n
    return float(error)


def smooth_calibration_error(probabilities, labels) -> float:
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
    """
    return _smooth(*top_label(probabilities, labels))


def _smooth(confidences: np.ndarray, correct: np.ndarray) -> float:
    position = np.clip(confidences * _SMOOTH_GRID - 0.5, 0, _SMOOTH_GRID - 1)
    left = np.minimum(position.astype(np.int64), _SMOOTH_GRID - 2)
    share, residual = position - left, correct - confidences
    grid = np.bincount(left, weights=residual * (1 - share), minlength=_SMOOTH_GRID)
    grid += np.bincount(left + 1, weights=residual * share, minlength=_SMOOTH_GRID)
    grid /= len(confidences)
    # a function on [0, 1] continued evenly has period 2; there the reflected Gaussian is an ordinary one
    spectrum = np.fft.rfft(np.concatenate([grid, grid[::-1]]))
    frequency = np.pi * np.arange(len(spectrum))

    def error(bandwidth: float) -> float:
        smoothed = np.fft.irfft(spectrum * np.exp(-0.5 * (bandwidth * frequency) ** 2), 2 * _SMOOTH_GRID)
        return float(np.abs(smoothed[:_SMOOTH_GRID]).sum())

    low, high = 0.0, 1.0  # the error falls with the bandwidth, so the fixed point is bracketed
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > middle else (low, middle)
    return high


def calibration_report(
    probabilities,
    labels,
    target_probabilities=None,
    n_bins: int = 10,
    binning: str = "equal_width",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """
    All measures of a set of predictions.

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
            Seed of both.

    Returns:
        `dict[str, float]`: `n`, `accuracy`, `confidence`, `overconfidence` (confidence less accuracy), `ece` with
        `ece_low` and `ece_high` (95% interval), `ece_noise_floor`, `ece_noise_floor_p95`, `ece_p_value`,
        `ece_equal_mass`, `ece_sweep`, `debiased_ece`, `smooth_ece`, `cw_ece`, `mce`, `nll`, `brier`,
        `brier_calibration`, `brier_refinement`, `auroc` (NaN when all or no predictions are right), `aurc`; with a
        target also `tce` and `critical_accuracy`. `n` is an `int`.

    Example:

    ```python
    >>> from hf_calib.calibration_error import calibration_report
    >>> report = calibration_report([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1])
    >>> report["n"], round(report["ece"], 4), round(report["overconfidence"], 4)
    (3, 0.3333, 0.1333)

    ```
    """
    probabilities = as_probabilities(probabilities)
    confidences, correct = sort_by_confidence(*top_label(probabilities, labels))
    bins = reliability_bins(confidences, correct, n_bins, binning)
    cells = group_cells(confidences, correct, n_bins, binning)
    floor = floor_of_cells(cells, n_bootstrap, seed)
    low, high = interval_of_cells(cells, floor, n_bootstrap, 0.95, seed)
    brier = brier_decomposition(probabilities, labels, n_bins)
    report = {
        "n": len(confidences),
        "accuracy": float(correct.mean()),
        "confidence": float(confidences.mean()),
        "overconfidence": float(confidences.mean() - correct.mean()),
        "ece": bins.error,
        "ece_low": low,
        "ece_high": high,
        "ece_noise_floor": floor.mean,
        "ece_noise_floor_p95": floor.p95,
        "ece_p_value": floor.p_value,
        "ece_equal_mass": reliability_bins(confidences, correct, n_bins, "equal_mass").error,
        "ece_sweep": _sweep(confidences, correct),
        "debiased_ece": _debiased(bins),
        "smooth_ece": _smooth(confidences, correct),
        "cw_ece": classwise_calibration_error(probabilities, labels, n_bins),
        "mce": float(np.nanmax(np.abs(bins.gaps))),
        "nll": negative_log_likelihood(probabilities, labels),
        "brier": brier_score(probabilities, labels),
        "brier_calibration": brier.calibration,
        "brier_refinement": brier.refinement,
        "auroc": auroc_of_sorted(confidences, correct),
        "aurc": aurc_of_sorted(confidences, correct),
    }
    if target_probabilities is not None:
        report["tce"] = target_calibration_error(probabilities, target_probabilities, n_bins, binning)
        ceilings = as_probabilities(target_probabilities, "target_probabilities").max(axis=1)
        report["critical_accuracy"] = float(ceilings.mean(dtype=np.float64))
    return report
