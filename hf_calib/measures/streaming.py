"""Calibration measures of predictions that arrive in batches, in constant memory."""

from __future__ import annotations

import numpy as np

from .binning import OptionBins, ReliabilityBins, bin_edges, bins_from_sums
from .chunks import Rows, iterate_outcomes, iterate_rows
from .noise_floor import CellTable, floor_of_cells, interval_of_cells
from .options import MeasureOptions
from .proper_scores import ScoreSums, split_brier
from .score_intervals import aurc_estimate, auroc_estimate
from .selective import FineTable, TieGroups
from .validation import as_outcomes, as_weights


_SMOOTH_GRID = 4096  # cells of [0, 1]


class SmoothGrid:
    """
    Accumulate the residuals `correct - confidence` on a grid of the confidence, for the smooth ECE.

    The grid has 4,096 cells. Each residual is split linearly between two cells.
    """

    def __init__(self):
        self.residuals, self.weight = np.zeros(_SMOOTH_GRID), 0.0

    def add(self, confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add checked examples with weights above 0."""
        position = np.clip(confidences * _SMOOTH_GRID - 0.5, 0, _SMOOTH_GRID - 1)
        left = np.minimum(position.astype(np.intp), _SMOOTH_GRID - 2)
        residual = correct - confidences
        if weights is not None:
            residual *= weights
        right_part = (position - left) * residual
        self.residuals += np.bincount(left, residual - right_part, _SMOOTH_GRID)
        self.residuals[1:] += np.bincount(left, right_part, _SMOOTH_GRID)[:-1]
        self.weight += len(residual) if weights is None else weights.sum()

    def merge(self, other: SmoothGrid) -> None:
        """Add the sums of another grid."""
        self.residuals += other.residuals
        self.weight += other.weight

    def error(self) -> float:
        """Return the smooth ECE: the smoothed error at the bandwidth that equals it."""
        grid = self.residuals / self.weight
        # an even continuation to period 2 turns the reflected Gaussian into an ordinary one
        spectrum = np.fft.rfft(np.concatenate([grid, grid[::-1]]))
        frequency = np.pi * np.arange(len(spectrum))

        def smoothed(bandwidth: float) -> float:
            values = np.fft.irfft(spectrum * np.exp(-0.5 * (bandwidth * frequency) ** 2), 2 * _SMOOTH_GRID)
            return float(np.abs(values[:_SMOOTH_GRID]).sum())

        low, high = 0.0, 1.0  # the error falls with the bandwidth, so bisection finds the fixed point
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if smoothed(middle) > middle else (low, middle)
        return high


class ConfidenceSums:
    """
    Accumulate the sums of a report that depend on confidences and outcomes only.

    Args:
        edges (`np.ndarray` of shape `(n_bins + 1,)`):
            Edges of the confidence bins.
    """

    def __init__(self, edges: np.ndarray):
        self.table, self.smooth = CellTable(edges), SmoothGrid()

    def add(self, confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add checked examples with weights above 0."""
        self.table.add(confidences, correct, weights)
        self.smooth.add(confidences, correct, weights)

    def merge(self, other: ConfidenceSums) -> None:
        """Add the sums of another accumulator with the same bins."""
        self.table.merge(other.table)
        self.smooth.merge(other.smooth)

    def bins(self) -> ReliabilityBins:
        """Return the reliability bins."""
        counts, weights, _, confidences = np.add.reduceat(self.table.sums, self.table.starts, axis=1)
        return bins_from_sums(
            self.table.edges, counts.sum(axis=1), weights.sum(axis=1), confidences.sum(axis=1), weights[:, 1]
        )

    def report(self, groups: TieGroups, options: MeasureOptions) -> dict[str, float]:
        """
        Return the part of a report that needs confidences and outcomes only.

        Args:
            groups ([`TieGroups`]):
                The same predictions, grouped by confidence.
            options ([`MeasureOptions`]):
                `n_bootstrap` and `seed`. The bins are those of the accumulator.
        """
        cells, bins = self.table.cells(), self.bins()
        floor = floor_of_cells(cells, options)
        low, high = interval_of_cells(cells, floor, options)
        weight = cells.weights.sum()
        n_effective = float(weight**2 / cells.squares.sum())
        aurc, best_aurc = aurc_estimate(groups, n_effective), groups.best_aurc(int(cells.counts[:, 1].sum()))
        accuracy, confidence = float(cells.weights[:, 1].sum() / weight), float(cells.confidence_sums.sum() / weight)
        return {
            "n": cells.n,
            "n_effective": n_effective,
            "accuracy": accuracy,
            "confidence": confidence,
            "overconfidence": confidence - accuracy,
            "ece": bins.error,
            "ece_low": low,
            "ece_high": high,
            "ece_noise_floor": floor.mean,
            "ece_noise_floor_p95": floor.p95,
            "ece_p_value": floor.p_value,
            "ece_equal_mass": groups.equal_mass_error(len(bins.counts)),
            "ece_sweep": groups.sweep_error(),
            "debiased_ece": max(0.0, bins.error - cells.bias),
            "smooth_ece": self.smooth.error(),
            "mce": bins.largest_gap,
            **auroc_estimate(groups, n_effective).named("auroc"),
            **aurc.named("aurc"),
            "e_aurc": max(0.0, aurc.value - best_aurc),
            "augrc": groups.augrc(),
        }


class OptionSums:
    """
    Accumulate the sums of a report that depend on the probabilities of all options.

    Args:
        n_bins (`int`):
            Number of bins for each option.
    """

    def __init__(self, n_bins: int):
        self.scores, self.bins = ScoreSums(), OptionBins(n_bins)

    def add(self, rows: Rows) -> None:
        """Add checked predictions."""
        self.scores.add(rows)
        self.bins.add(rows)

    def merge(self, other: OptionSums) -> None:
        """Add the sums of another accumulator with the same number of bins."""
        self.scores.merge(other.scores)
        self.bins.merge(other.bins)

    def report(self) -> dict[str, float]:
        """Return the part of a report that needs all options."""
        brier = split_brier(self.scores, self.bins)
        return {
            "cw_ece": self.bins.error,
            **self.scores.estimates(),
            "brier_calibration": brier.calibration,
            "brier_refinement": brier.refinement,
        }


class StreamingCalibration:
    """
    Compute [`calibration_report`] of predictions that arrive in batches. The state takes 7 MB for any number of them.

    The binned measures, the smooth ECE, the proper scores, the noise floor and the interval equal those of
    [`calibration_report`]. The four measures that depend on the order of all confidences use 221,185 cells of
    confidence, see [`FineTable`]. From 20,000 predictions on, the error of `auroc` and `aurc` is below 2e-5, that of
    `ece_equal_mass` and `ece_sweep` about 1e-3. There is no `tce`.

    Args:
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins.

    Example:

    ```python
    >>> from hf_calib.measures.streaming import StreamingCalibration
    >>> stream = StreamingCalibration()
    >>> stream.update([[0.9, 0.1], [0.7, 0.3]], [0, 1]).update([[0.2, 0.8]], [1]).report()["n"]
    3

    ```
    """

    def __init__(self, n_bins: int = 10):
        self._confidences, self._fine = ConfidenceSums(bin_edges(np.empty(0), n_bins)), FineTable()
        self._options, self._options_known = OptionSums(n_bins), True

    def update(self, probabilities, labels, sample_weight=None) -> StreamingCalibration:
        """
        Add a batch. A batch that raises an error is not counted.

        Args:
            probabilities (array-like of shape `(N, K)`):
                Option probabilities; K may differ between batches.
            labels (array-like of shape `(N,)`):
                Index of the right option.
            sample_weight (array-like of shape `(N,)`, *optional*):
                Importance weight of each row, on one scale for all batches. All may be 0.

        Returns:
            [`StreamingCalibration`]: itself.

        Raises:
            TypeError: An array has the wrong type.
            ValueError: A value is outside its range, or the shapes do not fit.
        """
        for rows in list(
            iterate_rows(probabilities, labels, sample_weight, allow_zero=True)
        ):  # a list: checked before any is added
            self._options.add(rows)
            self._add(*rows.top_label(), rows.weights)
        return self

    def update_confidences(self, confidences, correct, sample_weight=None) -> StreamingCalibration:
        """
        Add a batch without option probabilities. The report then lacks the measures that need them.

        Args:
            confidences (array-like of shape `(N,)`):
                Confidence of each prediction, in [0, 1].
            correct (array-like of shape `(N,)`):
                Whether each prediction is right (0 or 1).
            sample_weight (array-like of shape `(N,)`, *optional*):
                Importance weight of each row, on one scale for all batches. All may be 0.

        Returns:
            [`StreamingCalibration`]: itself.

        Raises:
            ValueError: A value is outside its range, or the shapes do not fit.
        """
        confidences, correct = as_outcomes(confidences, correct, binary=True)
        weights = as_weights(sample_weight, len(confidences), allow_zero=True)
        self._options_known = False
        for chunk in iterate_outcomes(confidences, correct, weights):
            self._add(*chunk)
        return self

    def _add(self, confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray | None) -> None:
        self._confidences.add(confidences, correct, weights)
        self._fine.add(confidences, correct, weights)

    def merge(self, other: StreamingCalibration) -> StreamingCalibration:
        """Add the predictions of another stream with the same bins, e.g. of another process."""
        self._confidences.merge(other._confidences)
        self._fine.merge(other._fine)
        self._options.merge(other._options)
        self._options_known &= other._options_known
        return self

    def bins(self) -> ReliabilityBins:
        """Return the reliability bins of all predictions."""
        return self._confidences.bins()

    def report(self, n_bootstrap: int = 1000, seed: int | None = 0) -> dict[str, float]:
        """
        Return the measures of all predictions.

        Args:
            n_bootstrap (`int`, *optional*, defaults to `1000`):
                Number of draws behind the 95% interval, and of simulations behind the noise floor.
            seed (`int`, *optional*, defaults to `0`):
                Seed of both; `None` for fresh randomness.

        Returns:
            `dict[str, float]`: the keys of [`calibration_report`].

        Raises:
            ValueError: No predictions have been added.
        """
        options = MeasureOptions(n_bootstrap=n_bootstrap, seed=seed)
        report = self._confidences.report(self._fine.groups(), options)
        return report | self._options.report() if self._options_known else report
