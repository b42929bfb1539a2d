"""Intervals of means over questions by the Bayesian bootstrap."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import product
from math import sqrt
from typing import NamedTuple

import numpy as np


LEVEL = 0.95
_BLOCKS = 4096  # largest number of blocks: the variance of a mean is right to 2%


class Estimate(NamedTuple):
    """
    A number with its 95% interval.

    Attributes:
        value (`float`): The measured number.
        low (`float`): Lower end.
        high (`float`): Upper end.
    """

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """Return `{name: value, name_low: low, name_high: high}`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def minus(self, other: Estimate) -> Estimate:
        """
        Subtract another estimate, from the two intervals alone (method of variance estimates recovery).

        The estimates are taken as independent, so the interval is too wide for two models on the same questions.

        References:
            Zou & Donner (2008), "Construction of confidence limits about effect measures", Statistics in Medicine 27.
        """
        mine, others = (min(max(e.value, e.low), e.high) for e in (self, other))
        middle = mine - others
        low = middle - sqrt((mine - self.low) ** 2 + (other.high - others) ** 2)
        high = middle + sqrt((self.high - mine) ** 2 + (others - other.low) ** 2)
        value = self.value - other.value
        return Estimate(value, min(low, value), max(high, value))


class ResampledMeans:
    """
    Means of quantities over questions, with Bayesian bootstrap draws.

    Every question gets a random weight, the same for all quantities, so differences between them are paired. Beyond
    4,096 questions random blocks of questions get the weights, so the cost after one pass does not depend on N.

    For binary quantities the draws include two additional questions, one half for each combination of outcomes of the
    two models. The upper end of a share of 0 is then about `3.7 / N` instead of 0.

    Args:
        chunks (`Iterable[Mapping[str, np.ndarray]]`):
            Quantities of some questions, by name, each of shape `(rows,)` or `(parts, rows)`.
        n (`int`):
            Number of questions in all chunks.
        binary (`Collection[str]`, *optional*, defaults to `()`):
            Names of the quantities that are 0 or 1. Those that begin with `"reference/"` belong to the reference.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of draws.
        seed (`int`, *optional*, defaults to `0`):
            Seed of blocks and weights; `None` for fresh randomness.

    Attributes:
        means (`dict[str, np.ndarray]`): Mean of each quantity, of shape `()` or `(parts,)`.
        draws (`dict[str, np.ndarray]`): Its draws, of shape `(n_bootstrap,)` or `(n_bootstrap, parts)`.

    References:
        Rubin (1981), "The Bayesian Bootstrap", Annals of Statistics 9.
        Agresti & Min (2005), "Simple improved confidence intervals for comparing matched proportions", Statistics in
        Medicine 24.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.measures.bootstrap import ResampledMeans
    >>> means = ResampledMeans([{"right": np.repeat([0.0, 1.0], 50)}], 100, binary=["right"])
    >>> [round(number, 1) for number in means.estimate("right")]
    [0.5, 0.4, 0.6]

    ```
    """

    def __init__(
        self,
        chunks: Iterable[Mapping[str, np.ndarray]],
        n: int,
        binary: Collection[str] = (),
        n_bootstrap: int = 1000,
        seed: int | None = 0,
    ):
        if n_bootstrap < 1:
            raise ValueError(f"`n_bootstrap` must be at least 1, got {n_bootstrap}.")
        # a stream of its own, independent of noise floor and interval
        rng = np.random.default_rng(None if seed is None else [seed, 2])
        blocks, start = min(n, _BLOCKS), 0
        counts, sums = np.zeros(blocks), {}
        for chunk in chunks:
            rows = next(iter(chunk.values())).shape[-1]
            block = np.arange(start, start + rows) if n == blocks else rng.integers(blocks, size=rows)
            start += rows
            counts += np.bincount(block, minlength=blocks)
            for name, values in chunk.items():
                added = [np.bincount(block, line, blocks) for line in values.reshape(-1, rows)]
                sums[name] = sums.get(name, 0.0) + np.reshape(added, (*values.shape[:-1], blocks))
        self.means = {name: values.sum(axis=-1) / n for name, values in sums.items()}
        weights = rng.standard_exponential((n_bootstrap, blocks))
        extra = rng.standard_gamma(0.5, (n_bootstrap, 4)) if binary else np.zeros((n_bootstrap, 0))
        outcomes = np.array(list(product((0.0, 1.0), repeat=2))).T  # of the reference, of the model
        total = weights @ counts + extra.sum(axis=1)
        self.draws = {}
        for name, values in sums.items():
            pseudo = (
                outcomes[0 if name.startswith("reference/") else 1] if name in binary else self.means[name][..., None]
            )
            pseudo = np.broadcast_to(pseudo, (*values.shape[:-1], 4))[..., : extra.shape[1]]
            self.draws[name] = ((values @ weights.T + pseudo @ extra.T) / total).T

    def define(self, name: str, minuend: str, subtrahend: str) -> None:
        """Name the difference of two quantities."""
        self.means[name] = self.means[minuend] - self.means[subtrahend]
        self.draws[name] = self.draws[minuend] - self.draws[subtrahend]

    def estimate(self, name: str, minus: str | None = None) -> Estimate:
        """Return a mean, or the difference of two means, with its percentile interval."""
        value, draws = float(self.means[name]), self.draws[name]
        if minus is not None:
            value, draws = value - float(self.means[minus]), draws - self.draws[minus]
        return _percentile_interval(value, draws)

    def ratio(self, numerator: str, denominator: str) -> Estimate:
        """Return the ratio of two means, with its percentile interval."""
        value = float(self.means[numerator]) / float(self.means[denominator])
        return _percentile_interval(value, self.draws[numerator] / self.draws[denominator])

    def total_variation(self, name: str, origin=0.0) -> tuple[Estimate, float]:
        """
        Compute the total variation distance between a vector of means and `origin`, and its noise floor.

        Noise makes a distance larger, so its percentile interval is too high. The interval here contains the distances
        of all points in a ball around the means that contains the true means with probability .95. It is conservative.

        Args:
            name (`str`):
                Name of a quantity of shape `(parts, rows)`.
            origin (`float` or `np.ndarray` of shape `(parts,)`, *optional*, defaults to `0.0`):
                Point from which the distance is measured.

        Returns:
            `tuple[Estimate, float]`: the distance, and its mean on as many questions if the true distance is 0.
        """
        distance = 0.5 * float(np.abs(self.means[name] - origin).sum())
        noise = 0.5 * np.abs(self.draws[name] - self.means[name]).sum(axis=1)
        radius = float(np.quantile(noise, LEVEL))
        return Estimate(distance, max(0.0, distance - radius), min(1.0, distance + radius)), float(noise.mean())


def _percentile_interval(value: float, draws: np.ndarray) -> Estimate:
    """A value with the percentile interval of its draws, widened to contain the value."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))
