"""Confidence thresholds with a finite-sample guarantee on the accuracy of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log, nan, sqrt

import numpy as np

from .checked import Examples, check_examples
from .fixed_sequence import ThresholdTests, least_rejected
from .validation import as_group_names, as_outcomes, as_vector


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

    def sentence(self, target_accuracy: float, level: float = 0.95) -> str:
        """Say in a sentence what the threshold guarantees, or why there is none."""
        target = f"{target_accuracy:.4g}"
        if self.found:
            where = f"where the confidence is at least {self.threshold:.4f}" if self.threshold else "everything"
            return (
                f"Answer {where}: with {level:.4g} probability an accuracy of at least {target} is guaranteed "
                f"(measured {self.accuracy:.3f} [{self.accuracy_low:.3f}, {self.accuracy_high:.3f}] on "
                f"{self.n_answered:,} answers); {self.coverage:.1%} [{self.coverage_low:.1%}, "
                f"{self.coverage_high:.1%}] of {self.n:,} questions are answered."
            )
        if self.questions_needed is None:
            return (
                f"No threshold reaches an accuracy of {target}: on these {self.n:,} questions the answers have it at "
                "no threshold, so more questions alone would not help."
            )
        return (
            f"No threshold is known to reach an accuracy of {target} on {self.n:,} questions: about "
            f"{self.questions_needed:,} would be needed at least."
        )


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
    return least_rejected(target_accuracy, _alpha(level))


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


def accuracy_threshold(
    confidences, correct, target_accuracy: float, level: float = 0.95, sample_weight=None, max_weight=None
) -> AccuracyThreshold:
    """
    Find the lowest confidence threshold above which the answers have a target accuracy, with a guarantee.

    With probability `level` over the given questions, the accuracy of the answers to new questions of the same kind is
    at least the target, or no threshold is returned. Nothing is assumed about calibration. The questions must be a
    random sample, each independent of the others, and must not have been used to fit the model or its calibrator.

    Thresholds are tested from the highest to the lowest, each by an exact binomial test of the answers above it (the
    lower Clopper-Pearson bound). A test passes its level on to the next one if it rejects, so that many thresholds
    need no correction; up to five starts, at sizes that depend on N, the target and the level alone, share the level.
    Equal confidences are answered together. The proof of validity is in docs/results/thresholds.md.

    With weights the guarantee is of the weighted accuracy: that of questions in another mix than the sampled ones.
    Each question is kept with probability `weight / max_weight`. Those kept are a random sample of the other mix, and
    all results are of them. The weights must be importance weights: how much more often a kind of question occurs
    among those to come than in the sample, up to a constant. They may depend on the question and on the prediction,
    but not on the answer. An error in the weights themselves is not covered.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1]. Any score with the right order gives a valid threshold.
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        target_accuracy (`float`):
            Accuracy that the answers must have, in (0, 1): 1 less the target risk.
        level (`float`, *optional*, defaults to `0.95`):
            Probability of the guarantee, in (0, 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each question, at least 0.
        max_weight (`float`, *optional*):
            Largest weight that a question can have, also one outside the sample. Needed with `sample_weight`.

    Returns:
        [`AccuracyThreshold`]: `threshold` is infinite if no threshold reaches the target.

    Raises:
        ValueError: A value is outside its range, or there are fewer questions than any guarantee needs.

    References:
        Angelopoulos, Bates, Candes, Jordan & Lei (2021), "Learn then Test", arXiv 2110.01052.
        Park, Dobriban, Lee & Bastani (2022), "PAC Prediction Sets Under Covariate Shift", arXiv 2106.09848: weights.
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
    examples, kept = _examples(confidences, correct, sample_weight, max_weight)
    if len(examples) < needed:
        drawn = "" if kept is None else f" drawn by their weights, of {len(kept)}"
        raise ValueError(
            f"there are {len(examples)} questions{drawn}; a guarantee of an accuracy of {target_accuracy:g} at level "
            f"{level:g} needs at least {needed}, all answered rightly, and more otherwise."
        )
    return _find(examples, target_accuracy, _alpha(level))


def _examples(confidences, correct, sample_weight, max_weight) -> tuple[Examples, np.ndarray | None]:
    """
    Check predictions, and draw those that count by their weights.

    Returns:
        `tuple`: the examples, and whether each row given is among them, `(N,)`; `None` if all are.
    """
    if (sample_weight is None) != (max_weight is None):
        raise ValueError(
            "`sample_weight` and `max_weight` are needed together: the guarantee takes the largest weight that a "
            "question can have, also one outside the sample."
        )
    if sample_weight is None:
        return check_examples(confidences, correct), None
    kept = importance_sample(confidences, correct, sample_weight, max_weight)
    arrays = as_outcomes(confidences, correct, binary=True)
    return Examples(*(array[kept] for array in arrays)), kept


def importance_sample(confidences, correct, sample_weight, max_weight: float) -> np.ndarray:
    """
    Draw questions by their importance weights, whatever their order; see [`accuracy_threshold`].

    Returns:
        `np.ndarray` of shape `(N,)`: whether each question is drawn.
    """
    check_examples(confidences, correct, sample_weight)
    weights = as_vector(sample_weight, "sample_weight", np.float64)
    if not weights.max() <= max_weight < inf:  # written so that NaN fails
        row = int(weights.argmax())
        raise ValueError(f"`sample_weight` row {row} is {weights[row]:g}, and `max_weight` is {max_weight}.")
    arrays = as_outcomes(confidences, correct, binary=True)
    drawn = np.empty(len(weights))
    drawn[np.lexsort((weights, *arrays))] = np.random.default_rng(0).random(len(weights))  # whatever the order
    return drawn * max_weight < weights


def accuracy_thresholds(
    confidences, correct, groups, target_accuracy: float, level: float = 0.95, sample_weight=None, max_weight=None
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
        sample_weight (array-like of shape `(N,)`, *optional*), max_weight (`float`, *optional*):
            Importance weights and the largest possible one, see [`accuracy_threshold`].

    Returns:
        `dict[str, AccuracyThreshold]`, by group.

    Raises:
        ValueError: A value is outside its range, or every group has fewer questions than any guarantee needs.
    """
    _check_target(target_accuracy, level)
    (examples, kept), groups = _examples(confidences, correct, sample_weight, max_weight), as_group_names(groups)
    if groups.shape != np.shape(confidences):
        raise ValueError(f"`groups` has shape {groups.shape} for {len(confidences)} questions: give one for each.")
    groups = groups if kept is None else groups[kept]
    if len(groups) == 0:
        raise ValueError(f"none of {len(confidences)} questions is drawn by its weight: `max_weight` is too large.")
    names, counts = np.unique(groups, return_counts=True)
    alpha = _alpha(level) / len(names)
    needed = least_questions(target_accuracy, 1 - alpha)
    if counts.max() < needed:
        raise ValueError(
            f"the largest of {len(names)} groups has {counts.max()} questions; a guarantee of an accuracy of "
            f"{target_accuracy:g} for each at level {level:g} needs at least {needed} in a group."
        )
    parts = [examples.examples(groups == name) for name in names]
    return {str(name): _find(part, target_accuracy, alpha) for name, part in zip(names, parts, strict=True)}


def _find(examples: Examples, target: float, alpha: float) -> AccuracyThreshold:
    values, place = np.unique(examples.confidences + 0.0, return_inverse=True)
    counts = np.cumsum(np.bincount(place)[::-1])
    hits = np.rint(np.cumsum(np.bincount(place, examples.correct)[::-1])).astype(int)
    last = ThresholdTests.of(counts, hits, target, alpha).last_rejected(alpha)
    if last is None:
        return _described(inf, len(examples), 0, 0, _questions_needed(counts, hits, target, alpha))
    threshold = 0.0 if last == len(values) - 1 else _just_above(values[-last - 2], values[-last - 1])
    return _described(threshold, len(examples), int(counts[last]), int(hits[last]))


def _just_above(lower: float, upper: float) -> float:
    """
    Number above `lower`, also after rounding to float32, and at most `upper`.

    The test of the answers above a confidence is about the threshold just above it.
    """
    above = float(np.nextafter(np.float32(lower), np.float32(inf)))
    return above if above <= upper else float(np.nextafter(lower, inf))


def _questions_needed(counts: np.ndarray, hits: np.ndarray, target: float, alpha: float) -> int | None:
    """Least number of questions with which one of the measured accuracies would be enough; at least one more."""
    from scipy.special import ndtri

    least = least_rejected(target, alpha)
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
