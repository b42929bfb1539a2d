"""Load prompts and plain texts, on which the alignment of a model is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset

from .training_rows import load_training_rows


Prompt = str | list[dict[str, str]]
Row = TypeVar("Row")

PROMPT_COLUMNS, TEXT_COLUMNS = ("prompt", "messages"), ("text",)


def load_prompts(
    source: str | Path | Dataset | Sequence[Prompt] | None = None, limit: int | None = None, seed: int = 0
) -> list[Prompt]:
    """
    Load prompts that a model is to answer.

    Args:
        source (*optional*):
            A `.txt` file with a prompt on each line; a parquet, jsonl or csv file, a folder or a data set on the Hub
            with a column `prompt` (texts or messages) or `messages`, of which an answer at the end is left out; or the
            prompts themselves. Defaults to the 64 chat prompts of the package.
        limit (`int`, *optional*):
            Largest number of prompts, drawn by `seed`. By default all.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw.

    Returns:
        `list`: texts, or lists of messages.

    Raises:
        `ValueError`: if there is no prompt, or no such column, or a prompt is neither a text nor messages.

    Example:

    ```python
    >>> from hf_calib.data.texts import load_prompts
    >>> load_prompts(limit=1)[0]
    'Find the mistake: for i in range(len(words)): print(words[i + 1])'

    ```
    """
    if source is None:
        written = (files("hf_calib.data") / "chat_prompts.txt").read_text(encoding="utf-8")
        return _draw(written.splitlines(), limit, seed)
    name, rows = _rows(source, PROMPT_COLUMNS, "prompts", paragraphs=False)
    return _draw([_prompt(row, f"{name}, prompt {number}") for number, row in enumerate(rows)], limit, seed)


def load_texts(source: str | Path | Dataset | Sequence[str], limit: int | None = None, seed: int = 0) -> list[str]:
    """
    Load plain texts, to compute a perplexity on.

    Args:
        source:
            A `.txt` file, whose paragraphs (separated by empty lines) are the texts; a parquet, jsonl or csv file, a
            folder or a data set on the Hub with a column `text`; or the texts themselves.
        limit (`int`, *optional*), seed (`int`, *optional*, defaults to `0`):
            As in [`load_prompts`].

    Returns:
        `list[str]`: the texts that are not empty.

    Raises:
        `ValueError`: if there is no text, or no such column.
    """
    name, rows = _rows(source, TEXT_COLUMNS, "texts", paragraphs=True)
    if wrong := [row for row in rows if not isinstance(row, str)]:
        raise ValueError(f"{name}: {str(wrong[0])[:60]!r} is not a text.")
    return _draw(rows, limit, seed)


def _rows(source: Any, columns: tuple[str, ...], unit: str, paragraphs: bool) -> tuple[str, list[Any]]:
    """Name of a source, and its rows that are not empty."""
    name = str(source) if isinstance(source, (str, Path)) else f"the given {unit}"
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".txt":
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        written = path.read_text(encoding="utf-8")
        rows = [part.strip() for part in written.split("\n\n")] if paragraphs else written.splitlines()
    elif isinstance(source, (str, Path, Dataset)):
        loaded = source if isinstance(source, Dataset) else load_training_rows(source)
        column = next((column for column in columns if column in loaded.column_names), None)
        if column is None:
            wanted = " or ".join(f"`{column}`" for column in columns)
            raise ValueError(f"{name}: no column {wanted} among {', '.join(loaded.column_names)}.")
        rows = list(loaded[column])
    else:
        rows = list(source)
    rows = [row for row in rows if row and (not isinstance(row, str) or row.strip())]
    if not rows:
        raise ValueError(f"{name}: there are no {unit}; every row is empty.")
    return name, rows


def _prompt(row: Any, name: str) -> Prompt:
    """A prompt, checked; of messages, up to the last one that is not the assistant's."""
    if isinstance(row, str):
        return row
    known = isinstance(row, Sequence) and all(
        isinstance(message, Mapping) and isinstance(message.get("content"), str) and message.get("role")
        for message in row
    )
    if not known:
        raise ValueError(f"{name} is neither a text nor a list of messages with `role` and `content`: {str(row)[:60]}")
    messages = [{"role": message["role"], "content": message["content"]} for message in row]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise ValueError(f"{name} has no message of a user.")
    return messages


def _draw(rows: list[Row], limit: int | None, seed: int) -> list[Row]:
    if limit is None or limit >= len(rows):
        return rows
    return [rows[index] for index in sorted(np.random.default_rng(seed).permutation(len(rows))[:limit])]
