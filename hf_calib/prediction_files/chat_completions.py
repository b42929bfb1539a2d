"""Log-probabilities of chat completions and completions: responses, or output of the batch APIs of OpenAI and vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.answers import warn_or_raise_without_zero
from ..inference.predictions import OptionPredictions
from .answer_token import answer_position, likeliest_tokens, option_names, option_scores
from .collect import UNKNOWN, Question, collect
from .labels import GoldLabels, to_index
from .options import ReadOptions
from .source import Source


TITLE = "chat completions with log-probabilities (batch output of OpenAI or vLLM, jsonl)"

_NO_COUNT = (
    "how many options a question has is not in the file: add --num_options 4 (letters A to D), --option_labels "
    "yes,no, or the column choices in --labels"
)
_OBJECTS = ("chat.completion", "text_completion", "response")


def recognises(source: Source) -> bool:
    """Whether the objects are completions, or responses of a batch that hold them."""
    if source.kind not in ("json", "jsonl"):
        return False
    first = source.first
    batch = {"custom_id", "response"} <= set(first) or {"custom_id", "error"} <= set(first)
    return batch or first.get("object") in _OBJECTS or _body(first).get("object") in _OBJECTS


def read(source: Source, options: ReadOptions, labels: GoldLabels | None = None) -> OptionPredictions:
    """
    Read the probabilities of the options' letters at the position of the answer.

    The scores are log-probabilities under the full vocabulary, so that the option mass is known.

    Args:
        source ([`Source`]):
            The file.
        options ([`ReadOptions`]):
            `option_labels` or `num_options` name the options where `labels` has no choices.
        labels ([`GoldLabels`], *optional*):
            Right options and, with choices, the number of options of each question.

    Raises:
        `ValueError`: a request failed, has no log-probabilities, or the number of options is not known.
    """
    none, models, given = 0, set(), options.written_options
    numbers: list[tuple[int, int]] = []  # labels that are numbers, with the number of options

    def question(row: dict[str, Any]) -> Question:
        nonlocal none
        body = _body(row)
        models.add(body.get("model"))
        name = str(row.get("custom_id") or row.get("key") or body.get("id") or "")
        count = labels.num_options(name) if labels is not None else None
        count = count or len(given) or options.num_options
        if count is None:
            raise ValueError(_NO_COUNT)
        names = option_names(count, given)
        found = positions(body)
        place = answer_position([position["token"] for position in found], names)
        scores = option_scores(likeliest_tokens(found[place]), names)
        none += len(set(scores)) == 1
        label = next((row[key] for key in ("label", "answer", "gold", "target") if key in row), None)
        if labels is None and str(label).strip().isdecimal():
            numbers.append((int(label), len(names)))
        return Question(name, scores, to_index(label, len(names), options.answers_from))

    predictions = collect(source, options, question, option_normalization="sum", letters=True)
    if options.answers_from is None and numbers and all(number for number, _ in numbers):
        reaches_last = any(number == count for number, count in numbers)  # left out with drop_invalid
        warn_or_raise_without_zero(reaches_last, len(numbers), "label", str(source.path))
    if len(models) == 1 and None not in models:
        predictions.metadata["model"] = models.pop()
    if none:
        predictions.metadata["notes"] = [
            f"{none} answers have none of the options among the likeliest tokens: their options are equally likely"
        ]
    if labels is None and (predictions.labels == UNKNOWN).all():
        raise ValueError(
            f"{source.path}: completions hold no right options: give --labels FILE with the columns id (that of the "
            "request, custom_id) and label"
        )
    return predictions


def _body(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The completion of a row."""
    response = row.get("response")
    if isinstance(response, Mapping):
        body = response.get("body", response)
        return body if isinstance(body, Mapping) else {}
    return row


def positions(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """
    Tokens of the first choice of a completion with their log-probabilities, in the form of chat completions.

    Raises:
        `ValueError`: the request failed, or has no log-probabilities.
    """
    if body.get("object") == "response" or "output" in body:  # Responses API
        texts = [part for item in body["output"] for part in item.get("content") or () if "logprobs" in part]
        found = [position for part in texts for position in part["logprobs"]]
    else:
        if not body.get("choices"):
            error = body.get("error") or "no choices"
            raise ValueError(f"the request failed ({str(error)[:80]}): leave such rows out with --drop_invalid true")
        found = body["choices"][0].get("logprobs") or {}
        if found.get("tokens"):  # text completion
            tops = found.get("top_logprobs") or [None] * len(found["tokens"])
            values = zip(found["tokens"], found["token_logprobs"], tops, strict=True)
            found = [{"token": token, "logprob": value, "top_logprobs": top} for token, value, top in values]
        else:
            found = found.get("content")
    if not found:
        raise ValueError("there are no log-probabilities: request logprobs=true and top_logprobs=20")
    return found
