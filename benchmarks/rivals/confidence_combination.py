"""One confidence from several: a logistic regression of their log-odds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def fit_combination(confidences: Sequence[np.ndarray], correct: np.ndarray) -> Pipeline:
    """
    Fit a logistic regression (L2, C = 1) of correctness on standardised log-odds.

    Args:
        confidences (`Sequence[np.ndarray]`):
            Confidences `(N,)` of each kind.
        correct (`np.ndarray` of shape `(N,)`):
            Whether each answer is right.
    """
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(_log_odds(confidences), correct)


def combine(fitted: Pipeline, confidences: Sequence[np.ndarray]) -> np.ndarray:
    """The combined confidence `(N,)`."""
    return fitted.predict_proba(_log_odds(confidences))[:, 1]


def _log_odds(confidences: Sequence[np.ndarray]) -> np.ndarray:
    return logit(np.clip(np.stack(confidences, axis=1).astype(np.float64), 1e-6, 1 - 1e-6))
