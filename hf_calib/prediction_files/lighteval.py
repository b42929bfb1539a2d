"""Details of lighteval: one parquet file for each task."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..data.literals import parse_literal
from ..inference.predictions import OptionPredictions
from .collect import UNKNOWN, Question, collect
from .labels import to_index
from .options import ReadOptions
from .scores import likeliest_right, normalized_scores
from .source import Source


TITLE = "details_*.parquet of lighteval (--save-details)"

_COLUMNS = (
    "doc.id", "doc.choices", "doc.gold_index", "model_response.logprobs", "model_response.unconditioned_logprobs",
    "model_response.output_tokens",
)  # fmt: skip
_OLDER_COLUMNS = ("choices", "gold_index", "predictions", "cont_tokens")


def recognises(source: Source) -> bool:
    """Whether the columns are those of lighteval's details, of newer or older versions."""
    fields = set(source.fields)
    newer, older = {"doc", "model_response", "metric"}, {"full_prompt", "choices", "gold_index", "predictions"}
    return source.kind == "parquet" and (newer <= fields or older <= fields)


def read(source: Source, options: ReadOptions) -> OptionPredictions:
    """
    Read the log-likelihoods of the options.

    Raises:
        `ValueError`: a task without log-likelihoods of options.
    """
    normalization, several = options.option_normalization or "sum", 0
    newer = "doc" in source.fields

    def question(row: dict[str, Any]) -> Question:
        nonlocal several
        doc, response = (row["doc"], row["model_response"]) if newer else _older(row)
        count, found = len(doc["choices"]), response["logprobs"] or []
        if len(found) not in (count, 2 * count) or count < 2:
            raise ValueError(f"{len(found)} log-likelihoods for {count} options: only multiple-choice tasks have them")
        unconditional = response.get("unconditioned_logprobs") or found[count:]
        tokens = [len(each) for each in (response.get("output_tokens") or [])[:count]]
        scores = normalized_scores(found[:count], normalization, doc["choices"], tokens, unconditional)
        right = doc["gold_index"] if isinstance(doc["gold_index"], list) else [doc["gold_index"]]
        right = [place for place in (to_index(index, count) for index in right) if place != UNKNOWN]
        several += len(right) > 1
        label = likeliest_right(scores, right) if right else UNKNOWN
        # The id is empty in details of some versions.
        return Question(str(doc.get("id") or ""), scores, label)

    columns = _COLUMNS if newer else [name for name in _OLDER_COLUMNS if name in source.fields]
    predictions = collect(source, options, question, columns, option_normalization=normalization)
    if len(set(predictions.ids.tolist()) - {""}) < len(predictions):
        predictions.ids = np.arange(len(predictions)).astype(np.str_)
    predictions.metadata["task"] = re.sub(r"^details_|_\d{4}-\d\d-\d\d.*$|\.parquet$", "", source.path.name)
    if match := re.search(r"(?:^|/)details/(.+)/\d{4}-\d\d-\d\d[^/]*$", source.path.absolute().parent.as_posix()):
        predictions.metadata["model"] = match[1]
    if several:
        predictions.metadata["notes"] = [
            f"{several} questions have several right options: the likeliest of them is taken as the right one"
        ]
    return predictions


def _older(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Question and response of older versions, which write lists as text, and log-likelihoods with a flag."""
    values = {name: parse_literal(each) if isinstance(each, str) else each for name, each in row.items()}
    found = [each[0] if isinstance(each, (list, tuple)) else each for each in values["predictions"]]
    question = {"choices": values["choices"], "gold_index": values["gold_index"]}
    return question, {"logprobs": found, "output_tokens": values.get("cont_tokens")}
