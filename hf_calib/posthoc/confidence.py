"""Calibrators of the top confidence: the predicted option gets another confidence, the others share the rest as before."""

from __future__ import annotations

import numpy as np

from .base import PostHocCalibrator, set_confidence, softmax
from .scaling import fit_temperature


class _TopConfidence(PostHocCalibrator):
    """A temperature, then a map of the top confidence. Accuracy is preserved: see [`set_confidence`]."""

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        self.temperature, _ = fit_temperature(logits, labels)
        self._fit_map(logits / self.temperature, (logits.argmax(axis=1) == labels).astype(np.float64))

    def _transform(self, logits: np.ndarray) -> np.ndarray:
        logits = logits / self.temperature
        return set_confidence(logits, self._map(logits))


class TemperatureIsotonic(_TopConfidence):
    """
    TS-IR: a temperature, then an isotonic regression of "correct" on the top confidence.

    Accuracy is preserved: the predicted option gets the calibrated confidence, the rest of the mass goes to the others
    in their old proportions, and the confidence is raised where the predicted option would otherwise lose its place.
    No confidence goes above `1 - 1 / (n + 2)`, which is all that n calibration examples can vouch for.
    """

    method = "temperature_isotonic"
    title = "TS-IR"
    parameters = ("temperature", "confidences", "accuracies")

    def _fit_map(self, logits: np.ndarray, correct: np.ndarray) -> None:
        from sklearn.isotonic import IsotonicRegression

        regression = IsotonicRegression(y_min=0.0, y_max=_ceiling(len(correct)))
        regression.fit(softmax(logits).max(axis=1), correct)
        self.confidences, self.accuracies = regression.X_thresholds_, regression.y_thresholds_

    def _map(self, logits: np.ndarray) -> np.ndarray:
        return np.interp(softmax(logits).max(axis=1), self.confidences, self.accuracies)


class IsotonicConfidence(TemperatureIsotonic):
    """
    Isotonic regression of "correct" on the top confidence as it is (Zadrozny & Elkan, KDD 2002): TS-IR without its
    temperature.
    """

    method = "isotonic"
    title = "isotonic regression"

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        self.temperature = np.ones(1)
        self._fit_map(logits, (logits.argmax(axis=1) == labels).astype(np.float64))


class HistogramBinning(_TopConfidence):
    """
    Histogram binning of the top confidence (Zadrozny & Elkan, ICML 2001) after temperature scaling, in bins of equal mass.

    There is one bin for every 20 examples, at most 15. A bin's confidence is its accuracy, drawn towards the accuracy of
    all by two pseudo-examples: a bin in which all is right does not make the model certain.
    """

    method = "histogram"
    title = "histogram binning"
    parameters = ("temperature", "edges", "accuracies")

    def _fit_map(self, logits: np.ndarray, correct: np.ndarray) -> None:
        confidences = softmax(logits).max(axis=1)
        n_bins = min(max(len(correct) // 20, 1), 15)
        self.edges = np.unique(np.quantile(confidences, np.arange(1, n_bins) / n_bins))
        bins = np.searchsorted(self.edges, confidences, side="right")
        counts = np.bincount(bins, minlength=len(self.edges) + 1)
        hits = np.bincount(bins, weights=correct, minlength=len(self.edges) + 1)
        self.accuracies = np.minimum((hits + 2 * correct.mean()) / (counts + 2), _ceiling(len(correct)))

    def _map(self, logits: np.ndarray) -> np.ndarray:
        return self.accuracies[np.searchsorted(self.edges, softmax(logits).max(axis=1), side="right")]


class BetaCalibration(_TopConfidence):
    """
    Beta calibration of the top confidence c (Kull et al., AISTATS 2017) after temperature scaling:
    `sigmoid(a ln c - b ln(1 - c) + d)` with a, b >= 0.

    A logistic regression with a unit normal prior around temperature scaling (a = b = 1, d = 0): it bends the curve where
    one temperature cannot; a few labels hardly move it, and many overrule the prior.
    """

    method = "beta"
    title = "beta calibration"
    parameters = ("temperature", "coefficients")

    def _fit_map(self, logits: np.ndarray, correct: np.ndarray) -> None:
        from scipy.optimize import minimize

        features, signs = _beta_features(logits), 2 * correct - 1
        identity = np.array([1.0, 1.0, 0.0])

        def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
            margins, deviation = signs * (features @ coefficients), coefficients - identity
            wrong = np.exp(-np.logaddexp(0, margins))  # 1 - p of what happened
            value = np.logaddexp(0, -margins).sum() + deviation @ deviation / 2
            return value / len(signs), (deviation - (signs * wrong) @ features) / len(signs)

        bounds = [(0, None), (0, None), (None, None)]
        self.coefficients = minimize(loss, identity, jac=True, method="L-BFGS-B", bounds=bounds).x

    def _map(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(-np.logaddexp(0, -(_beta_features(logits) @ self.coefficients)))


def _ceiling(n: int) -> float:
    """The highest confidence that n examples can vouch for."""
    return 1 - 1 / (n + 2)


def _beta_features(logits: np.ndarray) -> np.ndarray:
    """`ln c`, `-ln(1 - c)` and 1 of the top confidence c, `(N, 3)`: exact where c itself is 1 for a computer."""
    others = logits.copy()
    others[np.arange(len(logits)), logits.argmax(axis=1)] = -np.inf
    second = others.max(axis=1)
    log_odds = logits.max(axis=1) - second - np.log(np.exp(others - second[:, None]).sum(axis=1))
    return np.stack([-np.logaddexp(0, -log_odds), np.logaddexp(0, log_odds), np.ones_like(log_odds)], axis=1)
