"""Which calibrator is best, judged inside the calibration questions: cross-validation, and the choice by it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..measures.validation import as_labels
from .base import PostHocCalibrator, check_option_logits, folds, softmax


AS_IS = "as is"


def fit_calibrator(method: str, option_logits, labels, reference_option_logits=None) -> PostHocCalibrator:
    """
    A calibrator by its name, fitted.

    Args:
        method (`str`):
            A key of `METHODS`.
        option_logits (array-like of shape `(N, K)`):
            Option logits, `-inf` as padding.
        labels (array-like of shape `(N,)`):
            Index of the right option; not looked at by an unsupervised method.
        reference_option_logits (array-like of shape `(N, K)`, *optional*):
            Of the model before its alignment, for an unsupervised method.
    """
    calibrator = PostHocCalibrator.kinds[method]()
    return calibrator.fit(option_logits, labels if calibrator.supervised else reference_option_logits)


def cross_validate(
    methods: Sequence[str],
    option_logits,
    labels,
    reference_option_logits=None,
    n_folds: int = 5,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """
    Calibrated probabilities of every question, by calibrators that were fitted on other questions.

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

    Returns:
        `dict[str, np.ndarray]`: `"as is"` and each method to probabilities `(N, K)`.
    """
    logits = check_option_logits(option_logits)
    labels = as_labels(labels, *logits.shape)
    if n_folds < 2:
        raise ValueError(f"n_folds must be at least 2, got {n_folds}.")
    if len(logits) < 2 * n_folds:
        raise ValueError(
            f"{len(logits)} questions are too few for {n_folds} folds: {2 * n_folds} are needed, hundreds are good."
        )
    fold = folds(len(logits), n_folds, seed)
    outcomes = {AS_IS: softmax(logits), **{method: np.empty_like(logits) for method in methods}}
    for k in range(n_folds):
        train, held = fold != k, fold == k
        reference = None if reference_option_logits is None else np.asarray(reference_option_logits)[train]
        for method in methods:
            with warnings.catch_warnings():  # what a fold cannot fit shows in its figures
                warnings.simplefilter("ignore", UserWarning)
                calibrator = fit_calibrator(method, logits[train], labels[train], reference)
            outcomes[method][held] = calibrator.transform(logits[held])
    return outcomes


def choose_method(
    outcomes: Mapping[str, np.ndarray], labels, simplest_first: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """
    The simplest method whose negative log-likelihood is worse than the best by no more than half a standard error.

    Judged by the likelihood because it is a proper score: a constant confidence has a perfect ECE and knows nothing. The
    standard error is that of the difference, question by question. `"as is"` is chosen only where nothing is better: with a
    handful of labels its standard error excuses any miscalibration. (Half: docs/results/post-hoc.md.)

    Args:
        outcomes (`Mapping[str, np.ndarray]`):
            Result of [`cross_validate`].
        labels (array-like of shape `(N,)`):
            Index of the right option.
        simplest_first (`Sequence[str]`):
            Methods in the order in which the first that will do is taken.

    Returns:
        `tuple`: its name, and for every name `cv_nll`, `cv_excess` (over the best) and `cv_excess_se`.
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
