"""A file of answers, one line each, to which every answer is added as soon as it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..inference.resumable import remove_unfinished_line


class AnswerLog:
    """
    Answers by key, in memory and, with a path, in a JSON Lines file.

    Each answer is written at once, so that a killed process loses none. A line that a crash left unfinished is removed
    when the file is opened again.

    Args:
        path (`Path`, *optional*):
            The file; its folder must exist. Without it nothing is written.

    Attributes:
        answers (`dict[str, Any]`): The answers of this run and of earlier ones, by key.
    """

    def __init__(self, path: Path | None = None):
        self.answers: dict[str, Any] = {}
        self._file = None
        if path is None:
            return
        self._file = open(path, "ab")
        remove_unfinished_line(path)
        for line in path.read_bytes().splitlines():
            self.answers.update(json.loads(line))

    def add(self, key: str, answer: Any) -> None:
        """Add an answer, of JSON types, and write it to the file."""
        self.answers[key] = answer
        if self._file is not None:
            self._file.write(json.dumps({key: answer}).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
