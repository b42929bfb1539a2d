"""Predictions as people have them (CSV, JSON, parquet, npz; one column or many) made into what the metric takes."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from reprlib import repr as shown  # of a cell as large as a book, the beginning
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np

from hf_calib.measures.validation import options_present, unpad


FILE_TYPES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".npz")

# The names under which each thing is looked for, in this order. Case, and spaces for underscores, do not matter.
PROBABILITIES = ("probabilities", "predictions", "probs", "option_probabilities", "prediction_scores")
LABELS = ("label", "labels", "references", "answer", "answers", "gold")
CONFIDENCE = ("confidence", "confidences", "predictions")
CORRECT = ("correct", "is_correct", "references")
TARGET = ("target_probabilities", "target_probs")
REFERENCE = ("reference_probabilities", "reference_probs")
GROUPS = ("subject", "subjects", "group", "groups", "category")
_PREFIXES = ("p", "prob", "probs", "probability", "probabilities", "prediction", "predictions", "option")
_WORDS = {"true": 1, "yes": 1, "right": 1, "false": 0, "no": 0, "wrong": 0}

Columns = Mapping[str, Sequence[Any]]


class Predictions(NamedTuple):
    """
    What was read.

    Attributes:
        scores (`np.ndarray` of shape `(N, K)` or `(N,)`, or list of rows): Option probabilities, rows of their own length
            where questions differ in the number of options; or confidences.
        outcomes (`np.ndarray` of shape `(N,)`): Index of the right option; with confidences 1 (right) or 0 (wrong).
        target (as `scores`, *optional*): Option probabilities of a calibrated reference.
        reference (as `scores`, *optional*): Option probabilities of another model.
        groups (`list[str]`, *optional*): Group of each question.
    """

    scores: Any
    outcomes: np.ndarray
    target: Any = None
    reference: Any = None
    groups: list[str] | None = None


def read_text(text: str) -> Predictions:
    """Read pasted JSON, JSON Lines or CSV. Raises `ValueError` with what is wrong and the way out."""
    text = text.strip()
    if not text:
        raise ValueError("There is nothing to measure yet: paste predictions, upload a file, or click an example.")
    try:
        return _read_columns(_json_columns(text) if text[0] in "[{" else _csv_columns(text))
    except RecursionError:
        raise ValueError(
            "This JSON is nested too deeply: a list of numbers in each row is as deep as it goes."
        ) from None


def read_file(path: str | Path) -> Predictions:
    """Read a file by its ending, one of `FILE_TYPES`. Raises `ValueError` with what is wrong and the way out."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FILE_TYPES:
        raise ValueError(f"{path.name} is not one of the kinds that are read here: {', '.join(FILE_TYPES)}.")
    if kind in (".parquet", ".npz"):
        try:
            return _read_columns(_parquet_columns(path) if kind == ".parquet" else _npz_columns(path))
        except (OSError, EOFError) as error:
            raise ValueError(f"{path.name} cannot be read as {kind[1:]}: {error}") from None
    try:
        return read_text(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not text in UTF-8.") from None


def _json_columns(text: str) -> Columns:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        try:  # JSON Lines
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise ValueError(f"This begins like JSON but is none: {error}.") from None
    if isinstance(content, dict) and all(isinstance(value, list) for value in content.values()):
        return content
    rows = [content] if isinstance(content, dict) else content
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError('JSON must be a list of records, [{"probabilities": [0.7, 0.3], "label": 0}, …], or columns.')
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _csv_columns(text: str) -> Columns:
    header = text.splitlines()[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        names, *rows = reader
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} cannot be read as CSV: {error}. Is a quote left open?") from None
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError(
            "There is one line only. CSV begins with a line of column names, then has a line per question."
        )
    for index, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"Row {index} has {len(row)} cells, but there are {len(names)} columns: {', '.join(names)}."
            )
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _parquet_columns(path: Path) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path.name} cannot be read as parquet: {error}") from None
    return {
        name: table[name].to_pylist() if pa.types.is_nested(table[name].type) else table[name].to_numpy()
        for name in table.column_names
    }


def _npz_columns(path: Path) -> Columns:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files if arrays[name].ndim}
    except (ValueError, AttributeError) as error:  # not an archive of arrays, or one of pickled objects
        raise ValueError(f"{path.name} cannot be read as npz: {error}") from None
    logits = columns.get("option_logits")
    if logits is not None and logits.ndim == 2:  # a file of hf_calib, whose logits say how many options a question has
        for name in {PROBABILITIES[0], TARGET[0]}.intersection(columns):
            if columns[name].shape == logits.shape:
                columns[name] = unpad(columns[name], options_present(logits))
    return columns


def _read_columns(columns: Columns) -> Predictions:
    columns = {re.sub(r"\s+", "_", _word(name).strip()): values for name, values in columns.items()}
    by_name = {name.lower(): name for name in columns}

    def find(names: Sequence[str]) -> str | None:
        return next((by_name[name] for name in names if name in by_name), None)

    found = f"The columns are: {', '.join(columns)}."
    target, reference = (_options(columns, find(names), names[0].split("_")[:1])[0] for names in (TARGET, REFERENCE))
    groups = find(GROUPS)
    groups = None if groups is None else [_word(group) for group in columns[groups]]
    scores, numbers = _options(columns, find(PROBABILITIES), _PREFIXES)
    if scores is not None:
        labels = find(LABELS)
        if labels is None:
            raise ValueError(f"No column says which option is right: call it `label`. {found}")
        return Predictions(scores, _labels(columns[labels], labels, numbers, scores), target, reference, groups)
    confidence, correct = find(CONFIDENCE), find(CORRECT)
    if confidence is None:
        raise ValueError(
            "No column holds probabilities: call it `probabilities` (a list in each row), or spread them over `p_0`, "
            f"`p_1`, …; or give `confidence` and `correct`. {found}"
        )
    if correct is None:
        raise ValueError(f"`{confidence}` needs a column `correct` beside it: 1 where the answer is right. {found}")
    if not (target is reference is None):
        raise ValueError(
            f"`{confidence}` alone cannot be held against a target or a reference: give the probability of every option "
            f"too, in `p_0`, `p_1`, …, or leave those columns out. {found}"
        )
    scores = _numbers(columns[confidence], confidence)
    return Predictions(scores, _outcomes(columns[correct], correct), None, None, groups)


def _word(value: Any) -> str:
    """A name that can be sent and shown: JSON may hold halves of characters."""
    return str(value).encode(errors="replace").decode()


def _options(columns: Columns, name: str | None, prefixes: Sequence[str]) -> tuple[Any, range | None]:
    """Option probabilities from a column of lists, or from one column per option with these columns' numbers."""
    if name is not None:
        values = columns[name]
        if len(values) == 0:
            raise ValueError(f"`{name}` is empty: there is nothing to measure.")
        if isinstance(values, np.ndarray) and values.ndim == 2:
            if values.dtype.kind not in "fiu":
                raise ValueError(f"`{name}` must hold numbers, but is of type {values.dtype}.")
            return values, None
        if not (isinstance(values[0], (str, list, tuple, np.ndarray)) and not _is_number(values[0])):
            return None, None  # one number a row: confidences
        return [_list(value, name, row) for row, value in enumerate(values)], None
    names, numbers = _spread(columns, prefixes)
    if not names:
        return None, None
    arrays = [_numbers(columns[name], name) for name in names]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"The columns {', '.join(names)} differ in length: {', '.join(str(len(a)) for a in arrays)}.")
    array = np.stack(arrays, axis=1)
    # empty cells at the end of a row: the question has fewer options
    empty = np.isnan(array)[:, ::-1].cumprod(axis=1).sum(axis=1)
    return unpad(array, len(names) - empty), numbers


def _spread(columns: Columns, prefixes: Sequence[str]) -> tuple[list[str], range]:
    """The columns that hold one option each, in their order, and their numbers: 0, 1, …, or 1, 2, …; letters are from 0."""
    for prefix in prefixes:
        for suffix, number in ((r"_?(\d+)", int), ("_([a-z])", lambda letter: ord(letter.upper()) - ord("A"))):
            matches = {name: re.fullmatch(prefix + suffix, name, re.IGNORECASE) for name in columns}
            found = sorted((number(match[1]), name) for name, match in matches.items() if match)
            if len(found) > 1:
                names, first = [name for _, name in found], found[0][0]
                if first > (number is int) or [k for k, _ in found] != [*range(first, first + len(found))]:
                    raise ValueError(
                        f"The columns {', '.join(names)} leave a number out or have one twice: give one for each option, "
                        f"`{prefix}_0`, `{prefix}_1`, …"
                    )
                return names, range(first, first + len(found))
    letters = [*takewhile(columns.__contains__, ascii_uppercase)] if prefixes is _PREFIXES else []
    return (letters if len(letters) > 1 else []), range(len(letters))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _list(value: Any, name: str, row: int) -> list[float]:
    if isinstance(value, str):  # "[0.7, 0.3]", also as numpy prints it
        value = re.split(r"[\s,;]+", value.strip(" []()"))
    try:
        return [float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"`{name}` row {row} is {shown(value)}: a list of probabilities is needed, [0.7, 0.3]."
        ) from None


def _numbers(values: Sequence[Any], name: str) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return values.astype(np.float64)
    try:
        return np.array([np.nan if value is None or value == "" else value for value in values], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        row = next(row for row, value in enumerate(values) if not _is_number(value))
        raise ValueError(f"`{name}` row {row} is {shown(values[row])}, which is no number.") from None


def _labels(values: Sequence[Any], name: str, numbers: range | None, scores: Sequence[Any]) -> np.ndarray:
    """Indices of the right options, from 0, where the labels are their `numbers` or letters, in rows of `scores`."""
    if numbers is None and isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values
    first = numbers[0] if numbers else 0

    def label(row: int, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[A-Za-z]\s*", value):
            return ord(value.strip().upper()) - ord("A")
        if not (_is_number(value) and float(value).is_integer()):
            raise ValueError(
                f"`{name}` row {row} is {shown(value)}: give the index of the right option, from {first}, or its letter."
            )
        number = int(float(value))
        present = numbers[: len(scores[row])] if numbers and row < len(scores) else numbers
        if present and number not in present:
            hint = "; if the labels count from 0, let the columns' names do so too" if number == 0 else ""
            raise ValueError(
                f"`{name}` row {row} is {number}, but the options are numbered from {first} to {present[-1]}{hint}."
            )
        return number - first

    return np.array([label(row, value) for row, value in enumerate(values)])


def _outcomes(values: Sequence[Any], name: str) -> np.ndarray:
    def outcome(row: int, value: Any) -> int:
        if isinstance(value, str):
            value = _WORDS.get(value.strip().lower(), value)
        if _is_number(value) and float(value) in (0, 1):
            return int(float(value))
        raise ValueError(f"`{name}` row {row} is {shown(value)}: it must be 1 (right) or 0 (wrong).")

    return np.array([outcome(row, value) for row, value in enumerate(values)])
