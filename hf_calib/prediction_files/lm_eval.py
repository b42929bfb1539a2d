"""samples_*.jsonl of lm-evaluation-harness."""

from __future__ import annotations

import ast
import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inference.predictions import OptionPredictions
from .collect import UNKNOWN, Question, collect
from .options import ReadOptions
from .scores import likeliest_right, normalized_scores
from .source import Source


TITLE = "samples_*.jsonl of lm-evaluation-harness (--log_samples)"


def recognises(source: Source) -> bool:
    """Whether the objects are samples of lm-evaluation-harness."""
    return source.kind in ("json", "jsonl") and {"doc_id", "filtered_resps"} <= set(source.fields)


def read(source: Source, options: ReadOptions) -> OptionPredictions:
    """
    Read the log-likelihoods of the options of a multiple-choice task.

    Raises:
        `ValueError`: the file holds several filters, generated texts, or no single right option.
    """
    samples = _Samples(options)
    try:
        predictions = collect(source, options, samples.question, option_normalization=samples.normalization)
    except ValueError:
        if samples.filters and options.filter not in (None, *samples.filters):
            held = ", ".join(samples.filters)
            raise ValueError(f"{source.path}: the filters are {held}; there is no {options.filter!r}") from None
        raise
    if len(samples.filters) > 1 and options.filter is None:
        names = list(samples.filters)
        raise ValueError(
            f"{source.path}: the samples are of the filters {', '.join(names)}: choose with --filter {names[0]}"
        )
    predictions.labels = samples.labels()[predictions.labels]
    predictions.metadata["task"] = task_name(source)
    predictions.metadata["letters"] = samples.letters and samples.normalization == "sum"
    if any(source.path.parent.glob("results_*.json")):  # the folder has the name of the model
        predictions.metadata["model"] = source.path.parent.name.replace("__", "/").strip("/")
    if notes := samples.notes():
        predictions.metadata["notes"] = notes
    return predictions


def task_name(source: Source) -> str:
    """Name of the task in `samples_<task>_<date>.jsonl`."""
    name = re.sub(r"\.(jsonl?|ndjson)(\.gz)?$", "", source.path.name)
    match = re.fullmatch(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT.*)?", name)
    return match[1] if match else name


class _Samples:
    """
    Reads samples and decides, once for a file, whether targets are indices or texts of the options.

    The accuracy that the file states for each sample decides where both are possible.
    """

    def __init__(self, options: ReadOptions):
        self.normalization = options.option_normalization or "sum"
        self.filter, self.joined = options.filter, options.labels is not None
        self.filters: dict[str, None] = {}
        self._as_index, self._as_text = array("q"), array("q")
        self._conflicts = {"index": 0, "text": 0}
        self._several = 0
        self.letters = True

    def question(self, row: dict[str, Any]) -> Question | None:
        name = row.get("filter", "none")
        self.filters[name] = None
        # One filter is read. That there are more is an error at the end, when all their names are known.
        if name != (self.filter or next(iter(self.filters))):
            return None
        if any(isinstance(response, list) and response[:1] == [None] for response in row["filtered_resps"]):
            raise ValueError("the log-likelihood of an option is null")
        try:
            sums = [float(response[0]) for response in row["filtered_resps"]]
        except (ValueError, TypeError, IndexError):
            raise ValueError("it holds a generated text: only multiple-choice tasks have log-likelihoods") from None
        arguments = row["arguments"]
        # Lists in older files, `gen_args_0: {arg_0, arg_1}` in newer ones.
        pairs = (
            [(each["arg_0"], each["arg_1"]) for each in arguments.values()]
            if isinstance(arguments, dict)
            else arguments
        )
        count, unconditional = len(sums), None
        if "acc_mutual_info" in row or (count and count % 2 == 0 and pairs[0][0] and not pairs[-1][0]):
            count //= 2
            sums, unconditional = sums[:count], sums[count:]
        if count < 2:
            raise ValueError(f"it has {count} log-likelihood(s): only multiple-choice tasks have several")
        texts = [pair[1].strip() for pair in pairs[:count]]
        in_prompt = texts.count(texts[0]) == count  # the options are in the prompts, as in WinoGrande
        self.letters &= not in_prompt and max(map(len, texts)) == 1
        scores = sums
        if self.normalization != "sum":
            shown = [pair[0].strip() for pair in pairs[:count]] if in_prompt else texts
            scores = normalized_scores(sums, self.normalization, shown, unconditional=unconditional)
        self._add_labels(row, sums, None if in_prompt else texts, scores)
        doc = row.get("doc")
        subject = doc.get("subject") if isinstance(doc, dict) else None
        # The label is known when all samples are read: until then it is the number of the sample.
        number = len(self._as_index) - 1
        return Question(str(row["doc_id"]), scores, number, subject if isinstance(subject, str) else None)

    def _add_labels(
        self, row: dict[str, Any], sums: list[float], texts: list[str] | None, scores: Sequence[float]
    ) -> None:
        """Read the target as an index and as a text, and count where that contradicts the accuracy in the file."""
        accuracy, target = row.get("acc"), row["target"]
        if accuracy is not None and accuracy not in (0, 1):
            raise ValueError(f"acc is {accuracy}: this task has no single right option for each question")
        predicted = sums.index(max(sums))
        if isinstance(target, str):
            target = target.strip()
            if target[:1] == "[" and target[-1:] == "]":
                target = ast.literal_eval(target)
        if isinstance(target, (list, tuple)):
            as_index = as_text = self._of_several(target, texts, scores)
        else:
            as_index = _index(target, len(sums))
            as_text = texts.index(target) if texts and target in texts else UNKNOWN
        if as_index == as_text == UNKNOWN:
            if accuracy == 1:
                as_index = as_text = predicted
            elif accuracy == 0 and len(sums) == 2:
                as_index = as_text = 1 - predicted
            elif not self.joined:
                shown = str(target)[:40]
                raise ValueError(f"the target {shown!r} is none of the options: give the answers with --labels")
        self._as_index.append(as_index)
        self._as_text.append(as_text)
        if accuracy is not None:
            self._conflicts["index"] += as_index != UNKNOWN and (as_index == predicted) != accuracy
            self._conflicts["text"] += as_text != UNKNOWN and (as_text == predicted) != accuracy

    def _of_several(self, target: Sequence[Any], texts: list[str] | None, scores: Sequence[float]) -> int:
        """The likeliest of the right options, given by their indices or their texts; -100 if none is known."""
        right = [_index(each, len(scores)) for each in target]
        if UNKNOWN in right:
            right = [texts.index(str(each).strip()) for each in target] if texts else []
        self._several += len(right) > 1
        return likeliest_right(scores, right) if right else UNKNOWN

    def labels(self) -> np.ndarray:
        """Labels of the samples by the reading that fits the file better."""
        return np.frombuffer(self._as_index if self._reading == "index" else self._as_text, np.int64)

    @property
    def _reading(self) -> str:
        """The reading with fewer labels that are unknown or contradict the accuracy; of equal ones the index."""
        faults = {
            "index": self._as_index.count(UNKNOWN) + self._conflicts["index"],
            "text": self._as_text.count(UNKNOWN) + self._conflicts["text"],
        }
        return min(faults, key=faults.__getitem__)

    def notes(self) -> list[str]:
        """What a reader of the results should know."""
        notes = []
        if self._several:
            notes.append(
                f"{self._several} questions have several right options: the likeliest of them is taken as the right "
                "one, which leaves accuracy and conf-ECE exact, and not NLL, Brier and cw-ECE"
            )
        if conflicts := self._conflicts[self._reading]:
            notes.append(f"the accuracy that the file states differs for {conflicts} questions")
        return notes


def _index(target: Any, count: int) -> int:
    """Index that a target states; -100 if it states none."""
    if isinstance(target, str) and target.strip() in ("True", "False"):
        target = target.strip() == "True"
    try:
        index = int(target)
    except (TypeError, ValueError):
        return UNKNOWN
    return index if 0 <= index < count else UNKNOWN
