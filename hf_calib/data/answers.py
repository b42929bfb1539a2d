"""Read the answers of a data set: labels or texts of options, or numbers that count from 0 or 1."""

from __future__ import annotations

import logging
import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .layouts import InvalidRow


logger = logging.getLogger(__name__)

# A labelled set of so many questions in which the first option is never right is worth a warning.
_MANY = 20


@dataclass
class Answer:
    """
    What the answer of one question may mean: indices from 0, or `None`.

    Args:
        value (`Any`):
            The answer as it is written.
        num_options (`int`):
            Number of options.
        label (`int`, *optional*):
            The option with this label.
        number (`int`, *optional*):
            The number that the answer is, before it is known whether numbers count from 0 or 1.
        text (`int`, *optional*):
            The option with this text.
        labels (`list[str]`):
            Labels of the options, for messages.
    """

    value: Any
    num_options: int
    label: int | None
    number: int | None
    text: int | None
    labels: list[str]

    @property
    def has_place(self) -> bool:
        """Whether the answer can be a label or a number."""
        return self.label is not None or (self.number is not None and 0 <= self.number <= self.num_options)

    def index(self, first: int, by_text: bool, column: str) -> int:
        """Index of the right option; `first` is the number of the first option."""
        if by_text and self.text is not None:
            return self.text
        if self.label is not None:
            return self.label
        if self.number is not None:
            if not first <= self.number < first + self.num_options:
                last = first + self.num_options - 1
                raise InvalidRow(column, f"{self.value!r} is out of range; it must be {first} to {last}")
            return self.number - first
        if self.text is not None and not _letter(self.value):
            return self.text
        if isinstance(self.value, float):
            raise InvalidRow(column, f"{self.value!r} is out of range; it must be a whole number")
        labels = ", ".join(self.labels)
        raise InvalidRow(column, f"{self.value!r} is not one of the option labels {labels}, and no option's text")


def parse_answer(answer: Any, column: str, labels: list[str] | None, choices: Sequence[Any]) -> Answer:
    """
    Parse an answer.

    Args:
        answer (`Any`):
            A label, a number, or the text of an option; alone or as the only element of a list.
        column (`str`):
            Its column, for messages.
        labels (`list[str]`, *optional*):
            Labels of the options. Where there are none, A, B, ... are.
        choices (`Sequence`):
            The options.

    Raises:
        [`InvalidRow`]: if there is no answer, or it is of a type that cannot be one.
    """
    if isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if answer is None or str(answer).strip() in ("", "-1") or (isinstance(answer, float) and math.isnan(answer)):
        raise InvalidRow(column, f"no answer ({answer!r})", hidden_label=True)
    if isinstance(answer, (bool, list, tuple, dict)):
        raise InvalidRow(column, f"{answer!r} is a {type(answer).__name__}; name one option by its label or index")
    written = str(answer).strip()
    known = labels or list(string.ascii_uppercase[: len(choices)])
    number = _whole(written)
    if labels and any(_whole(label) is not None for label in labels):
        number = None  # the labels are numbers: the answer is one of them
    texts = [str(choice).strip() for choice in choices]
    text = texts.index(written) if texts.count(written) == 1 else None
    if isinstance(answer, (int, float)) and all(isinstance(choice, str) for choice in choices):
        text = None  # a number beside texts is an index
    return Answer(answer, len(choices), _find_label(written, known), number, text, known)


def _find_label(written: str, labels: list[str]) -> int | None:
    if written in labels:
        return labels.index(written)
    letter = _letter(written)
    return labels.index(letter) if letter in labels else None


def _letter(written: Any) -> str | None:
    """The letter in `b`, `(B)`, `B.` or `B)`."""
    found = re.fullmatch(r"[(\[]?\s*([A-Za-z])\s*[)\].:]?", str(written).strip())
    return found[1].upper() if found else None


def _whole(written: str) -> int | None:
    """The number that a text is, or `None`."""
    if re.fullmatch(r"[+-]?\d{1,9}(\.0+)?", written, re.ASCII):
        return int(float(written))
    return None


def settle_answers(
    answers: Sequence[Answer], column: str, source: str, answers_from: int | None = None
) -> tuple[int, bool]:
    """
    Decide how the answers of a data set are to be read.

    Args:
        answers (`Sequence[Answer]`):
            All answers.
        column (`str`), source (`str`):
            Their column and data set, for messages.
        answers_from (`int`, *optional*):
            Number of the first option, 0 or 1, where the answers are numbers. Without it they count from 0, and
            answers that seem to count from 1 are an error.

    Returns:
        `tuple[int, bool]`: number of the first option, and whether answers are texts of options.

    Raises:
        `ValueError`: if the answers seem to count from 1, or can be read in two ways.
    """
    places, texts = sum(answer.has_place for answer in answers), sum(answer.text is not None for answer in answers)
    if texts > places:
        return answers_from or 0, True
    if texts == places and (differing := [answer for answer in answers if _differs(answer, answers_from or 0)]):
        raise ValueError(
            f"{source}, column '{column}': answers such as {differing[0].value!r} are places of options and also "
            "texts of other options; write the letters of the right options"
        )
    numbers = [answer for answer in answers if answer.label is None and answer.number is not None]
    if answers_from is None and numbers and not any(answer.number == 0 for answer in numbers):
        warn_or_raise_without_zero(
            any(answer.number == answer.num_options for answer in numbers), len(numbers), column, source
        )
    return answers_from or 0, False


def _differs(answer: Answer, first: int) -> bool:
    place = answer.label if answer.label is not None else (answer.number or 0) - first
    return answer.text is not None and place != answer.text


def warn_or_raise_without_zero(reaches_last: bool, count: int, column: str, source: str) -> None:
    """Raise an error if answers seem to count from 1, and warn if they may: no 0 is among `count` numbers."""
    advice = "pass `answers_from=1` (--answers_from 1) if they count from 1, and 0 if they count from 0"
    if reaches_last:
        raise ValueError(
            f"{source}, column '{column}': no answer is 0 and some equal the number of options, so they seem to count "
            f"from 1; {advice}"
        )
    if count >= _MANY:
        logger.warning(f"{source}, column '{column}': none of {count} answers is 0; {advice}")
