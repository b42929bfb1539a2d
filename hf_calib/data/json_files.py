"""Read JSON and JSON Lines files, with numbers as they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .text_files import FileError, TextRecords, read_text


class WrittenFloat(float):
    """A number of a JSON file whose `str` is its text in the file, e.g. `1.50` or `1e5`."""

    __slots__ = ("written",)

    def __new__(cls, written: str):
        number = super().__new__(cls, written)
        number.written = written
        return number

    def __str__(self) -> str:
        return str(self.written)


def parse_json(text: str) -> Any:
    """
    Parse JSON. Numbers with a fraction or an exponent are [`WrittenFloat`], NaN is `None`.

    Raises:
        [`json.JSONDecodeError`]: for text that is not JSON.
        `ValueError`: for an object with the same key twice.
    """
    return _DECODER.decode(text)


def _integer(text: str) -> int | WrittenFloat:
    return WrittenFloat(text) if text == "-0" else int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice in one object")
    return found


_DECODER = json.JSONDecoder(
    parse_float=WrittenFloat,
    parse_int=_integer,
    parse_constant=lambda name: None if name == "NaN" else float(name),
    object_pairs_hook=_object,
)


def read_json(path: str | Path) -> TextRecords:
    """
    Read a JSON or JSON Lines file, compressed by gzip or not.

    Args:
        path (`str` or `Path`):
            A file with one object a line; a list of objects, alone or as the only list of an object; or an object of
            columns, as `DataFrame.to_json` writes it. The content decides, not the name.

    Returns:
        [`TextRecords`]

    Raises:
        [`FileError`]: for text that is not JSON, with line and column, or for other content.
    """
    text = read_text(path)
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        if _is_lines(text):
            return _read_lines(path, text)
        if error.msg != "Extra data":
            raise _broken(path, error, error.lineno, text) from None
        content = _read_objects(path, text)
    except ValueError as error:  # a repeated key
        if _is_lines(text):
            return _read_lines(path, text)
        raise FileError(path, str(error)) from None
    rows = _rows(content)
    if rows is None:
        raise FileError(path, "expected one object a line, one list of objects, or an object of columns")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise FileError(path, f"row {number} is {_kind(row)}, not an object with named columns")
    if not rows:
        raise FileError(path, "there are no rows")
    return TextRecords(rows, _columns(rows), [1] if len(rows) == 1 else [])


def _is_lines(text: str) -> bool:
    """Whether the text is a line for each object, perhaps with a broken one."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2:
        return False
    whole = 0
    for line in (lines[0], lines[1], lines[-1]):
        try:
            whole += isinstance(json.loads(line), dict)
        except ValueError:
            continue
    return whole > 0


def _read_lines(path: str | Path, text: str) -> TextRecords:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise _broken(path, error, number, line) from None
        except ValueError as error:
            raise FileError(path, str(error), number) from None
        if not isinstance(row, dict):
            raise FileError(path, f"{_kind(row)}, not an object with named columns", number)
        rows.append(row)
        lines.append(number)
    return TextRecords(rows, _columns(rows), lines)


def _read_objects(path: str | Path, text: str) -> list:
    """Read objects of several lines each, one after the other."""
    rows, place = [], 0
    while place < len(text):
        try:
            row, place = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise _broken(path, error, error.lineno, text) from None
        rows.append(row)
        place += len(text[place:]) - len(text[place:].lstrip())
    return rows


def _broken(path: str | Path, error: json.JSONDecodeError, line: int, text: str) -> FileError:
    hint = " (the text ends here: is the file complete?)" if error.pos >= len(text.rstrip()) else ""
    if text[error.pos : error.pos + 1] == "'":
        hint = " (a literal of Python; write it by `json.dump`)"
    return FileError(path, f"not JSON: {error.msg}{hint}", line, error.colno)


def _rows(content: Any) -> list | None:
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        return None
    nested = [value for value in content.values() if isinstance(value, list) and value]
    if len(nested) > 1 and all(isinstance(row, dict) for value in nested for row in value):
        return None  # e.g. {"train": [...], "test": [...]}
    if len(nested) == 1 and all(isinstance(row, dict) for row in nested[0]) and not _is_row(content):
        return nested[0]  # e.g. {"version": 1, "data": [...]}
    values = list(content.values())
    if values and all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        return [dict(zip(content, row, strict=True)) for row in zip(*values, strict=True)]
    if len(values) > 1 and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        if _is_row(content) or all(name.isdigit() for name in values[0]):  # columns, from the row's name to its value
            return [{name: value[index] for name, value in content.items()} for index in values[0]]
        return values  # e.g. {"q1": {"question": ...}, "q2": {"question": ...}}
    return [content]


def _is_row(content: dict) -> bool:
    """Whether an object has texts of its own, as a question has."""
    return any(name.lower() in ("question", "prompt", "text", "chosen") for name in content)


def _columns(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _kind(value: Any) -> str:
    return {"list": "a list", "str": "a text", "NoneType": "null"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
