"""Decode text files: compression, byte order marks and encodings, with one clear line for what cannot be read."""

from __future__ import annotations

import codecs
import gzip
import logging
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

WESTERN = "cp1252"
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class FileError(ValueError):
    """
    Raised for a file that cannot be read; the message names file, line and column.

    Args:
        file (`str` or `Path`):
            The file.
        problem (`str`):
            What is wrong, and how to correct it.
        line (`int`, *optional*), column (`int` or `str`, *optional*):
            Where, from 1; a column is a number of characters or the name of a column.
    """

    def __init__(self, file: str | Path, problem: str, line: int | None = None, column: int | str | None = None):
        where = str(file) + ("" if line is None else f", line {line}")
        if column is not None:
            where += f", column {column if isinstance(column, int) else repr(column)}"
        super().__init__(f"{where}: {problem}".replace("\n", "\\n").replace("\r", "\\r"))


@dataclass
class TextRecords:
    """
    Rows of a text file, with their values as they are written.

    Args:
        rows (`list[dict]`):
            Value of each column. In a CSV file values are texts, or `None` for an empty cell.
        column_names (`list[str]`):
            Names of the columns.
        lines (`list[int]`):
            Line of the file where each row begins, from 1; empty if it is not known.
    """

    rows: list[dict[str, Any]]
    column_names: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices) -> TextRecords:
        """Return some rows."""
        lines = [self.lines[i] for i in indices] if self.lines else []
        return TextRecords([self.rows[i] for i in indices], self.column_names, lines)


def read_text(path: str | Path) -> str:
    """
    Read a text file, compressed by gzip or not, in UTF-8, UTF-16, UTF-32 or a Western single-byte encoding.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `str`: its text, with line ends as they are and without a byte order mark.

    Raises:
        [`FileError`]: for a damaged archive, an empty file, or an unknown encoding.
    """
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise FileError(path, f"the gzip archive is damaged or incomplete ({error}); write it again") from None
    text = decode(data, path)
    if not text.strip():
        raise FileError(path, "the file is empty")
    return text


def decode(data: bytes, name: str | Path) -> str:
    """
    Decode the bytes of a text file.

    Bytes that are not UTF-8 are read as Windows-1252, which includes the letters of Latin-1, if they are scattered as
    accents are in a Western text, and the choice is logged. Long runs of such bytes are of another encoding.

    Args:
        data (`bytes`):
            Content of the file.
        name (`str` or `Path`):
            Name of the file, for messages.
    """
    encoding = find_encoding(data, complete=True)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="replace")
        raise FileError(
            name,
            f"the bytes {data[error.start : error.start + 4]!r} are not {error.encoding.upper()}; save the file as "
            "UTF-8, e.g. by `iconv -f ENCODING -t UTF-8`",
            before.count("\n") + 1,
            len(before) - before.rfind("\n"),
        ) from None
    if encoding == WESTERN:
        warn_of_western(text, name)
    return text


def find_encoding(data: bytes, complete: bool) -> str:
    """
    Find the encoding of a text: that of its mark, UTF-16 without a mark, UTF-8 or Windows-1252, see [`decode`].

    Args:
        data (`bytes`):
            The text, or its beginning.
        complete (`bool`):
            Whether this is all of the text. A beginning may end inside a character.
    """
    mark = next((encoding for bom, encoding in _MARKS.items() if data.startswith(bom)), None)
    if known := mark or _wide_encoding(data):
        return known
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, complete)
    except UnicodeDecodeError:
        return WESTERN if _looks_western(data) else "utf-8"
    return "utf-8"


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 without a mark: every second byte of a Western text is NUL."""
    start = data[:4096]
    if start.count(0) < max(1, len(start) // 4):
        return None
    return "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"


def _looks_western(data: bytes) -> bool:
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", data)]
    if any(byte in data for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)):  # no characters of Windows-1252
        return False
    return bool(runs) and max(runs) <= 3 and sum(runs) <= 1.3 * len(runs)


def warn_of_western(text: str, name: str | Path) -> None:
    """Log that a file is read as Windows-1252, with the first word and line for which that matters."""
    found = re.search(r"\S*[^\x00-\x7f]\S*", text)
    line = text.count("\n", 0, found.start()) + 1
    logger.warning(
        f"{name} is not UTF-8; it is read as Windows-1252 (Latin-1), where line {line} has {found[0]!r}. If this is "
        "wrong, save the file as UTF-8."
    )
