"""A temperature for each subject, shrunk towards a common one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from .base import PostHocCalibrator
from .scaling import LOG_TEMPERATURE_LIMIT, fit_temperature


# Standard deviation of the prior of the spread: temperatures of subjects seldom differ by more than a factor of 5.
_SPREAD_SCALE = 0.8

_NODES = 5  # of the quadrature over a temperature
_LEAST_INFORMATION = 1.0  # on the mean, so its standard deviation is at most 1


class SubjectTemperature(PostHocCalibrator):
    r"""
    Temperature scaling with a temperature for each subject, partially pooled: `softmax(z / T_g)` for subject g.

    The logarithms of the temperatures have a normal prior, with a half-normal prior of its spread:

    .. math:: \log T_g \sim N(\mu, \tau^2), \quad \tau \sim N^+(0, 0.8^2)

    A subject with few labels stays near the mean. The probabilities are means over the posterior distribution of
    `tau`, `mu` and `T_g`, in Laplace's approximation for each of seven values of `tau` from 0 to 4: with few labels a
    temperature is uncertain, and a single one makes the probabilities too large or too small. With fewer than two
    labels a subject this is temperature scaling. The answers do not change.

    Attributes:
        temperature (`np.ndarray` of shape `(1,)`):
            `exp(mu)` at the most probable `tau`.
        temperatures (`np.ndarray` of shape `(G,)`):
            The most probable temperature of each subject.
        subjects (`list[str]`):
            Names of the subjects, sorted.
        spread (`np.ndarray` of shape `(1,)`):
            The most probable `tau`.
        support (`np.ndarray` of shape `(M, G + 1)`):
            Temperatures that the probabilities are averaged over; the last column is for subjects that had no labels.
        weights (`np.ndarray` of shape `(M,)`):
            Their weights.

    References:
        Gelman et al., "Bayesian data analysis", chapters 5 and 13: hierarchical models, and Laplace's approximation.

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
    parameters = ("temperature", "temperatures", "spread", "support", "weights")
    names = ("subjects",)
    grouped = True
    spreads: ClassVar[tuple[float, ...]] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 4.0)

    def _fit(self, logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> None:
        subjects, index = np.unique(groups, return_inverse=True)
        self.subjects, count = subjects.tolist(), len(subjects)
        self.temperature, problem = fit_temperature(logits, labels)
        start = np.concatenate([np.log(self.temperature), np.zeros(count)])
        if count == 1 or len(labels) < 2 * count or problem:  # with a problem, no temperature is reliable
            self.temperatures, self.spread = np.repeat(self.temperature, count), np.zeros(1)
            self.support, self.weights = np.repeat(self.temperature, count + 1)[None], np.ones(1)
            return
        solutions = []
        for spread in self.spreads:
            theta = _fit_deviations(start, logits, labels, index, spread) if spread else start
            solutions.append(_posterior(theta, logits, labels, index, spread))
        costs = np.array([solution.cost for solution in solutions])
        best = solutions[costs.argmin()]
        self.temperature, self.spread = np.exp([best.mean]), np.array([self.spreads[costs.argmin()]])
        self.temperatures = np.exp(best.log_temperatures[:-1])
        # Of tau by the distances between its values, times those of a normal distribution by Gauss and Hermite.
        nodes, of_nodes = np.polynomial.hermite_e.hermegauss(_NODES)
        of_spreads = softmax(-costs) * np.gradient(self.spreads)
        self.weights = np.outer(of_spreads / of_spreads.sum(), of_nodes / of_nodes.sum()).ravel()
        support = [s.log_temperatures + node * s.deviations for s in solutions for node in nodes]
        self.support = np.exp(np.clip(support, -LOG_TEMPERATURE_LIMIT, LOG_TEMPERATURE_LIMIT))

    def _transform(self, logits: np.ndarray, groups: np.ndarray) -> np.ndarray:
        known = {name: column for column, name in enumerate(self.subjects)}
        columns = np.array([known.get(name, len(self.subjects)) for name in groups.tolist()])
        temperatures = self.support[:, columns, None]
        return sum(w * softmax(logits / t, axis=1) for w, t in zip(self.weights, temperatures, strict=True))


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


@dataclass(frozen=True)
class _Posterior:
    """
    The posterior distribution for one spread, in Laplace's approximation.

    Args:
        cost (`float`): negative logarithm of the posterior density of the spread, up to a constant.
        mean (`float`): `mu`.
        log_temperatures (`np.ndarray` of shape `(G + 1,)`): mean of each subject, and of one without labels.
        deviations (`np.ndarray` of shape `(G + 1,)`): their standard deviations.
    """

    cost: float
    mean: float
    log_temperatures: np.ndarray
    deviations: np.ndarray


def _posterior(
    theta: np.ndarray, logits: np.ndarray, labels: np.ndarray, index: np.ndarray, spread: float
) -> _Posterior:
    """The posterior around its mode theta."""
    scaled, log_probabilities = _scale(theta, logits, index, spread)
    probabilities = np.exp(log_probabilities)
    variance = (probabilities * scaled**2).sum(axis=1) - (probabilities * scaled).sum(axis=1) ** 2
    information = np.bincount(index, variance, len(theta) - 1)  # Fisher's, on the log-temperature of each subject
    value, _ = penalised_loss(theta, logits, labels, index, spread)
    cost = value + 0.5 * np.log1p(spread**2 * information).sum() + 0.5 * (spread / _SPREAD_SCALE) ** 2
    own = np.append(information, 0.0)
    shrinkage = 1 / (1 + spread**2 * own)
    of_mean = 1 / max((own * shrinkage).sum(), _LEAST_INFORMATION)
    return _Posterior(
        cost,
        theta[0],
        theta[0] + spread * np.append(theta[1:], 0.0),
        np.sqrt(spread**2 * shrinkage + shrinkage**2 * of_mean),
    )


def _scale(theta: np.ndarray, logits: np.ndarray, index: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """The logits over the temperatures `(N, K)`, at most 0 and 0 where there is padding, and log-probabilities."""
    scaled = (logits - logits.max(axis=1, keepdims=True)) * np.exp(-(theta[0] + spread * theta[1:]))[index][:, None]
    return np.where(np.isneginf(scaled), 0.0, scaled), log_softmax(scaled, axis=1)
