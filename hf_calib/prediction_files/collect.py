"""From the rows of a file to predictions, row by row, without keeping the rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from math import inf, isfinite, isnan
from typing import Any, NamedTuple

import numpy as np

from ..inference.predictions import OptionPredictions
from .options import ReadOptions
from .source import Source


UNKNOWN = -100  # label of a question whose right option is not known
_FARTHEST = float(-np.log(np.finfo(np.float64).tiny))  # below the best option: -inf marks one that does not exist


class Question(NamedTuple):
    """
    Scores of the options of a question.

    Attributes:
        id (`str`): Id of the question.
        scores (`Sequence[float]`): Log-likelihood of each option, in nats.
        label (`int`, *optional*): Index of the right option.
        subject (`str`, *optional*): Subject of the question.
    """

    id: str
    scores: Sequence[float]
    label: int | None = None
    subject: str | None = None


def collect(
    source: Source,
    options: ReadOptions,
    question: Callable[[dict[str, Any]], Question | None],
    columns: Sequence[str] | None = None,
    **metadata: Any,
) -> OptionPredictions:
    """
    Make predictions of the rows of a file.

    Args:
        source ([`Source`]):
            The file.
        options ([`ReadOptions`]):
            `drop_invalid` says whether rows that cannot be read are left out.
        question (`Callable`):
            Makes a [`Question`] of a row; `None` for a row that is none.
        columns (`Sequence[str]`, *optional*):
            Columns of a parquet file that `question` needs (default: all).
        metadata:
            Metadata of the predictions.

    Raises:
        `ValueError`: a row cannot be read. File and line are named.
    """
    flat, lengths, labels, ids, subjects, left_out = array("d"), array("i"), array("q"), [], [], 0
    for number, row in source.rows(columns) if columns else source.rows():
        try:
            found = question(row)
            if found is None:
                continue
            scores = array("d", found.scores)
            if len(scores) < 2:
                raise ValueError(f"it has {len(scores)} option(s): a question needs at least two")
            if not isfinite(sum(scores)):
                check_scores(scores)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            if not options.drop_invalid:
                raise ValueError(f"{source.where(number)}: {explained(error)}") from None
            left_out += 1
            continue
        flat.extend(scores)
        lengths.append(len(scores))
        labels.append(UNKNOWN if found.label is None else found.label)
        ids.append(found.id)
        subjects.append(found.subject)
    if not ids:
        raise ValueError(f"{source.path}: no question can be read ({left_out} rows left out)")
    known = all(subject is not None for subject in subjects)
    return OptionPredictions(
        option_logits=padded(np.frombuffer(flat), np.frombuffer(lengths, np.int32)),
        labels=np.array(labels, np.int64),
        ids=np.array(ids, np.str_),
        subjects=np.array(subjects, np.str_) if known else None,
        metadata={**metadata, **({"left_out": left_out} if left_out else {})},
    )


def check_scores(scores: Sequence[float]) -> None:
    """Raise `ValueError` if a log-likelihood is NaN or infinite, or all are -inf."""
    for score in scores:
        if isnan(score) or score == inf:
            raise ValueError(f"the score of an option is {'NaN' if isnan(score) else 'infinite'}")
    if max(scores) == -inf:
        raise ValueError("the score of every option is -inf")


def explained(error: Exception) -> str:
    """One line that says what is wrong with a row."""
    if isinstance(error, KeyError):
        return f"the field {error.args[0]!r} is missing"
    return str(error) or type(error).__name__


def padded(flat: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """
    Arrange scores in rows.

    Args:
        flat (`np.ndarray`):
            Log-likelihoods of all options of all questions, one after the other.
        lengths (`np.ndarray` of shape `(N,)`):
            Number of options of each question.

    Returns:
        `np.ndarray` of shape `(N, K)`, with -inf at the end of a row with fewer than K options.
    """
    best = np.maximum.reduceat(flat, np.cumsum(lengths) - lengths)
    return in_rows(np.maximum(flat, np.repeat(best - _FARTHEST, lengths)), lengths, -np.inf)


def in_rows(flat: np.ndarray, lengths: np.ndarray, fill: float) -> np.ndarray:
    """Arrange values in rows `(N, K)`; those with fewer than K values end with `fill`."""
    width = int(lengths.max())
    if (lengths == width).all():
        return flat.reshape(-1, width)
    rows = np.full((len(lengths), width), fill)
    rows[np.arange(width) < lengths[:, None]] = flat
    return rows


def flattened(rows: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Values of all rows, one after the other, and the length of each row."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.float64, int(lengths.sum())), lengths
