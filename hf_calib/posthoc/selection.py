"""Choose a calibrator by cross-validation on the calibration questions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.model_selection import KFold

from ..measures.validation import as_labels, as_numbers
from .base import PostHocCalibrator, check_option_logits


AS_IS = "as is"


def fit_calibrator(method: str, option_logits, labels, reference_option_logits=None, groups=None) -> PostHocCalibrator:
    """
    Fit a calibrator, given its name.

    Args:
        method (`str`):
            A key of `METHODS`.
        option_logits (array-like of shape `(N, K)`):
            Option logits, `-inf` as padding.
        labels (array-like of shape `(N,)`):
            Index of the right option; ignored by an unsupervised method.
        reference_option_logits (array-like of shape `(N, K)`, *optional*):
            Of the model before its alignment, for an unsupervised method.
        groups (array-like of shape `(N,)`, *optional*):
            Subject of each question, for a `grouped` method.
    """
    calibrator = PostHocCalibrator.kinds[method]()
    targets = labels if calibrator.supervised else reference_option_logits
    return calibrator.fit(option_logits, targets, groups=groups)


def cross_validate(
    methods: Sequence[str],
    option_logits,
    labels,
    reference_option_logits=None,
    n_folds: int = 5,
    seed: int = 0,
    groups=None,
) -> dict[str, np.ndarray]:
    """
    Calibrate every question with calibrators that were fitted on other questions.

    Args:
        methods (`Sequence[str]`):
            Keys of `METHODS`.
        option_logits (array-like of shape `(N, K)`):
            Option logits, `-inf` as padding.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        reference_option_logits (array-like of shape `(N, K)`, *optional*):
            Of the model before its alignment, for an unsupervised method.
        n_folds (`int`, *optional*, defaults to `5`):
            Number of folds.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the folds.
        groups (array-like of shape `(N,)`, *optional*):
            Subject of each question, for a `grouped` method.

    Returns:
        `dict[str, np.ndarray]`: probabilities `(N, K)`, by method; those of `"as is"` are not calibrated.

    Raises:
        `ValueError`: for fewer than two folds, or fewer than two questions a fold.
    """
    logits = check_option_logits(option_logits)
    labels = as_labels(labels, *logits.shape)
    if n_folds < 2:
        raise ValueError(f"n_folds must be at least 2, got {n_folds}.")
    if len(logits) < 2 * n_folds:
        raise ValueError(
            f"{len(logits)} questions are too few for {n_folds} folds: at least {2 * n_folds} are needed."
        )
    outcomes = {AS_IS: softmax(logits, axis=1), **{method: np.empty_like(logits) for method in methods}}
    if reference_option_logits is not None:
        reference_option_logits = as_numbers(reference_option_logits)
    for train, held in KFold(n_folds, shuffle=True, random_state=seed).split(logits):
        reference, seen, unseen = (
            None if array is None else np.asarray(array)[rows]
            for array, rows in ((reference_option_logits, train), (groups, train), (groups, held))
        )
        for method in methods:
            with warnings.catch_warnings():  # a poor fit shows in its loss
                warnings.simplefilter("ignore", UserWarning)
                calibrator = fit_calibrator(method, logits[train], labels[train], reference, seen)
            outcomes[method][held] = calibrator.transform(logits[held], groups=unseen)
    return outcomes


def choose_method(
    outcomes: Mapping[str, np.ndarray], labels, simplest_first: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """
    Choose the simplest method whose negative log-likelihood is within half a standard error of the best.

    The criterion is a proper score, because the ECE of a constant confidence can be 0. The standard error is that of
    the paired difference. `"as is"` is only chosen if it is the best, because with few labels the standard error is
    large.

    Args:
        outcomes (`Mapping[str, np.ndarray]`):
            Result of [`cross_validate`].
        labels (array-like of shape `(N,)`):
            Index of the right option.
        simplest_first (`Sequence[str]`):
            Names of the methods, the simplest first.

    Returns:
        `tuple[str, dict]`: the name of the chosen method, and for every method `cv_nll`, its mean negative
        log-likelihood, `cv_excess`, the difference to the best, and `cv_excess_se`, the standard error of that.
    """
    rows = np.arange(len(labels))
    losses = {name: -np.log(np.maximum(p[rows, labels], 1e-12)) for name, p in outcomes.items()}
    best = min(losses, key=lambda name: losses[name].mean())
    scores = {}
    for name, loss in losses.items():
        excess = loss - losses[best]
        error = float(excess.std(ddof=1) / np.sqrt(len(excess)))
        scores[name] = {"cv_nll": float(loss.mean()), "cv_excess": float(excess.mean()), "cv_excess_se": error}
    if best == AS_IS:
        return AS_IS, scores
    near = {name for name, score in scores.items() if score["cv_excess"] <= score["cv_excess_se"] / 2}
    return next(name for name in simplest_first if name in near), scores
