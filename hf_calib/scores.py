"""Proper scores (Brier, log-likelihood) and how well the confidence ranks right above wrong (AUROC, AURC)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .binning import as_labels, as_outcomes, as_probabilities, reliability_bins, take_confidence


_SMALLEST_PROBABILITY = 1e-12


def used_columns(probabilities: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probability and 0/1 outcome of each option, float64 of shape `(N,)`; a column of padding alone is left out."""
    for k in range(probabilities.shape[1]):
        column, hits = np.minimum(probabilities[:, k].astype(np.float64), 1.0), labels == k
        if column.any() or hits.any():
            yield column, hits.astype(np.float64)


def sort_by_confidence(confidences: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays from the least to the most confident prediction; ties keep their order."""
    order = np.argsort(confidences, kind="stable")
    return confidences[order], correct[order]


class BrierDecomposition(NamedTuple):
    """
    Brier score as a sum of two parts that are never negative.

    Attributes:
        calibration (`float`): What better calibrated probabilities with the same bins would save.
        refinement (`float`): What is left: how little the probabilities tell the outcomes apart.
    """

    calibration: float
    refinement: float


def brier_score(probabilities, labels) -> float:
    """
    Brier score over all options, `mean_i sum_k (q_ik - 1[label_i = k])^2`, in [0, 2].

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
    """
    probabilities = as_probabilities(probabilities)
    labels = as_labels(labels, *probabilities.shape)
    right = take_confidence(probabilities, labels)
    # sum_k (q_k - y_k)^2 = sum_k q_k^2 - 2 q_y + 1, without an (N, K) array of differences
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return float(np.mean(squares - 2 * right + 1))


def brier_decomposition(probabilities, labels, n_bins: int = 10) -> BrierDecomposition:
    """
    Split the Brier score into calibration and refinement (DeGroot & Fienberg, 1983).

    For each option the probabilities are binned (equal width) and the squared gap between mean probability and
    frequency is weighted with the bin's share; the sum over options is the calibration part. Refinement is the rest of
    [`brier_score`], so the two add up exactly.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins for each option.
    """
    probabilities = as_probabilities(probabilities)
    labels = as_labels(labels, *probabilities.shape)
    calibration = 0.0
    for column, hits in used_columns(probabilities, labels):
        bins = reliability_bins(column, hits, n_bins)
        filled = bins.counts > 0
        calibration += float(bins.counts[filled] @ bins.gaps[filled] ** 2 / len(labels))
    return BrierDecomposition(calibration, max(0.0, brier_score(probabilities, labels) - calibration))


def negative_log_likelihood(probabilities, labels) -> float:
    """
    Mean negative log-probability of the right option, in nats. Probabilities below 1e-12 count as 1e-12, so that one
    row without hope costs 27.6 nats and not infinity.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
    """
    probabilities = as_probabilities(probabilities)
    labels = as_labels(labels, *probabilities.shape)
    return float(-np.mean(np.log(np.maximum(take_confidence(probabilities, labels), _SMALLEST_PROBABILITY))))


def confidence_auroc(confidences, correct) -> float:
    """
    AUROC of the confidence as a score for being right: the chance that a right answer is more confident than a wrong
    one, ties half. NaN when all predictions are right or all are wrong.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1]; see [`top_label`].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
    """
    return auroc_of_sorted(*sort_by_confidence(*as_outcomes(confidences, correct)))


def _tie_groups(confidences: np.ndarray) -> np.ndarray:
    """Borders `(groups + 1,)` of the runs of equal confidence in a sorted array."""
    return np.concatenate([[0], np.flatnonzero(np.diff(confidences)) + 1, [len(confidences)]])


def auroc_of_sorted(confidences: np.ndarray, correct: np.ndarray) -> float:
    n, right = len(confidences), correct.sum()
    if right in (0, n):
        return float("nan")
    borders = _tie_groups(confidences)
    mid_ranks = (borders[:-1] + borders[1:] + 1) / 2
    rank_sum = mid_ranks @ np.add.reduceat(correct, borders[:-1])
    return float((rank_sum - right * (right + 1) / 2) / (right * (n - right)))


def aurc(confidences, correct) -> float:
    """
    Area under the risk-coverage curve: the error rate among the n most confident predictions, averaged over
    n = 1 .. N (Geifman & El-Yaniv, arXiv 1705.08500). Ties count with their mean error, so the order of rows does not
    matter. Lower is better; a confidence that knows nothing gets the error rate.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1]; see [`top_label`].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
    """
    return aurc_of_sorted(*sort_by_confidence(*as_outcomes(confidences, correct)))


def aurc_of_sorted(confidences: np.ndarray, correct: np.ndarray) -> float:
    borders = _tie_groups(confidences)
    sizes = np.diff(borders)
    errors = np.repeat(1 - np.add.reduceat(correct, borders[:-1]) / sizes, sizes)[::-1]
    return float(np.mean(np.cumsum(errors) / np.arange(1, len(errors) + 1)))
