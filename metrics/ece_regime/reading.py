"""Predictions as people have them (CSV, JSON, parquet, npz; one column or many) made into what the metric takes."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


FILE_TYPES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".npz")

# The names under which each thing is looked for, in this order. Case, and spaces for underscores, do not matter.
PROBABILITIES = ("probabilities", "predictions", "probs", "option_probabilities", "prediction_scores")
LABELS = ("label", "labels", "references", "answer", "answers", "gold")
CONFIDENCE = ("confidence", "confidences", "predictions")
CORRECT = ("correct", "is_correct", "references")
TARGET = ("target_probabilities", "target_probs")
REFERENCE = ("reference_probabilities", "reference_probs")
GROUPS = ("subject", "group", "groups", "category")
_PREFIXES = "p|prob|probs|probability|probabilities|prediction|predictions|option"
_WORDS = {"true": 1, "yes": 1, "right": 1, "false": 0, "no": 0, "wrong": 0}

Columns = Mapping[str, Sequence[Any]]


class Predictions(NamedTuple):
    """
    What was read.

    Attributes:
        scores (`np.ndarray` of shape `(N, K)` or `(N,)`, or list of lists): Option probabilities, or confidences.
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
    return _read_columns(_json_columns(text) if text[0] in "[{" else _csv_columns(text))


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
    names, *rows = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
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
            return {name: arrays[name] for name in arrays.files if arrays[name].ndim}
    except (ValueError, AttributeError) as error:  # not an archive of arrays, or one of pickled objects
        raise ValueError(f"{path.name} cannot be read as npz: {error}") from None


def _read_columns(columns: Columns) -> Predictions:
    columns = {re.sub(r"\s+", "_", str(name).strip()): values for name, values in columns.items()}
    by_name = {name.lower(): name for name in columns}

    def find(names: Sequence[str]) -> str | None:
        return next((by_name[name] for name in names if name in by_name), None)

    found = f"The columns are: {', '.join(columns)}."
    target, reference = (_options(columns, find(names), names[0].split("_")[0]) for names in (TARGET, REFERENCE))
    groups = find(GROUPS)
    groups = None if groups is None else [str(group) for group in columns[groups]]
    scores = _options(columns, find(PROBABILITIES), None)
    if scores is not None:
        labels = find(LABELS)
        if labels is None:
            raise ValueError(f"No column says which option is right: call it `label`. {found}")
        return Predictions(scores, _labels(columns[labels], labels), target, reference, groups)
    confidence, correct = find(CONFIDENCE), find(CORRECT)
    if confidence is None:
        raise ValueError(
            "No column holds probabilities: call it `probabilities` (a list in each row), or spread them over `p_0`, "
            f"`p_1`, …; or give `confidence` and `correct`. {found}"
        )
    if correct is None:
        raise ValueError(f"`{confidence}` needs a column `correct` beside it: 1 where the answer is right. {found}")
    scores = _numbers(columns[confidence], confidence)
    return Predictions(scores, _outcomes(columns[correct], correct), None, None, groups)


def _options(columns: Columns, name: str | None, prefix: str | None) -> Any:
    """Option probabilities from a column of lists, or from one column per option; `None` if there is neither."""
    if name is not None:
        values = columns[name]
        if isinstance(values, np.ndarray) and values.ndim == 2:
            return values
        if not (isinstance(values[0], (str, list, tuple, np.ndarray)) and not _is_number(values[0])):
            return None  # one number a row: confidences
        return [_list(value, name, row) for row, value in enumerate(values)]
    pattern = re.compile(rf"(?:{prefix or _PREFIXES})(?:_([a-z]|\d+)|(\d+))", re.IGNORECASE)
    matches = {name: pattern.fullmatch(name) for name in columns}
    spread = {(match[1] or match[2]).lower(): name for name, match in matches.items() if match}
    if not spread and prefix is None:
        spread = {name.lower(): name for name in columns if re.fullmatch("[A-Z]", name)}
    if len(spread) < 2:
        return None
    ordered = sorted(spread, key=lambda option: (len(option), option))
    array = np.stack([_numbers(columns[spread[option]], spread[option]) for option in ordered], axis=1)
    # empty cells at the end of a row: the question has fewer options
    array[np.isnan(array)[:, ::-1].cumprod(axis=1)[:, ::-1].astype(bool)] = 0.0
    return array


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _list(value: Any, name: str, row: int) -> list[float]:
    if isinstance(value, str):  # "[0.7, 0.3]", also as numpy prints it
        value = re.split(r"[\s,;]+", value.strip(" []()"))
    try:
        return [float(number) for number in value]
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` row {row} is {value!r}: a list of probabilities is needed, [0.7, 0.3].") from None


def _numbers(values: Sequence[Any], name: str) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return values.astype(np.float64)
    try:
        return np.array([np.nan if value is None or value == "" else value for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        row = next(row for row, value in enumerate(values) if not _is_number(value))
        raise ValueError(f"`{name}` row {row} is {values[row]!r}, which is no number.") from None


def _labels(values: Sequence[Any], name: str) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values

    def label(row: int, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[A-Za-z]\s*", value):
            return ord(value.strip().upper()) - ord("A")
        if _is_number(value) and float(value).is_integer():
            return int(float(value))
        raise ValueError(
            f"`{name}` row {row} is {value!r}: give the index of the right option, from 0, or its letter."
        )

    return np.array([label(row, value) for row, value in enumerate(values)])


def _outcomes(values: Sequence[Any], name: str) -> np.ndarray:
    def outcome(row: int, value: Any) -> int:
        if isinstance(value, str):
            value = _WORDS.get(value.strip().lower(), value)
        if _is_number(value) and float(value) in (0, 1):
            return int(float(value))
        raise ValueError(f"`{name}` row {row} is {value!r}: it must be 1 (right) or 0 (wrong).")

    return np.array([outcome(row, value) for row, value in enumerate(values)])
