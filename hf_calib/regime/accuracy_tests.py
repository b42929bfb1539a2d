"""Is an accuracy above or below a border? One-sided tests and intervals; assumptions in docs/theory.md."""

from __future__ import annotations

from math import copysign, inf, sqrt
from typing import NamedTuple

import numpy as np


class BorderTest(NamedTuple):
    """
    How an accuracy compares with a border.

    Attributes:
        p_above (`float`): p-value of the hypothesis "accuracy <= border": small speaks for an accuracy above it.
        p_below (`float`): p-value of the hypothesis "accuracy >= border": small speaks for an accuracy below it.
        low (`float`): Lower end of the interval of `accuracy - border`.
        high (`float`): Its upper end. The level is `1 - 2 * alpha`: each end errs with probability `alpha`.
    """

    p_above: float
    p_below: float
    low: float
    high: float


def either(first: BorderTest, second: BorderTest) -> BorderTest:
    """
    Two borders of which one, nobody knows which, is the right one: what is said must hold for both, so the larger
    p-value counts (the intersection-union test, at level `alpha` without any correction) and the interval spans both.
    """
    return BorderTest(
        max(first.p_above, second.p_above),
        max(first.p_below, second.p_below),
        min(first.low, second.low),
        max(first.high, second.high),
    )


def rate_test(
    correct: np.ndarray, borders: float | np.ndarray, alpha: float, weights: np.ndarray | None = None
) -> BorderTest:
    """
    Accuracy against a known number: exact binomial tests and the Clopper-Pearson interval, which says the same. With
    weights, or a number for each question where they differ, [`paired_test`].
    """
    from scipy.special import bdtr, bdtrc, betaincinv

    border = float(np.max(borders))
    if weights is not None or np.min(borders) < border:
        return paired_test(correct, np.broadcast_to(borders, correct.shape), alpha, weights)
    n, hits = len(correct), int(correct.sum())
    low = betaincinv(hits, n - hits + 1, alpha) if hits else 0.0
    high = betaincinv(hits + 1, n - hits, 1 - alpha) if hits < n else 1.0
    p_above = bdtrc(hits - 1, n, border) if hits else 1.0
    return BorderTest(float(p_above), float(bdtr(hits, n, border)), float(low - border), float(high - border))


def paired_test(
    correct: np.ndarray, ceilings: np.ndarray, alpha: float, weights: np.ndarray | None = None
) -> BorderTest:
    """
    Accuracy against the mean of one number per question, its ceiling: a paired t-test of `correct - ceiling`.

    Its variance is the observed one, or, where that is larger, the variance of outcomes that are right with the
    probability of their ceiling. Only few questions, or all of them right, make the two differ much; the observed
    variance alone would then promise too much.

    Args:
        correct (`np.ndarray` of shape `(N,)`):
            1.0 where the prediction is right, else 0.0.
        ceilings (`np.ndarray` of shape `(N,)`):
            Probability of being right, in [0, 1], of the best predictor.
        alpha (`float`):
            Level of each side.
        weights (`np.ndarray` of shape `(N,)`, *optional*):
            Positive importance weights. They act through `sum w^2`, the degrees of freedom through the effective
            number `(sum w)^2 / sum w^2`.
    """
    weights, effective = _normalised(weights, len(correct))
    differences = correct - ceilings
    mean = weights @ differences
    observed = weights**2 @ (differences - mean) ** 2
    expected = weights**2 @ (ceilings * (1 - ceilings))
    return _t_test(mean, observed, expected, effective, alpha)


def discordance_test(
    correct: np.ndarray, other: np.ndarray, alpha: float, weights: np.ndarray | None = None
) -> BorderTest:
    """
    Accuracy against that of another model on the same questions: McNemar's exact test, which looks at the questions
    that one of them has right and the other wrong. With weights, a paired t-test that adds one such question in each
    direction, as the interval does in either case (Bonett & Price, 2012): two models that never differ on N questions
    may still differ on the next.

    Args:
        correct (`np.ndarray` of shape `(N,)`):
            1.0 where the model is right, else 0.0.
        other (`np.ndarray` of shape `(N,)`):
            The same of the other model.
        alpha (`float`):
            Level of each side.
        weights (`np.ndarray` of shape `(N,)`, *optional*):
            Positive importance weights.
    """
    differences = correct - other
    normalised, effective = _normalised(weights, len(correct))
    share = 1 / (effective + 2)  # of each of the two questions added
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


def _t_test(mean: float, observed: float, expected: float, effective: float, alpha: float) -> BorderTest:
    from scipy.special import stdtr, stdtrit

    freedom = effective - 1
    if freedom < 1e-6:  # one question
        return BorderTest(0.5, 0.5, -1.0, 1.0)
    error = sqrt(max(observed * effective / freedom, expected))
    t = mean / error if error > 0 else 0.0 if mean == 0 else copysign(inf, mean)
    margin = stdtrit(freedom, 1 - alpha) * error
    low, high = max(-1.0, mean - margin), min(1.0, mean + margin)
    return BorderTest(float(stdtr(freedom, -t)), float(stdtr(freedom, t)), float(low), float(high))
