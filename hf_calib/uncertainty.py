"""How far a measured calibration error can be trusted: noise floor and bootstrap interval, at a cost free of N."""

from __future__ import annotations

from math import erf
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from .binning import as_outcomes, assign_bins, bin_edges


# Within a cell this narrow the confidences count as equal. That moves one example's gap by less than 1e-3 around the
# exact mean of its cell, so the resampled ECE is right to a few 1e-4 / sqrt(N): far below what resampling itself adds.
_CELLS_PER_UNIT = 1000


class NoiseFloor(NamedTuple):
    """
    The ECE that a perfectly calibrated model with these confidences shows on N examples.

    Attributes:
        mean (`float`): Expected ECE of the calibrated model.
        p95 (`float`): Its 95th percentile: an ECE below it is no evidence of miscalibration.
        p_value (`float`): Probability that the calibrated model shows at least the measured ECE.
    """

    mean: float
    p95: float
    p_value: float


class Cells(NamedTuple):
    """Counts and summed confidences of examples with almost equal confidence, sorted by confidence."""

    counts: np.ndarray  # (cells, 2): wrong, correct
    confidence_sums: np.ndarray  # (cells, 2)
    starts: np.ndarray  # first cell of each bin that is not empty

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def measured(self) -> float:
        """ECE of the data themselves."""
        return float(self.error((self.confidence_sums.sum(axis=1) - self.counts[:, 1])[None])[0])

    @property
    def bias(self) -> float:
        """How much sampling noise adds to the ECE, see [`sampling_bias`]."""
        counts = np.add.reduceat(self.counts, self.starts)
        n = counts.sum(axis=1)
        gaps = (np.add.reduceat(self.confidence_sums, self.starts).sum(axis=1) - counts[:, 1]) / n
        return sampling_bias(n, counts[:, 1] / n, gaps)

    def error(self, gaps: np.ndarray) -> np.ndarray:
        """ECE of each row of summed gaps per cell, shape (draws, cells) -> (draws,)."""
        return np.abs(np.add.reduceat(gaps, self.starts, axis=1)).sum(axis=1) / self.n


def sampling_bias(counts: np.ndarray, accuracy: np.ndarray, gaps: np.ndarray) -> float:
    """
    Upward bias of an ECE: the mean of `|gap_b + noise_b| - |gap_b|` under normal noise of variance
    `accuracy_b (1 - accuracy_b) / n_b`, over bins that hold examples, each of shape `(bins,)`. Kumar et al. (arXiv
    1909.10155) simulate it; here it is the mean of a folded normal in closed form.
    """
    gaps = np.abs(gaps)
    scale = np.sqrt(accuracy * (1 - accuracy) / counts)
    z = np.divide(gaps, scale, out=np.full(len(gaps), np.inf), where=scale > 0)
    noisy = scale * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + gaps * np.array([erf(x / np.sqrt(2)) for x in z])
    return float(counts @ (noisy - gaps) / counts.sum())


def group_cells(confidences, correct, n_bins: int, binning: str) -> Cells:
    """Put examples into cells of width 0.001, split where a bin ends and by outcome."""
    confidences, correct = as_outcomes(confidences, correct)
    if not ((correct == 0) | (correct == 1)).all():
        raise ValueError("`correct` must hold zeros and ones: an interval needs outcomes, not probabilities.")
    bins = assign_bins(confidences, bin_edges(confidences, n_bins, binning))
    # both terms grow with the confidence, so their sum tells every pair (bin, cell) apart and stays small
    key = bins + (confidences * _CELLS_PER_UNIT).astype(np.int64)
    size = n_bins + _CELLS_PER_UNIT
    bin_of_cell = np.zeros(size, dtype=np.int64)
    bin_of_cell[key] = bins
    key = 2 * key + correct.astype(np.int64)
    counts = np.bincount(key, minlength=2 * size).reshape(size, 2)
    sums = np.bincount(key, weights=confidences, minlength=2 * size).reshape(size, 2)
    filled = counts.sum(axis=1) > 0
    _, starts = np.unique(bin_of_cell[filled], return_index=True)
    return Cells(counts[filled], sums[filled], starts)


def noise_floor(
    confidences, correct, n_bins: int = 10, binning: str = "equal_width", n_simulations: int = 1000, seed: int = 0
) -> NoiseFloor:
    """
    Simulate the ECE of a perfectly calibrated model with these confidences and this N.

    Every prediction is drawn right with a probability equal to its confidence. The draws are made for cells of width
    0.001 at once (a binomial each), so 10 million rows cost no more than a thousand.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1); gives the measured ECE behind the p-value.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the ECE.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        n_simulations (`int`, *optional*, defaults to `1000`):
            Number of simulated models. The smallest possible p-value is `1 / (n_simulations + 1)`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the simulation.

    Returns:
        [`NoiseFloor`]: `mean`, `p95` and `p_value`.
    """
    return floor_of_cells(group_cells(confidences, correct, n_bins, binning), n_simulations, seed)


def bootstrap_interval(
    confidences,
    correct,
    n_bins: int = 10,
    binning: str = "equal_width",
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Confidence interval of the binned calibration error that the model would show on endless data.

    A measured ECE is biased upwards and so is its bootstrap, by as much again: the percentile interval never covers
    the truth of a calibrated model, which is 0. Hence the interval is centred on the debiased ECE, as wide as the
    spread of the bootstrap says (`debiased +- z * standard deviation`), stretched to 0 where the noise-floor test does
    not reject perfect calibration at `(1 - level) / 2`, and to the measured ECE where it would leave that out.
    Simulated at level 0.95, it covers the truth in 88 to 97% of the cases at N = 500 and in 88 to 95% at N = 3,000;
    the low figures belong to models whose true error is close to the noise floor.

    A resample of N rows is drawn as multinomial counts on at most 2,000 cells of equal confidence and outcome, never
    as rows.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the ECE. Equal-mass borders are kept as they are in the data.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of resamples.
        level (`float`, *optional*, defaults to `0.95`):
            Confidence level in (0, 1).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.

    Returns:
        `tuple[float, float]`: lower and upper end, in [0, 1].
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level}.")
    cells = group_cells(confidences, correct, n_bins, binning)
    return interval_of_cells(cells, floor_of_cells(cells, n_bootstrap, seed), n_bootstrap, level, seed)


def floor_of_cells(cells: Cells, n_simulations: int, seed: int) -> NoiseFloor:
    """[`noise_floor`] of cells already made."""
    if n_simulations < 1:
        raise ValueError(f"at least one simulation is needed, got {n_simulations}.")
    counts, confidence_sums = cells.counts.sum(axis=1), cells.confidence_sums.sum(axis=1)
    rng = np.random.default_rng(seed)
    hits = rng.binomial(counts, np.minimum(confidence_sums / counts, 1.0), size=(n_simulations, len(counts)))
    simulated = cells.error(confidence_sums - hits)
    # a hair's breadth below: sums in another order must not turn a tie into a difference
    exceeding = int((simulated >= cells.measured - 1e-12).sum())
    p_value = (1 + exceeding) / (1 + n_simulations)
    return NoiseFloor(float(simulated.mean()), float(np.quantile(simulated, 0.95)), p_value)


def interval_of_cells(
    cells: Cells, floor: NoiseFloor, n_bootstrap: int, level: float, seed: int
) -> tuple[float, float]:
    """[`bootstrap_interval`] of cells already made."""
    if n_bootstrap < 1:
        raise ValueError(f"`n_bootstrap` must be at least 1, got {n_bootstrap}.")
    counts = cells.counts.ravel()
    gap = np.divide(cells.confidence_sums.ravel(), counts, out=np.zeros(len(counts)), where=counts > 0)
    gap[1::2] -= counts[1::2] > 0
    draws = np.random.default_rng(seed).multinomial(cells.n, counts / cells.n, size=n_bootstrap)
    errors = cells.error((draws * gap).reshape(n_bootstrap, -1, 2).sum(axis=2))
    tail = (1 - level) / 2
    margin = NormalDist().inv_cdf(1 - tail) * errors.std()
    centre = max(0.0, cells.measured - cells.bias)
    lower = 0.0 if floor.p_value > tail else centre - margin
    return float(np.clip(lower, 0.0, cells.measured)), float(np.clip(centre + margin, cells.measured, 1.0))
