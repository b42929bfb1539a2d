"""Noise floor and confidence interval of the expected calibration error (ECE)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .binning import assign_bins, bin_edges, compared_with_edges
from .checked import Examples, check_examples
from .ece_interval import BinGaps, interval_of_bins
from .options import MeasureOptions
from .validation import check_whole


# Confidences in one cell count as equal. The error of the resampled ECE is below 1e-3 / sqrt(N).
_CELLS_PER_UNIT = 1000
_DRAWN_AT_ONCE = 1 << 20  # numbers in a block of simulated models: 8 MB
LEVEL = 0.95


class NoiseFloor(NamedTuple):
    """
    ECE of a perfectly calibrated model with the same confidences on N examples.

    Attributes:
        mean (`float`): Expected ECE of the calibrated model.
        p95 (`float`): Its 95th percentile: an ECE below it is no evidence of miscalibration.
        p_value (`float`): Probability that the calibrated model has at least the measured ECE, in (0, 1].
    """

    mean: float
    p95: float
    p_value: float


class Cells(NamedTuple):
    """
    Examples grouped by almost equal confidence and by outcome, sorted by confidence.

    Attributes:
        counts (`np.ndarray` of shape `(cells, 2)`): Number of wrong and of right predictions.
        weights (`np.ndarray` of shape `(cells, 2)`): Summed weights; the counts if no weights are given.
        squares (`np.ndarray` of shape `(cells, 2)`): Summed squared weights.
        confidence_sums (`np.ndarray` of shape `(cells, 2)`): Sums of weight times confidence.
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
        """Measured ECE."""
        return float(self.error((self.confidence_sums.sum(axis=1) - self.weights[:, 1])[None])[0])

    @property
    def bins(self) -> BinGaps:
        """Bins that are not empty."""
        weights, squares, confidence_sums = (
            np.add.reduceat(sums, self.starts) for sums in (self.weights, self.squares, self.confidence_sums)
        )
        total = weights.sum(axis=1)
        counts = total**2 / squares.sum(axis=1)
        return BinGaps(counts, total, confidence_sums.sum(axis=1) / total, weights[:, 1] / total)

    @property
    def bias(self) -> float:
        """Upward bias of the measured ECE, see [`~hf_calib.measures.ece_interval.BinGaps.bias`]."""
        return self.bins.bias

    def error(self, gaps: np.ndarray) -> np.ndarray:
        """Compute the ECE of each draw, `(draws,)`, from its summed gaps, `(draws, cells)`."""
        return np.abs(np.add.reduceat(gaps, self.starts, axis=1)).sum(axis=1) / self.weights.sum()


class CellTable:
    """
    Accumulate examples in cells of width 0.001, batch by batch. A cell never crosses a bin edge.

    The binned error, its noise floor and its interval need nothing else. Memory does not grow with N.

    Args:
        edges (`np.ndarray` of shape `(n_bins + 1,)`):
            Edges of the bins, from 0 to 1 in ascending order.

    Attributes:
        sums (`np.ndarray` of shape `(4, n_bins + 1000, 2)`):
            Counts, weights, squared weights and weighted confidences of every cell, wrong and right.
        starts (`np.ndarray` of shape `(n_bins,)`):
            First cell of each bin. `np.add.reduceat(table.sums, table.starts, axis=1)` are the sums of the bins.
    """

    def __init__(self, edges: np.ndarray):
        self.edges, n_bins = edges, len(edges) - 1
        # bin and cell both grow with the confidence, so their sum is unique for each pair and small
        self.starts = np.arange(n_bins) + (edges[:-1] * _CELLS_PER_UNIT).astype(np.int64)
        self.sums = np.zeros((4, n_bins + _CELLS_PER_UNIT, 2))

    def add(self, confidences: np.ndarray, correct: np.ndarray, sample_weight: np.ndarray | None = None) -> None:
        """
        Add a checked batch.

        Args:
            confidences (`np.ndarray` of shape `(N,)`):
                Confidences in [0, 1], float64.
            correct (`np.ndarray` of shape `(N,)`):
                Outcomes, 0 or 1.
            sample_weight (`np.ndarray` of shape `(N,)`, *optional*):
                Finite weights of at least 0.
        """
        size = 2 * self.sums.shape[1]
        cell = (compared_with_edges(confidences, self.edges) * _CELLS_PER_UNIT).astype(np.int64)
        key = assign_bins(confidences, self.edges) + cell
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
        """Add the sums of another table with the same bins."""
        if not np.array_equal(self.edges, other.edges):
            raise ValueError(f"The tables differ in their bins: {len(self.starts)} and {len(other.starts)}.")
        self.sums += other.sums

    def cells(self) -> Cells:
        """Return the cells that are not empty."""
        filled = np.flatnonzero(self.sums[0].any(axis=1))
        if not len(filled):
            raise ValueError("No examples have been added.")
        _, starts = np.unique(np.searchsorted(self.starts, filled, side="right"), return_index=True)
        return Cells(*self.sums[:, filled], starts)


def group_cells(confidences, correct, n_bins: int, binning: str, sample_weight=None) -> Cells:
    """Group examples in cells of width 0.001 that do not cross a bin edge. Arguments as in [`noise_floor`]."""
    return cells_of(check_examples(confidences, correct, sample_weight), n_bins, binning)


def cells_of(examples: Examples, n_bins: int, binning: str) -> Cells:
    """Group checked examples in cells, see [`group_cells`]."""
    table = CellTable(bin_edges(examples.confidences, n_bins, binning, examples.weights))
    table.add(examples.confidences, examples.correct, examples.weights)
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
    Simulate the ECE of a perfectly calibrated model with the same confidences.

    Every prediction is right with a probability equal to its confidence. One binomial is drawn per cell of width
    0.001, so the cost of a simulation does not depend on N.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1), for the p-value of the measured ECE.
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

    Raises:
        ValueError: A value is outside its range, or the shapes do not fit.
    """
    check_whole(n_simulations, "n_simulations")
    options = MeasureOptions(n_bins, binning, int(n_simulations), seed)
    return floor_of_cells(group_cells(confidences, correct, n_bins, binning, sample_weight), options)


def bootstrap_interval(
    confidences,
    correct,
    n_bins: int = 10,
    binning: str = "equal_width",
    level: float = LEVEL,
    sample_weight=None,
    **options,
) -> tuple[float, float]:
    """
    Compute a confidence interval of the population ECE.

    A measured ECE is biased upwards, and resampling adds the same bias again, so a percentile bootstrap does not cover
    the ECE of a calibrated model, which is 0. Here the true gaps of the bins are drawn given the measured gaps
    (empirical Bayes), and the masses of the bins are resampled (Bayesian bootstrap). The upper end assumes that every
    bin may be miscalibrated, the lower end that only some are. The lower end is 0 where the noise-floor test does not
    reject perfect calibration at level `1 - level`. Derivation: docs/concepts/theory.md.

    Coverage at level 0.95 with ten equal-width bins, N = 500 and 5,000: 93 to 98% for each of eleven kinds of models,
    86% for one model chosen to be hard. With other bins it may be lower: 89% for the worst kind with ten equal-mass
    bins, 91% with 15 equal-width bins, 80% with 15 equal-mass bins (docs/results/coverage.md). The interval always
    contains the debiased ECE. It may exclude the measured ECE of a calibrated model.

    After one pass over the data the cost does not depend on N.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the ECE. The edges of equal-mass bins are not resampled.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        level (`float`, *optional*, defaults to `0.95`):
            Confidence level in (0, 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
        options:
            `n_bootstrap` and `seed`, see [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        `tuple[float, float]`: lower and upper end, in [0, 1].

    Raises:
        ValueError: A value is outside its range, or the shapes do not fit.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level}.")
    options = MeasureOptions(n_bins, binning, **options)
    cells = group_cells(confidences, correct, n_bins, binning, sample_weight)
    return interval_of_cells(cells, floor_of_cells(cells, options), options, level)


def floor_of(examples: Examples, options: MeasureOptions) -> NoiseFloor:
    """Simulate the noise floor of checked examples, see [`noise_floor`]."""
    return floor_of_cells(cells_of(examples, options.n_bins, options.binning), options)


def floor_of_cells(cells: Cells, options: MeasureOptions) -> NoiseFloor:
    """Simulate the noise floor of cells, see [`noise_floor`]."""
    n_simulations = options.n_bootstrap
    rng, size = options.generator(), max(1, _DRAWN_AT_ONCE // len(cells.counts))
    weights, squares, confidence_sums = (a.sum(axis=1) for a in (cells.weights, cells.squares, cells.confidence_sums))
    confidence = np.minimum(confidence_sums / weights, 1.0)
    # with weights: draws of the effective count, scaled so that the variance is exact
    counts = np.maximum(np.rint(weights**2 / squares), 1).astype(np.int64)
    simulated = np.empty(n_simulations)
    for start in range(0, n_simulations, size):
        block = simulated[start : start + size]
        hits = rng.binomial(counts, confidence, size=(len(block), len(counts)))
        block[:] = cells.error((counts * confidence - hits) * np.sqrt(squares / counts))
    # the tolerance keeps the rounding of sums from breaking ties
    exceeding = int((simulated >= cells.measured - 1e-12).sum())
    p_value = (1 + exceeding) / (1 + n_simulations)
    return NoiseFloor(float(simulated.mean()), float(np.quantile(simulated, 0.95)), p_value)


def interval_of_cells(
    cells: Cells, floor: NoiseFloor, options: MeasureOptions, level: float = LEVEL
) -> tuple[float, float]:
    """Compute the interval of cells, see [`bootstrap_interval`]."""
    rng = options.generator(1)  # a stream of its own, independent of the noise floor
    return interval_of_bins(cells.bins, floor.p_value, options.n_bootstrap, level, rng)
