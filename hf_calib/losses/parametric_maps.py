"""Calibration maps of few parameters with a normal prior around the identity, for few labels."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, logsumexp


# Standard deviation of the log of a temperature or slope, and of an offset in nats.
PRIOR_SCALE = 1.0

_LARGEST_LOG = 6.0
_SMALLEST = float(np.finfo(np.float32).tiny)
_MARGIN = 1e-6  # of a confidence from 0 and 1, about the precision of float32


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""
    Fit the temperature with the highest posterior density.

    .. math::

        \max_T \; \sum_i \log \mathrm{softmax}(\log q_i / T)_{y_i} - \frac{(\log T)^2}{2 \sigma^2}
        \qquad (\sigma = 1)

    Args:
        probabilities (`np.ndarray` of shape `(N, K)`):
            Option probabilities q; 0 in the columns beyond a question's options.
        labels (`np.ndarray` of shape `(N,)` or `(N, K)`):
            Index of the right option, or the probability of each option to be right.

    Returns:
        `np.ndarray` of shape `(1,)`: the inverse temperature 1 / T.
    """
    weights = labels if labels.ndim == 2 else np.eye(probabilities.shape[1])[labels.astype(np.int64)]
    # An option of probability 0 is padding, unless it is right.
    there = (probabilities > 0) | (weights > 0)
    log_q = np.log(np.maximum(probabilities, _SMALLEST))
    log_q -= log_q.max(axis=1, keepdims=True)

    def objective(log_temperature: float) -> float:
        scaled = log_q * np.exp(-log_temperature)
        total = logsumexp(np.where(there, scaled, -np.inf), axis=1)
        nll = (weights * (total[:, None] - scaled)).sum()
        return nll + 0.5 * (log_temperature / PRIOR_SCALE) ** 2

    fitted = minimize_scalar(objective, bounds=(-_LARGEST_LOG, _LARGEST_LOG), method="bounded")
    return np.array([np.exp(-fitted.x)])


def temperature_confidence(probabilities: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """
    Compute the confidence at another temperature.

    Args:
        probabilities (`torch.Tensor` of shape `(..., K)`):
            Option probabilities; at most 0 in the padding.
        inverse (`torch.Tensor` of shape `(1,)`):
            Inverse temperature.

    Returns:
        `torch.Tensor` of shape `(...)`: the largest probability at that temperature.
    """
    log_q = probabilities.clamp(min=_SMALLEST).log() * inverse
    return log_q.masked_fill(probabilities <= 0, -torch.inf).softmax(-1).amax(-1)


def fit_beta(confidences: np.ndarray, correct: np.ndarray) -> np.ndarray:
    r"""
    Fit the beta calibration map with the highest posterior density.

    .. math::

        \log \frac{a}{1 - a} = \alpha \log c - \beta \log (1 - c) + m

    with standard normal priors on :math:`\log \alpha`, :math:`\log \beta` and m.

    Args:
        confidences (`np.ndarray` of shape `(N,)`):
            Confidences c.
        correct (`np.ndarray` of shape `(N,)`):
            Outcomes, or their probabilities, in [0, 1].

    Returns:
        `np.ndarray` of shape `(3,)`: alpha, beta and m.

    References:
        Kull, Silva Filho, Flach, "Beta calibration", AISTATS 2017. The prior is ours.
    """
    c = np.clip(confidences, _MARGIN, 1 - _MARGIN)
    features = np.stack([np.log(c), -np.log1p(-c), np.ones_like(c)])

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slopes = np.array([*np.exp(parameters[:2]), parameters[2]])
        logit = slopes @ features
        nll = -(correct * log_expit(logit) + (1 - correct) * log_expit(-logit)).sum()
        gradient = features @ (expit(logit) - correct) * np.array([*slopes[:2], 1.0])
        return nll + 0.5 * (parameters**2).sum() / PRIOR_SCALE**2, gradient + parameters / PRIOR_SCALE**2

    bounds = [(-_LARGEST_LOG, _LARGEST_LOG)] * 3
    fitted = minimize(objective, np.zeros(3), jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.array([*np.exp(fitted[:2]), fitted[2]])


def beta_map(confidences: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """
    Evaluate a beta calibration map.

    Args:
        confidences (`torch.Tensor`):
            Confidences, of any shape.
        parameters (`torch.Tensor` of shape `(3,)`):
            alpha, beta and m of [`fit_beta`].

    Returns:
        `torch.Tensor`: estimated P(correct | confidence), of the same shape.
    """
    c = confidences.clamp(_MARGIN, 1 - _MARGIN)
    return (parameters[0] * c.log() - parameters[1] * torch.log1p(-c) + parameters[2]).sigmoid()
