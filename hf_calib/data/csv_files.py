"""Read CSV and TSV files as text."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .text_files import FileError, TextRecords, read_text


_DELIMITERS = (",", "\t", ";", "|")


@dataclass
class CsvTable:
    """
    Cells of a CSV file.

    Args:
        name (`str` or `Path`):
            Name of the file, for messages.
        cells (`list[list[str]]`):
            Rows of the same length, the first of them usually the header. Blank lines are left out.
        lines (`list[int]`):
            Line where each row begins, from 1.
    """

    name: str | Path
    cells: list[list[str]]
    lines: list[int]

    def records(self, header: Sequence[str] | None = None) -> TextRecords:
        """
        Convert the rows to records.

        Args:
            header (`Sequence[str]`, *optional*):
                Names of the columns, for a file without a header. Defaults to the first row.

        Raises:
            [`FileError`]: if there is only a header, or a column has no name, or two have the same.
        """
        cells, lines = self.cells, self.lines
        if header is None:
            header, cells, lines = [name.strip() for name in cells[0]], cells[1:], lines[1:]
        if not cells:
            raise FileError(self.name, f"there is a header ({_shown(header)}) but no row below it")
        if twice := [name for place, name in enumerate(header) if name and name in header[:place]]:
            raise FileError(self.name, "two columns have this name; rename one", self.lines[0], twice[0])
        named = [place for place, name in enumerate(header) if name]
        for place in range(1, len(header)):  # the first column may be the index that pandas writes
            if not header[place]:
                for row, line in zip(cells, lines, strict=True):
                    if row[place].strip():
                        raise FileError(self.name, f"{row[place]!r} is in a column without a name", line)
        rows = [{header[place]: row[place] if row[place] != "" else None for place in named} for row in cells]
        return TextRecords(rows, [header[place] for place in named], lines)


def read_csv(path: str | Path, delimiter: str | None = None) -> CsvTable:
    """
    Read a CSV or TSV file, compressed by gzip or not, without changing a cell.

    Args:
        path (`str` or `Path`):
            The file. In its name `.tsv` prefers tabs.
        delimiter (`str`, *optional*):
            Separator of cells. Defaults to a comma, a tab, a semicolon or a vertical bar, whichever gives all rows the
            same number of cells.

    Returns:
        [`CsvTable`]

    Raises:
        [`FileError`]: for rows of different lengths, or a quotation mark without its counterpart.
    """
    text = read_text(path)
    if named := re.match(r"sep=(.)\r?\n", text):  # Excel
        delimiter, text = named[1], "\n" + text[named.end() :]
    text, mark = _without_returns(text)
    preferred = "\t" if ".tsv" in [suffix.lower() for suffix in Path(path).suffixes] else ","
    candidates = [delimiter] if delimiter else sorted(_DELIMITERS, key=lambda candidate: candidate != preferred)
    best = None
    for parsing in _parsings(text, candidates):
        if parsing.width > 1 and parsing.fault(path) is None:
            return CsvTable(path, parsing.cells(mark), parsing.lines)
        if best is None or parsing.header_width > best.header_width:
            best = parsing
    if (fault := best.fault(path)) is not None:
        raise fault
    if not best.rows:
        raise FileError(path, "all cells are empty")
    return CsvTable(path, best.cells(mark), best.lines)


def _without_returns(text: str) -> tuple[str, str | None]:
    """
    Replace carriage returns alone, where `csv` would end the row.

    They end the lines of a file without line feeds; in others they are part of a cell, and a mark takes their place.
    """
    if not re.search(r"\r(?!\n)", text):
        return text, None
    mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text) if "\n" in text else None
    return re.sub(r"\r(?!\n)", mark or "\n", text), mark


def _parsings(text: str, candidates: Sequence[str]) -> Iterator[_Parsing]:
    """Ways to split the text into cells, the likeliest first."""
    yield from (_Parsing(text, candidate) for candidate in candidates)
    # In a file with tabs, quotation marks are often characters like others.
    if "\t" in candidates:
        yield _Parsing(text, "\t", quoting=csv.QUOTE_NONE)
    # Some files have a space behind each separator, also before a quotation mark.
    yield from (_Parsing(text, candidate, skipinitialspace=True) for candidate in candidates)


@contextmanager
def _long_cells():
    """Lift the limit of the length of a cell."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


class _Parsing:
    """A text split into cells in one way, with the reason why this way may be wrong."""

    def __init__(self, text: str, delimiter: str, **options):
        self.text, self.delimiter = text, delimiter
        self.rows, self.lines, self.ends, self.error = [], [], [], None
        self.header_width = len(next(csv.reader([text.lstrip("\r\n").split("\n", 1)[0]], delimiter=delimiter), []))
        if self.header_width < 2 and delimiter not in (",", "\t"):
            self.error = (1, "no separator")
            return
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **options)
        start = 1
        with _long_cells():
            try:
                for row in reader:
                    if any(cell.strip() for cell in row):
                        self.rows.append(row)
                        self.lines.append(start)
                        self.ends.append(reader.line_num)
                    start = reader.line_num + 1
            except csv.Error as error:
                self.error = (start, str(error))

    @property
    def width(self) -> int:
        """Number of cells of the first row."""
        return len(self.rows[0]) if self.rows else 0

    def cells(self, mark: str | None) -> list[list[str]]:
        """The rows without the empty cells that a separator at the end of every line makes; see `_without_returns`."""
        rows = [row[: self.width] for row in self.rows]
        return rows if mark is None else [[cell.replace(mark, "\r") for cell in row] for row in rows]

    def fault(self, name: str | Path) -> FileError | None:
        """The first fault of the file if it is read this way."""
        if self.error is not None:
            return self._quote_fault(name, *self.error)
        lengths = {len(row) for row in self.rows[1:]}
        if lengths - {self.width}:
            extra = [cell for row in self.rows[1:] for cell in row[self.width :]]
            if len(lengths) > 1 or min(lengths) < self.width or any(cell.strip() for cell in extra):
                return self._length_fault(name)
        return self._joined_fault(name)

    def _quote_fault(self, name: str | Path, line: int, error: str) -> FileError:
        header = self.rows[0] if self.rows else []
        opened = self.text.split("\n")[line - 1] if line <= self.text.count("\n") + 1 else ""
        place = len(next(csv.reader([opened.split('"')[0]], delimiter=self.delimiter), []))
        column = header[max(place, 1) - 1].strip() if 0 < max(place, 1) <= len(header) else None
        problem = "is not closed" if "end of data" in error else "is closed before the end of its cell"
        return FileError(
            name,
            f'a quotation mark {problem}; inside a quoted cell write it twice, as in "5"" wide"',
            line,
            column or None,
        )

    def _length_fault(self, name: str | Path) -> FileError:
        header = [cell.strip() for cell in self.rows[0]]
        place = next(place for place, row in enumerate(self.rows) if len(row) != self.width)
        row, line = self.rows[place], self.lines[place]
        mark = {"\t": "tab", ";": "semicolon", "|": "vertical bar"}.get(self.delimiter, "comma")
        counts = f"{len(row)} cells, the first row has {self.width} ({_shown(header)})"
        if len(row) < self.width:
            return FileError(name, f"{counts}; the line is broken off, or a {mark} is missing", line, header[len(row)])
        # A comma inside a sentence has a space behind it.
        cut = next((k for k in range(1, len(row)) if row[k].startswith(" ")), None)
        column = header[cut - 1] if cut is not None and cut <= self.width else None
        behind = "" if cut is None else f" before {row[cut][:40]!r}"
        return FileError(
            name, f"{counts}; put a cell with a {mark} in it{behind} in double quotes", line, column or None
        )

    def _joined_fault(self, name: str | Path) -> FileError | None:
        """
        A fault if an unpaired quotation mark joined several rows into one.

        Then every line of the row has as many cells as the header, and some cells of each line are known from others.
        """
        single = [k for k in range(len(self.rows)) if self.lines[k] == self.ends[k]]
        if len(single) == len(self.rows):
            return None
        known = [{self.rows[k][place] for k in single[1:]} - {""} for place in range(self.width)]
        lines = self.text.split("\n")
        for row, first, last in zip(self.rows, self.lines, self.ends, strict=True):
            if first == last or last > len(lines):
                continue
            split = [line.rstrip("\r").split(self.delimiter) for line in lines[first - 1 : last]]
            if all(len(cells) == self.width for cells in split) and any(
                all(cells[place] in known[place] for cells in split) for place in range(self.width)
            ):
                place = next(k for k, cell in enumerate(row) if "\n" in cell)
                return FileError(
                    name,
                    f"a quotation mark joins the lines {first} to {last} into one row; write it twice inside a quoted "
                    "cell, or close the cell",
                    first,
                    self.rows[0][place].strip(),
                )
        return None


def _shown(header: Sequence[str]) -> str:
    return ", ".join(cell[:20] or "without a name" for cell in header)
