"""scenario_state.json of HELM."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..inference.predictions import OptionPredictions
from .answer_token import answer_position, likeliest_tokens, option_scores
from .collect import Question, collect
from .confidences import ConfidencePredictions
from .options import ReadOptions
from .scores import likeliest_right, normalized_scores
from .source import Source


TITLE = "scenario_state.json of HELM"


def recognises(source: Source) -> bool:
    """Whether a JSON document is the state of a scenario of HELM."""
    return source.kind == "json" and {"adapter_spec", "request_states"} <= set(source.fields)


class _Rows:
    """Groups of requests for one question each, as rows."""

    def __init__(self, source: Source, groups: Mapping[str, list]):
        self.path, self._groups = source.path, groups

    def where(self, number: Any) -> str:
        return f"{self.path}: instance {number}"

    def rows(self):
        yield from self._groups.items()


def read(source: Source, options: ReadOptions) -> OptionPredictions | ConfidencePredictions:
    """
    Read multiple-choice predictions.

    The joint method with `top_logprobs`, and both separate methods, give probabilities of all options. The joint
    method without them gives the confidence of the written answer alone.

    Raises:
        `ValueError`: another method than multiple choice, or requests without results.
    """
    state = source.first
    spec = state["adapter_spec"]
    method = spec.get("method", "")
    if not method.startswith("multiple_choice"):
        raise ValueError(f"{source.path}: the method is {method!r}: only multiple choice can be measured")
    groups: dict[str, list] = {}
    for request in state["request_states"]:
        groups.setdefault(_name(request), []).append(request)
    rows = _Rows(source, groups)
    separate = method.startswith("multiple_choice_separate")
    if separate:
        # The scores by which HELM chooses.
        default = "mutual_information" if method.endswith("calibrated") else "mean"
        normalization = options.option_normalization or default
        predictions = collect(
            rows, options, lambda group: _separate(group, normalization), option_normalization=normalization
        )
    elif any(_likeliest(group[0]) for group in groups.values()):
        predictions = collect(rows, options, _joint, option_normalization="sum", letters=True)
    else:
        predictions = _confidences(rows, options)
    predictions.metadata |= {name: spec[name] for name in ("model",) if spec.get(name)}
    run = source.path.absolute().parent.name
    if ":" in run:  # scenario:argument=value,...,model=name
        predictions.metadata["task"] = re.sub(r"(?<=[:,])model=[^,]*,?", "", run).strip(":,")
    return predictions


def _name(request: Mapping[str, Any]) -> str:
    """Id of the question; perturbed copies and further trials are questions of their own."""
    instance = request["instance"]
    parts = [str(instance.get("id", ""))]
    if perturbation := instance.get("perturbation"):
        parts.append(str(perturbation.get("name", "perturbed")))
    if trial := request.get("train_trial_index"):
        parts.append(f"trial{trial}")
    return "/".join(parts)


def _right(instance: Mapping[str, Any]) -> list[int]:
    right = [place for place, each in enumerate(instance["references"]) if "correct" in (each.get("tags") or ())]
    if not right:
        raise ValueError("no reference has the tag 'correct'")
    return right


def _completion(request: Mapping[str, Any]) -> Mapping[str, Any]:
    result = request.get("result") or {}
    if not result.get("completions"):
        raise ValueError(f"the request failed ({str(result.get('error', 'no result'))[:60]})")
    return result["completions"][0]


def _separate(group: Sequence[Mapping[str, Any]], normalization: str) -> Question:
    """Scores of references that were requested one by one."""
    instance = group[0]["instance"]
    count = len(instance["references"])
    sums: dict[str, list] = {"original": [None] * count, "calibration": [None] * count}
    lengths = [0] * count
    for request in group:
        place, mode = request["reference_index"], request.get("request_mode") or "original"
        tokens = _answer_tokens(_completion(request)["tokens"], instance["references"][place]["output"]["text"])
        sums[mode][place] = sum(token["logprob"] for token in tokens)
        if mode == "original":
            lengths[place] = len(tokens)
    if None in sums["original"]:
        raise ValueError("a reference has no request")
    unconditional = None if None in sums["calibration"] else sums["calibration"]
    texts = [reference["output"]["text"] for reference in instance["references"]]
    scores = normalized_scores(sums["original"], normalization, texts, lengths, unconditional)
    return Question(_name(group[0]), scores, likeliest_right(scores, _right(instance)))


def _answer_tokens(tokens: Sequence[Mapping[str, Any]], reference: str) -> Sequence[Mapping[str, Any]]:
    """The last tokens that spell the reference."""
    wanted, spelled = reference.strip(), ""
    for count, token in enumerate(reversed(tokens), 1):
        spelled = token["text"] + spelled
        if spelled.strip().endswith(wanted):
            return tokens[len(tokens) - count :]
    raise ValueError(f"the tokens do not end with the reference {reference[:40]!r}")


def _likeliest(request: Mapping[str, Any]) -> bool:
    completions = (request.get("result") or {}).get("completions") or [{}]
    return any(token.get("top_logprobs") for token in completions[0].get("tokens") or ())


def _joint(group: Sequence[Mapping[str, Any]]) -> Question:
    """Probabilities of the letters in a joint prompt."""
    request = group[0]
    names = list(request["output_mapping"])
    tokens = _completion(request)["tokens"]
    place = answer_position([token["text"] for token in tokens], names)
    position = {**tokens[place], "token": tokens[place]["text"]}
    scores = option_scores(likeliest_tokens(position), names)
    instance = request["instance"]
    texts = {instance["references"][place]["output"]["text"].strip() for place in _right(instance)}
    right = [place for place, text in enumerate(request["output_mapping"].values()) if text.strip() in texts]
    if not right:
        raise ValueError("the right reference is not in output_mapping")
    return Question(_name(request), scores, likeliest_right(scores, right))


def _confidences(rows: _Rows, options: ReadOptions) -> ConfidencePredictions:
    """Probability of the written answer, and whether it is right."""
    found, left_out = [], 0
    for name, group in rows.rows():
        try:
            completion, instance = _completion(group[0]), group[0]["instance"]
            written = group[0]["output_mapping"].get(completion["text"].strip())
            texts = [instance["references"][place]["output"]["text"].strip() for place in _right(instance)]
            right = written is not None and written.strip() in texts
            found.append((name, math.exp(min(completion["logprob"], 0)), float(right)))
        except (KeyError, TypeError, ValueError) as error:
            if not options.drop_invalid:
                message = f"the field {error.args[0]!r} is missing" if isinstance(error, KeyError) else error
                raise ValueError(f"{rows.where(name)}: {message}") from None
            left_out += 1
    if not found:
        raise ValueError(f"{rows.path}: no question can be read ({left_out} left out)")
    names, confidences, correct = zip(*found, strict=True)
    metadata: dict[str, Any] = {
        "notes": ["the tokens have no top_logprobs: the confidence is the probability of the written answer"]
    }
    if left_out:
        metadata["left_out"] = left_out
    return ConfidencePredictions(np.array(confidences), np.array(correct), np.array(names, np.str_), metadata=metadata)
