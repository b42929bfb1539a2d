"""A temperature for each subject, shrunk towards a common one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from .base import PostHocCalibrator
from .scaling import LOG_TEMPERATURE_LIMIT, fit_temperature


# Standard deviation of the prior of the spread: temperatures of subjects seldom differ by more than a factor of 5.
_SPREAD_SCALE = 0.8


class SubjectTemperature(PostHocCalibrator):
    r"""
    Temperature scaling with a temperature for each subject, partially pooled: `softmax(z / T_g)` for subject g.

    The logarithms of the temperatures have a normal prior, with a half-normal prior of its spread:

    .. math:: \log T_g \sim N(\mu, \tau^2), \quad \tau \sim N^+(0, 0.8^2)

    The temperatures and their mean are fitted by maximum a posteriori, so a subject with few labels stays near the
    mean. The spread is the one, among values from 0 to 4, with the largest posterior density, in Laplace's
    approximation of the marginal likelihood. Spread 0 is temperature scaling, and is taken with fewer than two labels
    a subject. The answers do not change.

    Attributes:
        temperature (`np.ndarray` of shape `(1,)`):
            `exp(mu)`, which is used for subjects that had no labels.
        temperatures (`np.ndarray` of shape `(G,)`):
            The temperature of each subject.
        subjects (`list[str]`):
            Names of the subjects, sorted.
        spread (`np.ndarray` of shape `(1,)`):
            `tau`.

    References:
        Gelman et al., "Bayesian data analysis", chapters 5 and 13: hierarchical models, and marginal modes.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.posthoc import SubjectTemperature
    >>> rng = np.random.default_rng(0)
    >>> true_logits, subjects = rng.normal(size=(2000, 4)) * 2, np.array(["law", "maths"] * 1000)
    >>> labels = (true_logits + rng.gumbel(size=(2000, 4))).argmax(axis=1)
    >>> logits = true_logits * np.where(subjects == "law", 1, 5)[:, None]
    >>> calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    >>> calibrator.subjects, calibrator.temperatures.round().tolist()
    (['law', 'maths'], [1.0, 5.0])

    ```
    """

    method = "subject_temperature"
    title = "temperature per subject"
    parameters = ("temperature", "temperatures", "spread")
    names = ("subjects",)
    grouped = True
    spreads: ClassVar[tuple[float, ...]] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 4.0)

    def _fit(self, logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> None:
        subjects, index = np.unique(groups, return_inverse=True)
        count = len(subjects)
        temperature, problem = fit_temperature(logits, labels)
        start = np.concatenate([np.log(temperature), np.zeros(count)])
        solutions = [(_cost(start, logits, labels, index, 0.0), start, 0.0)]
        # With a problem, no temperature is reliable.
        for spread in self.spreads[1:] if count > 1 and len(labels) >= 2 * count and not problem else ():
            theta = _fit_deviations(start, logits, labels, index, spread)
            solutions.append((_cost(theta, logits, labels, index, spread), theta, spread))
        _, theta, spread = min(solutions, key=lambda solution: solution[0])
        self.subjects = subjects.tolist()
        self.temperature = np.exp(theta[:1])
        self.temperatures = np.exp(
            np.clip(theta[0] + spread * theta[1:], -LOG_TEMPERATURE_LIMIT, LOG_TEMPERATURE_LIMIT)
        )
        self.spread = np.array([spread])

    def _transform(self, logits: np.ndarray, groups: np.ndarray) -> np.ndarray:
        known = dict(zip(self.subjects, self.temperatures, strict=True))
        temperatures = np.array([known.get(name, self.temperature.item()) for name in groups.tolist()])
        return softmax(logits / temperatures[:, None], axis=1)


def _fit_deviations(
    start: np.ndarray, logits: np.ndarray, labels: np.ndarray, index: np.ndarray, spread: float
) -> np.ndarray:
    """Minimise [`penalised_loss`] from a starting point, with each of its terms in the log-temperature limited."""
    limit = LOG_TEMPERATURE_LIMIT
    bounds = [(-limit, limit), *[(-limit / spread, limit / spread)] * (len(start) - 1)]
    arguments = (logits, labels, index, spread)
    return minimize(penalised_loss, start, arguments, jac=True, method="L-BFGS-B", bounds=bounds).x


def penalised_loss(
    theta: np.ndarray, logits: np.ndarray, labels: np.ndarray, index: np.ndarray, spread: float
) -> tuple[float, np.ndarray]:
    """
    Compute the summed negative log-likelihood plus the prior of the deviations, and its gradient.

    Args:
        theta (`np.ndarray` of shape `(1 + G,)`):
            The mean `mu`, and the deviation of each subject in units of the spread: `log T_g = mu + spread * theta_g`.
        logits (`np.ndarray` of shape `(N, K)`):
            Option logits, `-inf` as padding.
        labels (`np.ndarray` of shape `(N,)`), index (`np.ndarray` of shape `(N,)`):
            Right option and subject of each question.
        spread (`float`):
            `tau`, at least 0.

    Returns:
        `tuple[float, np.ndarray]`: the loss in nats, and its gradient `(1 + G,)`.
    """
    scaled, log_probabilities = _scale(theta, logits, index, spread)
    rows, deviations = np.arange(len(labels)), theta[1:]
    residual = np.exp(log_probabilities)
    residual[rows, labels] -= 1
    slope = -(residual * scaled).sum(axis=1)  # of each question, in its log-temperature
    by_subject = spread * np.bincount(index, slope, len(deviations)) + deviations
    value = 0.5 * deviations @ deviations - log_probabilities[rows, labels].sum()
    return value, np.concatenate([[slope.sum()], by_subject])


def _cost(theta: np.ndarray, logits: np.ndarray, labels: np.ndarray, index: np.ndarray, spread: float) -> float:
    """Negative logarithm of the posterior density of a spread, in Laplace's approximation, up to a constant."""
    scaled, log_probabilities = _scale(theta, logits, index, spread)
    probabilities = np.exp(log_probabilities)
    variance = (probabilities * scaled**2).sum(axis=1) - (probabilities * scaled).sum(axis=1) ** 2
    information = np.bincount(index, variance, len(theta) - 1)  # Fisher's, on the log-temperature of each subject
    value, _ = penalised_loss(theta, logits, labels, index, spread)
    return value + 0.5 * np.log1p(spread**2 * information).sum() + 0.5 * (spread / _SPREAD_SCALE) ** 2


def _scale(theta: np.ndarray, logits: np.ndarray, index: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """The logits over the temperatures `(N, K)`, at most 0 and 0 where there is padding, and log-probabilities."""
    scaled = (logits - logits.max(axis=1, keepdims=True)) * np.exp(-(theta[0] + spread * theta[1:]))[index][:, None]
    return np.where(np.isneginf(scaled), 0.0, scaled), log_softmax(scaled, axis=1)
