"""What comes in: probabilities, labels, outcomes and weights are checked here, and cut into chunks that stay in cache."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from reprlib import repr as shown  # of a value as large as a book, the beginning
from typing import NamedTuple

import numpy as np


_CHUNK_NUMBERS = 1 << 18  # numbers in a chunk: 2 MB, about what a core keeps close
_CHUNK_ROWS = 1 << 12, 1 << 16  # least and most rows in a chunk
_LARGEST_WEIGHT = 1e100  # its square is still a number, and so is that of its inverse, the smallest


class Rows(NamedTuple):
    """
    A chunk of checked predictions, option by option.

    Attributes:
        columns (`np.ndarray` of shape `(K, rows)`): Option probabilities, float64, at most 1.
        labels (`np.ndarray` of shape `(rows,)`): Index of the right option.
        weights (`np.ndarray` of shape `(rows,)`, *optional*): Importance weights, all above 0; `None` where all count
            alike.
    """

    columns: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None

    @property
    def picked(self) -> np.ndarray:
        """Probability of the right option."""
        return self.columns[self.labels, np.arange(len(self.labels))]

    def top_label(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence (float64) and whether the predicted option is the right one (bool); ties go to the first."""
        confidences, prediction = best_option(self.columns)
        return confidences, prediction == self.labels


def best_option(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Largest entry and its index in each column of a `(K, rows)` array, the first where several are largest. Option by
    option: five times as fast as `argmax` where K is small.
    """
    best = columns[0].copy()
    index = np.zeros(len(best), dtype=np.min_scalar_type(len(columns)))
    for k in range(1, len(columns)):
        # k is larger than every index so far
        np.maximum(index, np.multiply(columns[k] > best, index.dtype.type(k)), out=index)
        np.maximum(best, columns[k], out=best)
    return best, index


def iterate_rows(probabilities, labels, sample_weight=None, allow_zero: bool = False) -> Iterator[Rows]:
    """
    Check predictions and go through them in chunks, in one pass; rows of weight 0 are left out. A bad row raises when
    its chunk is reached: until the end, what has been summed up is a promise only.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, see [`as_probabilities`].
        labels (array-like of shape `(N,)`):
            Index of the right option, see [`as_labels`].
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights, see [`as_weights`].
        allow_zero (`bool`, *optional*, defaults to `False`):
            Whether all weights may be 0.
    """
    array, num_options = as_matrix(probabilities)
    labels = as_labels(labels, len(array), num_options)
    weights = as_weights(sample_weight, len(array), allow_zero)
    for start, columns in iterate_columns(array):
        part = slice(start, start + columns.shape[1])
        if weights is None:
            yield Rows(columns, labels[part])
        elif (weights[part] > 0).all():
            yield Rows(columns, labels[part], weights[part])
        else:
            kept = weights[part] > 0
            yield Rows(columns[:, kept], labels[part][kept], weights[part][kept])


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
    array, _ = as_matrix(probabilities, name)
    for _ in iterate_columns(array, name):
        pass
    return array


def as_matrix(probabilities, name: str = "probabilities") -> tuple[np.ndarray, int | np.ndarray]:
    """Float array of shape (N, K) with unchecked entries, and K or, where rows differ in it, the K of each row."""
    num_options = None
    if isinstance(probabilities, (list, tuple)) or getattr(probabilities, "dtype", None) is np.dtype(object):
        probabilities, num_options = _pad_ragged(list(probabilities))
    try:
        array = np.asarray(probabilities)
    except ValueError:  # rows of different kinds
        row = next(row for row, value in enumerate(probabilities) if np.ndim(value) != 1)
        raise ValueError(f"`{name}` row {row} is {shown(probabilities[row])}, not a row of probabilities.") from None
    if array.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must be numbers, got dtype {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"`{name}` is empty: there is nothing to measure.")
    if array.ndim != 2:
        raise ValueError(f"`{name}` must have shape (N, K), one column per option, got shape {array.shape}.")
    if array.shape[1] < 2:
        raise ValueError(f"`{name}` has one column: a question needs at least two options.")
    if num_options is not None and num_options.min() < 2:
        row = int(np.argmin(num_options))
        raise ValueError(
            f"`{name}` row {row} has {num_options[row]} option(s): a question needs at least two options."
        )
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    return array, array.shape[1] if num_options is None else num_options


def _pad_ragged(rows: list) -> tuple[np.ndarray | list, np.ndarray | None]:
    lengths = np.array([len(row) if hasattr(row, "__len__") else -1 for row in rows])
    if len(lengths) == 0 or lengths.min() == lengths.max() or lengths.min() < 0:
        return rows, None
    numbers = np.concatenate([np.asarray(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max()), dtype=numbers.dtype)
    padded[np.arange(lengths.max()) < lengths[:, None]] = numbers
    return padded, lengths


def options_present(option_logits: np.ndarray) -> np.ndarray:
    """Number of options of each row of `(N, K)` logits, `(N,)`: K less the `-inf` at the row's end."""
    return option_logits.shape[1] - (option_logits[:, ::-1] != -np.inf).argmax(axis=1)


def unpad(array: np.ndarray, num_options: np.ndarray) -> np.ndarray | list[np.ndarray]:
    """Rows of a padded `(N, K)` array without their padding: a list, so that they know their number of options, or an
    array where all have as many."""
    most = int(num_options.max(initial=0))
    if (num_options == most).all():
        return array[:, :most]
    return [row[:length] for row, length in zip(array, num_options, strict=True)]


def iterate_columns(array: np.ndarray, name: str = "probabilities") -> Iterator[tuple[int, np.ndarray]]:
    """First row and checked `(K, rows)` columns of each chunk: turned over, every step runs along rows in cache."""
    size = int(np.clip(_CHUNK_NUMBERS // array.shape[1], *_CHUNK_ROWS))
    tolerance = 1e-2 if array.dtype.itemsize < 4 else 1e-3
    for start in range(0, len(array), size):
        columns = np.array(array[start : start + size].T, dtype=np.float64, order="C")  # a copy in every case
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and NaN fails
            sums = columns.sum(axis=0)
            healthy = np.abs(sums - 1).max() <= tolerance and columns.min() >= 0
        if not healthy:
            _name_the_culprit(array, tolerance, name)
        yield start, np.minimum(columns, 1.0, out=columns)  # rounding may pass 1 by a hair


def _name_the_culprit(array: np.ndarray, tolerance: float, name: str) -> None:
    for bad, what in ((np.isnan(array), "is NaN"), (np.isinf(array), "is infinite"), (array < 0, "is negative")):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            hint = (
                ""
                if what == "is NaN"
                else ": this looks like logits or log-probabilities, apply a softmax over the options first"
            )
            value = "" if what != "is negative" else f" ({array[row, column]:.4g})"
            raise ValueError(f"`{name}` row {row}, option {column} {what}{value}{hint}.")
    sums = array.sum(axis=1, dtype=np.float64)
    bad = np.abs(sums - 1.0) > tolerance
    row = int(np.argmax(bad))
    if np.abs(sums[bad] - 100).max() < 1:
        hint = "these are percentages: divide by 100"
    elif array.max() > 1:
        hint = "looks like logits: apply a softmax over the options first"
    else:
        hint = "normalise the rows, or, if these are logits, apply a softmax over the options"
    raise ValueError(
        f"`{name}` row {row} sums to {sums[row]:.4g}, not to 1 ({int(bad.sum())} of {len(array)} rows); {hint}."
    )


def as_labels(labels, n: int, num_options, name: str = "labels") -> np.ndarray:
    """
    Check labels and return them as an integer array.

    Args:
        labels (array-like of shape `(N,)`):
            Index of the right option, 0-based.
        n (`int`):
            Number of rows they belong to.
        num_options (`int` or `np.ndarray` of shape `(N,)`):
            K, or the K of each row; every label must be in `[0, K)`.
        name (`str`, *optional*, defaults to `"labels"`):
            What the errors call the array.
    """
    array = as_vector(labels, name)
    if array.ndim != 1:
        raise ValueError(f"`{name}` must have shape (N,), one option index per row, got shape {array.shape}.")
    if len(array) != n:
        raise ValueError(f"`{name}` has {len(array)} entries for {n} rows of probabilities.")
    if array.dtype.kind not in "iu":
        row = next((row for row, value in enumerate(array.tolist()) if not _is_whole(value)), None)
        where = "" if row is None else f"; row {row} is {shown(array.tolist()[row])}"
        raise TypeError(f"`{name}` must be integers (0-based option indices), got dtype {array.dtype}{where}.")
    if array.min() < 0 or (array >= num_options).any():
        row = int(np.argmax((array < 0) | (array >= num_options)))
        most = np.broadcast_to(num_options, n)[row]
        raise ValueError(f"`{name}` row {row} is {array[row]}, outside [0, {most}) for {most} options.")
    return array


def as_vector(values, name: str, dtype=None) -> np.ndarray:
    """Array of numbers; the row that is none is named."""
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError):
        row, value = next(((row, value) for row, value in enumerate(values) if not _is_number(value)), (0, values))
        raise ValueError(f"`{name}` row {row} is {shown(value)}, not one number.") from None


def _is_number(value) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_whole(value) -> bool:
    """Whether a value can be an index: a whole number, small enough for a float to tell it from the next."""
    return isinstance(value, Real) and abs(value) < 2**53 and value == int(value)


def as_outcomes(confidences, correct, binary: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """
    Check confidences and outcomes, and return both as float64 arrays.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of the prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            1 where the prediction is right, 0 where it is wrong; a probability of being right is welcome too.
        binary (`bool`, *optional*, defaults to `False`):
            Whether `correct` must hold zeros and ones.
    """
    arrays = []
    for name, values in (("confidences", confidences), ("correct", correct)):
        array = as_vector(values, name, np.float64)
        if array.ndim != 1:
            raise ValueError(f"`{name}` must have shape (N,), got shape {array.shape}.")
        if array.size == 0:
            raise ValueError(f"`{name}` is empty: there is nothing to measure.")
        if binary and name == "correct":
            if not (fine := (array == 0) | (array == 1)).all():
                row = int(np.argmin(fine))
                raise ValueError(
                    f"`{name}` row {row} is {array[row]:.4g}: beside confidences it must hold zeros and ones, 1 where the "
                    "prediction is right."
                )
        elif not (array.min() >= 0 and array.max() <= 1):  # written so that NaN fails
            row = int(np.argmin((array >= 0) & (array <= 1)))
            raise ValueError(f"`{name}` row {row} is {array[row]:.4g}, outside [0, 1].")
        arrays.append(array)
    confidences, correct = arrays
    if len(confidences) != len(correct):
        raise ValueError(f"`confidences` has {len(confidences)} entries and `correct` has {len(correct)}.")
    return confidences, correct


def as_examples(confidences, correct, sample_weight=None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Check confidences, outcomes that are 0 or 1, and weights, and return them without the rows of weight 0."""
    confidences, correct = as_outcomes(confidences, correct, binary=True)
    weights = as_weights(sample_weight, len(confidences))
    if weights is None or weights.all():
        return confidences, correct, weights
    kept = weights > 0
    return confidences[kept], correct[kept], weights[kept]


def iterate_outcomes(
    confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Go through checked confidences, outcomes and weights in chunks; rows of weight 0 are left out."""
    size = _CHUNK_ROWS[1]
    for start in range(0, len(confidences), size):
        part = slice(start, start + size)
        if weights is not None and not weights[part].all():
            part = start + np.flatnonzero(weights[part])
        yield confidences[part], correct[part], None if weights is None else weights[part]


def check_whole(value, name: str, least: int = 1) -> None:
    """Check that an option is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")


def as_weights(sample_weight, n: int, allow_zero: bool = False) -> np.ndarray | None:
    """
    Check importance weights and return them as a float64 array; `None` stays `None`.

    Args:
        sample_weight (array-like of shape `(N,)`, *optional*):
            Weight of each row: 0 to 1e100, at least one above 0. Only their ratios matter, and a row of weight 0 counts
            for nothing. Where some lie between 0 and 1e-100, all are divided by the largest, and those that still lie
            there (their squares would be 0) become 0.
        n (`int`):
            Number of rows they belong to.
        allow_zero (`bool`, *optional*, defaults to `False`):
            Whether all may be 0, as in one batch of many. Batches share a scale, so a weight between 0 and 1e-100 is
            an error then.
    """
    if sample_weight is None:
        return None
    array = as_vector(sample_weight, "sample_weight", np.float64)
    if array.shape != (n,):
        raise ValueError(f"`sample_weight` has shape {array.shape} for {n} rows: give one weight per row.")
    if not (array.min() >= 0 and array.max() <= _LARGEST_WEIGHT):  # written so that NaN fails
        row = int(np.argmin((array >= 0) & (array <= _LARGEST_WEIGHT)))
        raise ValueError(
            f"`sample_weight` row {row} is {array[row]:.4g}: weights are not negative, and at most {_LARGEST_WEIGHT:g}."
        )
    if not (allow_zero or array.any()):
        raise ValueError("`sample_weight` is 0 in every row: there is nothing to measure.")
    tiny = (array > 0) & (array < 1 / _LARGEST_WEIGHT)
    if not tiny.any():
        return array
    if allow_zero:
        row = int(np.argmax(tiny))
        raise ValueError(
            f"`sample_weight` row {row} is {array[row]:.4g}: batches share a scale, on which weights are 0 or at least "
            f"{1 / _LARGEST_WEIGHT:g}; scale them up alike in all batches, or set it to 0."
        )
    array = array / array.max()
    return np.where(array < 1 / _LARGEST_WEIGHT, 0.0, array)
