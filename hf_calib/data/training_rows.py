"""Load rows for training with texts, messages or preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, Value

from .files import load_records, to_dataset
from .layouts import InvalidRow, structured
from .text_files import FileError, TextRecords


# Columns that hold a text or a list of messages.
MESSAGE_COLUMNS = ("prompt", "chosen", "rejected", "messages", "completion")
# Probability that annotators prefer the chosen completion.
PREFERENCE_COLUMN = "preference_probability"


def load_training_rows(path: str | Path, split: str | None = None) -> Dataset:
    """
    Load rows for training, and read what a CSV file can hold only as text: messages as JSON, and probabilities.

    Args:
        path (`str` or `Path`):
            A file, a folder, or a data set on the Hub; see [`~hf_calib.load_questions`].
        split (`str`, *optional*):
            Split of a data set that has several.

    Returns:
        `Dataset`: the rows with their columns.

    Raises:
        `ValueError`: for a file that cannot be read, messages that are no JSON, or a probability that is no number.
    """
    return training_rows(load_records(path, split=split), path)


def training_rows(rows: Dataset | TextRecords, path: str | Path) -> Dataset:
    """Convert loaded rows as [`load_training_rows`] does; `path` is named in messages."""
    rows = to_dataset(rows, path)
    for name in MESSAGE_COLUMNS:
        if name in rows.column_names and rows.features[name] == Value("string"):
            values = rows[name][:]
            if any(_is_messages(value) for value in values):
                parsed = [_messages(value, name, path, number) for number, value in enumerate(values)]
                rows = _with_column(rows, name, parsed)
    if rows.features.get(PREFERENCE_COLUMN) == Value("string"):
        numbers = [_number(value, path, number) for number, value in enumerate(rows[PREFERENCE_COLUMN])]
        rows = _with_column(rows, PREFERENCE_COLUMN, numbers)
    return rows


def _with_column(rows: Dataset, name: str, values: list) -> Dataset:
    """Replace a column, perhaps the only one."""
    return rows.rename_column(name, f"{name} as text").add_column(name, values).remove_columns(f"{name} as text")


def _is_messages(value: str | None) -> bool:
    """Whether a text is a list of messages."""
    start = (value or "").lstrip()[:40].replace(" ", "").replace("'", '"')
    return start.startswith(('[{"role":', '[{"content":'))


def _messages(value: str | None, name: str, path: str | Path, number: int) -> list[dict[str, Any]] | None:
    if value is None:
        return None
    try:
        return structured(value, name)
    except InvalidRow as error:
        raise FileError(
            path, f"row {number}: {value[:60]!r} is not a list of messages in JSON", column=name
        ) from error


def _number(value: str | None, path: str | Path, number: int) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        raise FileError(path, f"row {number}: {value!r} is not a number", column=PREFERENCE_COLUMN) from None
