"""Proper scores (Brier, log-likelihood) and how well the confidence ranks right above wrong (AUROC, AURC)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .binning import OptionBins
from .selective import TieGroups
from .validation import Rows, as_examples, iterate_rows


_SMALLEST_PROBABILITY = 1e-12


class BrierDecomposition(NamedTuple):
    """
    Brier score as a sum of two parts that are never negative.

    Attributes:
        calibration (`float`): What better calibrated probabilities with the same bins would save.
        refinement (`float`): What is left: how little the probabilities tell the outcomes apart.
    """

    calibration: float
    refinement: float


class ScoreSums:
    """Accumulates the Brier score and the log-likelihood chunk by chunk."""

    def __init__(self):
        self.sums = np.zeros(3)  # weights, squared errors, negative log-likelihoods

    def add(self, rows: Rows) -> None:
        """Add checked predictions."""
        picked = rows.picked
        # sum_k (q_k - y_k)^2 = sum_k q_k^2 - 2 q_y + 1, without an array of differences
        squares = np.einsum("kn,kn->n", rows.columns, rows.columns) - 2 * picked + 1
        losses = -np.log(np.maximum(picked, _SMALLEST_PROBABILITY))
        if rows.weights is None:
            self.sums += len(picked), squares.sum(), losses.sum()
        else:
            self.sums += rows.weights.sum(), squares @ rows.weights, losses @ rows.weights

    def merge(self, other: ScoreSums) -> None:
        """Add what another has seen."""
        self.sums += other.sums

    @property
    def brier(self) -> float:
        return float(self.sums[1] / self.sums[0])

    @property
    def negative_log_likelihood(self) -> float:
        return float(self.sums[2] / self.sums[0])


def _scores(probabilities, labels, sample_weight) -> ScoreSums:
    scores = ScoreSums()
    for rows in iterate_rows(probabilities, labels, sample_weight):
        scores.add(rows)
    return scores


def brier_score(probabilities, labels, sample_weight=None) -> float:
    """
    Brier score over all options, `mean_i sum_k (q_ik - 1[label_i = k])^2`, in [0, 2].

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
    """
    return _scores(probabilities, labels, sample_weight).brier


def brier_decomposition(probabilities, labels, n_bins: int = 10, sample_weight=None) -> BrierDecomposition:
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
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
    """
    scores, options = ScoreSums(), OptionBins(n_bins)
    for rows in iterate_rows(probabilities, labels, sample_weight):
        scores.add(rows)
        options.add(rows)
    return split_brier(scores, options)


def split_brier(scores: ScoreSums, options: OptionBins) -> BrierDecomposition:
    """[`brier_decomposition`] of sums already made."""
    return BrierDecomposition(options.brier_calibration, max(0.0, scores.brier - options.brier_calibration))


def negative_log_likelihood(probabilities, labels, sample_weight=None) -> float:
    """
    Mean negative log-probability of the right option, in nats. Probabilities below 1e-12 count as 1e-12, so that one
    row without hope costs 27.6 nats and not infinity.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
    """
    return _scores(probabilities, labels, sample_weight).negative_log_likelihood


def confidence_auroc(confidences, correct, sample_weight=None) -> float:
    """
    AUROC of the confidence as a score for being right: the chance that a right answer is more confident than a wrong
    one, ties half. NaN when all predictions are right or all are wrong.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1]; see [`top_label`].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
    """
    return TieGroups.sort(*as_examples(confidences, correct, sample_weight)).auroc()


def aurc(confidences, correct, sample_weight=None) -> float:
    """
    Area under the risk-coverage curve: the error rate among the n most confident predictions, averaged over
    n = 1 .. N (Geifman & El-Yaniv, arXiv 1705.08500). Ties count with their mean error, so the order of rows does not
    matter. Lower is better; a confidence that knows nothing gets the error rate.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1]; see [`top_label`].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row: the average is then over the share of the weight, one step for each row.
    """
    return TieGroups.sort(*as_examples(confidences, correct, sample_weight)).aurc()
