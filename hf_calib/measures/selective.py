"""Measures that depend on the order of the confidences: AUROC, AURC, equal-mass ECE and ECE-sweep."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .binning import equal_mass_firsts
from .checked import Examples


SWEEP_LIMIT = 1000  # most bins that ECE-sweep tries
_BLOCK = 1 << 16  # groups in a block of AURC, the size of a cache

_MANTISSA_BITS = 12  # FineTable: binary digits of the distance between the confidence and 1
_SMALLEST_DISTANCE = 2.0**-54  # below the distance of the last float64 before 1


def _cell_of_distance(distance: np.ndarray) -> np.ndarray:
    """Return the leading bits of positive float64 numbers as integers. They sort in the same order."""
    return distance.view(np.int64) >> (52 - _MANTISSA_BITS)


_LEAST_CELL, _MOST_CELL = _cell_of_distance(np.array([_SMALLEST_DISTANCE, 1.0])).tolist()


class TieGroups(NamedTuple):
    """
    Predictions grouped by equal confidence, in ascending order.

    Attributes:
        counts (`np.ndarray` of shape `(groups,)`): Number of predictions.
        weights (`np.ndarray` of shape `(groups,)`): Summed weights; the counts if no weights are given.
        hits (`np.ndarray` of shape `(groups,)`): Summed weights of the right predictions.
        confidences (`np.ndarray` of shape `(groups,)`): Sum of weight times confidence.
    """

    counts: np.ndarray
    weights: np.ndarray
    hits: np.ndarray
    confidences: np.ndarray

    @classmethod
    def of(cls, examples: Examples) -> TieGroups:
        """Group checked examples."""
        confidences, correct, weights = examples.confidences, examples.correct, examples.weights
        # The bits of floats in [0, 1] sort in the same order and leave two bits free. With the outcome in one of them
        # a plain sort is enough. It is twice as fast as argsort.
        keys = (confidences + 0.0).view(np.int64) << 1  # + 0.0: no negative zero
        keys |= correct.astype(bool)
        if weights is None:
            keys.sort()
        else:
            order = np.argsort(keys)
            keys, weights = keys[order], weights[order]
        hits = (keys & 1).astype(np.float64)
        keys >>= 1
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        counts = np.diff(starts, append=len(keys)).astype(np.float64)
        totals = counts
        if weights is not None:
            totals, hits = np.add.reduceat(weights, starts), hits * weights
        return cls(counts, totals, np.add.reduceat(hits, starts), keys[starts].view(np.float64) * totals)

    def auroc(self) -> float:
        """Compute the AUROC, see [`~hf_calib.measures.proper_scores.confidence_auroc`]."""
        right, total = self.hits.sum(), self.weights.sum()
        if right == 0 or right == total:
            return float("nan")
        return float(self.hits @ self.placements()[0] / (right * (total - right)))

    def placements(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight of the wrong predictions below each group, and of the right ones above it; ties count half."""
        wrong = self.weights - self.hits
        return np.cumsum(wrong) - wrong / 2, self.hits.sum() - np.cumsum(self.hits) + self.hits / 2

    def aurc(self) -> float:
        """Compute the AURC, see [`~hf_calib.measures.proper_scores.aurc`]."""
        total = weight_before = wrong_before = 0.0
        for end in range(len(self.weights), 0, -_BLOCK):
            counts, weights, hits = (values[max(0, end - _BLOCK) : end][::-1] for values in self[:3])
            wrong = weights - hits
            before, errors = weight_before + np.cumsum(weights) - weights, wrong_before + np.cumsum(wrong) - wrong
            # With W and E the weight and the error before a group of m rows of weight u and mean error e, row j adds
            # u (E + e u j) / (W + u j). The sum over j is m e u + (E - e W) sum_j 1 / (W / u + j).
            harmonic = _harmonic(before * counts / weights, counts)
            total += (wrong + (errors - wrong / weights * before) * harmonic).sum()
            weight_before, wrong_before = weight_before + weights.sum(), wrong_before + wrong.sum()
        return float(total / weight_before)

    def best_aurc(self, n_right: int) -> float:
        """Compute the AURC of the best order of the same predictions: all right ones before all wrong ones."""
        right, total, n = self.hits.sum(), self.weights.sum(), self.counts.sum()
        counts, weights = np.array([n - n_right, n_right]), np.array([total - right, right])
        present = (counts > 0) & (weights > 0)
        counts, weights, hits = counts[present], weights[present], np.array([0.0, right])[present]
        return TieGroups(counts, weights, hits, weights).aurc()

    def augrc(self) -> float:
        """Compute the AUGRC, see [`~hf_calib.measures.risk_coverage.RiskCoverage.augrc`]."""
        wrong, total = (self.weights - self.hits)[::-1], self.weights.sum()
        return float(self.weights[::-1] @ (np.cumsum(wrong) - wrong / 2) / total**2)

    def equal_mass_error(self, n_bins: int) -> float:
        """Compute the ECE in equal-mass bins."""
        starts = np.unique(np.concatenate([[0], equal_mass_firsts(np.cumsum(self.weights), n_bins)]))
        return float(np.abs(np.add.reduceat(self.confidences - self.hits, starts)).sum() / self.weights.sum())

    def sweep_error(self) -> float:
        """Compute ECE-sweep, see [`~hf_calib.measures.calibration_error.sweep_calibration_error`]."""
        weights, hits, gaps = (
            np.concatenate([[0.0], np.cumsum(values)])
            for values in (self.weights, self.hits, self.confidences - self.hits)
        )
        error = abs(gaps[-1])
        for n_bins in range(2, int(min(self.counts.sum(), SWEEP_LIMIT)) + 1):
            firsts = equal_mass_firsts(weights[1:], n_bins)
            borders = np.unique(np.concatenate([[0], firsts, [len(self.weights)]]))
            accuracy = np.diff(hits[borders]) / np.diff(weights[borders])
            if np.any(np.diff(accuracy) < -1e-12):  # tolerance for rounding
                break
            error = np.abs(np.diff(gaps[borders])).sum()
        return float(error / weights[-1])


def _harmonic(start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute `sum_{j=1..counts} 1 / (start + j)` of each pair, to 10 digits."""
    total = 1 / (start + 1)
    many = counts > 1
    if many.any():
        x, left, head = start[many], counts[many], 0.0
        for _ in range(16):  # 16 terms one by one, the rest by the Euler-Maclaurin formula
            head = head + (left > 0) / (x + 1)
            x, left = x + 1, np.maximum(left - 1, 0)
        a, b = x + 0.5, x + left + 0.5
        tail = np.log1p(left / a) - (a**-2 - b**-2) / 24 + (a**-4 - b**-4) * 7 / 960
        total[many] = head + tail
    return total


class FineTable:
    """
    Accumulate predictions in 221,185 cells of confidence, for measures that depend on the order.

    The confidences of a cell share the leading 12 binary digits of their distance to 1. A cell is at most 1.2e-4 wide,
    and at most 2.4e-4 of that distance, so .9999 and .99999 are in different cells.
    """

    def __init__(self):
        self.sums = np.zeros(
            (4, _MOST_CELL - _LEAST_CELL + 1)
        )  # the fields of TieGroups, in descending order of confidence

    def add(self, confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add checked examples with weights above 0."""
        cell = _cell_of_distance(np.maximum(1.0 - confidences, _SMALLEST_DISTANCE)) - _LEAST_CELL
        weights = np.ones(len(cell)) if weights is None else weights
        for sums, values in zip(self.sums, (1.0, weights, weights * correct, weights * confidences), strict=True):
            np.add.at(sums, cell, values)

    def merge(self, other: FineTable) -> None:
        """Add the sums of another table."""
        self.sums += other.sums

    def groups(self) -> TieGroups:
        """Return the cells that are not empty, as groups of equal confidence."""
        return TieGroups(*self.sums[:, self.sums[0] > 0][:, ::-1])
