"""Answers of a model behind a gate: one for each question, an abstention where the confidence is too low."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inference.predictions import OptionPredictions
from ..measures.threshold import clopper_pearson
from .gate import Answers, Gate


if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class SelectiveAnswer:
    """
    Answer to a question, or abstention.

    Attributes:
        id (`str`): Id of the question.
        question (`str`): Its text.
        answered (`bool`): Whether the confidence reaches the threshold.
        answer (`str`, *optional*): Letter of the chosen option, by its position; `None` where it abstains, for options
            after the 26th, and for an answer in free text.
        text (`str`, *optional*): Text of the chosen option, or the answer in free text; `None` where it abstains.
        confidence (`float`): Calibrated probability of the likeliest option, or that the answer in free text is right;
            also where it abstains.
        subject (`str`, *optional*): Subject of the question, if it has one.
        correct (`bool`, *optional*): Whether the likeliest option, or the answer in free text, is right, also where it
            abstains; `None` if that is not known.
    """

    id: str
    question: str
    answered: bool
    answer: str | None
    text: str | None
    confidence: float
    subject: str | None = None
    correct: bool | None = None


def selective_answers(
    gate: Gate, questions: Dataset, predictions: OptionPredictions, written: Sequence[str] | None = None
) -> list[SelectiveAnswer]:
    """
    Decide for each question whether it is answered.

    Args:
        gate ([`~hf_calib.evaluation.gate.Gate`]):
            The gate.
        questions (`Dataset`):
            Questions in the unified columns, or with accepted texts.
        predictions ([`~hf_calib.OptionPredictions`]):
            Calibrated predictions for them, in the same order.
        written (`Sequence[str]`, *optional*):
            The answers in free text, if the predictions are of such.

    Raises:
        `ValueError`: the predictions are not of these questions, or in another order.
    """
    if predictions.ids.tolist() != questions["id"][:]:
        raise ValueError("the predictions are not of these questions: leave out no question that is too long.")
    labels = predictions.labels
    # Option 0 of a written answer is that it is right.
    chosen = np.zeros_like(labels) if predictions.of_answers else predictions.probabilities.argmax(axis=1)
    answered = gate.answered(Answers.of(predictions)).tolist()
    subjects = [None] * len(chosen) if predictions.subjects is None else predictions.subjects.tolist()
    columns = [questions["id"][:], questions["question"][:]]
    columns.append([[text] for text in written] if predictions.of_answers else questions["choices"][:])
    rows = []
    for row, (name, question, choices) in enumerate(zip(*columns, strict=True)):
        option = int(chosen[row])
        letter = None if predictions.of_answers else ascii_uppercase[option : option + 1] or None
        rows.append(
            SelectiveAnswer(
                id=name,
                question=question,
                answered=answered[row],
                answer=letter if answered[row] else None,
                text=choices[option] if answered[row] else None,
                confidence=float(str(predictions.probabilities[row, option])),  # the shortest digits of a float32
                subject=subjects[row],
                correct=bool(option == labels[row]) if labels[row] >= 0 else None,
            )
        )
    return rows


def answer_rows(answers: Sequence[SelectiveAnswer]) -> list[dict[str, Any]]:
    """Rows of a file of answers: without the columns that no answer has."""
    absent = [name for name in ("subject", "correct") if all(getattr(answer, name) is None for answer in answers)]
    return [{name: value for name, value in vars(answer).items() if name not in absent} for answer in answers]


def check_output(path: str | Path) -> Path:
    """Check the name of a file of answers. Raises `ValueError` for another ending than .jsonl, .csv or .parquet."""
    path = Path(path).expanduser()
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: answers are written as {', '.join(FORMATS)}; name it {path.name}.jsonl.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file.")
    return path


def save_answers(path: str | Path, answers: Sequence[SelectiveAnswer]) -> None:
    """Write answers in their order as JSON lines, CSV or parquet, by the ending: completely or not at all."""
    path = check_output(path)
    rows = answer_rows(answers)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    if path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        unfinished.write_text("".join(lines), encoding="utf-8")
    else:
        import pandas as pd

        frame = pd.DataFrame(rows)
        frame.to_csv(unfinished, index=False) if path.suffix == ".csv" else frame.to_parquet(unfinished, index=False)
    unfinished.replace(path)


def answers_summary(gate: Gate, predictions: OptionPredictions) -> list[str]:
    """
    Describe how many questions were answered, beside what the gate was made with, and how many answers are right.

    Args:
        gate ([`~hf_calib.evaluation.gate.Gate`]):
            The gate.
        predictions ([`~hf_calib.OptionPredictions`]):
            Calibrated predictions.

    Returns:
        `list[str]`: sentences.
    """
    answers = Answers.of(predictions)
    answered, n = gate.answered(answers), len(predictions)
    count = int(answered.sum())
    low, high = clopper_pearson(count, n)
    lines = [
        f"answered: {count:,} of {n:,} questions, abstained on {n - count:,}.",
        f"coverage: {count / n:.1%} [{low:.1%}, {high:.1%}]; with the gate's questions it was {_promised(gate)}.",
    ]
    if gate.by_subject:
        lines += _by_subject(gate, answers, answered)
    elif low > gate.thresholds[""].coverage_high or high < gate.thresholds[""].coverage_low:
        lines.append(
            "The two differ by more than chance, so these questions are of another kind: the guarantee need not hold. "
            "See `hf-calib threshold --check`."
        )
    known = answered & answers.labelled
    if answers.labelled.any():
        lines.append(_accuracy(gate, answers.correct[known]))
    return lines


def _promised(gate: Gate) -> str:
    n = sum(threshold.n for threshold in gate.thresholds.values())
    coverage = sum(threshold.n_answered for threshold in gate.thresholds.values()) / n
    if gate.by_subject:
        return f"{coverage:.1%} of {n:,}"
    whole = gate.thresholds[""]
    return f"{coverage:.1%} [{whole.coverage_low:.1%}, {whole.coverage_high:.1%}] of {n:,}"


def _by_subject(gate: Gate, answers: Answers, answered: np.ndarray) -> list[str]:
    """A line for each subject that has a threshold, and one for the questions that have none."""
    lines, rest = [], np.ones(len(answered), dtype=bool)
    for name, threshold in gate.thresholds.items():
        rows = answers.subjects == name
        if threshold.found and rows.any():
            lines.append(
                f"  {name}: {int(answered[rows].sum()):,} of {int(rows.sum()):,} ({answered[rows].mean():.1%}; "
                f"{threshold.coverage:.1%} [{threshold.coverage_low:.1%}, {threshold.coverage_high:.1%}])"
            )
        rest &= ~rows if threshold.found else True
    if rest.any():
        lines.append(f"  {int(rest.sum()):,} questions are of subjects without a threshold: none is answered.")
    return lines


def _accuracy(gate: Gate, correct: np.ndarray) -> str:
    if not len(correct):
        return "accuracy: no labelled question is answered."
    accuracy, (low, high) = correct.mean(), clopper_pearson(int(correct.sum()), len(correct))
    return (
        f"accuracy: {accuracy:.1%} [{low:.1%}, {high:.1%}] of {len(correct):,} answers are right; the target is "
        f"{gate.target_accuracy:.4g}, at level {gate.level:.4g}."
    )


def unknown_subjects(gate: Gate, subjects: Sequence[str]) -> list[str]:
    """Subjects of questions for which a gate by subject has no threshold, in their order."""
    found = {name for name, threshold in gate.thresholds.items() if threshold.found}
    return [name for name in dict.fromkeys(subjects) if name not in found]
