"""Test of whether an order-preserving recalibration leaves only noise, for models without a target."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..measures.binning import assign_bins, bin_edges
from ..measures.checked import Examples, check_examples


_CELLS = 1000  # cells of the confidence, of width 0.001
_SIMULATIONS = 200
_LEAST = 20  # smallest number of questions for a test


class RecalibrationTest(NamedTuple):
    """
    Result of [`recalibration_test`].

    Attributes:
        p_value (`float`): p-value of the hypothesis that the recalibration leaves only noise.
        error (`float`): ECE on the second half of the questions after the recalibration fitted on the first half.
        p95 (`float`): 95th percentile of that ECE under the hypothesis.
        deviation (`float`): Largest possible standard deviation of the accuracy of the second half.
    """

    p_value: float
    error: float
    p95: float
    deviation: float


def recalibration_test(
    confidences, correct, least_confidence: float = 0.0, n_bins: int = 10, seed: int = 0, sample_weight=None
) -> RecalibrationTest | None:
    """
    Fit an isotonic map from confidence to accuracy on a random half of the questions and test its ECE on the other
    half.

    The null distribution repeats the whole procedure on outcomes drawn from the isotonic fit to all questions, because
    a fit on N / 2 questions is not exact even if the hypothesis is true. Confidences are counted in cells of width
    0.001, so the cost after one pass does not depend on N.

    In the population the map leaves an error if and only if the predictions below some confidence are right less often
    than `least_confidence` (docs/concepts/theory.md, Proposition 6). A recalibration that changes the order of the
    confidences may still leave none.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        least_confidence (`float`, *optional*, defaults to `0.0`):
            Smallest confidence that the map may assign. Below 1 / K another option would be predicted.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins of the ECE.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the halves and the simulations.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights. A cell then simulates its effective number of outcomes, `(sum w)^2 / sum w^2`.

    Returns:
        [`RecalibrationTest`], or `None` for fewer than 20 examples.

    Raises:
        ValueError: A value is outside its range, or the shapes do not fit.
    """
    return recalibration_of(check_examples(confidences, correct, sample_weight), least_confidence, n_bins, seed)


def recalibration_of(examples: Examples, least_confidence: float, n_bins: int, seed: int) -> RecalibrationTest | None:
    """Test checked examples, see [`recalibration_test`]."""
    if len(examples) < _LEAST:
        return None
    rng = np.random.default_rng(seed)
    cells = _Cells.of(examples, rng.permutation(len(examples)) % 2)
    edges = bin_edges(examples.confidences, n_bins)

    def second_half_error(hits: np.ndarray) -> float:
        """Fit on the first half, ECE on the second."""
        recalibrated = cells.fit(cells.mass[0], hits[0], least_confidence)
        gaps = np.bincount(assign_bins(recalibrated, edges), weights=cells.mass[1] * recalibrated - hits[1])
        return float(np.abs(gaps).sum() / cells.mass[1].sum())

    measured = second_half_error(cells.hits)
    truth = cells.fit(cells.mass.sum(axis=0), cells.hits.sum(axis=0), least_confidence)
    share = np.divide(cells.mass, cells.counts, out=np.zeros(cells.mass.shape), where=cells.counts > 0)
    simulated = [second_half_error(share * rng.binomial(cells.counts, truth)) for _ in range(_SIMULATIONS)]
    p_value = (1 + sum(error >= measured - 1e-12 for error in simulated)) / (1 + _SIMULATIONS)
    deviation = 0.5 * np.sqrt((cells.mass[1] * share[1]).sum()) / cells.mass[1].sum()
    return RecalibrationTest(p_value, measured, float(np.quantile(simulated, 0.95)), float(deviation))


class _Cells(NamedTuple):
    """
    Examples counted in cells of the confidence; the cells that are empty are left out.

    Attributes:
        mass (`np.ndarray` of shape `(2, cells)`): Summed weights in the first and the second half.
        counts (`np.ndarray` of shape `(2, cells)`): Effective number of examples.
        hits (`np.ndarray` of shape `(2, cells)`): Summed weights of the right predictions.
        confidence (`np.ndarray` of shape `(cells,)`): Mean confidence.
    """

    mass: np.ndarray
    counts: np.ndarray
    hits: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, examples: Examples, half: np.ndarray) -> _Cells:
        """Count examples, with the half of each, `(N,)`."""
        confidences, correct = examples.confidences, examples.correct
        cell = np.minimum((confidences * _CELLS).astype(np.int64), _CELLS - 1)

        def sums(values: np.ndarray | None) -> np.ndarray:
            return np.bincount(2 * cell + half, weights=values, minlength=2 * _CELLS).reshape(_CELLS, 2).T

        if examples.weights is None:
            mass = counts = sums(None)
            hits, confidence = sums(correct), sums(confidences)
        else:
            weights = examples.weights / examples.weights.max()
            mass, hits, confidence = sums(weights), sums(weights * correct), sums(weights * confidences)
            squares = sums(weights**2)
            counts = np.divide(mass**2, squares, out=np.zeros_like(mass), where=squares > 0)
            counts = np.maximum(np.rint(counts), squares > 0).astype(np.int64)
        filled = mass.sum(axis=0) > 0
        mass, counts, hits, confidence = (values[:, filled] for values in (mass, counts, hits, confidence))
        return cls(mass, counts, hits, confidence.sum(axis=0) / mass.sum(axis=0))

    def fit(self, mass: np.ndarray, hits: np.ndarray, least_confidence: float) -> np.ndarray:
        """Isotonic fit of the accuracy of every cell, interpolated where `mass` is 0."""
        from scipy.optimize import isotonic_regression

        used = mass > 0
        fitted = isotonic_regression(hits[used] / mass[used], weights=mass[used]).x
        return np.interp(self.confidence, self.confidence[used], np.clip(fitted, least_confidence, 1.0))
