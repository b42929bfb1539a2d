"""An open file of predictions: its kind, its first content, and its rows with their line numbers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..data.csv_files import CsvTable, read_csv
from ..data.text_files import WESTERN, find_encoding, warn_of_western


_DAMAGED = (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowInvalid, UnicodeDecodeError)
_LARGE = 50_000_000  # bytes: larger files show a progress bar
_LARGE_CSV = 10_000_000  # bytes
_HEAD = 1 << 20
_ZSTANDARD = 93  # compression method of a member of a zip file that Python 3.11 cannot read itself


class Source:
    """
    A file of predictions.

    Args:
        path (`str` or `Path`):
            The file.

    Attributes:
        kind (`str`): `"zip"`, `"npz"`, `"parquet"`, `"json"` (one document), `"jsonl"` (one object a line) or `"csv"`.
        fields (`list[str]`): Names of the members, of the columns, or of the fields of the first object.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: the file is empty, or its text cannot be decoded.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        with open(self.path, "rb") as file:
            magic = file.read(4)
        if not magic:
            raise ValueError(f"{path}: the file is empty")
        self._gzipped = magic[:2] == b"\x1f\x8b"
        try:
            self._open(magic)
        except _DAMAGED as error:
            raise _unreadable(path, error) from None

    def _open(self, magic: bytes) -> None:
        """Find the kind of the file, and its fields."""
        if magic == b"PK\x03\x04":
            with zipfile.ZipFile(self.path) as archive:
                self.fields = archive.namelist()
            self.kind = "npz" if self.fields and self.fields[0].endswith(".npy") else "zip"
        elif magic == b"PAR1":
            self.kind, self.fields = "parquet", list(pq.read_schema(self.path).names)
        else:
            self.kind = self._text_kind()
            self.fields = self._csv_header() if self.kind == "csv" else list(self.first) if self.first else []
            if self.encoding == WESTERN and not (self.kind == "csv" and self.cells):  # the reader of cells warns
                with self.open_text() as file:
                    warn_of_western(file.read(_HEAD), self.path)

    def where(self, number: Any) -> str:
        """Name a row in messages: file and line."""
        unit = {"jsonl": "line", "csv": "line", "zip": "member"}.get(self.kind, "row")
        return f"{self.path}, {unit} {number}"

    @cached_property
    def encoding(self) -> str:
        """Encoding of a text file, found in its first megabyte."""
        with gzip.open(self.path) if self._gzipped else open(self.path, "rb") as file:
            head = file.read(_HEAD)
        return find_encoding(head, complete=len(head) < _HEAD)

    def open_text(self) -> io.TextIOBase:
        """Open the file as text."""
        opener = gzip.open if self._gzipped else open
        return opener(self.path, "rt", encoding=self.encoding, newline="")

    def _text_kind(self) -> str:
        """Tell JSON, JSON Lines and CSV apart, and keep the first object."""
        self.first: dict[str, Any] = {}
        with self.open_text() as file:
            line = next((line for line in file if line.strip()), "")
        start = line.strip()
        if not start:
            raise ValueError(f"{self.path}: the file holds only blank lines")
        if start[0] not in "[{":
            return "csv"
        try:
            content = json.loads(start)
        except json.JSONDecodeError:
            content = None
        if isinstance(content, dict):
            self.first = content
            if not self._has_second_line():
                self.content = _as_columns(content)
                return "jsonl" if _is_row(self.content) else "json"
            return "jsonl"
        if isinstance(content, list) and self._has_second_line():
            raise ValueError(f"{self.path}, line 1: a list: a line of JSON Lines is an object")
        self.content = _as_columns(self._document() if content is None else content)
        rows = self.content if isinstance(self.content, list) else [self.content]
        if not rows or not all(isinstance(row, dict) for row in rows[:1]):
            raise ValueError(f"{self.path}: the JSON holds neither an object nor a list of objects")
        self.first = rows[0]
        return "json"

    def _has_second_line(self) -> bool:
        with self.open_text() as file:
            return sum(1 for _ in zip(range(2), filter(str.strip, file), strict=False)) > 1

    def _document(self) -> Any:
        try:
            with self.open_text() as file:
                return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path}, line {error.lineno}: broken JSON ({error.msg})") from None

    @cached_property
    def cells(self) -> CsvTable | None:
        """Cells of a CSV file; `None` for a large one, which is read column by column."""
        if self.path.stat().st_size <= _LARGE_CSV:
            return read_csv(self.path)
        with self.open_text() as file:
            first = file.readline()
        return read_csv(self.path) if not first.strip() or re.match(r"sep=.\r?\n", first) else None

    def _csv_header(self) -> list[str]:
        if self.cells is not None:
            return [name.strip() for name in self.cells.cells[0]]
        with self.open_text() as file:
            return [name.strip() for name in next(csv.reader(file, delimiter=self.delimiter))]

    @cached_property
    def delimiter(self) -> str:
        """Separator of a large CSV file: the most frequent one in its header."""
        with self.open_text() as file:
            header = file.readline()
        return max(",;\t|", key=header.count)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[Any, dict[str, Any]]]:
        """
        Iterate over the objects of JSON, JSON Lines or of the `samples/` in a zip file, or over the rows of parquet.

        Large files show a progress bar.

        Args:
            columns (`Sequence[str]`, *optional*):
                Columns of a parquet file to read, those inside others as `outer.inner` (default: all).

        Yields:
            `tuple`: line (or row, or name of the member), and the object.

        Raises:
            `ValueError`: a line is not a JSON object. File and line are named.
        """
        size = self.path.stat().st_size
        with tqdm(
            total=size,
            mininterval=1,
            unit="B",
            unit_scale=True,
            desc=f"reading {self.path.name}",
            disable=size < _LARGE,
            leave=False,
        ) as bar:
            try:
                yield from self._rows(bar, columns)
            except _DAMAGED as error:
                raise _unreadable(self.path, error) from None

    def _rows(self, bar: tqdm, columns: Sequence[str] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        if self.kind == "jsonl":
            yield from self._lines(bar)
        elif self.kind == "zip":
            yield from self._members(bar)
        elif self.kind == "parquet":
            with pq.ParquetFile(self.path) as file:
                batches = file.iter_batches(batch_size=1000, columns=columns)
                yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        else:
            yield from enumerate(self.content if isinstance(self.content, list) else [self.content], 1)

    def _lines(self, bar: tqdm) -> Iterator[tuple[int, dict[str, Any]]]:
        pending = 0
        utf8 = self.encoding.startswith("utf-8") and not self._gzipped
        with open(self.path, "rb") if utf8 else self.open_text() as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError:
                    row = self._parse(line, number)
                if not isinstance(row, dict):
                    raise ValueError(f"{self.where(number)}: it is not a JSON object")
                yield number, row
                if (pending := pending + len(line)) > _HEAD:
                    bar.update(pending)
                    pending = 0

    def _parse(self, line: str | bytes, number: int) -> Any:
        """Parse a line with NaN or Infinity, which are no JSON, or say what is wrong with it."""
        try:
            text = line.decode("utf-8-sig") if isinstance(line, bytes) else line
        except UnicodeDecodeError as error:
            raise _unreadable(self.where(number), error) from None
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            cut = " (it ends too early: is the file complete?)" if error.pos >= len(text.rstrip()) - 1 else ""
            raise ValueError(f"{self.where(number)}: broken JSON: {error.msg}{cut}") from None

    def _members(self, bar: tqdm) -> Iterator[tuple[str, dict[str, Any]]]:
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                if member.filename.startswith("samples/"):
                    yield member.filename, json.loads(read_member(archive, member))
                bar.update(member.compress_size)


def _unreadable(where: str | Path, error: Exception) -> ValueError:
    if isinstance(error, UnicodeDecodeError):
        return ValueError(f"{where}: the text is not {error.encoding.upper()}; save the file as UTF-8")
    return ValueError(f"{where}: the file is damaged or incomplete ({error})")


def _as_columns(content: Any) -> Any:
    """Turn columns of objects from the number of a row to its value, as `DataFrame.to_json` writes, into lists."""
    if not (isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values())):
        return content
    rows = list(next(iter(content.values())))
    if not rows or not all(name.isdigit() for name in rows) or any(list(each) != rows for each in content.values()):
        return content
    return {name: list(values.values()) for name, values in content.items()}


def _is_row(content: dict[str, Any]) -> bool:
    """Whether the only object of a file is a row, and not a document or columns."""
    return not any(name in content for name in ("request_states", "samples")) and not (
        content and all(isinstance(value, list) for value in content.values())
    )


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Read a member of a zip file, also one that is compressed with Zstandard."""
    if member.compress_type != _ZSTANDARD:
        return archive.read(member)
    file = archive.fp
    file.seek(member.header_offset)
    header = file.read(30)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    file.seek(member.header_offset + 30 + name + extra)
    packed = pa.BufferReader(file.read(member.compress_size))
    return pa.CompressedInputStream(packed, "zstd").read()
