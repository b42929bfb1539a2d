"""Logs of inspect_ai, `.eval` or json, of multiple-choice tasks with log-probabilities."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..inference.predictions import OptionPredictions
from .answer_token import answer_position, likeliest_tokens, option_names, option_of, option_scores
from .collect import UNKNOWN, Question, collect
from .labels import to_index
from .options import ReadOptions
from .source import Source, read_member


TITLE = ".eval or json log of inspect_ai (--logprobs --top-logprobs 20)"


def recognises(source: Source) -> bool:
    """Whether a zip file or a JSON document is a log of inspect_ai."""
    if source.kind == "zip":
        return "header.json" in source.fields or "_journal/start.json" in source.fields
    return source.kind == "json" and {"eval", "samples"} <= set(source.fields)


class _Log:
    """The samples of a JSON log, as rows."""

    def __init__(self, source: Source):
        self._source, self.path = source, source.path

    def where(self, number: Any) -> str:
        return f"{self.path}: sample {number}"

    def rows(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        yield from enumerate(self._source.first["samples"] or [], 1)


def read(source: Source, options: ReadOptions) -> OptionPredictions:
    """
    Read the probabilities of the options' letters at the position of the answer.

    Raises:
        `ValueError`: a sample has no options or no log-probabilities.
    """
    epochs: list[int] = []
    disagree = 0

    def question(row: dict[str, Any]) -> Question:
        nonlocal disagree
        if row.get("error"):
            message = row["error"].get("message", "") if isinstance(row["error"], dict) else row["error"]
            raise ValueError(
                f"the sample failed ({str(message)[:60]}): leave such samples out with --drop_invalid true"
            )
        choices = row.get("choices")
        if not choices:
            raise ValueError("the sample has no choices: only multiple-choice tasks can be measured")
        names = option_names(len(choices), options.written_options)
        found = row["output"]["choices"][0].get("logprobs") if row["output"].get("choices") else None
        if not found or not found.get("content"):
            raise ValueError("there are no log-probabilities: evaluate with --logprobs --top-logprobs 20")
        positions = found["content"]
        place = answer_position([position["token"] for position in positions], names)
        scores = option_scores(likeliest_tokens(positions[place]), names)
        label = _target(row["target"], len(choices), choices)
        for score in (row.get("scores") or {}).values():
            if score.get("value") in ("C", "I") and label != UNKNOWN:
                _check_order(score.get("answer"), positions[place]["token"], names)
                disagree += (score["value"] == "C") != (scores[label] == max(scores))
                break
        epochs.append(row.get("epoch", 1))
        return Question(str(row["id"]), scores, label)

    header = _header(source)
    rows = source if source.kind == "zip" else _Log(source)
    predictions = collect(rows, options, question, option_normalization="sum", letters=True)
    notes = []
    if max(epochs) > 1:
        predictions.ids = np.array([f"{name}_epoch_{e}" for name, e in zip(predictions.ids, epochs, strict=True)])
        notes.append(f"every question is there in {max(epochs)} epochs: intervals and noise floor are too narrow")
    if disagree:
        notes.append(
            f"the log's own score differs for {disagree} of {len(predictions)} samples: the written answer is not the "
            "likeliest letter, or has not the form that the scorer expects"
        )
    told = {"model": header.get("model"), "task": header.get("task")}
    predictions.metadata |= {name: value for name, value in told.items() if value}
    if notes:
        predictions.metadata["notes"] = notes
    return predictions


def _check_order(answer: Any, token: str, names: Sequence[str]) -> None:
    """Check that the answer that was scored is the one that was written: a solver that shuffles changes it."""
    written = option_of(token, names)
    if answer in names and written is not None and answer != written:
        raise ValueError(
            f"the answer scored is {answer} and the one written {written}: the solver shuffled the options; "
            "shuffle them in the data set instead (shuffle_choices)"
        )


def _target(target: Any, count: int, choices: list[str]) -> int:
    """Index of the right option: its letter, or in a list of one."""
    if isinstance(target, list):
        if len(target) != 1:
            raise ValueError(f"the sample has {len(target)} right options: only those with one can be measured")
        target = target[0]
    text = str(target).strip()
    if len(text) == 1 and text.isalpha() and ord(text.upper()) - ord("A") < count:
        return ord(text.upper()) - ord("A")
    if text in choices:
        return choices.index(text)
    return to_index(text, count)


def _header(source: Source) -> dict[str, Any]:
    if source.kind != "zip":
        return source.first.get("eval") or {}
    with zipfile.ZipFile(source.path) as archive:
        name = "header.json" if "header.json" in source.fields else "_journal/start.json"
        return json.loads(read_member(archive, archive.getinfo(name))).get("eval") or {}
