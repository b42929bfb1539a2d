"""95% intervals of NLL, Brier score, AUROC and AURC in closed form. Coverage: docs/results/coverage.md."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from .bootstrap import LEVEL, Estimate


if TYPE_CHECKING:
    from .selective import TieGroups

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_MOST_GROUPS = 1 << 14  # of the influence function of AURC
_ROUNDING = 1e-12  # share of the second moment below which a variance is 0


class MeanSums:
    """
    Accumulate a number per question, for its mean and the interval of the mean.

    Attributes:
        sums (`np.ndarray` of shape `(7,)`):
            Sums of w, w^2, w x, w x^2, w x^3, w^2 x and w^2 x^2, for weights w and numbers x.
    """

    def __init__(self):
        self.sums = np.zeros(7)

    def add(self, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add a chunk."""
        squares = values * values
        if weights is None:
            n, first, second = len(values), values.sum(), squares.sum()
            self.sums += n, n, first, second, squares @ values, first, second
        else:
            self.sums[:2] += weights.sum(), weights @ weights
            self.sums[2:5] += values @ weights, squares @ weights, (squares * values) @ weights
            squared = weights * weights
            self.sums[5:] += values @ squared, squares @ squared

    def merge(self, other: MeanSums) -> None:
        """Add the sums of another accumulator."""
        self.sums += other.sums

    @property
    def mean(self) -> float:
        """Weighted mean."""
        return float(self.sums[2] / self.sums[0])

    def estimate(self, least: float, most: float) -> Estimate:
        """
        Return the mean with its interval, within the range of the numbers.

        The interval is that of Student's t, corrected for the skewness of the numbers by a cubic transformation. One
        question, or an effective number below 1.5, gives the whole range.

        References:
            Hall (1992), "On the Removal of Skewness by Transformation", Journal of the Royal Statistical Society B 54.
        """
        from scipy.special import stdtrit

        weight, squared, first, second, third, first_squared, second_squared = self.sums
        n, mean = weight**2 / squared, self.mean
        if n < 1.5:
            return Estimate(mean, least, most)
        variance = second / weight - mean**2
        if variance <= _ROUNDING * second / weight:
            return Estimate(mean, mean, mean)
        skewness = (third / weight - 3 * mean * second / weight + 2 * mean**3) / variance**1.5
        of_mean = (second_squared - 2 * mean * first_squared + mean**2 * squared) / weight**2
        error, t = sqrt(of_mean * n / (n - 1)), float(stdtrit(n - 1, (1 + LEVEL) / 2))
        low, high = (mean - error * _without_skewness(quantile, skewness / sqrt(n)) for quantile in (t, -t))
        return Estimate(mean, max(least, low), min(most, high))


def _without_skewness(quantile: float, slope: float) -> float:
    """Quantile of a studentised mean, from that of a symmetric one; `slope` is skewness / sqrt(n)."""
    if abs(slope) < 1e-6:
        return quantile
    return float(3 / slope * (np.cbrt(1 + slope * (quantile - slope / 6)) - 1))


def auroc_estimate(groups: TieGroups, n_effective: float) -> Estimate:
    """
    Compute the AUROC of the confidence with its interval: DeLong's variance, on the scale of the log-odds.

    For an AUROC of 0 or 1, or fewer than two right or wrong predictions, one more right and one more wrong prediction
    are counted, tied with all others.

    Args:
        groups ([`~hf_calib.measures.selective.TieGroups`]):
            Predictions grouped by confidence.
        n_effective (`float`):
            Effective number of predictions.

    Returns:
        [`~hf_calib.measures.bootstrap.Estimate`]; NaN if all predictions are right or all are wrong.

    References:
        DeLong, DeLong & Clarke-Pearson (1988), "Comparing the Areas under Two or More Correlated Receiver Operating
        Characteristic Curves", Biometrics 44.
    """
    total, right = groups.weights.sum(), groups.hits.sum()
    if right == 0 or right == total:
        return Estimate(*[float("nan")] * 3)
    wrong_before, right_after = groups.placements()
    value = float(groups.hits @ wrong_before / (right * (total - right)))
    # for each right prediction the share of wrong ones below it, for each wrong one that of right ones above it
    spread_right = groups.hits @ wrong_before**2 / (right * (total - right) ** 2) - value**2
    spread_wrong = (groups.weights - groups.hits) @ right_after**2 / ((total - right) * right**2) - value**2
    n_right, n_wrong = n_effective * right / total, n_effective * (1 - right / total)
    centre = value
    if 0 < value < 1 and min(n_right, n_wrong) >= 2:
        variance = max(0.0, spread_right) / (n_right - 1) + max(0.0, spread_wrong) / (n_wrong - 1)
    else:
        pairs = n_right * n_wrong
        centre = (value * pairs + 0.5 * (n_effective + 1)) / (pairs + n_effective + 1)
        variance = 0.0
        for n, m, spread in ((n_right, n_wrong, spread_right), (n_wrong, n_right, spread_wrong)):
            shift = (value * m + 0.5) / (m + 1) - centre
            squares = n * ((m / (m + 1)) ** 2 * max(0.0, spread) + shift**2) + (0.5 - centre) ** 2
            variance += squares / (n * (n + 1))
    return _on_log_odds(value, centre, variance)


def aurc_estimate(groups: TieGroups, n_effective: float) -> Estimate:
    r"""
    Compute the AURC with its interval: the variance of its influence function, on the scale of the log-odds.

    With the error e of a prediction and the share u of predictions at least as confident, the AURC is the mean of
    :math:`-e \ln u`. The influence of a prediction is

    .. math::
        -e \ln u - \mathrm{AURC} - \mathbb{E}\left[ e' / u' ; u' \ge u \right] + \mathbb{E}[e']

    averaged over the order of equal confidences. Half an error is counted besides, so that the variance is never 0.

    Args:
        groups ([`~hf_calib.measures.selective.TieGroups`]):
            Predictions grouped by confidence.
        n_effective (`float`):
            Effective number of predictions.

    Returns:
        [`~hf_calib.measures.bootstrap.Estimate`].
    """
    value = groups.aurc()
    # neighbours are merged: the influence hardly changes over 1 / 16,384 of the predictions
    starts = np.arange(0, len(groups.weights), max(1, len(groups.weights) // _MOST_GROUPS))
    weights, hits = (np.add.reduceat(values, starts) for values in (groups.weights, groups.hits))
    total = weights.sum()
    weights, wrong = weights / total, (weights - hits) / total
    largest = np.cumsum(weights[::-1])[::-1]  # u of a group runs up to here ...
    smallest = np.append(largest[1:], 0.0)  # ... from here
    logs = np.log(largest)
    ratio = logs - np.append(logs[1:], 0.0)  # of the last group not used
    mean_log = 1 - (weights * logs + smallest * ratio) / weights
    of_each = wrong / weights * ratio
    below = np.cumsum(of_each) - of_each
    centred = wrong.sum() - value - below - wrong / weights * (1 - smallest * ratio / weights)
    squares = weights @ centred**2 + wrong @ (mean_log * (mean_log + 2 * centred))
    n = n_effective
    variance = (n * squares + 0.5) / (n * (n + 1))
    return _on_log_odds(value, (n * value + 0.5) / (n + 1), variance)


def _on_log_odds(value: float, centre: float, variance: float) -> Estimate:
    """Interval around `centre` in (0, 1), symmetric in the log-odds, widened to contain `value`."""
    from scipy.special import expit, logit

    margin = _Z * sqrt(variance) / (centre * (1 - centre))
    low, high = (float(expit(logit(centre) + side * margin)) for side in (-1, 1))
    return Estimate(value, min(low, value), max(high, value))
