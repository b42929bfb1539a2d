"""A test of an accuracy that may be repeated after every answer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class AccuracyEvidence(NamedTuple):
    """
    Evidence against an accuracy of at least the target.

    Attributes:
        e_value (`float`): Evidence after all answers: what a bet on a lower accuracy multiplies its stake by.
        largest (`float`): Largest evidence after any number of answers. With an accuracy of at least the target it
            ever exceeds `1 / alpha` with a probability of at most `alpha`.
    """

    e_value: float
    largest: float


def accuracy_evidence(correct, target_accuracy: float) -> AccuracyEvidence:
    r"""
    Compute the evidence that an accuracy is below a target, valid at every look at a growing sequence of answers.

    The likelihood of an accuracy below the target, averaged over a uniform prior on (0, target), is divided by the
    likelihood of the target. With r right and w wrong answers this is

    .. math::
        \frac{B(r + 1, w + 1) \, I_t(r + 1, w + 1)}{t \; t^r (1 - t)^w}

    with the beta function B and the regularised incomplete beta function I. It is a supermartingale for every accuracy
    of at least t, so Ville's inequality bounds its maximum.

    Args:
        correct (array-like of shape `(N,)`):
            Whether each answer is right (0 or 1), in the order in which they came.
        target_accuracy (`float`):
            Accuracy t in (0, 1).

    Returns:
        [`AccuracyEvidence`]: `e_value` and `largest`; both 1 without answers.

    References:
        Ville (1939), "Etude critique de la notion de collectif".
        Ramdas, Gruenwald, Vovk & Shafer (2023), "Game-theoretic statistics and safe anytime-valid inference",
        arXiv 2210.01948.
    """
    from scipy.special import betainc, betaln

    if not 0 < target_accuracy < 1:
        raise ValueError(f"`target_accuracy` must lie in (0, 1), got {target_accuracy}.")
    correct = np.asarray(correct, dtype=np.float64)
    if len(correct) == 0:
        return AccuracyEvidence(1.0, 1.0)
    right = np.cumsum(correct)
    wrong = np.arange(1, len(correct) + 1) - right
    with np.errstate(divide="ignore"):  # a logarithm of 0 is no evidence
        below = np.log(betainc(right + 1, wrong + 1, target_accuracy))
    evidence = betaln(right + 1, wrong + 1) + below - (right + 1) * np.log(target_accuracy)
    evidence -= wrong * np.log1p(-target_accuracy)
    last, largest = np.exp(np.minimum([evidence[-1], max(0.0, evidence.max())], 700.0))
    return AccuracyEvidence(float(last), float(largest))
