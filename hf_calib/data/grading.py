"""Grade written answers: exact match with an accepted text after normalisation, or a user's function."""

from __future__ import annotations

import importlib
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal


# From a written answer and the accepted texts to whether it is right.
Grader = Callable[[str, Sequence[str]], bool]

# A number with or without thousands separators. A sign counts only where a word could begin.
_NUMBER = re.compile(r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d{1,2})?(?![\w]|[.,]\d)")
_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?=\S)")
_DASHES = re.compile(r"[\u2010-\u2015\u2212]")
_SEPARATING = frozenset("-/_")


def normalize_answer(text: str) -> str:
    """
    Normalise an answer for comparison.

    Unicode NFKC; case folded; numbers written alike (`1,000`, `1000` and `1000.0` are one); punctuation and currency
    signs removed, with hyphens and slashes as spaces; the articles a, an and the removed before another word; runs of
    white space as one space. Accents, mathematical signs and the decimal point of a number are kept.

    Args:
        text (`str`):
            The answer.

    Returns:
        `str`: empty if the answer has nothing but white space and punctuation.

    Example:

    ```python
    >>> normalize_answer("The Eiffel-Tower!"), normalize_answer("$1,000.00")
    ('eiffel tower', '1000')

    ```
    """
    text = _DASHES.sub("-", unicodedata.normalize("NFKC", text)).casefold()
    parts, end = [], 0
    for found in _NUMBER.finditer(text):
        if any(character.isdigit() for character in found[0]):
            parts += [_without_punctuation(text[end : found.start()]), _canonical_number(found[0])]
            end = found.end()
    text = "".join([*parts, _without_punctuation(text[end:])])
    return " ".join(_ARTICLE.sub(" ", " ".join(text.split())).split())


def _canonical_number(text: str) -> str:
    """Write a number without separators, plus sign, and zeros that do not count."""
    if text.lstrip("+-").startswith("e"):  # a word such as e5
        return _without_punctuation(text)
    written = format(Decimal(text.replace(",", "")), "f")
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written in ("-0", "") else written


def _without_punctuation(text: str) -> str:
    kept = []
    for character in text:
        if character in _SEPARATING:
            kept.append(" ")
        elif unicodedata.category(character)[0] != "P" and unicodedata.category(character) != "Sc":
            kept.append(character)
    return "".join(kept)


def exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """
    Tell whether an answer equals an accepted text after [`normalize_answer`]. An empty answer is wrong.

    Args:
        answer (`str`):
            The written answer.
        accepted (`Sequence[str]`):
            The accepted texts.
    """
    written = normalize_answer(answer)
    return bool(written) and any(written == normalize_answer(text) for text in accepted)


def load_grader(name: str) -> Grader:
    """
    Import a user's function that grades answers.

    Args:
        name (`str`):
            `module:function`, with the module on the Python path or in the working directory. The function gets a
            written answer and the list of accepted texts, and returns whether the answer is right.

    Raises:
        `ValueError`: if there is no such function.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"grader {name!r}: write it as module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        grader = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"grader {name!r} cannot be imported: {error}.") from None
    if not callable(grader):
        raise ValueError(f"grader {name!r} is no function.")
    return grader


def grade_answers(
    answers: Sequence[str], accepted: Sequence[Sequence[str]], grader: Grader | None = None
) -> list[bool]:
    """
    Grade answers. Empty ones are wrong, and no function sees them.

    Args:
        answers (`Sequence[str]`):
            The written answers.
        accepted (`Sequence[Sequence[str]]`):
            The accepted texts of each question.
        grader (`Callable`, *optional*):
            From an answer and its accepted texts to true or false. Defaults to [`exact_match`].

    Returns:
        `list[bool]`: whether each answer is right.

    Raises:
        `ValueError`: if the function returns something else than true, false, 0 or 1.
    """
    graded = []
    for answer, texts in zip(answers, accepted, strict=True):
        right = bool(answer.strip()) and (grader or exact_match)(answer, texts)
        if not (right == 0 or right == 1):  # NaN is neither
            raise ValueError(
                f"the grader returned {right!r} for the answer {answer[:60]!r}; it must return true, false, 0 or 1."
            )
        graded.append(bool(right))
    return graded
