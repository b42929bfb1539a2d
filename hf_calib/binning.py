"""Checked inputs and confidence bins: the ground that every calibration measure stands on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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
    def error(self) -> float:
        """Expected calibration error: the absolute gaps weighted with the share of the examples."""
        filled = self.weights > 0
        return float(np.abs(self.gaps[filled]) @ self.weights[filled] / self.weights.sum())


def as_probabilities(probabilities, name: str = "probabilities") -> np.ndarray:
    """
    Check option probabilities and return them as a float array.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1. Rows with fewer than K options are padded with zeros; a list of
            lists of different lengths is padded here.
        name (`str`, *optional*, defaults to `"probabilities"`):
            What the errors call the array.

    Raises:
        ValueError: Empty input, fewer than two options, NaN, a negative entry, or a row that does not sum to 1.
    """
    if isinstance(probabilities, (list, tuple)):
        probabilities = _pad_ragged(probabilities)
    array = np.asarray(probabilities)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must be numbers, got dtype {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"`{name}` is empty: there is nothing to measure.")
    if array.ndim != 2:
        raise ValueError(f"`{name}` must have shape (N, K), one column per option, got shape {array.shape}.")
    if array.shape[1] < 2:
        raise ValueError(f"`{name}` has one column: a question needs at least two options.")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    # NaN and infinities show up in the row sums, so the healthy case costs two passes and no mask of shape (N, K).
    tolerance = 1e-2 if array.dtype.itemsize < 4 else 1e-3
    sums = np.einsum(
        "nk->n", array, dtype=np.promote_types(array.dtype, np.float32)
    )  # 4 times as fast as .sum(axis=1)
    if not (np.abs(sums - 1.0) <= tolerance).all() or array.min() < 0:
        _name_the_culprit(array, sums, tolerance, name)
    return array


def _pad_ragged(rows: list | tuple) -> np.ndarray | list | tuple:
    lengths = {len(row) for row in rows if hasattr(row, "__len__")}
    if len(lengths) < 2:
        return rows
    padded = np.zeros((len(rows), max(lengths)))
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def _name_the_culprit(array: np.ndarray, sums: np.ndarray, tolerance: float, name: str) -> None:
    for bad, what in ((np.isnan(array), "is NaN"), (np.isinf(array), "is infinite"), (array < 0, "is negative")):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            hint = "" if what == "is NaN" else ": this looks like logits, apply a softmax over the options first"
            value = "" if what != "is negative" else f" ({array[row, column]:.4g})"
            raise ValueError(f"`{name}` row {row}, option {column} {what}{value}{hint}.")
    bad = np.abs(sums - 1.0) > tolerance
    row = int(np.argmax(bad))
    hint = "looks like logits: apply a softmax over the options first" if array.max() > 1 else "normalise the rows"
    raise ValueError(
        f"`{name}` row {row} sums to {sums[row]:.4g}, not to 1 ({int(bad.sum())} of {len(array)} rows); {hint}."
    )


def as_labels(labels, n: int, num_options: int) -> np.ndarray:
    """
    Check labels and return them as an integer array.

    Args:
        labels (array-like of shape `(N,)`):
            Index of the right option, 0-based.
        n (`int`):
            Number of rows they belong to.
        num_options (`int`):
            K; every label must be in `[0, K)`.
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"`labels` must have shape (N,), one option index per row, got shape {array.shape}.")
    if len(array) != n:
        raise ValueError(f"`labels` has {len(array)} entries for {n} rows of probabilities.")
    if array.dtype.kind not in "iu":
        raise TypeError(f"`labels` must be integers (0-based option indices), got dtype {array.dtype}.")
    if array.min() < 0 or array.max() >= num_options:
        row = int(np.argmax((array < 0) | (array >= num_options)))
        raise ValueError(f"`labels` row {row} is {array[row]}, outside [0, {num_options}) for {num_options} options.")
    return array


def as_outcomes(confidences, correct) -> tuple[np.ndarray, np.ndarray]:
    """
    Check confidences and outcomes, and return both as float64 arrays.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of the prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            1 where the prediction is right, 0 where it is wrong; a probability of being right is welcome too.
    """
    arrays = []
    for name, values in (("confidences", confidences), ("correct", correct)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1:
            raise ValueError(f"`{name}` must have shape (N,), got shape {array.shape}.")
        if array.size == 0:
            raise ValueError(f"`{name}` is empty: there is nothing to measure.")
        if not (array.min() >= 0 and array.max() <= 1):  # written so that NaN fails
            row = int(np.argmin((array >= 0) & (array <= 1)))
            raise ValueError(f"`{name}` row {row} is {array[row]:.4g}, outside [0, 1].")
        arrays.append(array)
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(f"`confidences` has {len(arrays[0])} entries and `correct` has {len(arrays[1])}.")
    return arrays[0], arrays[1]


def as_weights(sample_weight, n: int) -> np.ndarray | None:
    """
    Check importance weights and return them as a float64 array; `None` stays `None`.

    Args:
        sample_weight (array-like of shape `(N,)`, *optional*):
            Weight of each row: finite and not negative, at least one above 0. Only their ratios matter, and a row of
            weight 0 counts for nothing.
        n (`int`):
            Number of rows they belong to.
    """
    if sample_weight is None:
        return None
    array = np.asarray(sample_weight, dtype=np.float64)
    if array.shape != (n,):
        raise ValueError(f"`sample_weight` has shape {array.shape} for {n} rows: give one weight per row.")
    if not (array.min() >= 0 and array.max() < np.inf):  # written so that NaN fails
        row = int(np.argmin((array >= 0) & (array < np.inf)))
        raise ValueError(f"`sample_weight` row {row} is {array[row]:.4g}: weights are finite and not negative.")
    if not array.any():
        raise ValueError("`sample_weight` is 0 in every row: there is nothing to measure.")
    return array


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
    probabilities = as_probabilities(probabilities)
    labels = as_labels(labels, *probabilities.shape)
    prediction = probabilities.argmax(axis=1)
    return take_confidence(probabilities, prediction), (prediction == labels).astype(np.float64)


def take_confidence(probabilities: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Probability of one option per row, float64 and at most 1 (a sum of rounded terms may pass it by a hair)."""
    picked = probabilities[np.arange(len(probabilities)), columns].astype(np.float64)
    return np.minimum(picked, 1.0, out=picked)


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
    if isinstance(n_bins, bool) or not isinstance(n_bins, (int, np.integer)) or n_bins < 1:
        raise ValueError(f"`n_bins` must be a whole number of at least 1, got {n_bins!r}.")
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
    """Bin index `(N,)` of each confidence; 1.0 belongs to the last bin, 0.0 to the first."""
    return np.searchsorted(edges[1:-1], confidences, side="right")


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
    >>> from hf_calib.binning import reliability_bins
    >>> bins = reliability_bins([0.6, 0.7, 0.9, 1.0], [0, 1, 1, 1], n_bins=2)
    >>> bins.counts.tolist(), round(float(bins.confidence[1]), 2), float(bins.accuracy[1])
    ([0, 4], 0.8, 0.75)

    ```
    """
    confidences, correct = as_outcomes(confidences, correct)
    weights = as_weights(sample_weight, len(confidences))
    edges = bin_edges(confidences, n_bins, binning, weights)
    index = assign_bins(confidences, edges)
    if weights is None:
        counts = totals = np.bincount(index, minlength=n_bins)
    else:
        counts = np.bincount(index[weights > 0], minlength=n_bins)
        totals = np.bincount(index, weights=weights, minlength=n_bins)
        confidences, correct = confidences * weights, correct * weights
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, weights=confidences, minlength=n_bins) / totals
        accuracy = np.bincount(index, weights=correct, minlength=n_bins) / totals
    return ReliabilityBins(edges, counts, confidence, accuracy, totals)
