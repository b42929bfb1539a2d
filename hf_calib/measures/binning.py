"""Confidence bins: the ground that every calibration measure stands on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .validation import Rows, as_outcomes, as_weights, check_whole, iterate_outcomes, iterate_rows


__all__ = [
    "BINNINGS",
    "BinSums",
    "OptionBins",
    "ReliabilityBins",
    "assign_bins",
    "bin_edges",
    "bins_from_sums",
    "equal_mass_firsts",
    "reliability_bins",
    "top_label",
]

BINNINGS = ("equal_width", "equal_mass")


class ReliabilityBins(NamedTuple):
    """
    Examples grouped by confidence. Bin `b` holds the confidences in `[edges[b], edges[b + 1])`, the last bin also its
    right edge. In an empty bin `confidence` and `accuracy` are NaN.

    Attributes:
        edges (`np.ndarray` of shape `(n_bins + 1,)`): Bin borders in [0, 1].
        counts (`np.ndarray` of shape `(n_bins,)`): Number of examples; those of weight 0 do not count.
        confidence (`np.ndarray` of shape `(n_bins,)`): Mean confidence, weighted.
        accuracy (`np.ndarray` of shape `(n_bins,)`): Share of correct predictions, weighted.
        weights (`np.ndarray` of shape `(n_bins,)`): Summed weights; the counts where no weights were given.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    weights: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """`confidence - accuracy` of each bin, NaN where it is empty: positive where the model is overconfident."""
        return self.confidence - self.accuracy

    @property
    def largest_gap(self) -> float:
        """Maximum calibration error: the largest absolute gap."""
        return float(np.nanmax(np.abs(self.gaps)))

    @property
    def error(self) -> float:
        """Expected calibration error: the absolute gaps weighted with the share of the examples."""
        filled = self.weights > 0
        return float(np.abs(self.gaps[filled]) @ self.weights[filled] / self.weights.sum())


def top_label(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    """
    Reduce option probabilities to what top-label calibration looks at.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the confidence `max_k q_k`, at most 1, and whether the predicted option is the
        right one (1.0 or 0.0), both float64 of shape `(N,)`. Ties go to the first option, as `argmax` does.
    """
    confidences, correct = zip(*(rows.top_label() for rows in iterate_rows(probabilities, labels)), strict=True)
    return np.concatenate(confidences), np.concatenate(correct, dtype=np.float64)


def bin_edges(
    confidences: np.ndarray, n_bins: int, binning: str = "equal_width", sample_weight: np.ndarray | None = None
) -> np.ndarray:
    """
    Borders of the confidence bins.

    Args:
        confidences (`np.ndarray` of shape `(N,)`):
            Confidences in [0, 1]; they decide the borders of equal-mass bins only.
        n_bins (`int`):
            Number of bins, at least 1.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"`, or `"equal_mass"`: N / n_bins examples in each bin, as far as ties allow. Equal
            confidences share a bin, so that the result does not depend on the order of the rows; a bin may be empty.
        sample_weight (`np.ndarray` of shape `(N,)`, *optional*):
            Weight of each row; equal mass is then equal weight.

    Returns:
        `np.ndarray` of shape `(n_bins + 1,)`, from 0 to 1.
    """
    check_whole(n_bins, "n_bins")
    if binning not in BINNINGS:
        raise ValueError(f"`binning` must be one of {BINNINGS}, got {binning!r}.")
    # b / n_bins, not linspace: the border .3 is then the number 0.3, and a confidence of 0.3 lies to its right
    edges = np.arange(n_bins + 1) / n_bins
    if binning == "equal_mass" and n_bins > 1:
        if sample_weight is None:
            firsts = np.arange(1, n_bins) * len(confidences) // n_bins
            edges[1:-1] = np.partition(confidences, np.unique(firsts))[firsts]
        else:
            order = np.argsort(confidences)
            edges[1:-1] = confidences[order[equal_mass_firsts(np.cumsum(sample_weight[order]), n_bins)]]
    return edges


def equal_mass_firsts(cumulative: np.ndarray, n_bins: int) -> np.ndarray:
    """First row of the bins 1 .. n_bins - 1 of equal weight, from the running sum of the sorted rows' weights."""
    total = cumulative[-1]
    # a hair to the right: where a bin is exactly full, rounding must not decide where the next one begins
    return np.searchsorted(cumulative, total * (np.arange(1, n_bins) / n_bins + 1e-12), side="right")


def assign_bins(confidences: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin index of each confidence, in an array of any shape; 1.0 belongs to the last bin, 0.0 to the first."""
    n_bins = len(edges) - 1
    if not np.array_equal(edges, np.arange(n_bins + 1) / n_bins):
        return np.searchsorted(edges[1:-1], confidences, side="right")
    # Equal width: a product, of which rounding may put a number on a border into the bin beside its own. Several
    # times as fast as a search, with the same result.
    index = (confidences * n_bins).astype(np.intp)
    np.minimum(index, n_bins - 1, out=index)
    index -= confidences < edges[index]
    index += confidences >= np.append(edges[1:-1], np.inf)[index]
    return index


def bins_from_sums(
    edges: np.ndarray, counts: np.ndarray, weights: np.ndarray, confidences: np.ndarray, correct: np.ndarray
) -> ReliabilityBins:
    """Bins from the number of their rows and the sums of weights, weighted confidences and weighted outcomes."""
    with np.errstate(invalid="ignore"):
        return ReliabilityBins(edges, counts.astype(np.int64), confidences / weights, correct / weights, weights)


class BinSums:
    """
    Accumulates examples chunk by chunk: what reliability bins are made of.

    Args:
        edges (`np.ndarray` of shape `(n_bins + 1,)`):
            Borders of the bins.
    """

    def __init__(self, edges: np.ndarray):
        self.edges = edges
        self.sums = np.zeros((4, len(edges) - 1))  # rows, weights, weighted confidences, weighted outcomes

    def add(self, confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add checked examples of which none has weight 0."""
        index, size = assign_bins(confidences, self.edges), len(self.edges) - 1
        counts = totals = np.bincount(index, minlength=size)
        if weights is not None:
            totals = np.bincount(index, weights, size)
            confidences, correct = confidences * weights, correct * weights
        self.sums += [counts, totals, np.bincount(index, confidences, size), np.bincount(index, correct, size)]

    def bins(self) -> ReliabilityBins:
        return bins_from_sums(self.edges, *self.sums)


class OptionBins:
    """
    Accumulates chunk by chunk the probability of every option against whether it was the right one, in bins of equal
    width for each option. Chunks may differ in K: an option that a row does not have counts as one of probability 0.

    Args:
        n_bins (`int`):
            Number of bins for each option.
    """

    def __init__(self, n_bins: int):
        self.edges = bin_edges(np.empty(0), n_bins)
        self.sums = np.zeros((3, 0, n_bins))  # weights, weighted probabilities, weights of the right options

    def add(self, rows: Rows) -> None:
        """Add checked predictions."""
        (num_options, size), n_bins = rows.columns.shape, self.sums.shape[2]
        cell = assign_bins(rows.columns, self.edges) + n_bins * np.arange(num_options)[:, None]
        columns, weights = rows.columns, None
        if rows.weights is not None:
            columns, weights = columns * rows.weights, np.broadcast_to(rows.weights, columns.shape).ravel()
        right = cell[rows.labels, np.arange(size)]
        cell, length = cell.ravel(), num_options * n_bins
        sums = (
            np.bincount(cell, weights, length),
            np.bincount(cell, columns.ravel(), length),
            np.bincount(right, rows.weights, length),
        )
        self._add_sums(np.reshape(sums, (3, num_options, n_bins)))

    def merge(self, other: OptionBins) -> None:
        """Add what another table with as many bins has seen."""
        self._add_sums(other.sums)

    def _add_sums(self, sums: np.ndarray) -> None:
        num_options = max(self.sums.shape[1], sums.shape[1])
        self.sums = _with_options(self.sums, num_options) + _with_options(sums, num_options)

    @property
    def _gaps(self) -> np.ndarray:
        """Summed gaps `(options, n_bins)` of the options that occur: padding alone has no probability and no hit."""
        used = self.sums[1:].any(axis=(0, 2))
        return (self.sums[1] - self.sums[2])[used]

    @property
    def error(self) -> float:
        """Classwise calibration error."""
        return float(np.abs(self._gaps).sum(axis=1).mean() / self.sums[0, 0].sum())

    @property
    def brier_calibration(self) -> float:
        """What the squared gaps of all options add to the Brier score."""
        weights = self.sums[0][self.sums[1:].any(axis=(0, 2))]
        squares = np.divide(self._gaps**2, weights, out=np.zeros_like(weights), where=weights > 0)
        return float(squares.sum() / self.sums[0, 0].sum())


def _with_options(sums: np.ndarray, num_options: int) -> np.ndarray:
    """The sums of [`OptionBins`] with further options, which none of its rows has."""
    added = num_options - sums.shape[1]
    if not added:
        return sums
    padded = np.pad(sums, ((0, 0), (0, added), (0, 0)))
    if sums.shape[1]:
        padded[0, -added:, 0] = sums[0, 0].sum()
    return padded


def reliability_bins(
    confidences, correct, n_bins: int = 10, binning: str = "equal_width", sample_weight=None
) -> ReliabilityBins:
    """
    Group predictions by confidence.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1, or a probability of being right).
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row, see [`as_weights`].

    Example:

    ```python
    >>> from hf_calib.measures.binning import reliability_bins
    >>> bins = reliability_bins([0.6, 0.7, 0.9, 1.0], [0, 1, 1, 1], n_bins=2)
    >>> bins.counts.tolist(), round(float(bins.confidence[1]), 2), float(bins.accuracy[1])
    ([0, 4], 0.8, 0.75)

    ```
    """
    confidences, correct = as_outcomes(confidences, correct)
    weights = as_weights(sample_weight, len(confidences))
    sums = BinSums(bin_edges(confidences, n_bins, binning, weights))
    for chunk in iterate_outcomes(confidences, correct, weights):
        sums.add(*chunk)
    return sums.bins()
