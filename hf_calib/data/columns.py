"""Names of columns from the command line, as in `question=Prompt,answer=Gold`."""

from __future__ import annotations

import csv
import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .layouts import ADAPTERS, columns_as_known, find_adapter
from .text_files import TextRecords


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ColumnArguments:
    """
    Arguments of everything that reads option questions: how their columns are named, and how answers count.

    Args:
        columns (`str` or `Mapping[str, str]`, *optional*):
            Column of the data by the name that it gets, e.g. `"question=Prompt,answer=Gold"`; see [`rename_columns`].
        answers_from (`int`, *optional*):
            Number of the first option, 0 or 1, where answers are numbers.
    """

    columns: str | None = field(
        default=None,
        metadata={
            "help": "Columns of the questions with other names, as in question=Prompt,A=First,B=Second,answer=Gold."
        },
    )
    answers_from: int | None = field(
        default=None,
        metadata={"help": "Number of the first option, 0 or 1, where answers are numbers (default: 0, if it occurs)."},
    )

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments by name, for [`~hf_calib.load_questions`]."""
        return {"columns": self.columns, "answers_from": self.answers_from}


def split_pairs(text: str) -> list[tuple[str, str, str]]:
    """Split `name=column,...` into name, `=` (empty where there is none) and column. Quoted pairs may hold commas."""
    parts = next(csv.reader([text], skipinitialspace=True), [])
    return [tuple(piece.strip() for piece in part.partition("=")) for part in parts]


def parse_columns(columns: str | Mapping[str, str]) -> dict[str, str]:
    """
    Parse the columns of a data set.

    Args:
        columns (`str` or `Mapping[str, str]`):
            Pairs `name=column` separated by commas. A column with a comma in its name is written in double quotes,
            with its pair: `question=Prompt,"answer=Gold, final"`.

    Returns:
        `dict[str, str]`: column of the data by the name that it gets.

    Raises:
        `ValueError`: for a text without `=`, an unknown name, or a name or column that occurs twice.
    """
    if isinstance(columns, str):
        pairs = split_pairs(columns)
        if wrong := [name for name, sign, column in pairs if not (name and sign and column)]:
            raise ValueError(
                f"columns={columns!r}: {wrong[0]!r} must be name=column, as in question=Prompt,answer=Gold"
            )
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise ValueError(f"columns={columns!r}: a name is there twice")
        columns = {name: column for name, _, column in pairs}
    known = {"answers": None} | {name: None for adapter in ADAPTERS.values() for name in adapter.known}
    for name in columns:
        if name not in known:
            raise ValueError(
                f"columns: {name!r} is no column of questions; use question, choices (or A, B, ...), answer (or "
                "answers, without choices), and optionally id, subject, target_probabilities, or the names of a known "
                "data set"
            )
    if len(set(columns.values())) < len(columns):
        raise ValueError("columns: one column is used for two names")
    return dict(columns)


def _similar(column: str, present: list[str]) -> list[str]:
    lowered = {name.lower(): name for name in present}
    return [lowered[name] for name in difflib.get_close_matches(column.lower(), lowered, 1)]


def rename_columns(dataset: Dataset | TextRecords, columns: Mapping[str, str], source: str) -> Dataset | TextRecords:
    """
    Rename the columns of a data set.

    Data sets of different layouts can be read together: a data set of a known layout that has none of the columns, and
    none with a similar name, stays as it is, with a warning.

    Args:
        dataset (`Dataset` or [`~hf_calib.data.text_files.TextRecords`]):
            Questions.
        columns (`Mapping[str, str]`):
            Column of the data by the name that it gets. Its case does not matter.
        source (`str`):
            Name of the data, for messages.

    Raises:
        `ValueError`: if there is no such column.
    """
    records = isinstance(dataset, TextRecords)
    present = dataset.column_names
    found = columns_as_known(present, columns.values())
    new_names = {found[column]: name for name, column in columns.items() if column in found}
    if absent := [column for column in columns.values() if column not in found]:
        near = [close for column in absent for close in _similar(column, present)]
        if found or near or not find_adapter(present, labelled=False):
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{source}: no column {absent[0]!r} among {', '.join(present)}{hint}")
        logger.warning(f"{source} has none of the columns {', '.join(absent)}; it is read by its own names")
        return dataset
    # A column that has the name already makes way for the one that is named.
    replaced = {name.lower() for name in new_names.values()}
    dropped = [column for column in present if column not in new_names and column.strip().lower() in replaced]
    if not records:
        return dataset.remove_columns(dropped).rename_columns({a: b for a, b in new_names.items() if a != b})
    kept = [column for column in present if column not in dropped]
    rows = [{new_names.get(name, name): row[name] for name in kept if name in row} for row in dataset.rows]
    return TextRecords(rows, [new_names.get(name, name) for name in kept], dataset.lines)
