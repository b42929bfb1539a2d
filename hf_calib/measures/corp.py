"""CORP: miscalibration, discrimination and uncertainty of a proper score, by isotonic regression."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .checked import check_examples
from .selective import TieGroups


SCORES = ("brier", "nll")
_SMALLEST_PROBABILITY = 1e-12


class CorpDecomposition(NamedTuple):
    """
    A score as `miscalibration - discrimination + uncertainty`. All parts are at least 0.

    Attributes:
        score (`float`): Mean score of the confidences.
        miscalibration (`float`): How much the best monotone recalibration would lower the score.
        discrimination (`float`): How much lower the recalibrated score is than that of the base rate.
        uncertainty (`float`): Score of the base rate.
    """

    score: float
    miscalibration: float
    discrimination: float
    uncertainty: float


def corp_decomposition(confidences, correct, score: str = "brier", sample_weight=None) -> CorpDecomposition:
    """
    Split the Brier score or the NLL of the confidences, without bins.

    The recalibrated confidences are the isotonic regression of the outcomes on the confidences, fitted on the same
    predictions. So the miscalibration is above 0 for a calibrated model, too, by an amount that vanishes with N.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1]: the probability that it is right.
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        score (`str`, *optional*, defaults to `"brier"`):
            `"brier"`: `(confidence - correct)^2`. `"nll"`: the negative log-probability of the outcome, right or
            wrong, in nats; probabilities below 1e-12 count as 1e-12.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        [`CorpDecomposition`]: `score`, `miscalibration`, `discrimination` and `uncertainty`.

    Raises:
        ValueError: `score` is unknown, a value is outside its range, or the shapes do not fit.

    References:
        Dimitriadis, Gneiting & Jordan (2021), "Stable reliability diagrams for probabilistic classifiers", PNAS 118.

    Example:

    ```python
    >>> from hf_calib.measures.corp import corp_decomposition
    >>> corp_decomposition([0.8, 0.8, 0.4, 0.4], [1, 1, 0, 1]).uncertainty
    0.1875

    ```
    """
    from sklearn.isotonic import isotonic_regression

    if score not in SCORES:
        raise ValueError(f"`score` must be one of {SCORES}, got {score!r}.")
    groups = TieGroups.of(check_examples(confidences, correct, sample_weight))
    total, rates = groups.weights.sum(), groups.hits / groups.weights
    recalibrated = isotonic_regression(rates, sample_weight=groups.weights, y_min=0, y_max=1)
    base = np.full(len(rates), groups.hits.sum() / total)
    of_each = _brier if score == "brier" else _likelihood
    stated, best, constant = (
        float(groups.weights @ of_each(forecast, rates) / total)
        for forecast in (groups.confidences / groups.weights, recalibrated, base)
    )
    # Rounding may leave a part below 0.
    return CorpDecomposition(stated, max(0.0, stated - best), max(0.0, constant - best), constant)


def _brier(forecast: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Mean Brier score of groups with one forecast each and a rate of right predictions."""
    return rates * (1 - forecast) ** 2 + (1 - rates) * forecast**2


def _likelihood(forecast: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of groups with one forecast each and a rate of right predictions."""
    right, wrong = (np.log(np.maximum(part, _SMALLEST_PROBABILITY)) for part in (forecast, 1 - forecast))
    return -(rates * right + (1 - rates) * wrong)
