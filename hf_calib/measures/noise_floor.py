"""How far a measured calibration error can be trusted: noise floor and bootstrap interval, at a cost free of N."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .binning import assign_bins, bin_edges
from .ece_interval import BinGaps, interval_of_bins
from .validation import as_outcomes, as_weights, check_whole


# Within a cell this narrow the confidences count as equal. That moves one example's gap by less than 1e-3 around the
# exact mean of its cell, so the resampled ECE is right to a few 1e-4 / sqrt(N): far below what resampling itself adds.
_CELLS_PER_UNIT = 1000
_DRAWN_AT_ONCE = 1 << 20  # numbers in a block of simulated models: 8 MB


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
    """
    Examples with almost equal confidence and the same outcome taken together, sorted by confidence.

    Attributes:
        counts (`np.ndarray` of shape `(cells, 2)`): Rows that are wrong and right; a row of weight 0 is none.
        weights (`np.ndarray` of shape `(cells, 2)`): Their summed weight: the counts, where no weights are given.
        squares (`np.ndarray` of shape `(cells, 2)`): Their summed squared weight.
        confidence_sums (`np.ndarray` of shape `(cells, 2)`): Their summed weight times confidence.
        starts (`np.ndarray` of shape `(filled bins,)`): First cell of each bin that is not empty.
    """

    counts: np.ndarray
    weights: np.ndarray
    squares: np.ndarray
    confidence_sums: np.ndarray
    starts: np.ndarray

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    @property
    def measured(self) -> float:
        """ECE of the data themselves."""
        return float(self.error((self.confidence_sums.sum(axis=1) - self.weights[:, 1])[None])[0])

    @property
    def bins(self) -> BinGaps:
        """The bins that hold examples."""
        weights, squares, confidence_sums = (
            np.add.reduceat(sums, self.starts) for sums in (self.weights, self.squares, self.confidence_sums)
        )
        total = weights.sum(axis=1)
        counts = total**2 / squares.sum(axis=1)
        return BinGaps(counts, total, confidence_sums.sum(axis=1) / total, weights[:, 1] / total)

    @property
    def bias(self) -> float:
        """How much sampling noise adds to the ECE, see [`~intervals.BinGaps.bias`]."""
        return self.bins.bias

    def error(self, gaps: np.ndarray) -> np.ndarray:
        """ECE of each row of summed gaps per cell, shape (draws, cells) -> (draws,)."""
        return np.abs(np.add.reduceat(gaps, self.starts, axis=1)).sum(axis=1) / self.weights.sum()


class CellTable:
    """
    Accumulates examples batch by batch in cells of width 0.001, split where a bin ends and by outcome: all that the
    binned error, its noise floor and its interval look at, in memory that does not grow with N.

    Args:
        edges (`np.ndarray` of shape `(n_bins + 1,)`):
            Borders of the bins, from 0 to 1 and not falling.

    Attributes:
        sums (`np.ndarray` of shape `(4, n_bins + 1000, 2)`):
            Rows, weights, squared weights and weighted confidences of every cell, wrong and right.
        starts (`np.ndarray` of shape `(n_bins,)`):
            First cell of each bin: `np.add.reduceat(table.sums, table.starts, axis=1)` are the sums of the bins.
    """

    def __init__(self, edges: np.ndarray):
        self.edges, n_bins = edges, len(edges) - 1
        # Bin and cell both grow with the confidence, so their sum tells every pair of them apart and stays small.
        self.starts = np.arange(n_bins) + (edges[:-1] * _CELLS_PER_UNIT).astype(np.int64)
        self.sums = np.zeros((4, n_bins + _CELLS_PER_UNIT, 2))

    def add(self, confidences: np.ndarray, correct: np.ndarray, sample_weight: np.ndarray | None = None) -> None:
        """
        Add a batch, checked by the caller: float64 confidences in [0, 1], outcomes that are 0 or 1 (or bool), and
        weights that are finite and not negative.
        """
        size = 2 * self.sums.shape[1]
        key = assign_bins(confidences, self.edges) + (confidences * _CELLS_PER_UNIT).astype(np.int64)
        key = 2 * key + correct.astype(np.int64)
        if sample_weight is None:
            counts = weights = squares = np.bincount(key, minlength=size)
            confidence_sums = np.bincount(key, confidences, size)
        else:
            counts = np.bincount(key, sample_weight > 0, size)
            weights, squares = np.bincount(key, sample_weight, size), np.bincount(key, sample_weight**2, size)
            confidence_sums = np.bincount(key, sample_weight * confidences, size)
        self.sums += np.reshape([counts, weights, squares, confidence_sums], self.sums.shape)

    def merge(self, other: CellTable) -> None:
        """Add what another table with the same bins has seen."""
        if not np.array_equal(self.edges, other.edges):
            raise ValueError(f"the tables differ in their bins: {len(self.starts)} and {len(other.starts)} of them.")
        self.sums += other.sums

    def cells(self) -> Cells:
        """The cells that hold examples."""
        filled = np.flatnonzero(self.sums[0].any(axis=1))
        if not len(filled):
            raise ValueError("no example has been added: there is nothing to measure.")
        _, starts = np.unique(np.searchsorted(self.starts, filled, side="right"), return_index=True)
        return Cells(*self.sums[:, filled], starts)


def group_cells(confidences, correct, n_bins: int, binning: str, sample_weight=None) -> Cells:
    """Put examples into cells of width 0.001, split where a bin ends and by outcome."""
    confidences, correct = as_outcomes(confidences, correct)
    if not ((correct == 0) | (correct == 1)).all():
        raise ValueError("`correct` must hold zeros and ones: an interval needs outcomes, not probabilities.")
    weights = as_weights(sample_weight, len(confidences))
    table = CellTable(bin_edges(confidences, n_bins, binning, weights))
    table.add(confidences, correct, weights)
    return table.cells()


def noise_floor(
    confidences,
    correct,
    n_bins: int = 10,
    binning: str = "equal_width",
    n_simulations: int = 1000,
    seed: int | None = 0,
    sample_weight=None,
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
            Seed of the simulation; `None` for fresh randomness.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        [`NoiseFloor`]: `mean`, `p95` and `p_value`.
    """
    check_whole(n_simulations, "n_simulations")
    return floor_of_cells(group_cells(confidences, correct, n_bins, binning, sample_weight), n_simulations, seed)


def bootstrap_interval(
    confidences,
    correct,
    n_bins: int = 10,
    binning: str = "equal_width",
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int | None = 0,
    sample_weight=None,
) -> tuple[float, float]:
    """
    Confidence interval of the binned calibration error that the model would show on endless data.

    A measured ECE is biased upwards and so is its bootstrap, by as much again: the percentile interval never covers
    the truth of a calibrated model, which is 0. Here the true gaps of the bins are drawn given the measured ones,
    shrunk as far as the data say (empirical Bayes), and the masses of the bins are resampled with them. How much of the
    measured error is noise depends on how many bins are off, which cannot be measured near the noise floor; so the
    upper end supposes that every bin may be off, the lower end that only some are. The lower end is 0 where the
    noise-floor test does not reject perfect calibration at `1 - level`. Derived in docs/theory.md.

    Simulated at level 0.95, N = 500 and 5,000, it covers the truth of eleven kinds of models in 93 to 97% of the cases
    each, and in 98% where errors lie just above the noise floor; one model there, chosen to be hard, in 86%
    (docs/results/coverage.md).
    It always contains the debiased ECE. It need not contain the measured one, which for a calibrated model may exceed
    all that is plausible for the truth.

    The cost beyond counting does not depend on N.

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
            Number of draws behind each end, and of simulations behind the noise-floor test.
        level (`float`, *optional*, defaults to `0.95`):
            Confidence level in (0, 1).
        seed (`int`, *optional*, defaults to `0`):
            Seed of both; `None` for fresh randomness.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        `tuple[float, float]`: lower and upper end, in [0, 1].
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level}.")
    check_whole(n_bootstrap, "n_bootstrap")
    cells = group_cells(confidences, correct, n_bins, binning, sample_weight)
    return interval_of_cells(cells, floor_of_cells(cells, n_bootstrap, seed), n_bootstrap, level, seed)


def floor_of_cells(cells: Cells, n_simulations: int, seed: int | None) -> NoiseFloor:
    """[`noise_floor`] of cells already made."""
    rng, size = _generator(seed), max(1, _DRAWN_AT_ONCE // len(cells.counts))
    weights, squares, confidence_sums = (a.sum(axis=1) for a in (cells.weights, cells.squares, cells.confidence_sums))
    confidence = np.minimum(confidence_sums / weights, 1.0)
    # with weights: as many draws as the effective count, scaled so that the variance, squares * c (1 - c), is exact
    counts = np.maximum(np.rint(weights**2 / squares), 1).astype(np.int64)
    simulated = np.empty(n_simulations)
    for start in range(0, n_simulations, size):
        block = simulated[start : start + size]
        hits = rng.binomial(counts, confidence, size=(len(block), len(counts)))
        block[:] = cells.error((counts * confidence - hits) * np.sqrt(squares / counts))
    # a hair's breadth below: sums in another order must not turn a tie into a difference
    exceeding = int((simulated >= cells.measured - 1e-12).sum())
    p_value = (1 + exceeding) / (1 + n_simulations)
    return NoiseFloor(float(simulated.mean()), float(np.quantile(simulated, 0.95)), p_value)


def interval_of_cells(
    cells: Cells, floor: NoiseFloor, n_bootstrap: int, level: float, seed: int | None
) -> tuple[float, float]:
    """[`bootstrap_interval`] of cells already made."""
    rng = _generator(seed, 1)  # not the numbers that the noise floor was drawn with
    return interval_of_bins(cells.bins, floor.p_value, n_bootstrap, level, rng)


def _generator(seed: int | None, *stream: int) -> np.random.Generator:
    if seed is None:
        return np.random.default_rng()
    check_whole(seed, "seed", least=0)
    return np.random.default_rng([seed, *stream])
