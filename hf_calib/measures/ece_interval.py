"""Empirical-Bayes interval of the binned calibration error."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


_SPREADS = 32  # grid of the spread of the gaps from bin to bin
_FLAT = 0.25  # the prior of the spread is flat below this multiple of the noise
_SHARES = np.arange(0.05, 1, 0.1)  # grid of the share of miscalibrated bins


class BinGaps(NamedTuple):
    """
    Statistics of the bins that are not empty, each of shape `(bins,)`.

    Attributes:
        counts (`np.ndarray`): Effective number of examples, `(sum w)^2 / sum w^2`.
        weights (`np.ndarray`): Summed weights.
        confidence (`np.ndarray`): Mean confidence.
        accuracy (`np.ndarray`): Share of correct predictions.
    """

    counts: np.ndarray
    weights: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """`confidence - accuracy`."""
        return self.confidence - self.accuracy

    @property
    def variance(self) -> np.ndarray:
        """Sampling variance of the gaps. Half an example of each outcome is added (Jeffreys), so it is never 0."""
        accuracy = (self.accuracy * self.counts + 0.5) / (self.counts + 1)
        return accuracy * (1 - accuracy) / self.counts

    @property
    def shares(self) -> np.ndarray:
        """Share of the total weight."""
        return self.weights / self.weights.sum()

    @property
    def error(self) -> float:
        """Measured ECE."""
        return float(self.shares @ np.abs(self.gaps))

    @property
    def bias(self) -> float:
        r"""
        Upward bias of the measured ECE.

        .. math::
            \sum_b \frac{n_b}{N} \, \mathbb{E}\left[ |g_b + \epsilon_b| - |g_b| \right], \qquad
            \epsilon_b \sim \mathcal{N}\left(0, \frac{a_b (1 - a_b)}{n_b}\right)

        with the gap g_b and the accuracy a_b of bin b, in closed form (the mean of a folded normal).

        References:
            Kumar, Liang & Ma (2019), "Verified Uncertainty Calibration", arXiv 1909.10155, who simulate it.
        """
        from scipy.special import erf

        gaps = np.abs(self.gaps)
        scale = np.sqrt(self.accuracy * (1 - self.accuracy) / self.counts)
        z = np.divide(gaps, scale, out=np.full(len(gaps), np.inf), where=scale > 0)
        noisy = scale * sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + gaps * erf(z / sqrt(2))
        return float(self.shares @ (noisy - gaps))

    @property
    def standard_error(self) -> float:
        """Standard error of the ECE if no gap is near 0, from the gaps and from the masses of the bins."""
        from_masses = (np.abs(self.gaps) - self.error) ** 2 / self.counts
        return sqrt(self.shares**2 @ (self.variance + from_masses))


def interval_of_bins(
    bins: BinGaps, p_value: float, n_draws: int, level: float, rng: np.random.Generator
) -> tuple[float, float]:
    """
    Compute the interval from the bins. Derivation: docs/concepts/theory.md, "The uncertainty of an ECE".

    Args:
        bins ([`BinGaps`]):
            The measured bins.
        p_value (`float`):
            P-value of the measured error under perfect calibration.
        n_draws (`int`):
            Number of draws behind each end.
        level (`float`):
            Confidence level in (0, 1).
        rng (`np.random.Generator`):
            Source of the draws.

    Returns:
        `tuple[float, float]`: lower and upper end, in [0, 1].
    """
    # With a growing p-value the risk moves to the upper end: where the lower end is 0, only the upper one can miss.
    alpha = round(1 - level, 12)  # exactly .05 where the level is .95
    doubt = min(1.0, p_value / alpha)
    risk = alpha / 2
    debiased = max(0.0, bins.error - bins.bias)
    # Gaps of one size but different signs are drawn too small. Above the noise floor the normal approximation is
    # better.
    margin = (1 - doubt) * NormalDist().inv_cdf(1 - risk) * bins.standard_error
    upper = float(np.quantile(draw_errors(bins, n_draws, rng), 1 - risk * (1 + doubt)))
    upper = min(max(upper, debiased + margin), 1.0)
    if p_value > alpha:
        return 0.0, upper
    errors = draw_errors(bins, n_draws, rng, sparse=True)
    errors = errors[errors > 0]
    lower = float(np.quantile(errors, risk * (1 - doubt))) if len(errors) else 0.0
    return min(lower, debiased), upper


def draw_errors(bins: BinGaps, n_draws: int, rng: np.random.Generator, sparse: bool = False) -> np.ndarray:
    """
    Draw the true calibration error given the measured bins.

    A measured gap is the true gap plus normal noise. The true gaps are normal over the bins with unknown mean and
    spread. The masses of the bins are drawn too (Bayesian bootstrap).

    Args:
        bins ([`BinGaps`]):
            Measured bins.
        n_draws (`int`):
            Number of draws.
        rng (`np.random.Generator`):
            Source of the draws.
        sparse (`bool`, *optional*, defaults to `False`):
            Whether the true gaps are 0 in an unknown share of the bins, and normal around 0 in the rest.

    Returns:
        `np.ndarray` of shape `(n_draws,)`.
    """
    from scipy.special import expit, logit

    gaps, variance = bins.gaps, bins.variance
    noise = _FLAT / np.sqrt(np.mean(1 / variance))
    # equal steps of log(noise + spread): flat below the noise, scale-free above it
    spread = noise * (np.geomspace(1, 1 + 0.5 / noise, _SPREADS) - 1)[:, None]
    precision = 1 / (variance + spread**2)
    if sparse:
        share = _SHARES[:, None, None]
        # log Bayes factor of "miscalibrated" against "calibrated" of each bin
        off = 0.5 * (np.log(variance * precision) + gaps**2 * (1 / variance - precision))
        log_posterior = np.logaddexp(np.log(1 - share), np.log(share) + off).sum(axis=2)
        pick_share, pick = np.divmod(_choose(log_posterior, n_draws, rng), _SPREADS)
        share = share[pick_share, 0]
        centre = 0.0
        is_off = rng.random((n_draws, len(gaps))) < expit(logit(share) + off[pick])
    else:
        total = precision.sum(axis=1)
        mean = precision @ gaps / total
        residual = (precision * (gaps - mean[:, None]) ** 2).sum(axis=1)
        pick = _choose(0.5 * (np.log(precision).sum(axis=1) - np.log(total) - residual), n_draws, rng)
        centre = (mean[pick] + rng.standard_normal(n_draws) / np.sqrt(total[pick]))[:, None]
        is_off = True
    keep = (spread**2 * precision)[pick]  # shrinkage factor of each gap
    drawn = centre + keep * (gaps - centre) + np.sqrt(keep * variance) * rng.standard_normal((n_draws, len(gaps)))
    drawn = np.clip(drawn, bins.confidence - 1, bins.confidence) * is_off  # an accuracy lies in [0, 1]
    mass = rng.standard_gamma(bins.counts, drawn.shape) * bins.weights / bins.counts
    return (mass * np.abs(drawn)).sum(axis=1) / mass.sum(axis=1)


def _choose(log_posterior: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.special import softmax

    return rng.choice(log_posterior.size, n_draws, p=softmax(log_posterior.ravel()))
