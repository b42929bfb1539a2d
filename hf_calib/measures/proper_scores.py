"""Brier score, log-likelihood, AUROC and AURC."""

from __future__ import annotations

from math import log
from typing import NamedTuple

import numpy as np

from .binning import OptionBins
from .checked import check_examples
from .chunks import Rows, iterate_rows
from .score_intervals import MeanSums
from .selective import TieGroups
from .validation import SMALLEST_PROBABILITY


class BrierDecomposition(NamedTuple):
    """
    Brier score as a sum of two parts of at least 0.

    Attributes:
        calibration (`float`): Part that recalibration within the same bins removes.
        refinement (`float`): Remaining part: how little the probabilities separate the outcomes.
    """

    calibration: float
    refinement: float


class ScoreSums:
    """Accumulate the Brier score and the log-likelihood, chunk by chunk."""

    def __init__(self):
        self._brier, self._likelihood = MeanSums(), MeanSums()

    def add(self, rows: Rows) -> None:
        """Add checked predictions."""
        picked = rows.picked
        # sum_k (q_k - y_k)^2 = sum_k q_k^2 - 2 q_y + 1
        squares = np.einsum("kn,kn->n", rows.columns, rows.columns) - 2 * picked + 1
        self._brier.add(squares, rows.weights)
        self._likelihood.add(-np.log(np.maximum(picked, SMALLEST_PROBABILITY)), rows.weights)

    def merge(self, other: ScoreSums) -> None:
        """Add the sums of another accumulator."""
        self._brier.merge(other._brier)
        self._likelihood.merge(other._likelihood)

    @property
    def brier(self) -> float:
        """Brier score over all options."""
        return self._brier.mean

    @property
    def negative_log_likelihood(self) -> float:
        """Mean negative log-likelihood, in nats."""
        return self._likelihood.mean

    def estimates(self) -> dict[str, float]:
        """Return both scores with their 95% intervals: `nll`, `nll_low`, `nll_high`, `brier`, ..."""
        likelihood = self._likelihood.estimate(0.0, -log(SMALLEST_PROBABILITY))
        return likelihood.named("nll") | self._brier.estimate(0.0, 2.0).named("brier")


def _scores(probabilities, labels, sample_weight) -> ScoreSums:
    scores = ScoreSums()
    for rows in iterate_rows(probabilities, labels, sample_weight):
        scores.add(rows)
    return scores


def brier_score(probabilities, labels, sample_weight=None) -> float:
    r"""
    Compute the Brier score over all options.

    .. math::
        \frac{1}{N} \sum_i \sum_k (q_{ik} - \mathbb{1}[y_i = k])^2

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        `float` in [0, 2].

    Raises:
        TypeError: An array has the wrong type.
        ValueError: A value is outside its range, or the shapes do not fit.
    """
    return _scores(probabilities, labels, sample_weight).brier


def brier_decomposition(probabilities, labels, n_bins: int = 10, sample_weight=None) -> BrierDecomposition:
    """
    Split the Brier score into calibration and refinement.

    The probabilities of each option are binned. The calibration part is the squared gap between mean probability and
    frequency, weighted with the share of the bin and summed over bins and options. Refinement is the rest of
    [`brier_score`], so the two parts add up exactly.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins for each option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        [`BrierDecomposition`]: `calibration` and `refinement`.

    References:
        DeGroot & Fienberg (1983), "The Comparison and Evaluation of Forecasters", The Statistician 32.
    """
    scores, options = ScoreSums(), OptionBins(n_bins)
    for rows in iterate_rows(probabilities, labels, sample_weight):
        scores.add(rows)
        options.add(rows)
    return split_brier(scores, options)


def split_brier(scores: ScoreSums, options: OptionBins) -> BrierDecomposition:
    """Split the Brier score of accumulated sums, see [`brier_decomposition`]."""
    return BrierDecomposition(options.brier_calibration, max(0.0, scores.brier - options.brier_calibration))


def negative_log_likelihood(probabilities, labels, sample_weight=None) -> float:
    """
    Compute the mean negative log-probability of the right option.

    Probabilities below 1e-12 count as 1e-12, so a row costs at most 27.6 nats.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        `float`, at least 0, in nats.
    """
    return _scores(probabilities, labels, sample_weight).negative_log_likelihood


def confidence_auroc(confidences, correct, sample_weight=None) -> float:
    """
    Compute the AUROC of the confidence as a score of being right.

    It is the probability that a right prediction is more confident than a wrong one. Ties count half.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1]; see [`top_label`].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        `float` in [0, 1]; NaN if all predictions are right or all are wrong.
    """
    return TieGroups.of(check_examples(confidences, correct, sample_weight)).auroc()


def aurc(confidences, correct, sample_weight=None) -> float:
    """
    Compute the area under the risk-coverage curve.

    It is the error rate among the n most confident predictions, averaged over n = 1 .. N. Ties count with their mean
    error. Lower is better; uninformative confidences have the error rate of all predictions.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1]; see [`top_label`].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row. The average is then over shares of the total weight, one step per row.

    Returns:
        `float` in [0, 1].

    References:
        Geifman & El-Yaniv (2017), "Selective Classification for Deep Neural Networks", arXiv 1705.08500.
    """
    return TieGroups.of(check_examples(confidences, correct, sample_weight)).aurc()
