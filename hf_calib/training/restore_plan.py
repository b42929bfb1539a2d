"""Plan of `hf-calib restore`: numbers of questions and epochs, and their estimated time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from .restore_data import LEAST_LABELS, LEAST_TEST, RestoreQuestions


PROBE = 24  # questions that are timed
# A training step of a question, in evaluations of it. On CPUs, adapters on every layer cost as much as the layers.
PASSES_OF_A_STEP = {"full": 3, "lora": 4, "lora on CPUs": 8}
# Steps of the closing step: this share of those of the training, and at least these numbers.
CLOSING_SHARE, CLOSING_STEPS = 0.5, {"full": 150, "lora": 20}
TEXT_PASSES = 300  # the sampled texts of the alignment report, for each model, in evaluations of a question
SECONDS_OF_THE_REST = 20.0  # loading, saving, cross-validation, figures
SCORING_QUESTIONS = 200  # labels on which the two kinds of scoring are compared
_FEWEST_TEST = 200  # the budget reduces the epochs to 1 before it goes below this number of test questions

# Full fine-tuning of small models, and LoRA: questions of an optimizer step, steps aimed at, most epochs.
BATCH = {"full": 32, "lora": 8}
STEPS = {"full": 200, "lora": 100}
MOST_EPOCHS = {"full": 4, "lora": 3}


@dataclass(frozen=True)
class Plan:
    """
    Numbers of questions and epochs.

    Attributes:
        labels (`int`), test (`int`), unlabelled (`int`): Numbers of questions.
        epochs (`float`): Epochs of the training.
        seconds_per_question (`float`): Measured time of one evaluation of a question.
        passes_of_a_step (`float`): Time of a training step of a question, in evaluations of it.
        least_closing (`int`): Least number of questions of the closing step.
        chooses_scoring (`bool`): Whether letters and texts are compared first.
        has_reference (`bool`): Whether the model before alignment is evaluated, too.
        alignment_rows (`int`, *optional*, defaults to `0`): Number of pairs and given texts of the alignment report.
        seconds_per_answer (`float`, *optional*, defaults to `0.0`): Time of writing the answer to a question, if
            answers are to be written.
        spent (`float`, *optional*, defaults to `0.0`): Seconds in which answers were written already.
    """

    labels: int
    test: int
    unlabelled: int
    epochs: float
    seconds_per_question: float
    passes_of_a_step: float
    least_closing: int
    chooses_scoring: bool
    has_reference: bool
    alignment_rows: int = 0
    seconds_per_answer: float = 0.0
    spent: float = 0.0

    @property
    def writing_seconds(self) -> float:
        """Time of writing answers."""
        return self.spent + self.seconds_per_answer * (self.labels + self.test + self.unlabelled)

    @property
    def evaluation_seconds(self) -> float:
        """Estimated time of all evaluations."""
        passes = self.labels + 2 * self.test
        passes += (3 if self.has_reference else 2) * (TEXT_PASSES + self.alignment_rows)
        passes += 2 * min(self.labels, SCORING_QUESTIONS) if self.chooses_scoring else 0
        passes += 2 * self.labels + self.test + self.unlabelled if self.has_reference else 0
        return passes * self.seconds_per_question

    @property
    def training_seconds(self) -> float:
        """Estimated time of training and closing step."""
        questions = self.epochs * (self.labels + self.unlabelled)
        questions += max(CLOSING_SHARE * questions, self.least_closing)
        return questions * self.passes_of_a_step * self.seconds_per_question

    @property
    def seconds(self) -> float:
        """Estimated time of the whole work."""
        return self.writing_seconds + self.evaluation_seconds + self.training_seconds + SECONDS_OF_THE_REST

    def describe(self, budget: float | None) -> str:
        """The plan in two sentences."""
        unlabelled = f", {self.unlabelled:,} questions without answers" if self.unlabelled else ""
        limit = "" if budget is None else f" of a budget of {_duration(60 * budget)}"
        writing = f"writing answers {_duration(self.writing_seconds)}, " if self.writing_seconds else ""
        return (
            f"Plan: {self.labels:,} labels{unlabelled}, {self.test:,} test questions, {self.epochs:g} "
            f"epoch{'' if self.epochs == 1 else 's'}. Estimated time: {_duration(self.seconds)}{limit} "
            f"({writing}evaluation {_duration(self.evaluation_seconds)}, training {_duration(self.training_seconds)})."
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe_cut(full: Plan, fitted: Plan, budget: float | None) -> str:
    """What a plan leaves out of the full one to fit a budget, in a sentence; empty if nothing."""
    titles = {"test": "test questions", "unlabelled": "questions without answers"}
    cut = [
        f"{getattr(fitted, name):,} of {getattr(full, name):,} {titles.get(name, name)}"
        for name in ("labels", "test", "unlabelled", "epochs")
        if getattr(fitted, name) < getattr(full, name)
    ]
    return f"To fit the budget of {_duration(60 * budget)}: {', '.join(cut)}." if cut else ""


def seconds_per_question(predict: Callable[[Dataset], Any], questions: Dataset, state: PartialState) -> float:
    """
    Measure the time of one evaluation of a question.

    Args:
        predict (`Callable`):
            Scores questions.
        questions (`Dataset`):
            Questions; some of them are scored.
        state ([`~accelerate.PartialState`]):
            The processes, which all get the time of the main one.
    """
    predict(questions.select(range(min(2, len(questions)))))  # the first pass is slower
    probed = questions.select(range(min(PROBE, len(questions))))
    start = time.perf_counter()
    predict(probed)
    return agreed((time.perf_counter() - start) / len(probed), state)


def agreed(seconds: float, state: PartialState) -> float:
    """The time that the main process measured, on every process."""
    measured = [seconds]
    if state.num_processes > 1:
        broadcast_object_list(measured)
    return measured[0]


def default_epochs(labels: int, kind: str) -> int:
    """Number of epochs for so many labels; `kind` is `"lora"` or `"full"`."""
    return max(1, min(MOST_EPOCHS[kind], round(STEPS[kind] * BATCH[kind] / labels)))


def fit_budget(plan: Plan, budget: float | None, fixed_epochs: bool = False) -> Plan:
    """
    Reduce a plan to a budget: first unlabelled questions and epochs, then test questions, then labels.

    Args:
        plan ([`Plan`]):
            The plan with all questions and the default epochs.
        budget (`float`, *optional*):
            Minutes.
        fixed_epochs (`bool`, *optional*, defaults to `False`):
            Whether a recipe sets the epochs, which are then not reduced.

    Raises:
        `ValueError`: if not even one epoch fits. The least budget is named.
    """
    if budget is None or plan.seconds <= 60 * budget:
        return plan
    for name, least in _reductions(plan, fixed_epochs):
        reduced = replace(plan, **{name: min(least, getattr(plan, name))})
        if reduced.seconds <= 60 * budget:
            return _largest(plan, name, getattr(reduced, name), 60 * budget)
        plan = reduced
    least = ceil(plan.seconds / 6) / 10
    raise ValueError(
        f"a budget of {budget:g} minutes is too small: {plan.epochs:g} epoch{'' if plan.epochs == 1 else 's'} with "
        f"{plan.labels} labels and {plan.test} test questions take about {_duration(plan.seconds)} here. Give "
        f"--budget {least:g} or more."
    )


def _reductions(plan: Plan, fixed_epochs: bool) -> list[tuple[str, float]]:
    """What is reduced, in order, each with its least value."""
    steps = [("unlabelled", min(plan.labels, plan.unlabelled))]
    steps += [] if fixed_epochs else [("epochs", 1)]
    return [*steps, ("test", _FEWEST_TEST), ("unlabelled", 0), ("labels", LEAST_LABELS), ("test", LEAST_TEST)]


def _largest(plan: Plan, name: str, least: float, seconds: float) -> Plan:
    """Return the plan with the largest whole number of `name` that fits; its least value does."""
    low, high = int(least), int(getattr(plan, name))
    while low < high:
        middle = (low + high + 1) // 2
        if replace(plan, **{name: middle}).seconds <= seconds:
            low = middle
        else:
            high = middle - 1
    return replace(plan, **{name: low})


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def take(questions: RestoreQuestions, plan: Plan) -> RestoreQuestions:
    """Take the numbers of questions of a plan. They are in random order already."""
    unlabelled = questions.unlabelled if plan.unlabelled else None
    return replace(
        questions,
        labels=questions.labels.select(range(plan.labels)),
        test=questions.test.select(range(plan.test)),
        unlabelled=None if unlabelled is None else unlabelled.select(range(plan.unlabelled)),
    )
