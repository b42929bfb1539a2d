"""Right options, and the conversion of labels to indices."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..data.answers import Answer, parse_answer, settle_answers
from ..data.layouts import InvalidRow, options_of, structured
from ..inference.predictions import OptionPredictions
from .collect import UNKNOWN
from .source import Source
from .tables import Table


ID_COLUMNS = ("id", "ids", "custom_id", "question_id", "doc_id", "sample_id", "instance_id", "qid", "uid", "key")
LABEL_COLUMNS = (
    "label", "labels", "gold", "gold_label", "gold_index", "answer", "answers", "target", "references",
    "correct_answer", "answer_index", "ground_truth", "correct_option", "answerkey", "cop",
)  # fmt: skip
_ROLES = {"id": ID_COLUMNS, "label": LABEL_COLUMNS, "choices": ("choices", "options")}


def normalized(name: str) -> str:
    """Name of a column for comparison: case does not matter, and a space counts as an underscore."""
    return "_".join(name.strip().lower().split())


def find_column(source: Source, accepted: Sequence[str], given: str | None, role: str) -> str | None:
    """
    Find the column with a role.

    Args:
        source ([`Source`]):
            The file.
        accepted (`Sequence[str]`):
            Names that mean this role.
        given (`str`, *optional*):
            Name from `--columns`; its case does not matter.
        role (`str`):
            Name of the role in messages.

    Raises:
        `ValueError`: the given column is not there, or several columns can have the role.
    """
    if given is not None:
        same = [name for name in source.fields if normalized(name) == normalized(given)]
        if given in source.fields or len(same) == 1:
            return given if given in source.fields else same[0]
        raise ValueError(f"{source.path}: there is no column {given!r}; the columns are {_listed(source.fields)}")
    found = [name for name in source.fields if normalized(name) in accepted]
    if len(found) > 1:
        raise ValueError(
            f"{source.path}: the columns {', '.join(found)} can all be the {role}: choose with --columns "
            f"{role}={found[0]}"
        )
    return found[0] if found else None


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def to_index(label: Hashable, num_options: int, answers_from: int | None = None) -> int:
    """
    Index of the right option.

    Args:
        label (`Hashable`):
            Its number or its letter.
        num_options (`int`):
            Number of options of the question.
        answers_from (`int`, *optional*, defaults to `0`):
            Number of the first option.

    Returns:
        `int`: index from 0; -100 if there is no label.

    Raises:
        `ValueError`: the label is none of the options.
    """
    return _place(label, type(label), num_options, answers_from or 0)


@lru_cache(4096)
def _place(label: Hashable, kind: type, num_options: int, answers_from: int) -> int:
    answer = _parse(label, "label", [""] * num_options)
    return UNKNOWN if answer is None else answer.index(answers_from, False, "label")


def _parse(label: Any, column: str, choices: Sequence[str], labels: list[str] | None = None) -> Answer | None:
    """What a label may mean; `None` if there is none."""
    if label is None or str(label) == str(UNKNOWN):
        return None
    try:
        return parse_answer(label, column, labels, choices)
    except InvalidRow as error:
        if error.hidden_label:
            return None
        raise


def indices(
    labels: Sequence[Any],
    choices: Sequence[Sequence[str]],
    column: str,
    source: str,
    answers_from: int | None = None,
    option_labels: list[str] | None = None,
) -> np.ndarray:
    """
    Indices of the right options.

    Args:
        labels (`Sequence`):
            Number, letter, or text of the right option of each question; `None` where it is not known.
        choices (`Sequence[Sequence[str]]`):
            Options of each question; empty texts where they are not known.
        column (`str`), source (`str`):
            Where the labels are from, for messages.
        answers_from (`int`, *optional*):
            Number of the first option, 0 or 1, where labels are numbers.
        option_labels (`list[str]`, *optional*):
            Labels of the options, if they are not A, B, ...

    Returns:
        `np.ndarray` of shape `(N,)`: -100 where there is no label.

    Raises:
        `ValueError`: labels are none of the options, or seem to count from 1.
    """
    known: dict[tuple, Answer | None] = {}
    answers = []
    for label, options in zip(labels, choices, strict=True):
        key = (str(label), type(label), tuple(options))
        if key not in known:
            known[key] = _parse(label, column, options, option_labels)
        answers.append(known[key])
    first, by_text = settle_answers([answer for answer in known.values() if answer], column, source, answers_from)
    places = {id(answer): answer.index(first, by_text, column) for answer in known.values() if answer}
    return np.array([places[id(answer)] if answer else UNKNOWN for answer in answers], np.int64)


class GoldLabels:
    """
    Right options from a file, by id.

    Args:
        path (`str` or `Path`):
            csv, json, jsonl or parquet file with the columns `id` and `label` (a number, a letter, or the text of an
            option if there are `choices`).
        answers_from (`int`, *optional*):
            Number of the first option, 0 or 1, where labels are numbers.

    Raises:
        `ValueError`: a column is missing, or an id has two labels.
    """

    def __init__(self, path: str | Path, answers_from: int | None = None):
        source = Source(path)
        if source.kind in ("zip", "npz"):
            raise ValueError(f"{path}: labels are a csv, json, jsonl or parquet file")
        self.path, self.answers_from = source.path, answers_from
        names = {role: find_column(source, accepted, None, role) for role, accepted in _ROLES.items()}
        for role in ("id", "label"):
            if names[role] is None:
                raise ValueError(
                    f"{path}: labels need the columns id and label; {role} is missing among {_listed(source.fields)}"
                )
        table = Table(source, filter(None, names.values()))
        ids, self._column = table.texts(names["id"]), names["label"]
        self._labels: dict[str, Any] = {}
        for name, label in zip(ids, table.values(self._column), strict=True):
            if self._labels.setdefault(name, label) != label:
                raise ValueError(f"{path}: the id {name!r} has the labels {self._labels[name]!r} and {label!r}")
        self._choices: dict[str, list[str]] = {}
        if choices := names["choices"]:
            found = (options_of(structured(value, choices), choices)[0] for value in table.values(choices))
            self._choices = {name: [str(text) for text in texts] for name, texts in zip(ids, found, strict=True)}

    def num_options(self, name: str) -> int | None:
        """Number of options of a question, if the file has its choices."""
        choices = self._choices.get(name)
        return None if choices is None else len(choices)

    def join(self, predictions: OptionPredictions) -> None:
        """
        Set the labels of predictions.

        Raises:
            `ValueError`: no id is in both files, or a label is none of the options.
        """
        names = predictions.ids.tolist()
        if self._labels.keys().isdisjoint(names):
            raise ValueError(
                f"{self.path}: no id is among those of the predictions (ids here: {_listed(list(self._labels), 3)}; "
                f"ids of the predictions: {_listed(names, 3)})"
            )
        counts = predictions.num_options.tolist()
        for name, count in zip(names, counts, strict=True):
            if len(self._choices.get(name, [""] * count)) != count:
                raise ValueError(f"{self.path}: {name!r} has {self.num_options(name)} choices and {count} predictions")
        choices = [self._choices.get(name) or [""] * count for name, count in zip(names, counts, strict=True)]
        labels = list(map(self._labels.get, names))
        try:
            predictions.labels = indices(labels, choices, self._column, str(self.path), self.answers_from)
        except InvalidRow as error:
            raise ValueError(f"{self.path}, {error}") from None
