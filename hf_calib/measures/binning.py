"""Confidence bins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .chunks import Rows, iterate_outcomes, iterate_rows
from .options import BINNINGS, check_binning
from .validation import as_outcomes, as_weights, check_whole


__all__ = [
    "BINNINGS",
    "EDGE_TOLERANCE",
    "BinSums",
    "OptionBins",
    "ReliabilityBins",
    "assign_bins",
    "bin_edges",
    "bins_from_sums",
    "compared_with_edges",
    "equal_mass_firsts",
    "inner_edges",
    "reliability_bins",
    "top_label",
]


# Confidences so close below the edge of an equal-width bin lie on it: eight steps of float32 near 1. So .7 is in the
# same bin as a float64, as a float32 (0.69999999) and after a softmax. 16-bit numbers: see `validation.as_numbers`.
EDGE_TOLERANCE = 2.0**-21


class ReliabilityBins(NamedTuple):
    """
    Examples grouped by confidence.

    Bin b holds the confidences in `[edges[b], edges[b + 1])`, the last bin also its right edge. With equal-width bins
    a confidence that is less than 5e-7 below an edge counts as the edge, so that the bin of a number such as 0.7 does
    not depend on its dtype.

    Attributes:
        edges (`np.ndarray` of shape `(n_bins + 1,)`): Bin edges, from 0 to 1.
        counts (`np.ndarray` of shape `(n_bins,)`): Number of examples with a weight above 0.
        confidence (`np.ndarray` of shape `(n_bins,)`): Weighted mean confidence, NaN in an empty bin.
        accuracy (`np.ndarray` of shape `(n_bins,)`): Weighted share of correct predictions, NaN in an empty bin.
        weights (`np.ndarray` of shape `(n_bins,)`): Summed weights; the counts if no weights are given.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    weights: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """`confidence - accuracy` of each bin: positive where the model is overconfident, NaN in an empty bin."""
        return self.confidence - self.accuracy

    @property
    def largest_gap(self) -> float:
        """Maximum calibration error: the largest absolute gap."""
        return float(np.nanmax(np.abs(self.gaps)))

    @property
    def error(self) -> float:
        """Expected calibration error: the mean absolute gap, weighted with the share of the examples."""
        filled = self.weights > 0
        return float(np.abs(self.gaps[filled]) @ self.weights[filled] / self.weights.sum())


def top_label(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    """
    Reduce option probabilities to confidences and outcomes.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: confidence `max_k q_k` in [0, 1], and 1.0 where the predicted option is the
        right one, else 0.0. Both float64 of shape `(N,)`. Ties go to the first option, as in `argmax`.
    """
    confidences, correct = zip(*(rows.top_label() for rows in iterate_rows(probabilities, labels)), strict=True)
    return np.concatenate(confidences), np.concatenate(correct, dtype=np.float64)


def bin_edges(
    confidences: np.ndarray, n_bins: int, binning: str = "equal_width", sample_weight: np.ndarray | None = None
) -> np.ndarray:
    """
    Compute the edges of the confidence bins.

    Args:
        confidences (`np.ndarray` of shape `(N,)`):
            Confidences in [0, 1]; only the edges of equal-mass bins depend on them.
        n_bins (`int`):
            Number of bins, at least 1.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"`, or `"equal_mass"`: `N / n_bins` examples in each bin, as far as ties allow. Equal
            confidences share a bin, so the result does not depend on the order of the rows. A bin may be empty.
        sample_weight (`np.ndarray` of shape `(N,)`, *optional*):
            Weight of each row. Equal-mass bins then have equal weight.

    Returns:
        `np.ndarray` of shape `(n_bins + 1,)`, from 0 to 1.
    """
    check_whole(n_bins, "n_bins")
    check_binning(binning)
    # b / n_bins, not linspace: the edge .3 is then exactly 0.3
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
    """
    Find the first row of each equal-mass bin but the first.

    Args:
        cumulative (`np.ndarray` of shape `(N,)`):
            Cumulative weights of the rows, sorted by confidence.
        n_bins (`int`):
            Number of bins.

    Returns:
        `np.ndarray` of shape `(n_bins - 1,)`.
    """
    total = cumulative[-1]
    # the offset keeps rounding from deciding where the next bin begins if a bin is exactly full
    return np.searchsorted(cumulative, total * (np.arange(1, n_bins) / n_bins + 1e-12), side="right")


def compared_with_edges(confidences: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Confidences as they are compared with the edges: raised by the tolerance where bins have equal width."""
    return confidences + EDGE_TOLERANCE if _equal_width(edges) else confidences


def inner_edges(edges: np.ndarray) -> np.ndarray:
    """Smallest confidence of each bin but the first, `(n_bins - 1,)`: the edge less the tolerance."""
    return edges[1:-1] - EDGE_TOLERANCE if _equal_width(edges) else edges[1:-1]


def assign_bins(confidences: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin index of each confidence, for an array of any shape. 1.0 belongs to the last bin."""
    if not _equal_width(edges):
        return np.searchsorted(edges[1:-1], confidences, side="right")
    # A product, corrected for rounding at the edges. Several times as fast as a search.
    n_bins, confidences = len(edges) - 1, compared_with_edges(confidences, edges)
    index = (confidences * n_bins).astype(np.intp)
    np.minimum(index, n_bins - 1, out=index)
    index -= confidences < edges[index]
    index += confidences >= np.append(edges[1:-1], np.inf)[index]
    return index


def _equal_width(edges: np.ndarray) -> bool:
    """Whether edges are those of equal-width bins. Edges of equal-mass bins are confidences themselves."""
    return np.array_equal(edges, np.arange(len(edges)) / (len(edges) - 1))


def bins_from_sums(
    edges: np.ndarray, counts: np.ndarray, weights: np.ndarray, confidences: np.ndarray, correct: np.ndarray
) -> ReliabilityBins:
    """Make bins from their counts and their sums of weights, weighted confidences and weighted outcomes."""
    with np.errstate(invalid="ignore"):
        return ReliabilityBins(edges, counts.astype(np.int64), confidences / weights, correct / weights, weights)


class BinSums:
    """
    Accumulate examples in reliability bins, chunk by chunk.

    Args:
        edges (`np.ndarray` of shape `(n_bins + 1,)`):
            Edges of the bins.
    """

    def __init__(self, edges: np.ndarray):
        self.edges = edges
        self.sums = np.zeros((4, len(edges) - 1))  # rows, weights, weighted confidences, weighted outcomes

    def add(self, confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add checked examples with weights above 0."""
        index, size = assign_bins(confidences, self.edges), len(self.edges) - 1
        counts = totals = np.bincount(index, minlength=size)
        if weights is not None:
            totals = np.bincount(index, weights, size)
            confidences, correct = confidences * weights, correct * weights
        self.sums += [counts, totals, np.bincount(index, confidences, size), np.bincount(index, correct, size)]

    def bins(self) -> ReliabilityBins:
        """Return the bins."""
        return bins_from_sums(self.edges, *self.sums)


class OptionBins:
    """
    Accumulate the probability and the outcome of every option in equal-width bins, chunk by chunk.

    Chunks may differ in K: an option that a row does not have counts as one of probability 0.

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
        """Add the sums of another accumulator with the same number of bins."""
        self._add_sums(other.sums)

    def _add_sums(self, sums: np.ndarray) -> None:
        num_options = max(self.sums.shape[1], sums.shape[1])
        self.sums = _with_options(self.sums, num_options) + _with_options(sums, num_options)

    @property
    def _gaps(self) -> np.ndarray:
        """Summed gaps `(options, n_bins)` of the options that are not padding in every row."""
        used = self.sums[1:].any(axis=(0, 2))
        return (self.sums[1] - self.sums[2])[used]

    @property
    def error(self) -> float:
        """Classwise calibration error."""
        return float(np.abs(self._gaps).sum(axis=1).mean() / self.sums[0, 0].sum())

    @property
    def brier_calibration(self) -> float:
        """Calibration part of the Brier score: the weighted squared gaps of all options."""
        weights = self.sums[0][self.sums[1:].any(axis=(0, 2))]
        squares = np.divide(self._gaps**2, weights, out=np.zeros_like(weights), where=weights > 0)
        return float(squares.sum() / self.sums[0, 0].sum())


def _with_options(sums: np.ndarray, num_options: int) -> np.ndarray:
    """Extend the sums of [`OptionBins`] by options that none of its rows has."""
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
            Whether each prediction is right (0 or 1), or the probability that it is right.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row, see [`~hf_calib.measures.validation.as_weights`].

    Returns:
        [`ReliabilityBins`].

    Raises:
        ValueError: A value is outside its range, or the shapes do not fit.

    Example:

    ```python
    >>> from hf_calib.measures.binning import reliability_bins
    >>> bins = reliability_bins([0.6, 0.7, 0.9, 1.0], [0, 1, 1, 1], n_bins=2)
    >>> bins.counts.tolist(), round(float(bins.confidence[1]), 2), float(bins.accuracy[1])
    ([0, 4], 0.8, 0.75)

    ```
    """
    confidences, correct = as_outcomes(confidences, correct)
    return bins_of(confidences, correct, as_weights(sample_weight, len(confidences)), n_bins, binning)


def bins_of(
    confidences: np.ndarray,
    correct: np.ndarray,
    weights: np.ndarray | None = None,
    n_bins: int = 10,
    binning: str = "equal_width",
) -> ReliabilityBins:
    """Group checked predictions by confidence, see [`reliability_bins`]."""
    sums = BinSums(bin_edges(confidences, n_bins, binning, weights))
    for chunk in iterate_outcomes(confidences, correct, weights):
        sums.add(*chunk)
    return sums.bins()
