"""Read predictions from CSV, JSON, Parquet or npz, and check their columns."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from reprlib import repr as shown  # shortens long values
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hf_calib.measures.validation import is_number, options_present, unpad


FILE_TYPES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".npz")

# Accepted names of each column, in order of precedence. Case is ignored, and a space counts as an underscore.
SCHEMA = {
    "probabilities": ("probabilities", "predictions", "probs", "option_probabilities", "prediction_scores"),
    "label": ("label", "labels", "references", "answer", "answers", "gold"),
    "confidence": ("confidence", "confidences", "predictions"),
    "correct": ("correct", "is_correct", "references"),
    "target": ("target_probabilities", "target_probs"),
    "reference": ("reference_probabilities", "reference_probs"),
    "group": ("subject", "subjects", "group", "groups", "category"),
}
# Prefixes of columns that hold one option each, e.g. p_0, p_1.
_PREFIXES = ("p", "prob", "probs", "probability", "probabilities", "prediction", "predictions", "option")
_WORDS = {"true": 1, "yes": 1, "right": 1, "false": 0, "no": 0, "wrong": 0}

Columns = Mapping[str, Any]  # name of each column and its cells: a Series, or an array of shape (N, K)


class Predictions(NamedTuple):
    """
    Predictions for the metric.

    Attributes:
        scores (`np.ndarray` of shape `(N, K)` or `(N,)`, or list of rows): Option probabilities, as rows of different
            lengths where questions differ in K; or confidences.
        outcomes (`np.ndarray` of shape `(N,)`): Index of the right option; with confidences 1 (right) or 0 (wrong).
        target (as `scores`, *optional*): Option probabilities of a calibrated target.
        reference (as `scores`, *optional*): Option probabilities of another model.
        groups (`list[str]`, *optional*): Group of each question.
    """

    scores: Any
    outcomes: np.ndarray
    target: Any = None
    reference: Any = None
    groups: list[str] | None = None


def read_text(text: str) -> Predictions:
    """
    Read pasted JSON, JSON Lines or CSV.

    Raises:
        ValueError: The text cannot be read, or a column is missing or holds a wrong value.
    """
    text = text.strip()
    if not text:
        raise ValueError("No predictions: paste some, upload a file, or click an example.")
    try:
        return _check_schema(_json_columns(text) if text[0] in "[{" else _csv_columns(text))
    except RecursionError:
        raise ValueError("The JSON is nested too deeply: a column holds numbers or lists of numbers.") from None


def read_file(path: str | Path) -> Predictions:
    """
    Read a file of one of the `FILE_TYPES`.

    Raises:
        ValueError: The file cannot be read, or a column is missing or holds a wrong value.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FILE_TYPES:
        raise ValueError(f"{path.name} must be one of {', '.join(FILE_TYPES)}.")
    if kind in (".parquet", ".npz"):
        try:
            columns = _parquet_columns(path) if kind == ".parquet" else _npz_columns(path)
        except (OSError, EOFError, ValueError, AttributeError) as error:
            raise ValueError(f"{path.name} cannot be read as {kind[1:]}: {error}") from None
        return _check_schema(columns)
    try:
        return read_text(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not UTF-8 text.") from None


def _json_columns(text: str) -> Columns:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        try:  # JSON Lines
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise ValueError(f"This is not valid JSON: {error}.") from None
    if isinstance(content, dict) and not all(isinstance(value, list) for value in content.values()):
        content = [content]
    if not content or not (isinstance(content, dict) or all(isinstance(row, dict) for row in content)):
        raise ValueError('JSON must be a list of records, [{"probabilities": [0.7, 0.3], "label": 0}, …], or columns.')
    if isinstance(content, dict):
        content = {_word(name): values for name, values in content.items()}
        lengths = {name: len(values) for name, values in content.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The columns differ in length: {lengths}.")
    else:
        content = [{_word(name): value for name, value in row.items()} for row in content]
    # dtype object keeps the values as they are
    frame = pd.DataFrame(content, dtype=object)
    return dict(frame.where(frame.notna(), None))


def _csv_columns(text: str) -> Columns:
    text = _word(text)
    header = text.splitlines()[0]
    separator = max(",;\t", key=header.count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with too many cells
            # every cell stays text, also 007 and NA
            frame = pd.read_csv(
                io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True,
                index_col=False,
            )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(f"This cannot be read as CSV: {error} Check the quotes and the number of cells.") from None
    if frame.empty:
        raise ValueError("CSV must have a line of column names and a line per question; only one line was found.")
    return dict(frame)


def _parquet_columns(path: Path) -> Columns:
    return dict(pd.read_parquet(path))


def _npz_columns(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files if arrays[name].ndim}
    logits = columns.get("option_logits")
    if logits is not None and logits.ndim == 2:  # a file of hf_calib, whose logits give the number of options
        for name in {SCHEMA["probabilities"][0], SCHEMA["target"][0]}.intersection(columns):
            if columns[name].shape == logits.shape:
                columns[name] = unpad(columns[name], options_present(logits))
    return columns


def _check_schema(columns: Columns) -> Predictions:
    """Find the columns of `SCHEMA` and check their values."""
    columns = {
        re.sub(r"\s+", "_", _word(name).strip()): values.to_numpy() if isinstance(values, pd.Series) else values
        for name, values in columns.items()
    }
    by_name = {name.lower(): name for name in columns}
    names = {role: next((by_name[n] for n in accepted if n in by_name), None) for role, accepted in SCHEMA.items()}
    found = f"The columns are: {', '.join(columns)}."
    target, reference = (_options(columns, names[role], [role])[0] for role in ("target", "reference"))
    groups = None if names["group"] is None else [_word(group) for group in columns[names["group"]]]
    scores, numbers = _options(columns, names["probabilities"], _PREFIXES)
    if scores is not None:
        if (label := names["label"]) is None:
            raise ValueError(f"The column `label`, the right option, is missing. {found}")
        return Predictions(scores, _labels(columns[label], label, numbers, scores), target, reference, groups)
    confidence, correct = names["confidence"], names["correct"]
    if confidence is None:
        raise ValueError(
            "No column holds probabilities: give `probabilities` (a list in each row), or `p_0`, `p_1`, …, or "
            f"`confidence` and `correct`. {found}"
        )
    if correct is None:
        raise ValueError(f"`{confidence}` needs the column `correct`: 1 where the answer is right, else 0. {found}")
    if not (target is reference is None):
        raise ValueError(
            f"`{confidence}` cannot be compared with a target or a reference: give the probability of every option, "
            f"`p_0`, `p_1`, …, or leave those columns out. {found}"
        )
    scores = _numbers(columns[confidence], confidence)
    return Predictions(scores, _outcomes(columns[correct], correct), None, None, groups)


def _word(value: Any) -> str:
    """Convert to text that can be encoded: JSON may hold unpaired surrogates."""
    return str(value).encode(errors="replace").decode()


def _options(columns: Columns, name: str | None, prefixes: Sequence[str]) -> tuple[Any, range | None]:
    """Read option probabilities from a column of lists, or from one column per option with their numbers."""
    if name is not None:
        values = columns[name]
        if len(values) == 0:
            raise ValueError(f"`{name}` is empty.")
        if isinstance(values, np.ndarray) and values.ndim == 2:
            if values.dtype.kind not in "fiu":
                raise ValueError(f"`{name}` must hold numbers, got type {values.dtype}.")
            return values, None
        if not (isinstance(values[0], (str, list, tuple, np.ndarray)) and not is_number(values[0])):
            return None, None  # one number a row: confidences
        return [_list(value, name, row) for row, value in enumerate(values)], None
    names, numbers = _spread(columns, prefixes)
    if not names:
        return None, None
    arrays = [_numbers(columns[name], name) for name in names]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"The columns {', '.join(names)} differ in length: {', '.join(str(len(a)) for a in arrays)}.")
    array = np.stack(arrays, axis=1)
    # empty cells at the end of a row are missing options
    empty = np.isnan(array)[:, ::-1].cumprod(axis=1).sum(axis=1)
    return unpad(array, len(names) - empty), numbers


def _spread(columns: Columns, prefixes: Sequence[str]) -> tuple[list[str], range]:
    """Find the columns that hold one option each, and their numbers: 0, 1, …, or 1, 2, …; letters count from 0."""
    for prefix in prefixes:
        for suffix, number in ((r"_?(\d+)", int), ("_([a-z])", lambda letter: ord(letter.upper()) - ord("A"))):
            matches = {name: re.fullmatch(prefix + suffix, name, re.IGNORECASE) for name in columns}
            found = sorted((number(match[1]), name) for name, match in matches.items() if match)
            if len(found) > 1:
                names, first = [name for _, name in found], found[0][0]
                if first > (number is int) or [k for k, _ in found] != [*range(first, first + len(found))]:
                    raise ValueError(
                        f"The columns {', '.join(names)} skip or repeat a number: give one column per option, "
                        f"`{prefix}_0`, `{prefix}_1`, …"
                    )
                return names, range(first, first + len(found))
    letters = [*takewhile(columns.__contains__, ascii_uppercase)] if prefixes is _PREFIXES else []
    return (letters if len(letters) > 1 else []), range(len(letters))


def _list(value: Any, name: str, row: int) -> list[float]:
    if isinstance(value, str):  # "[0.7, 0.3]" or "[0.7 0.3]"
        value = re.split(r"[\s,;]+", value.strip(" []()"))
    try:
        return [float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"`{name}` row {row} is {shown(value)}, not a list of probabilities such as [0.7, 0.3]."
        ) from None


def _numbers(values: Any, name: str) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return values.astype(np.float64)
    try:
        return np.array([np.nan if value is None or value == "" else value for value in values], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        row = next(row for row, value in enumerate(values) if not is_number(value))
        raise ValueError(f"`{name}` row {row} is {shown(values[row])}, not a number.") from None


def _labels(values: Any, name: str, numbers: range | None, scores: Sequence[Any]) -> np.ndarray:
    """Convert labels, which are letters or the `numbers` of options, to indices from 0 into the rows of `scores`."""
    if numbers is None and isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values
    first = numbers[0] if numbers else 0

    def label(row: int, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[A-Za-z]\s*", value):
            return ord(value.strip().upper()) - ord("A")
        if not (is_number(value) and float(value).is_integer()):
            raise ValueError(
                f"`{name}` row {row} is {shown(value)}: give the index of the right option from {first} or its letter."
            )
        number = int(float(value))
        present = numbers[: len(scores[row])] if numbers and row < len(scores) else numbers
        if present and number not in present:
            hint = "; number the columns from 0 if the labels count from 0" if number == 0 else ""
            raise ValueError(
                f"`{name}` row {row} is {number}, but the options are numbered from {first} to {present[-1]}{hint}."
            )
        return number - first

    return np.array([label(row, value) for row, value in enumerate(values)])


def _outcomes(values: Any, name: str) -> np.ndarray:
    def outcome(row: int, value: Any) -> int:
        if isinstance(value, str):
            value = _WORDS.get(value.strip().lower(), value)
        if is_number(value) and float(value) in (0, 1):
            return int(float(value))
        raise ValueError(f"`{name}` row {row} is {shown(value)}, not 1 (right) or 0 (wrong).")

    return np.array([outcome(row, value) for row, value in enumerate(values)])
