"""Adaptive temperature scaling: a temperature for each question, a function of the model's features."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.model_selection import KFold


PENALTIES = (1e4, 1e3, 100.0, 10.0, 1.0)  # on the squared weights, from the strongest


def confidence_features(option_logits: np.ndarray) -> np.ndarray:
    """Sorted log-probabilities of the options and their entropy, `(N, K + 1)`."""
    log_probabilities = np.sort(np.maximum(log_softmax(option_logits, axis=1), -20), axis=1)
    entropy = -(np.exp(log_probabilities) * log_probabilities).sum(axis=1, keepdims=True)
    return np.hstack([log_probabilities, entropy])


class AdaptiveTemperature:
    r"""
    Adaptive temperature scaling (ATS), with a linear map in place of the paper's transformer head.

    .. math:: T(x) = \exp(b + w^\top f(x))

    with standardised features f. The loss is the paper's selective smoothing: the cross-entropy to the label where the
    prediction is right, and to the uniform distribution, weighted by 1 - alpha, where it is wrong. With `alpha=None`
    it is the negative log-likelihood. The penalty on w is chosen by five-fold cross-validated negative log-likelihood.

    Args:
        alpha (`float`, *optional*):
            Weight of the right predictions, in (0, 1).

    References:
        Xie et al., "Calibrating Language Models with Adaptive Temperature Scaling", arXiv 2409.19817.
    """

    def __init__(self, alpha: float | None = None):
        self.alpha = alpha

    def fit(self, option_logits: np.ndarray, features: np.ndarray, labels: np.ndarray) -> AdaptiveTemperature:
        """Fit on option logits `(N, K)`, features `(N, F)` and labels `(N,)`."""
        self.mean, self.scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        inputs, losses = self._inputs(features), np.zeros(len(PENALTIES))
        for train, held in KFold(5, shuffle=True, random_state=0).split(inputs):
            path = self._path(option_logits[train], inputs[train], labels[train])
            for index, theta in enumerate(path):
                q = _scaled(option_logits[held], inputs[held], theta)
                losses[index] -= np.log(np.maximum(q[np.arange(len(held)), labels[held]], 1e-12)).sum()
        best = int(losses.argmin())
        self.penalty, self.theta = PENALTIES[best], self._path(option_logits, inputs, labels)[best]
        return self

    def transform(self, option_logits: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Calibrated probabilities `(N, K)`."""
        return _scaled(option_logits, self._inputs(features), self.theta)

    def _inputs(self, features: np.ndarray) -> np.ndarray:
        scaled = np.clip((features - self.mean) / self.scale, -5, 5)
        return np.hstack([np.ones((len(scaled), 1)), scaled])

    def _path(self, logits: np.ndarray, inputs: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """Parameters for each penalty, each fit from the one before."""
        shifted = logits - logits.max(axis=1, keepdims=True)
        targets, weights = np.eye(logits.shape[1])[labels], np.ones(len(labels))
        if self.alpha is not None:
            right = logits.argmax(axis=1) == labels
            targets = np.where(right[:, None], targets, 1 / logits.shape[1])
            weights = np.where(right, self.alpha, 1 - self.alpha)

        def loss(theta: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
            scaled = shifted * np.exp(-np.clip(inputs @ theta, -5, 5))[:, None]
            log_q = log_softmax(scaled, axis=1)
            slopes = weights * ((targets - np.exp(log_q)) * scaled).sum(axis=1)
            value = -(weights * (targets * log_q).sum(axis=1)).sum() + 0.5 * penalty * theta[1:] @ theta[1:]
            return value, inputs.T @ slopes + penalty * np.concatenate([[0.0], theta[1:]])

        theta, path = np.zeros(inputs.shape[1]), []
        for penalty in PENALTIES:
            theta = minimize(loss, theta, args=(penalty,), jac=True, method="L-BFGS-B").x
            path.append(theta)
        return path


def _scaled(logits: np.ndarray, inputs: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return softmax(logits * np.exp(-np.clip(inputs @ theta, -5, 5))[:, None], axis=1)
