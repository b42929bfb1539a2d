"""Does a recalibration that keeps the order of the confidences leave only noise? Asked where no target is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..measures.binning import assign_bins, bin_edges
from ..measures.validation import as_outcomes, as_weights


_CELLS = 1000  # confidences are told apart to 0.001
_SIMULATIONS = 200
_LEAST = 20  # questions, below which nothing is said


class RecalibrationTest(NamedTuple):
    """
    Result of [`recalibration_test`].

    Attributes:
        p_value (`float`): Of the hypothesis that the recalibration leaves only noise.
        error (`float`): ECE on the second half of the questions after the recalibration fitted on the first.
        p95 (`float`): What that ECE stays below, 95 times out of 100, if the hypothesis is true.
        deviation (`float`): Largest standard deviation that the accuracy of the second half can have.
    """

    p_value: float
    error: float
    p95: float
    deviation: float


def recalibration_test(
    confidences, correct, floor: float = 0.0, n_bins: int = 10, seed: int = 0, sample_weight=None
) -> RecalibrationTest | None:
    """
    Fit an isotonic map from confidence to accuracy on a random half of the questions, and test its ECE on the other.

    The null distribution repeats the whole procedure, fitting included, on outcomes drawn from the isotonic fit to all
    data: a fit from N / 2 examples is never exact, and holding it to the noise floor of an exact one would condemn
    calibratable models. Confidences are counted in cells of width 0.001, so the cost beyond one pass does not depend
    on N.

    In the population the map leaves an error if and only if the least confident predictions, down from some
    confidence, are right less often than `floor` (Proposition 6 of docs/theory.md). Another recalibration may still leave
    none then, one that gives the least confident predictions the confidence of surer ones.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        floor (`float`, *optional*, defaults to `0.0`):
            Smallest confidence that a prediction may be given: below 1 / K it would lose to another option.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the ECE.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the halves and the simulations.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights; a cell then simulates as many outcomes as its weights are worth,
            `(sum w)^2 / sum w^2`.

    Returns:
        [`RecalibrationTest`], or `None` for fewer than 20 examples.
    """
    from scipy.optimize import isotonic_regression

    confidences, correct = as_outcomes(confidences, correct)
    weights = as_weights(sample_weight, len(confidences))
    if weights is not None:
        rows = weights > 0
        confidences, correct, weights = confidences[rows], correct[rows], weights[rows] / weights.max()
    if len(confidences) < _LEAST:
        return None
    rng = np.random.default_rng(seed)
    half = rng.permutation(len(confidences)) % 2
    cell = np.minimum((confidences * _CELLS).astype(np.int64), _CELLS - 1)

    def sums(values: np.ndarray | None) -> np.ndarray:
        """Of the values in each cell, of shape `(2, cells)`: first and second half."""
        return np.bincount(2 * cell + half, weights=values, minlength=2 * _CELLS).reshape(_CELLS, 2).T

    if weights is None:
        mass = worth = sums(None)
        hits, centre = sums(correct), sums(confidences)
    else:
        mass, hits, centre = sums(weights), sums(weights * correct), sums(weights * confidences)
        squares = sums(weights**2)
        worth = np.divide(mass**2, squares, out=np.zeros_like(mass), where=squares > 0)
        worth = np.maximum(np.rint(worth), squares > 0).astype(np.int64)
    filled = mass.sum(axis=0) > 0
    mass, worth, hits, centre = mass[:, filled], worth[:, filled], hits[:, filled], centre[:, filled]
    centre = centre.sum(axis=0) / mass.sum(axis=0)
    edges = bin_edges(confidences, n_bins)

    def fit(mass: np.ndarray, hits: np.ndarray) -> np.ndarray:
        """Recalibrated confidence of every cell; between the cells that are filled here, a straight line."""
        used = mass > 0
        fitted = isotonic_regression(hits[used] / mass[used], weights=mass[used]).x
        return np.interp(centre, centre[used], np.clip(fitted, floor, 1.0))

    def procedure(hits: np.ndarray) -> float:
        """Fit on the first half, ECE on the second."""
        recalibrated = fit(mass[0], hits[0])
        gaps = np.bincount(assign_bins(recalibrated, edges), weights=mass[1] * recalibrated - hits[1])
        return float(np.abs(gaps).sum() / mass[1].sum())

    measured = procedure(hits)
    truth = fit(mass.sum(axis=0), hits.sum(axis=0))
    share = np.divide(mass, worth, out=np.zeros(mass.shape), where=worth > 0)
    simulated = [procedure(share * rng.binomial(worth, truth)) for _ in range(_SIMULATIONS)]
    p_value = (1 + sum(error >= measured - 1e-12 for error in simulated)) / (1 + _SIMULATIONS)
    deviation = 0.5 * np.sqrt((mass[1] * share[1]).sum()) / mass[1].sum()
    return RecalibrationTest(p_value, measured, float(np.quantile(simulated, 0.95)), float(deviation))
