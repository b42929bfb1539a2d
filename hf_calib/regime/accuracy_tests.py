"""One-sided tests of an accuracy against a threshold, with intervals. Assumptions: docs/concepts/theory.md."""

from __future__ import annotations

from math import copysign, inf, sqrt
from typing import NamedTuple

import numpy as np


class ThresholdTest(NamedTuple):
    """
    Comparison of an accuracy with a threshold.

    Attributes:
        p_above (`float`): p-value of the hypothesis `accuracy <= threshold`. Small: the accuracy is above it.
        p_below (`float`): p-value of the hypothesis `accuracy >= threshold`. Small: the accuracy is below it.
        low (`float`): Lower end of the interval of `accuracy - threshold`.
        high (`float`): Upper end. The level is `1 - 2 * alpha`: each end errs with probability `alpha`.
        detectable (`float`): Distance of the accuracy from the threshold that a test at level `alpha` finds with
            probability 0.8, in the normal approximation; at most 1.
    """

    p_above: float
    p_below: float
    low: float
    high: float
    detectable: float


_POWER = 0.8  # of the detectable distance


def intersection_union(first: ThresholdTest, second: ThresholdTest) -> ThresholdTest:
    """
    Intersection-union test of two thresholds of which either may be the right one.

    A conclusion must hold for both, so the larger p-value counts, the interval covers both, and the larger distance is
    detectable. The level is `alpha` without a correction.
    """
    return ThresholdTest(
        max(first.p_above, second.p_above),
        max(first.p_below, second.p_below),
        min(first.low, second.low),
        max(first.high, second.high),
        max(first.detectable, second.detectable),
    )


def rate_test(
    correct: np.ndarray, thresholds: float | np.ndarray, alpha: float, weights: np.ndarray | None = None
) -> ThresholdTest:
    """
    Test an accuracy against a known number: exact binomial tests and the Clopper-Pearson interval.

    With weights, or with thresholds that differ between questions, see [`paired_test`].

    Args:
        correct (`np.ndarray` of shape `(N,)`):
            1.0 where the prediction is right, else 0.0.
        thresholds (`float` or `np.ndarray` of shape `(N,)`):
            Threshold in [0, 1], or that of each question.
        alpha (`float`):
            Level of each side.
        weights (`np.ndarray` of shape `(N,)`, *optional*):
            Importance weights above 0.
    """
    from scipy.special import ndtri
    from scipy.stats import binomtest

    threshold = float(np.max(thresholds))
    if weights is not None or np.min(thresholds) < threshold:
        return paired_test(correct, np.broadcast_to(thresholds, correct.shape), alpha, weights)
    if len(correct) == 0:
        return ThresholdTest(1.0, 1.0, -threshold, 1 - threshold, 1.0)
    above, below = (binomtest(int(correct.sum()), len(correct), threshold, side) for side in ("greater", "less"))
    low, high = above.proportion_ci(1 - alpha).low, below.proportion_ci(1 - alpha).high
    error = sqrt(threshold * (1 - threshold) / len(correct))
    detectable = min(1.0, float(ndtri(1 - alpha) + ndtri(_POWER)) * error)
    ends = float(low - threshold), float(high - threshold)
    return ThresholdTest(float(above.pvalue), float(below.pvalue), *ends, detectable)


def paired_test(
    correct: np.ndarray, optimal: np.ndarray, alpha: float, weights: np.ndarray | None = None
) -> ThresholdTest:
    """
    Test an accuracy against the mean of one number per question: a paired t-test of `correct - optimal`.

    The variance is the larger of the observed one and that of outcomes which are right with probability `optimal`. The
    two differ much only on few questions or if all answers are right, where the observed variance is too small.

    Args:
        correct (`np.ndarray` of shape `(N,)`):
            1.0 where the prediction is right, else 0.0.
        optimal (`np.ndarray` of shape `(N,)`):
            Probability of being right, in [0, 1], of the optimal predictor.
        alpha (`float`):
            Level of each side.
        weights (`np.ndarray` of shape `(N,)`, *optional*):
            Importance weights above 0. The degrees of freedom use the effective number of questions,
            `(sum w)^2 / sum w^2`.
    """
    weights, effective = _normalised(weights, len(correct))
    differences = correct - optimal
    mean = weights @ differences
    observed = weights**2 @ (differences - mean) ** 2
    expected = weights**2 @ (optimal * (1 - optimal))
    return _t_test(mean, observed, expected, effective, alpha)


def discordance_test(
    correct: np.ndarray, other: np.ndarray, alpha: float, weights: np.ndarray | None = None
) -> ThresholdTest:
    """
    Test an accuracy against that of another model on the same questions: McNemar's exact test.

    The interval, and with weights the test too, is that of a paired t-test with one discordant question added in each
    direction, because two models that never differ on N questions may differ on the next.

    Args:
        correct (`np.ndarray` of shape `(N,)`):
            1.0 where the model is right, else 0.0.
        other (`np.ndarray` of shape `(N,)`):
            1.0 where the other model is right, else 0.0.
        alpha (`float`):
            Level of each side.
        weights (`np.ndarray` of shape `(N,)`, *optional*):
            Importance weights above 0.

    References:
        Bonett & Price (2012), "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on
        Paired Data", Journal of Educational and Behavioral Statistics 37.
    """
    differences = correct - other
    normalised, effective = _normalised(weights, len(correct))
    share = 1 / (effective + 2)  # of each of the two added questions
    mean = (1 - 2 * share) * (normalised @ differences)
    observed = (1 - 2 * share) ** 2 * (normalised**2 @ (differences - mean) ** 2)
    observed += share**2 * ((1 - mean) ** 2 + (1 + mean) ** 2)
    test = _t_test(mean, observed, 0.0, effective, alpha)
    if weights is None:
        better, worse = (differences > 0), (differences < 0)
        exact = rate_test(better[better | worse].astype(np.float64), 0.5, alpha)
        test = test._replace(p_above=exact.p_above, p_below=exact.p_below)
    return test


def _normalised(weights: np.ndarray | None, n: int) -> tuple[np.ndarray, float]:
    """Weights that sum to 1, and the effective number of questions."""
    weights = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    return weights, 1 / (weights @ weights)


def _t_test(mean: float, observed: float, expected: float, effective: float, alpha: float) -> ThresholdTest:
    from scipy.special import stdtr, stdtrit

    freedom = effective - 1
    if freedom < 1e-6:  # one question
        return ThresholdTest(0.5, 0.5, -1.0, 1.0, 1.0)
    error = sqrt(max(observed * effective / freedom, expected))
    t = mean / error if error > 0 else 0.0 if mean == 0 else copysign(inf, mean)
    margin = stdtrit(freedom, 1 - alpha) * error
    low, high = max(-1.0, mean - margin), min(1.0, mean + margin)
    detectable = min(1.0, float(margin + stdtrit(freedom, _POWER) * error))
    return ThresholdTest(float(stdtr(freedom, -t)), float(stdtr(freedom, t)), float(low), float(high), detectable)
