"""Calibrators of the top confidence. The other options share the rest in their old proportions."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp, softmax
from sklearn.isotonic import IsotonicRegression

from .base import PostHocCalibrator, set_confidence
from .scaling import fit_temperature


class _TopConfidence(PostHocCalibrator):
    """Base class: temperature scaling, then a map of the top confidence. Accuracy is kept; see [`set_confidence`]."""

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        self.temperature, _ = fit_temperature(logits, labels)
        self._fit_map(logits / self.temperature, (logits.argmax(axis=1) == labels).astype(np.float64))

    def _transform(self, logits: np.ndarray) -> np.ndarray:
        logits = logits / self.temperature
        return set_confidence(logits, self._map(logits))


class TemperatureIsotonic(_TopConfidence):
    """
    TS-IR: temperature scaling, then isotonic regression of correctness on the top confidence.

    Accuracy is preserved; see [`set_confidence`]. No confidence is above `1 - 1 / (n + 2)`, the largest that n
    calibration examples support.
    """

    method = "temperature_isotonic"
    title = "TS-IR"
    parameters = ("temperature", "confidences", "accuracies")

    def _fit_map(self, logits: np.ndarray, correct: np.ndarray) -> None:
        regression = IsotonicRegression(y_min=0.0, y_max=_ceiling(len(correct)))
        regression.fit(softmax(logits, axis=1).max(axis=1), correct)
        self.confidences, self.accuracies = regression.X_thresholds_, regression.y_thresholds_

    def _map(self, logits: np.ndarray) -> np.ndarray:
        return np.interp(softmax(logits, axis=1).max(axis=1), self.confidences, self.accuracies)


class IsotonicConfidence(TemperatureIsotonic):
    """
    Isotonic regression of correctness on the top confidence, without temperature scaling.

    References:
        Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.
    """

    method = "isotonic"
    title = "isotonic regression"

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        self.temperature = np.ones(1)
        self._fit_map(logits, (logits.argmax(axis=1) == labels).astype(np.float64))


class HistogramBinning(_TopConfidence):
    """
    Temperature scaling, then histogram binning of the top confidence in bins of equal mass.

    There is one bin for every 20 examples, at most 15. The confidence of a bin is its accuracy, shrunk towards the
    overall accuracy by two pseudo-examples.

    References:
        Zadrozny and Elkan, "Obtaining calibrated probability estimates from decision trees and naive Bayesian
        classifiers", ICML 2001.
    """

    method = "histogram"
    title = "histogram binning"
    parameters = ("temperature", "edges", "accuracies")

    def _fit_map(self, logits: np.ndarray, correct: np.ndarray) -> None:
        confidences = softmax(logits, axis=1).max(axis=1)
        n_bins = min(max(len(correct) // 20, 1), 15)
        self.edges = np.unique(np.quantile(confidences, np.arange(1, n_bins) / n_bins))
        bins = np.searchsorted(self.edges, confidences, side="right")
        counts = np.bincount(bins, minlength=len(self.edges) + 1)
        hits = np.bincount(bins, weights=correct, minlength=len(self.edges) + 1)
        self.accuracies = np.minimum((hits + 2 * correct.mean()) / (counts + 2), _ceiling(len(correct)))

    def _map(self, logits: np.ndarray) -> np.ndarray:
        return self.accuracies[np.searchsorted(self.edges, softmax(logits, axis=1).max(axis=1), side="right")]


class BetaCalibration(_TopConfidence):
    """
    Temperature scaling, then beta calibration of the top confidence c: `sigmoid(a ln c - b ln(1 - c) + d)`, a, b >= 0.

    This is a logistic regression with a standard normal prior around temperature scaling (a = b = 1, d = 0).

    References:
        Kull, Silva Filho and Flach, "Beta calibration", AISTATS 2017.
    """

    method = "beta"
    title = "beta calibration"
    parameters = ("temperature", "coefficients")

    def _fit_map(self, logits: np.ndarray, correct: np.ndarray) -> None:
        features, signs = _beta_features(logits), 2 * correct - 1
        identity = np.array([1.0, 1.0, 0.0])

        def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
            margins, deviation = signs * (features @ coefficients), coefficients - identity
            wrong = expit(-margins)  # 1 - likelihood
            value = deviation @ deviation / 2 - log_expit(margins).sum()
            return value / len(signs), (deviation - (signs * wrong) @ features) / len(signs)

        bounds = [(0, None), (0, None), (None, None)]
        self.coefficients = minimize(loss, identity, jac=True, method="L-BFGS-B", bounds=bounds).x

    def _map(self, logits: np.ndarray) -> np.ndarray:
        return expit(_beta_features(logits) @ self.coefficients)


def _ceiling(n: int) -> float:
    """The largest confidence that n examples support."""
    return 1 - 1 / (n + 2)


def _beta_features(logits: np.ndarray) -> np.ndarray:
    """`ln c`, `-ln(1 - c)` and 1 of the top confidence c, `(N, 3)`, accurate where c is rounded to 1."""
    others = logits.copy()
    others[np.arange(len(logits)), logits.argmax(axis=1)] = -np.inf
    log_odds = logits.max(axis=1) - logsumexp(others, axis=1)
    return np.stack([log_expit(log_odds), -log_expit(-log_odds), np.ones_like(log_odds)], axis=1)
