"""Check probabilities, labels, outcomes and weights, and name the row at fault."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from reprlib import repr as shown  # shortens long values

import numpy as np


_CHUNK_NUMBERS = 1 << 18  # numbers in a chunk: 2 MB, the size of a core's cache
SMALLEST_PROBABILITY = 1e-12  # smaller ones count as this in logarithms
CHUNK_ROWS = 1 << 12, 1 << 16  # least and most rows in a chunk
_LARGEST_WEIGHT = 1e100  # the squares of it and of its inverse are finite and above 0
_ROUNDING = 1e-6  # a probability may be so far outside [0, 1]
_SUM_TOLERANCE, _SUM_TOLERANCE_16_BITS = 1e-3, 1e-2  # of a row of probabilities


def as_numbers(values) -> np.ndarray:
    """
    Convert an array, a tensor of any device and dtype, or a list of numbers or tensors to an array.

    A 16-bit number becomes the shortest decimal that rounds to it, as a float64: 0.7 in bfloat16 becomes 0.7, not
    0.69921875. So the bin of a confidence does not depend on its dtype. A masked entry becomes NaN.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # unknown to NumPy
            return _shortest_decimals(values.float().numpy(), 8)
        values = values.numpy()
    elif isinstance(values, (list, tuple)) and any(hasattr(value, "detach") for value in values):
        values = [as_numbers(value) for value in values]
    elif np.ma.is_masked(values):
        values = values.astype(np.float64).filled(np.nan)  # the checks refuse NaN
    array = np.asarray(values)
    if array.dtype.name == "bfloat16":  # of the package ml_dtypes
        return _shortest_decimals(array.astype(np.float32), 8)
    return _shortest_decimals(array, 11) if array.dtype == np.float16 else array


def _shortest_decimals(array: np.ndarray, bits: int) -> np.ndarray:
    """Shortest decimal that rounds to each number of an array whose numbers have so many significant bits."""
    numbers, inverse = np.unique(array.astype(np.float64), return_inverse=True)
    result = numbers.copy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # 0, NaN and infinity stay as they are
        exponents = np.floor(np.log10(np.abs(numbers)))
        for digits in range(5, 0, -1):
            scale = 10.0 ** (digits - 1 - exponents)
            decimals = np.rint(numbers * scale) / scale
            mantissa, exponent = np.frexp(decimals)
            same = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits) == numbers
            result[same] = decimals[same]
    return result[inverse].reshape(array.shape)


def as_probabilities(probabilities, name: str = "probabilities") -> np.ndarray:
    """
    Check option probabilities and return them as a float array.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1. Rows with fewer than K options are padded with zeros. A list of
            rows of different lengths is padded here.
        name (`str`, *optional*, defaults to `"probabilities"`):
            Name of the array in error messages.

    Returns:
        `np.ndarray` of shape `(N, K)`.

    Raises:
        TypeError: The entries are not numbers.
        ValueError: Empty input, fewer than two options, NaN, a negative entry, or a row that does not sum to 1.
    """
    array, _ = as_matrix(probabilities, name)
    for _ in iterate_columns(array, name):
        pass
    return array


def as_matrix(probabilities, name: str = "probabilities") -> tuple[np.ndarray, int | np.ndarray]:
    """
    Convert option probabilities to a float array without checking its entries.

    Returns:
        `tuple`: the array of shape `(N, K)`, and K, or the number of options of each row, `(N,)`, where they differ.
    """
    num_options, has_16_bits = None, _has_16_bits(probabilities)
    if isinstance(probabilities, (list, tuple)) or getattr(probabilities, "dtype", None) is np.dtype(object):
        probabilities, num_options = _pad_ragged(list(probabilities))
    try:
        array = as_numbers(probabilities)
    except ValueError:  # rows of different kinds
        row = next(row for row, value in enumerate(probabilities) if np.ndim(value) != 1)
        raise ValueError(f"`{name}` row {row} is {shown(probabilities[row])}, not a row of probabilities.") from None
    if array.dtype.kind in "OUS" and array.ndim == 2:
        array = parsed(array, name)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must be numbers, got dtype {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"`{name}` is empty.")
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
    if has_16_bits:
        array = _normalised(array)
    return array, array.shape[1] if num_options is None else num_options


def parsed(array: np.ndarray, name: str) -> np.ndarray:
    """Convert a matrix of objects or strings to numbers. The error names the entry that is not a number."""
    for row, values in enumerate(array.tolist()):
        for column, value in enumerate(values):
            if not is_number(value):
                raise TypeError(f"`{name}` row {row}, option {column} is {shown(value)}, not a number.")
    return array.astype(np.float64)


def _has_16_bits(values) -> bool:
    """Whether an array or a tensor, or the first of a list of them, has 16-bit floats."""
    first = next(iter(values), None) if isinstance(values, (list, tuple)) else values
    return str(getattr(first, "dtype", "")).endswith("float16")


def _normalised(array: np.ndarray) -> np.ndarray:
    """Divide rows by their sums where 16-bit rounding has moved these away from 1, but not where they are wrong."""
    sums = array.sum(axis=1)
    deviation = np.abs(sums - 1)
    off = (deviation > _SUM_TOLERANCE / 2) & (deviation <= _SUM_TOLERANCE_16_BITS)
    array[off] /= sums[off, None]
    return array


def _pad_ragged(rows: list) -> tuple[np.ndarray | list, np.ndarray | None]:
    lengths = np.array([len(row) if hasattr(row, "__len__") else -1 for row in rows])
    if len(lengths) == 0 or lengths.min() == lengths.max() or lengths.min() < 0:
        return rows, None
    numbers = np.concatenate([as_numbers(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max()), dtype=numbers.dtype)
    padded[np.arange(lengths.max()) < lengths[:, None]] = numbers
    return padded, lengths


def options_present(option_logits: np.ndarray) -> np.ndarray:
    """Number of options of each row of `(N, K)` logits, `(N,)`: K less the `-inf` at the end of the row."""
    return option_logits.shape[1] - (option_logits[:, ::-1] != -np.inf).argmax(axis=1)


def unpad(array: np.ndarray, num_options: np.ndarray) -> np.ndarray | list[np.ndarray]:
    """
    Remove the padding of an array.

    Args:
        array (`np.ndarray` of shape `(N, K)`):
            Padded rows.
        num_options (`np.ndarray` of shape `(N,)`):
            Number of options of each row.

    Returns:
        `list[np.ndarray]` of rows; an array where all rows have the same number of options.
    """
    most = int(num_options.max(initial=0))
    if (num_options == most).all():
        return array[:, :most]
    return [row[:length] for row, length in zip(array, num_options, strict=True)]


def iterate_columns(
    array: np.ndarray, name: str = "probabilities", checked: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Iterate over the rows of a matrix in chunks, checking them and transposing them to one line per option.

    Args:
        array (`np.ndarray` of shape `(N, K)`):
            Option probabilities from [`as_matrix`].
        name (`str`, *optional*, defaults to `"probabilities"`):
            Name of the array in error messages.
        checked (`bool`, *optional*, defaults to `False`):
            Whether the entries have been checked and clipped before.

    Yields:
        `tuple[int, np.ndarray]`: first row and option probabilities `(K, rows)` of the chunk, float64 in [0, 1].
    """
    size = int(np.clip(_CHUNK_NUMBERS // array.shape[1], *CHUNK_ROWS))
    for start in range(0, len(array), size):
        columns = np.array(array[start : start + size].T, dtype=np.float64, order="C")  # always a copy
        if not checked:
            _check_columns(columns, array, name)
            np.clip(columns, 0.0, 1.0, out=columns)
        yield start, columns


def clipped(array: np.ndarray) -> np.ndarray:
    """Clip checked probabilities to [0, 1], which rounding may leave. Without any outside, return the array itself."""
    return array if array.min() >= 0 and array.max() <= 1 else np.clip(array, 0, 1)


def _check_columns(columns: np.ndarray, array: np.ndarray, name: str) -> None:
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which fails the comparison
        sums = columns.sum(axis=0)
        healthy = np.abs(sums - 1).max() <= _SUM_TOLERANCE and columns.min() >= -_ROUNDING
    if not healthy:
        _raise_for_bad_row(array, name)


def _raise_for_bad_row(array: np.ndarray, name: str) -> None:
    softmax = "apply a softmax over the options first"
    negative = array < -_ROUNDING
    for bad, what in ((np.isnan(array), "is NaN"), (np.isinf(array), "is infinite"), (negative, "is negative")):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            hint = "" if what == "is NaN" else f": this looks like logits or log-probabilities, {softmax}"
            value = "" if what != "is negative" else f" ({array[row, column]:.4g})"
            raise ValueError(f"`{name}` row {row}, option {column} {what}{value}{hint}.")
    sums = array.sum(axis=1, dtype=np.float64)
    bad = np.abs(sums - 1.0) > _SUM_TOLERANCE
    row = int(np.argmax(bad))
    if np.abs(sums[bad] - 100).max() < 1:
        hint = "these are percentages: divide by 100"
    elif array.max() > 1:
        hint = f"looks like logits: {softmax}"
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
            Index of the right option, from 0.
        n (`int`):
            Number of rows of probabilities.
        num_options (`int` or `np.ndarray` of shape `(N,)`):
            K, or the K of each row; every label must be in `[0, K)`.
        name (`str`, *optional*, defaults to `"labels"`):
            Name of the array in error messages.

    Returns:
        `np.ndarray` of shape `(N,)`.

    Raises:
        TypeError: The labels are not integers.
        ValueError: The shape does not fit, or a label is out of range.
    """
    array = as_vector(labels, name)
    if array.ndim != 1:
        raise ValueError(f"`{name}` must have shape (N,), one option index per row, got shape {array.shape}.")
    if len(array) != n:
        raise ValueError(f"`{name}` has {len(array)} entries for {n} rows of probabilities.")
    if array.dtype.kind not in "iu":
        row = next((row for row, value in enumerate(array.tolist()) if not _is_whole(value)), None)
        where = "" if row is None else f"; row {row} is {shown(array.tolist()[row])}"
        raise TypeError(f"`{name}` must be integers (option indices from 0), got dtype {array.dtype}{where}.")
    if array.min() < 0 or (array >= num_options).any():
        row = int(np.argmax((array < 0) | (array >= num_options)))
        most = np.broadcast_to(num_options, n)[row]
        raise ValueError(f"`{name}` row {row} is {array[row]}, outside [0, {most}) for {most} options.")
    return array


def as_vector(values, name: str, dtype=None) -> np.ndarray:
    """Convert to an array, of numbers if a dtype is given. The error names the row that is not a number."""
    try:
        array = as_numbers(values)
        if dtype is None:
            return array
        if array.dtype != object or None not in array:  # NumPy turns None into NaN
            return array.astype(dtype, copy=False)
    except (TypeError, ValueError):
        pass
    row, value = next(((row, value) for row, value in enumerate(values) if not is_number(value)), (0, values))
    raise ValueError(f"`{name}` row {row} is {shown(value)}, not one number.")


def as_group_names(groups) -> np.ndarray:
    """Convert the groups of rows to an array that can be sorted: None and NaN become names like others."""
    groups = np.asarray(groups)
    unsorted = groups.dtype.kind == "O" or (groups.dtype.kind == "f" and np.isnan(groups).any())
    return groups.astype(str) if unsorted else groups


def is_number(value) -> bool:
    """Whether a value, or its text, is a number."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _is_whole(value) -> bool:
    """Whether a value can be an index: a whole number that float64 holds exactly."""
    return isinstance(value, Real) and abs(value) < 2**53 and value == int(value)


def as_outcomes(confidences, correct, binary: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """
    Check confidences and outcomes and return both as float64 arrays.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1]. What rounding leaves outside, by 1e-6 at most, is clipped.
        correct (array-like of shape `(N,)`):
            1 where the prediction is right, 0 where it is wrong, or the probability that it is right.
        binary (`bool`, *optional*, defaults to `False`):
            Whether `correct` must hold zeros and ones.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: both of shape `(N,)`.

    Raises:
        ValueError: A value is outside its range, or the shapes do not fit.
    """
    arrays = []
    for name, values in (("confidences", confidences), ("correct", correct)):
        array = as_vector(values, name, np.float64)
        if array.ndim != 1:
            raise ValueError(f"`{name}` must have shape (N,), got shape {array.shape}.")
        if array.size == 0:
            raise ValueError(f"`{name}` is empty.")
        if binary and name == "correct":
            if not (valid := (array == 0) | (array == 1)).all():
                row = int(np.argmin(valid))
                raise ValueError(
                    f"`{name}` row {row} is {array[row]:.4g}: it must be 1 (the prediction is right) or 0 (wrong)."
                )
        elif not (array.min() >= -_ROUNDING and array.max() <= 1 + _ROUNDING):  # written so that NaN fails
            row = int(np.argmin((array >= -_ROUNDING) & (array <= 1 + _ROUNDING)))
            raise ValueError(f"`{name}` row {row} is {array[row]:.10g}, outside [0, 1].")
        arrays.append(np.clip(array, 0, 1))
    confidences, correct = arrays
    if len(confidences) != len(correct):
        raise ValueError(f"`confidences` has {len(confidences)} entries and `correct` has {len(correct)}.")
    return confidences, correct


def check_whole(value, name: str, least: int = 1) -> None:
    """Check that an option is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")


def as_weights(sample_weight, n: int, allow_zero: bool = False) -> np.ndarray | None:
    """
    Check importance weights and return them as a float64 array.

    Only the ratios of weights matter, and a row of weight 0 does not count. If some weights lie between 0 and 1e-100,
    all are divided by the largest, and those still below 1e-100 become 0, because their squares would be 0.

    Args:
        sample_weight (array-like of shape `(N,)`, *optional*):
            Weight of each row, in [0, 1e100].
        n (`int`):
            Number of rows.
        allow_zero (`bool`, *optional*, defaults to `False`):
            Whether all weights may be 0, as in one batch of several. Batches share one scale, so a weight between 0
            and 1e-100 is then an error.

    Returns:
        `np.ndarray` of shape `(N,)`, or `None` if no weights are given.

    Raises:
        ValueError: The shape does not fit, a weight is out of range, or all weights are 0.
    """
    if sample_weight is None:
        return None
    array = as_vector(sample_weight, "sample_weight", np.float64)
    if array.shape != (n,):
        raise ValueError(f"`sample_weight` has shape {array.shape} for {n} rows: give one weight per row.")
    if not (array.min() >= 0 and array.max() <= _LARGEST_WEIGHT):  # written so that NaN fails
        row = int(np.argmin((array >= 0) & (array <= _LARGEST_WEIGHT)))
        raise ValueError(f"`sample_weight` row {row} is {array[row]:.4g}, outside [0, {_LARGEST_WEIGHT:g}].")
    if not (allow_zero or array.any()):
        raise ValueError("`sample_weight` is 0 in every row.")
    tiny = (array > 0) & (array < 1 / _LARGEST_WEIGHT)
    if not tiny.any():
        return array
    if allow_zero:
        row = int(np.argmax(tiny))
        raise ValueError(
            f"`sample_weight` row {row} is {array[row]:.4g}: weights of a batch are 0 or at least "
            f"{1 / _LARGEST_WEIGHT:g}. Scale them up in all batches, or set it to 0."
        )
    array = array / array.max()
    return np.where(array < 1 / _LARGEST_WEIGHT, 0.0, array)
