"""Columns of csv, json, parquet and npz files, with texts as they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from ..data.csv_files import CsvTable, read_csv
from ..data.literals import parse_literal
from ..data.text_files import FileError
from ..measures.validation import is_number
from .collect import flattened
from .source import Source


Column = Any  # a pyarrow array, a numpy array, or a list of values


class Table:
    """
    Columns of a file, read by name.

    Args:
        source ([`Source`]):
            The file.
        names (`Iterable[str]`):
            Columns to read.

    Raises:
        `ValueError`: the file is broken. File and line are named.
    """

    def __init__(self, source: Source, names: Iterable[str]):
        self.source, names = source, list(dict.fromkeys(names))
        reader = {"csv": _csv, "parquet": _parquet, "npz": _npz}.get(source.kind, _json)
        self._columns: dict[str, Column] = reader(source, names)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def where(self, row: int) -> str:
        """Name a row, counted from 0, in messages: file and line."""
        return self.source.where(self._line(row))

    def _line(self, row: int) -> int:
        if self.source.kind == "csv":
            return self.source.cells.lines[row + 1] if self.source.cells else row + 2
        if self.source.kind == "jsonl":
            with self.source.open_text() as file:
                lines = (number for number, line in enumerate(file, 1) if line.strip())
                return next(islice(lines, row, None))
        return row + 1

    def values(self, name: str) -> list:
        """Values of a column as Python objects."""
        column = self._columns[name]
        return column if isinstance(column, list) else column.to_pylist() if _is_arrow(column) else column.tolist()

    def texts(self, name: str) -> list[str]:
        """Values of a column as text; a missing one is empty."""
        return ["" if value is None else str(value).strip() for value in map(alone, self.values(name))]

    def numbers(self, name: str) -> np.ndarray:
        """
        Values of a column as float64, `(N,)`; NaN where there is none.

        A comma may mark the decimals, and a value may be in a list of its own.

        Raises:
            `ValueError`: a value is not a number. File, line and column are named.
        """
        column = self._columns[name]
        try:
            if _is_arrow(column) and not (listed := _arrow_lists(column)):
                return _arrow_numbers(column)
            if _is_arrow(column) and (listed[1] == 1).all():
                return listed[0]
            if isinstance(column, np.ndarray) and column.size == len(column):
                return column.ravel().astype(np.float64)
            values = [alone(value) for value in self.values(name)]
            found = np.array([np.nan if value is None or value == "" else value for value in values], np.float64)
            if found.ndim != 1:
                raise ValueError("a value is a list")
            return found
        except (TypeError, ValueError, OverflowError):
            if (found := _decimal_commas(self.values(name))) is not None:
                return found
            for row, value in enumerate(self.values(name)):
                if not (value in (None, "") or is_number(alone(value))):
                    raise ValueError(f"{self.where(row)}: {name} is {value!r}, not a number") from None
            # What Python reads and Arrow does not, such as digits of other scripts.
            return np.array([np.nan if value in (None, "") else float(value) for value in self.values(name)])

    def option_names(self, name: str) -> list[str] | None:
        """
        Names of the options in a column of objects such as `{"A": 0.7, "B": 0.3}`; `None` for another column.

        Raises:
            `ValueError`: the names are numbers with a gap. The file is named.
        """
        column = self._columns[name]
        first = column[0].as_py() if _is_arrow(column) else column[0]
        if not isinstance(first, dict):
            return None
        names = {option for value in self.values(name) if isinstance(value, dict) for option in value}
        if not all(option.isdecimal() for option in names):
            return sorted(names)
        ordered = sorted(names, key=int)
        if [int(option) for option in ordered] not in [list(range(at, len(names) + at)) for at in (0, 1)]:
            raise ValueError(
                f"{self.source.path}: {name} has the options {', '.join(ordered)}: number them without a gap"
            )
        return ordered

    def named(self, name: str, options: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """
        Numbers of a column of objects in the order of `options`, of which a row may lack the last; see
        [`Table.lists`].

        Raises:
            `ValueError`: a row lacks another option, or a value is not a number. File and line are named.
        """
        rows = []
        for row, value in enumerate(self.values(name)):
            given = {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else {}
            present = options[: len(given)]
            if not all(option in given and is_number(given[option]) for option in present):
                shown = ", ".join(present)
                raise ValueError(f"{self.where(row)}: {name} is {str(value)[:60]}, not a number for each of {shown}")
            rows.append([float(given[option]) for option in present])
        return flattened(rows)

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """
        Numbers of a column of lists: all values, one after the other, and the length of each row.

        Raises:
            `ValueError`: a value is not a list of numbers. File, line and column are named.
        """
        column = self._columns[name]
        if isinstance(column, np.ndarray) and column.ndim == 2:
            return column.astype(np.float64).ravel(), np.full(len(column), column.shape[1])
        if _is_arrow(column) and (found := _arrow_lists(column)):
            return found
        rows = self.values(name)
        try:
            if rows and isinstance(rows[0], str):
                rows = [_parse_list(row) for row in rows]
            return flattened(rows)
        except (TypeError, ValueError, OverflowError):
            for row, value in enumerate(self.values(name)):
                try:
                    flattened([_parse_list(value) if isinstance(value, str) else value])
                except (TypeError, ValueError, OverflowError):
                    raise ValueError(
                        f"{self.where(row)}: {name} is {str(value)[:40]!r}, not a list of numbers such as [0.7, 0.3]"
                    ) from None
            raise


def alone(value: Any) -> Any:
    """The element of a list of one; another value as it is."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _is_arrow(column: Column) -> bool:
    return hasattr(column, "to_pylist")


def _parse_list(text: str) -> Sequence[float]:
    """Numbers of "[0.7, 0.3]", "0.7 0.3", "0,7; 0,3", or of a text that numpy or torch wrote."""
    try:
        return [float(value) for value in json.loads(text)]
    except json.JSONDecodeError:
        pass
    if re.search("[a-z]", text):
        return [float(value) for value in parse_literal(text)]
    bare = text.strip(" []()")
    if ";" in bare:
        return [float(number.replace(",", ".")) for number in bare.split(";")]
    return [float(number) for number in re.split(r"[\s,]+", bare)]


def _decimal_commas(values: Sequence[Any]) -> np.ndarray | None:
    """Numbers such as "0,7"; `None` if a value is none, or a comma may separate thousands, as in "1,500"."""
    numbers = []
    for value in values:
        text = "" if value is None else str(value).strip()
        if not re.fullmatch(r"|[+-]?(\d+|\d*,\d+)", text, re.ASCII) or re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text):
            return None
        numbers.append(float(text.replace(",", ".")) if text else np.nan)
    return np.array(numbers)


def _arrow_numbers(column) -> np.ndarray:
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            stripped = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(stripped, ""), None, stripped)
        found = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(str(error)) from None
    return np.asarray(found, np.float64)


def _arrow_lists(column) -> tuple[np.ndarray, np.ndarray] | None:
    """Values and lengths of a list column; `None` for another type."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(kind(column.type) for kind in kinds) or column.null_count:
        return None
    values = pc.list_flatten(column)
    if pa.types.is_string(values.type):
        return None
    return _arrow_numbers(values), pc.list_value_length(column).to_numpy()


def _csv(source: Source, names: Sequence[str]) -> dict[str, Column]:
    """Read columns of a CSV file as text."""
    header = source.fields
    if repeated := [name for name in names if header.count(name) > 1]:
        raise FileError(source.path, "two columns have this name; rename one", 1, repeated[0])
    table = source.cells or _large_csv(source, names)
    num_rows = len(table.cells) - 1 if isinstance(table, CsvTable) else len(table)
    if not num_rows:
        raise FileError(source.path, f"there is a header ({', '.join(header)}) but no row below it")
    if not isinstance(table, CsvTable):
        return {name: table[name] for name in names}
    columns = list(zip(*table.cells[1:], strict=True))
    return {name: list(columns[header.index(name)]) for name in names}


def _large_csv(source: Source, names: Sequence[str]):
    """Read columns of a large CSV file fast; where that fails, slowly, which names the line at fault."""
    try:
        return arrow_csv.read_csv(
            source.path,
            read_options=arrow_csv.ReadOptions(column_names=source.fields, skip_rows=1, encoding=source.encoding),
            parse_options=arrow_csv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.string())
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return read_csv(source.path)


def _parquet(source: Source, names: Sequence[str]) -> dict[str, Column]:
    table = pq.read_table(source.path, columns=list(names))
    if not len(table):
        raise ValueError(f"{source.path}: the file holds no rows")
    return {name: table[name].combine_chunks() for name in names}


def _npz(source: Source, names: Sequence[str]) -> dict[str, Column]:
    with np.load(source.path, allow_pickle=False) as arrays:
        return _of_one_length(source, {name: arrays[name] for name in names})


def _json(source: Source, names: Sequence[str]) -> dict[str, Column]:
    if source.kind == "json" and isinstance(source.content, dict):
        given = {name: source.content[name] for name in names}
        lists = {name: values for name, values in given.items() if isinstance(values, list)}
        nested = any(values and isinstance(values[0], list) for values in lists.values())
        if lists and (nested or len(lists) == len(given)):  # else it is one row
            size = len(next(iter(_of_one_length(source, lists).values())))
            return {name: lists.get(name, [value] * size) for name, value in given.items()}  # one value for all rows
    columns: dict[str, list] = {name: [] for name in names}
    appends = [(name, columns[name].append) for name in names]
    for _, row in source.rows():
        for name, append in appends:
            append(row.get(name))
    return columns


def _of_one_length(source: Source, columns: dict[str, Column]) -> dict[str, Column]:
    """Return the columns; raises a `ValueError` if they differ in length."""
    lengths = {name: len(column) if getattr(column, "ndim", 1) else 0 for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{source.path}: the columns have different numbers of rows: {shown}")
    return columns
