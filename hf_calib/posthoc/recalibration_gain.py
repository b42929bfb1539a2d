"""Calibration loss: the NLL of the predictions less that under the best map, fitted on other questions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from ..measures.bootstrap import Estimate
from ..measures.score_intervals import MeanSums
from ..measures.validation import SMALLEST_PROBABILITY, as_weights
from .base import check_labels, check_option_logits
from .selection import AS_IS, choose_method, cross_validate, fit_calibrator


# Maps that keep the answers, the simplest first.
MAPS = ("temperature", "ensemble_temperature", "beta", "temperature_isotonic")
_LARGEST_LOSS = -np.log(SMALLEST_PROBABILITY)


class RecalibrationGain(NamedTuple):
    """
    What recalibration would gain, in nats per question.

    Attributes:
        gain (`float`): NLL of the predictions less that of the recalibrated ones. Below 0 where the noise of the fit
            costs more than the map gains, as for a calibrated model.
        low (`float`): Lower end of the 95% interval.
        high (`float`): Upper end, at least 0.
        nll (`float`): NLL of the predictions.
        recalibrated_nll (`float`): NLL under the map, the refinement loss.
        method (`str`): Name of the map in [`~hf_calib.posthoc.METHODS`].
    """

    gain: float
    low: float
    high: float
    nll: float
    recalibrated_nll: float
    method: str


def recalibration_gain(
    option_logits, labels, methods: Sequence[str] = MAPS, sample_weight=None, n_folds: int = 5, seed: int = 0
) -> RecalibrationGain:
    """
    Estimate the calibration loss: how much the best calibration map would lower the NLL on new questions.

    Every question is recalibrated by maps that were fitted on the other folds. The map is chosen by
    [`~hf_calib.posthoc.choose_method`] among `methods`, and the gain is the mean difference of the two losses of a
    question. The rest of the NLL, the refinement loss, cannot be removed by these maps. The choice of the map on the
    same questions makes the gain a little too large.

    The cross-fitted gain is too small by the noise of the fits, the gain of a map on the questions that it was fitted
    on is too large by it. The lower end of the interval is of the former, the upper end of the latter, and at least 0,
    since no map at all gains 0.

    Unlike the ECE the gain has no bins, is not biased upwards by noise, and is in the unit of the NLL. Unlike the
    miscalibration of [`~hf_calib.measures.corp.corp_decomposition`] it is of maps fitted on other questions, and of
    the probabilities of all options.

    Args:
        option_logits (array-like of shape `(N, K)`):
            Option logits or log-probabilities, `-inf` as padding.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        methods (`Sequence[str]`, *optional*):
            Maps to choose from, the simplest first: keys of [`~hf_calib.posthoc.METHODS`]. Defaults to `temperature`,
            `ensemble_temperature`, `beta` and `temperature_isotonic`, which keep the answers.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row, for the means. The maps are fitted and chosen without weights, on the rows
            whose weight is above 0.
        n_folds (`int`, *optional*, defaults to `5`):
            Number of folds, at least 2.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the folds.

    Returns:
        [`RecalibrationGain`]: `gain`, `low`, `high`, `nll`, `recalibrated_nll` and `method`.

    Raises:
        ValueError: A value is outside its range, the shapes do not fit, a method is not known or needs more than
            labels, or there are fewer than two questions a fold.

    References:
        Berta, Holzmueller, Jordan & Bach (2025), "Rethinking Early Stopping: Refine, Then Calibrate",
        arXiv 2501.19195.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.posthoc import recalibration_gain
    >>> logits, labels = np.tile([3.0, 0.0], (200, 1)), np.repeat([0, 1], [120, 80])
    >>> round(recalibration_gain(logits, labels).gain, 2)
    0.57

    ```
    """
    from . import METHODS

    known = [name for name, kind in METHODS.items() if kind.supervised and not kind.grouped]
    if wrong := [name for name in methods or [None] if name not in known]:
        raise ValueError(f"`methods` names {wrong[0]!r}, which is not one of {', '.join(known)}.")
    logits = check_option_logits(option_logits)
    labels, weights = check_labels(labels, logits), as_weights(sample_weight, len(logits))
    if weights is not None and not weights.all():
        kept = weights > 0
        logits, labels, weights = logits[kept], labels[kept], weights[kept]
    outcomes = cross_validate(methods, logits, labels, n_folds=n_folds, seed=seed)
    del outcomes[AS_IS]  # maps compete with each other; the predictions are what they are compared with
    method, _ = choose_method(outcomes, labels, methods)
    rows = np.arange(len(labels))

    def losses(probabilities: np.ndarray) -> np.ndarray:
        return -np.log(np.maximum(probabilities[rows, labels], SMALLEST_PROBABILITY))

    with warnings.catch_warnings():  # as in cross_validate
        warnings.simplefilter("ignore", UserWarning)
        same = fit_calibrator(method, logits, labels).transform(logits)
    stated, mapped = losses(softmax(logits, axis=1)), losses(outcomes[method])
    gain, low, high = _estimate(stated - mapped, weights)
    high = max(0.0, high, _estimate(stated - losses(same), weights).high)
    means = [float(np.average(loss, weights=weights)) for loss in (stated, mapped)]
    return RecalibrationGain(gain, low, high, *means, method)


def _estimate(differences: np.ndarray, weights: np.ndarray | None) -> Estimate:
    """Mean difference of two losses with its interval."""
    sums = MeanSums()
    sums.add(differences, weights)
    return sums.estimate(-_LARGEST_LOSS, _LARGEST_LOSS)
