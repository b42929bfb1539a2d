"""CORP: miscalibration, discrimination and uncertainty of a proper score, by isotonic regression."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .bootstrap import LEVEL
from .checked import Examples, check_examples
from .options import MeasureOptions
from .selective import TieGroups
from .validation import SMALLEST_PROBABILITY


SCORES = ("brier", "nll")
_CELLS = 1024  # most cells of a simulated calibrated model


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


class CorpCurve(NamedTuple):
    """
    Accuracy against confidence by isotonic regression, and what a perfectly calibrated model would show.

    Attributes:
        confidences (`np.ndarray` of shape `(cells,)`): The different confidences, ascending. Beyond 1,024 of them,
            neighbours are merged into cells of equal mass.
        accuracies (`np.ndarray` of shape `(cells,)`): Isotonic regression of the outcomes.
        low (`np.ndarray` of shape `(cells,)`): Lower end of the 95% consistency band, for each confidence by itself.
        high (`np.ndarray` of shape `(cells,)`): Upper end.
        decomposition ([`CorpDecomposition`]): Parts of the score.
        noise_floor (`float`): Mean miscalibration of a perfectly calibrated model with these confidences.
        p_value (`float`): Probability that such a model has at least the measured miscalibration, in (0, 1].
    """

    confidences: np.ndarray
    accuracies: np.ndarray
    low: np.ndarray
    high: np.ndarray
    decomposition: CorpDecomposition
    noise_floor: float
    p_value: float


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
    _check_score(score)
    return _decompose(TieGroups.of(check_examples(confidences, correct, sample_weight)), score)


def corp_curve(confidences, correct, score: str = "brier", sample_weight=None, **options) -> CorpCurve:
    """
    Compute the CORP reliability curve, its consistency band, and a test of the miscalibration.

    Band, noise floor and p-value are of a simulation: every prediction is right with a probability equal to its
    confidence, and the isotonic regression is fitted anew. A part of the curve outside the band is evidence of
    miscalibration there. The p-value is for the whole curve.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        score (`str`, *optional*, defaults to `"brier"`):
            `"brier"` or `"nll"`, see [`corp_decomposition`].
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row. The simulation draws the effective number of examples of each cell.
        options:
            `n_bootstrap` (number of simulations) and `seed`, see [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        [`CorpCurve`].

    Raises:
        TypeError: An option is unknown.
        ValueError: `score` is unknown, a value is outside its range, or the shapes do not fit.

    References:
        Dimitriadis, Gneiting & Jordan (2021), "Stable reliability diagrams for probabilistic classifiers", PNAS 118.

    Example:

    ```python
    >>> from hf_calib.measures.corp import corp_curve
    >>> curve = corp_curve([0.9] * 50 + [0.6] * 50, [1, 0] * 25 + [1, 0] * 25)
    >>> curve.confidences.tolist(), curve.accuracies.tolist(), curve.p_value < 0.01
    ([0.6, 0.9], [0.5, 0.5], True)

    ```
    """
    from sklearn.isotonic import isotonic_regression

    _check_score(score)
    options, examples = MeasureOptions(**options), check_examples(confidences, correct, sample_weight)
    stated, rates, mass, counts = _cells(examples)
    accuracies = isotonic_regression(rates, sample_weight=mass, y_min=0, y_max=1)
    rng, n_draws = options.generator(6), options.n_bootstrap
    whole = np.maximum(np.rint(counts), 1).astype(np.int64)
    drawn = rng.binomial(whole, stated, size=(n_draws, len(whole))) / whole
    # a fraction of an example widens or narrows the draws, so that their variance is exact
    drawn = np.clip(stated + (drawn - stated) * np.sqrt(whole / counts), 0, 1)
    fitted = np.stack([isotonic_regression(draw, sample_weight=mass, y_min=0, y_max=1) for draw in drawn])
    low, high = np.quantile(fitted, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    loss = _LOSSES[score]
    noise = (loss(stated, drawn) - loss(fitted, drawn)) @ mass / mass.sum()
    measured = (loss(stated, rates) - loss(accuracies, rates)) @ mass / mass.sum()
    # the tolerance keeps the rounding of sums from breaking ties
    p_value = (1 + int((noise >= measured - 1e-12).sum())) / (1 + n_draws)
    parts = _decompose(TieGroups.of(examples), score)
    return CorpCurve(stated, accuracies, low, high, parts, float(noise.mean()), p_value)


def _check_score(score: str) -> None:
    if score not in SCORES:
        raise ValueError(f"`score` must be one of {SCORES}, got {score!r}.")


def _decompose(groups: TieGroups, score: str) -> CorpDecomposition:
    """Split the score of predictions grouped by confidence, see [`corp_decomposition`]."""
    from sklearn.isotonic import isotonic_regression

    total, rates = groups.weights.sum(), groups.hits / groups.weights
    recalibrated = isotonic_regression(rates, sample_weight=groups.weights, y_min=0, y_max=1)
    base = np.full(len(rates), groups.hits.sum() / total)
    stated, best, constant = (
        float(groups.weights @ _LOSSES[score](forecast, rates) / total)
        for forecast in (groups.confidences / groups.weights, recalibrated, base)
    )
    # Rounding may leave a part below 0.
    return CorpDecomposition(stated, max(0.0, stated - best), max(0.0, constant - best), constant)


def _cells(examples: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, rate of right predictions, weight and effective number of each cell of equal confidences."""
    order = np.argsort(examples.confidences, kind="stable")
    confidences, correct = examples.confidences[order], examples.correct[order]
    weights = np.ones(len(order)) if examples.weights is None else examples.weights[order]
    starts = np.flatnonzero(np.diff(confidences, prepend=-1.0))
    merged = len(starts) > _CELLS
    if merged:
        before = np.concatenate([[0.0], np.cumsum(weights)[:-1]])[starts]
        _, first = np.unique((before / weights.sum() * _CELLS).astype(np.int64), return_index=True)
        starts = starts[first]
    mass, squares, hits, sums = (
        np.add.reduceat(values, starts) for values in (weights, weights**2, weights * correct, weights * confidences)
    )
    # rounding may move a mean of equal confidences, or leave one above 1
    means = np.minimum(sums / mass, 1.0) if merged else confidences[starts]
    return means, np.minimum(hits / mass, 1.0), mass, mass**2 / squares


def _brier(forecast: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Mean Brier score of groups with one forecast each and a rate of right predictions."""
    return rates * (1 - forecast) ** 2 + (1 - rates) * forecast**2


def _likelihood(forecast: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of groups with one forecast each and a rate of right predictions."""
    right, wrong = (np.log(np.maximum(part, SMALLEST_PROBABILITY)) for part in (forecast, 1 - forecast))
    return -(rates * right + (1 - rates) * wrong)


_LOSSES = {"brier": _brier, "nll": _likelihood}
