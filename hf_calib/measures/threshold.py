"""Confidence thresholds with a finite-sample guarantee on the accuracy of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log, nan, sqrt

import numpy as np

from .checked import check_examples


_STARTS = 5  # most starts of the sequence of tests
_MORE = 1.6  # first start, in multiples of the least number of questions that it can reject
_INTERVAL = 0.05  # error rate of the intervals of coverage and accuracy


@dataclass(frozen=True)
class AccuracyThreshold:
    """
    A threshold for a target accuracy, or the finding that there is none.

    Attributes:
        threshold (`float`):
            Questions with a confidence of at least this are answered; infinite if no threshold reaches the target.
        n (`int`): Number of questions.
        n_answered (`int`): Number of them that are answered.
        coverage (`float`): Share of the questions that are answered.
        coverage_low, coverage_high (`float`): Its 95% interval, which holds at all thresholds together.
        accuracy (`float`): Measured accuracy of the answers; NaN if there are none.
        accuracy_low, accuracy_high (`float`): Its 95% Clopper-Pearson interval, for a threshold fixed beforehand.
        questions_needed (`int`, *optional*):
            Where there is no threshold: about the least number of questions with which one could be found, if the
            measured accuracies are the true ones. `None` if no share of the questions is accurate enough.
    """

    threshold: float
    n: int
    n_answered: int
    coverage: float
    coverage_low: float
    coverage_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    questions_needed: int | None = None

    @property
    def found(self) -> bool:
        """Whether a threshold reaches the target."""
        return self.threshold < inf


def least_questions(target_accuracy: float, level: float = 0.95) -> int:
    """
    Compute the least number of questions from which any guarantee can follow: all of them answered rightly.

    Args:
        target_accuracy (`float`):
            Accuracy in (0, 1).
        level (`float`, *optional*, defaults to `0.95`):
            Confidence level in (0, 1).

    Example:

    ```python
    >>> from hf_calib.measures.threshold import least_questions
    >>> least_questions(0.9), least_questions(0.99)
    (29, 299)

    ```
    """
    _check_target(target_accuracy, level)
    return max(1, ceil(log(_alpha(level)) / log(target_accuracy) - 1e-9))


def _alpha(level: float) -> float:
    return round(1 - level, 12)  # .05 where the level is .95


def _check_target(target_accuracy: float, level: float) -> None:
    for name, value in (("target_accuracy", target_accuracy), ("level", level)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must lie in (0, 1), got {value}.")


def clopper_pearson(hits, counts, error: float = _INTERVAL) -> tuple[float, float]:
    """Compute the two-sided Clopper-Pearson interval of `hits` in `counts`, which misses with at most `error`."""
    from scipy.special import betaincinv

    if counts == 0:
        return 0.0, 1.0
    low = 0.0 if hits == 0 else float(betaincinv(hits, counts - hits + 1, error / 2))
    high = 1.0 if hits == counts else float(betaincinv(hits + 1, counts - hits, 1 - error / 2))
    return low, high


def accuracy_threshold(confidences, correct, target_accuracy: float, level: float = 0.95) -> AccuracyThreshold:
    """
    Find the lowest confidence threshold above which the answers have a target accuracy, with a guarantee.

    With probability `level` over the given questions, the accuracy of the answers to new questions of the same kind is
    at least the target, or no threshold is returned. Nothing is assumed about calibration. The questions must be a
    random sample, each independent of the others, and must not have been used to fit the model or its calibrator.

    Thresholds are tested from the highest to the lowest, each by an exact binomial test of the answers above it (the
    lower Clopper-Pearson bound). A test passes its level on to the next one if it rejects, so that many thresholds
    need no correction; up to five starts, at sizes that depend on N, the target and the level alone, share the level.
    The argument for its validity is in docs/results/thresholds.md.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1]. Any score with the right order gives a valid threshold.
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        target_accuracy (`float`):
            Accuracy that the answers must have, in (0, 1): 1 less the target risk.
        level (`float`, *optional*, defaults to `0.95`):
            Probability of the guarantee, in (0, 1).

    Returns:
        [`AccuracyThreshold`]: `threshold` is infinite if no threshold reaches the target.

    Raises:
        ValueError: A value is outside its range, or there are fewer questions than any guarantee needs.

    References:
        Angelopoulos, Bates, Candes, Jordan & Lei (2021), "Learn then Test", arXiv 2110.01052.
        Wiens & Dmitrienko (2005), "The Fallback Procedure for Evaluating a Single Family of Hypotheses", Journal of
        Biopharmaceutical Statistics 15.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.measures.threshold import accuracy_threshold
    >>> confidences = np.linspace(0, 1, 1000)
    >>> found = accuracy_threshold(confidences, confidences > 0.3, 0.9)
    >>> round(found.threshold, 2), found.coverage
    (0.24, 0.761)

    ```
    """
    needed = least_questions(target_accuracy, level)
    examples = check_examples(confidences, correct)
    if len(examples) < needed:
        raise ValueError(
            f"there are {len(examples)} questions; a guarantee of an accuracy of {target_accuracy:g} at level "
            f"{level:g} needs at least {needed}, all answered rightly, and more otherwise."
        )
    return _find(examples.confidences, examples.correct, target_accuracy, _alpha(level))


def accuracy_thresholds(
    confidences, correct, groups, target_accuracy: float, level: float = 0.95
) -> dict[str, AccuracyThreshold]:
    """
    Find a threshold for each group of questions, e.g. each subject; all hold together with probability `level`.

    Every group is tested at the error rate `(1 - level) / number of groups` (Bonferroni). A group with too few
    questions has no threshold, and `questions_needed` says how many it needs at least.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        groups (array-like of shape `(N,)`):
            Group of each question.
        target_accuracy (`float`):
            Accuracy that the answers to each group must have, in (0, 1).
        level (`float`, *optional*, defaults to `0.95`):
            Probability that all guarantees hold, in (0, 1).

    Returns:
        `dict[str, AccuracyThreshold]`, by group.

    Raises:
        ValueError: A value is outside its range, or every group has fewer questions than any guarantee needs.
    """
    _check_target(target_accuracy, level)
    examples, groups = check_examples(confidences, correct), np.asarray(groups)
    if groups.shape != examples.confidences.shape:
        raise ValueError(f"`groups` has shape {groups.shape} for {len(examples)} questions: give one for each.")
    names, counts = np.unique(groups, return_counts=True)
    alpha = _alpha(level) / len(names)
    needed = least_questions(target_accuracy, 1 - alpha)
    if counts.max() < needed:
        raise ValueError(
            f"the largest of {len(names)} groups has {counts.max()} questions; a guarantee of an accuracy of "
            f"{target_accuracy:g} for each at level {level:g} needs at least {needed} in a group."
        )
    parts = [examples.examples(groups == name) for name in names]
    return {
        str(name): _find(part.confidences, part.correct, target_accuracy, alpha)
        for name, part in zip(names, parts, strict=True)
    }


def start_sizes(n: int, target_accuracy: float, alpha: float) -> list[int]:
    """
    Choose the numbers of answered questions at which the sequence of tests starts.

    They must not depend on the data. The first is 1.6 times the least number that a start can reject, which allows
    an error or so. The last is all questions, and the others are in between in equal ratios. Where N is too small for
    several, there is the first alone.
    """
    for starts in range(_STARTS, 1, -1):
        first = ceil(_MORE * least_questions(target_accuracy, 1 - alpha / starts))
        if first * 1.5 ** (starts - 1) <= n:
            return np.geomspace(first, n, starts).round().astype(int).tolist()
    return [min(n, ceil(_MORE * least_questions(target_accuracy, 1 - alpha)))]


def _find(confidences: np.ndarray, correct: np.ndarray, target: float, alpha: float) -> AccuracyThreshold:
    values, place = np.unique(confidences + 0.0, return_inverse=True)
    counts = np.cumsum(np.bincount(place)[::-1])
    hits = np.rint(np.cumsum(np.bincount(place, correct)[::-1])).astype(int)
    last = _last_rejected(counts, hits, target, alpha)
    if last is None:
        return _described(inf, len(correct), 0, 0, _questions_needed(counts, hits, target, alpha))
    threshold = 0.0 if last == len(values) - 1 else _just_above(values[-last - 2], values[-last - 1])
    return _described(threshold, len(correct), int(counts[last]), int(hits[last]))


def _just_above(lower: float, upper: float) -> float:
    """
    Number above `lower`, also after rounding to float32, and at most `upper`.

    The test of the answers above a confidence is about the threshold just above it.
    """
    above = float(np.nextafter(np.float32(lower), np.float32(inf)))
    return above if above <= upper else float(np.nextafter(lower, inf))


def _last_rejected(counts: np.ndarray, hits: np.ndarray, target: float, alpha: float) -> int | None:
    """Index of the lowest threshold whose hypothesis `accuracy < target` is rejected; `None` if there is none."""
    from scipy.special import betainc

    p_values = np.ones(len(counts))
    some = hits > 0
    p_values[some] = betainc(hits[some], counts[some] - hits[some] + 1, target)  # P(binomial >= hits)
    starts = start_sizes(int(counts[-1]), target, alpha)
    firsts = np.searchsorted(counts, starts).tolist()
    passed_on, last = 0.0, None
    for first, end in zip(firsts, [*firsts[1:], len(counts)], strict=True):
        passed_on += alpha / len(starts)
        failed = np.flatnonzero(p_values[first:end] > passed_on)
        rejected = first + int(failed[0]) if len(failed) else end
        if rejected > first:
            last = rejected - 1
        if len(failed):
            passed_on = 0.0
    return last


def _questions_needed(counts: np.ndarray, hits: np.ndarray, target: float, alpha: float) -> int | None:
    """Least number of questions with which one of the measured accuracies would be enough; at least one more."""
    from scipy.special import ndtri

    least = least_questions(target, 1 - alpha)
    enough = (hits > target * counts) & (counts >= min(least, counts[-1]))
    if counts[-1] < least:
        return least
    if not enough.any():
        return None
    accuracy = hits[enough] / counts[enough]
    answered = np.maximum(ndtri(1 - alpha) ** 2 * target * (1 - target) / (accuracy - target) ** 2, least)
    return max(int(counts[-1]) + 1, ceil(float((answered * counts[-1] / counts[enough]).min())))


def _described(threshold: float, n: int, answered: int, right: int, needed: int | None = None) -> AccuracyThreshold:
    margin = sqrt(log(2 / _INTERVAL) / (2 * n))  # Dvoretzky-Kiefer-Wolfowitz: for all thresholds together
    coverage = answered / n
    low, high = (max(0.0, coverage - margin), min(1.0, coverage + margin)) if 0 < answered < n else (coverage,) * 2
    accuracy = right / answered if answered else nan
    ends = clopper_pearson(right, answered) if answered else (nan, nan)
    return AccuracyThreshold(threshold, n, answered, coverage, low, high, accuracy, *ends, needed)
