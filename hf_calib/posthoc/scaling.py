"""Calibrators that scale option logits: by a temperature, a mixture, a vector or a matrix."""

from __future__ import annotations

import warnings
from typing import ClassVar

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, softmax
from sklearn.model_selection import KFold

from .base import PostHocCalibrator, check_option_logits


LOG_TEMPERATURE_LIMIT = 7.0  # temperatures from 0.0009 to 1,097


def best_log_temperature(
    logits: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None, slope: float = 0.0
) -> float:
    """
    Find the logarithm of the temperature T that minimises the cross-entropy of `softmax(logits / T)` to targets.

    The cross-entropy is convex in `1 / T`, so the root of its derivative is found to machine precision.

    Args:
        logits (`np.ndarray` of shape `(N, K)`):
            Option logits, `-inf` as padding.
        targets (`np.ndarray` of shape `(N, K)`):
            Target distributions, 0 where there is padding.
        weights (`np.ndarray` of shape `(N,)`, *optional*):
            Weight of each row, at least 0; by default they weigh alike.
        slope (`float`, *optional*, defaults to `0.0`):
            Added to the mean of `(targets * logits).sum(axis=1)`, in nats: above 0, the temperature is lower.

    Returns:
        `float`: in [-7, 7]; a limit where there is no minimum between.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    values = np.where(np.isneginf(shifted), 0.0, shifted)  # padding has weight 0, and 0 * -inf would be NaN
    wanted = np.average((targets * values).sum(axis=1), weights=weights) + slope

    def derivative(log_temperature: float) -> float:
        """Derivative of the cross-entropy in 1 / T."""
        odds = np.exp(shifted * np.exp(-log_temperature))
        return float(np.average((odds * values).sum(axis=1) / odds.sum(axis=1), weights=weights) - wanted)

    limit = LOG_TEMPERATURE_LIMIT
    if derivative(limit) >= 0:  # flat is best
        return limit
    if derivative(-limit) <= 0:  # sharper is always better
        return -limit
    return brentq(derivative, -limit, limit, xtol=1e-12)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Fit the temperature `(1,)` of [`TemperatureScaling`]; if it has no optimum, also describe the problem."""
    targets, doubt = np.eye(logits.shape[1])[labels], 1 / (len(labels) + 2)
    log_temperature, problem = best_log_temperature(logits, targets), None
    if log_temperature == LOG_TEMPERATURE_LIMIT:
        problem = "no better than uniform"
    elif softmax(logits / np.exp(log_temperature), axis=1).max(axis=1).mean() > 1 - doubt:
        problem = "never or hardly wrong"
        others = np.isfinite(logits) & (targets == 0)
        targets = targets * (1 - doubt) + doubt * others / others.sum(axis=1, keepdims=True)
        log_temperature = best_log_temperature(logits, targets)
    return np.exp([log_temperature]), problem


class TemperatureScaling(PostHocCalibrator):
    """
    Temperature scaling: `softmax(z / T)`, with the T that minimises the negative log-likelihood.

    There is no optimal T if all calibration examples are right, or if the logits are worse than uniform. If the mean
    confidence exceeds `1 - 1 / (n + 2)`, the largest that n examples support, T is fitted to targets of that size
    instead of 1. If the logits are worse than uniform, T is 1,097, which is almost uniform. Both cases warn.

    References:
        Guo et al., "On calibration of modern neural networks", arXiv 1706.04599.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.posthoc import TemperatureScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> calibrator = TemperatureScaling().fit(logits, [0, 0, 0, 0])
    >>> round(float(calibrator.transform(logits)[0, 0]), 4)
    0.75

    ```
    """

    method = "temperature"
    title = "temperature scaling"
    parameters = ("temperature",)

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        self.temperature, problem = fit_temperature(logits, labels)
        if problem:
            warnings.warn(
                f"The logits are {problem} on these {len(labels)} examples, so no temperature is reliable: it is set "
                f"to {self.temperature.item():.4g}. Use more calibration examples.",
                stacklevel=3,
            )

    def _transform(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits / self.temperature, axis=1)


class AgreementTemperature(PostHocCalibrator):
    """
    Temperature scaling without labels, to the confidence of the reference model (DACA).

    T minimises the mean KL divergence of `softmax(z / T)` from the reference's option probabilities, over the
    questions that both models answer alike. On the others the reference's confidence is in another answer, which would
    make T too large. The result is calibrated as well as the reference is.

    References:
        Luo et al., "Your pre-trained LLM is secretly an unsupervised confidence calibrator", arXiv 2505.16690.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.posthoc import AgreementTemperature
    >>> reference = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    >>> aligned = np.array([[4.0, 0.0], [0.0, 8.0], [0.0, 1.0]])  # logits times 4; the last answer differs
    >>> round(AgreementTemperature().fit(aligned, reference).temperature.item(), 4)
    4.0

    ```
    """

    method = "agreement"
    title = "agreement temperature"
    parameters = ("temperature",)
    supervised = False

    def fit(self, option_logits, reference_option_logits, *, groups=None) -> AgreementTemperature:
        """
        Fit the temperature.

        Args:
            option_logits (array-like of shape `(N, K)`):
                Option logits of the aligned model, `-inf` as padding.
            reference_option_logits (array-like of shape `(N, K)`):
                Option logits of the reference model (before alignment), for the same questions.
            groups (*optional*):
                Not used.

        Returns:
            The calibrator itself.

        Raises:
            `ValueError`: if the models never agree, or the questions differ in their numbers of options.
        """
        logits, reference = check_option_logits(option_logits), check_option_logits(reference_option_logits)
        if logits.shape != reference.shape or (np.isneginf(logits) != np.isneginf(reference)).any():
            raise ValueError(
                f"`option_logits` {logits.shape} and `reference_option_logits` {reference.shape} differ in their "
                "numbers of options: evaluate both models on the same questions."
            )
        agree = logits.argmax(axis=1) == reference.argmax(axis=1)
        if not agree.any():
            raise ValueError(f"The two models agree on none of {len(logits)} questions: there is nothing to fit on.")
        self.temperature = np.exp([best_log_temperature(logits[agree], softmax(reference[agree], axis=1))])
        return self

    def _transform(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits / self.temperature, axis=1)


class EnsembleTemperatureScaling(PostHocCalibrator):
    """
    Ensemble temperature scaling: `w1 softmax(z / T) + w2 softmax(z) + w3 uniform`.

    T is that of temperature scaling. The weights minimise the negative log-likelihood. The weight of the uniform part
    is at most `1 - 1 / (n + 2)`, so the order of the options is kept.

    References:
        Zhang, Kailkhura and Han, "Mix-n-Match", arXiv 2003.07329.
    """

    method = "ensemble_temperature"
    title = "ensemble temperature scaling"
    parameters = ("temperature", "weights")

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        self.temperature, _ = fit_temperature(logits, labels)
        right = self._parts(logits)[:, np.arange(len(labels)), labels]

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            likelihood = np.maximum(weights @ right, np.finfo(float).tiny)
            return -np.log(likelihood).mean(), -(right / likelihood).mean(axis=1)

        scaled = np.array([1.0, 0.0, 0.0])
        found = minimize(
            loss,
            [0.9, 0.05, 0.05],
            jac=True,
            method="SLSQP",
            bounds=[(0, 1), (0, 1), (0, 1 - 1 / (len(labels) + 2))],
            constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        )
        weights = np.maximum(found.x, 0) / np.maximum(found.x, 0).sum()
        self.weights = weights if loss(weights)[0] < loss(scaled)[0] else scaled

    def _parts(self, logits: np.ndarray) -> np.ndarray:
        """The three distributions of the mixture, `(3, N, K)`."""
        present = np.isfinite(logits)
        uniform = present / present.sum(axis=1, keepdims=True)
        return np.stack([softmax(logits / self.temperature, axis=1), softmax(logits, axis=1), uniform])

    def _transform(self, logits: np.ndarray) -> np.ndarray:
        return np.tensordot(self.weights, self._parts(logits), axes=1)


class _LinearScaling(PostHocCalibrator):
    """
    Base class of vector and matrix scaling, as a penalised deviation from temperature scaling.

    The map is `softmax(W log p + b)` with `W = I / T + V`, where p are the uncalibrated probabilities. The loss is the
    summed negative log-likelihood plus `penalty * (|V|^2 + |b|^2)`, with log-probabilities scaled to variance 1. The
    penalty is chosen by cross-validation: the largest whose loss is within one standard error of the best. The choices
    range from infinity, which is temperature scaling, to 1, a normal prior of variance 1/2.
    """

    keeps_order = False
    parameters = ("weight", "bias", "penalty")
    penalties: ClassVar[tuple[float, ...]] = (np.inf, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
    n_folds: ClassVar[int] = 5

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        n, penalty = len(labels), np.inf
        if n >= 2 * self.n_folds:
            losses = np.empty((len(self.penalties), n))
            for train, held in KFold(self.n_folds, shuffle=True, random_state=0).split(logits):
                for row, solution in enumerate(self._path(logits[train], labels[train], self.penalties)):
                    log_probabilities = self._log_probabilities(logits[held], *solution)
                    losses[row, held] = -log_probabilities[range(len(held)), labels[held]]
            excess = losses - losses[losses.mean(axis=1).argmin()]
            within = excess.mean(axis=1) <= excess.std(axis=1, ddof=1) / np.sqrt(n)
            penalty = self.penalties[int(np.argmax(within))]
        ((self.weight, self.bias),) = self._path(logits, labels, (penalty,))
        self.penalty = np.array([penalty])

    def _path(self, logits: np.ndarray, labels: np.ndarray, penalties) -> list[tuple[np.ndarray, np.ndarray]]:
        """Fit weight and bias for each penalty, starting from temperature scaling, then from the previous solution."""
        n, num_options = logits.shape
        present = np.isfinite(logits)
        inputs = _inputs(logits)
        unit = max(inputs[present].std(), 1e-12)
        inputs = inputs / unit
        targets, shape = np.eye(num_options)[labels], self._shape(num_options)
        temperature, _ = fit_temperature(logits, labels)
        theta, solutions = np.zeros(1 + int(np.prod(shape)) + num_options), []
        theta[0] = unit / temperature.item()

        def split(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self._weight(theta[0], theta[1:-num_options].reshape(shape)), theta[-num_options:]

        def loss(theta: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
            log_probabilities = log_softmax(np.where(present, self._scores(inputs, *split(theta)), -np.inf), axis=1)
            residual = (np.exp(log_probabilities) - targets) / n
            parts = [[(residual * inputs).sum()], self._gradient(residual, inputs).ravel(), residual.sum(axis=0)]
            cost = np.concatenate([[0.0], 2 * penalty / n * theta[1:]])
            value = penalty / n * theta[1:] @ theta[1:] - log_probabilities[range(n), labels].mean()
            return value, np.concatenate(parts) + cost

        for penalty in penalties:
            if np.isfinite(penalty):
                theta = minimize(loss, theta, args=(penalty,), jac=True, method="L-BFGS-B").x
            weight, bias = split(theta)
            solutions.append((weight / unit, bias))
        return solutions

    def _log_probabilities(self, logits: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        scores = np.where(np.isneginf(logits), -np.inf, self._scores(_inputs(logits), weight, bias))
        return log_softmax(scores, axis=1)

    def _transform(self, logits: np.ndarray) -> np.ndarray:
        num_options, width = len(self.bias), logits.shape[1]
        if np.isfinite(logits[:, num_options:]).any():
            raise ValueError(
                f"This {self.title} was fitted on questions with at most {num_options} options and cannot be applied "
                "to more: fit it on questions with as many, or use temperature scaling."
            )
        missing = max(0, num_options - width)
        logits = np.pad(logits[:, :num_options], ((0, 0), (0, missing)), constant_values=-np.inf)
        probabilities = np.exp(self._log_probabilities(logits, self.weight, self.bias))[:, :width]
        return np.pad(probabilities, ((0, 0), (0, width - probabilities.shape[1])))


def _inputs(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, 0 where there is padding."""
    log_probabilities = log_softmax(logits, axis=1)
    return np.where(np.isneginf(log_probabilities), 0.0, log_probabilities)


class VectorScaling(_LinearScaling):
    """
    Vector scaling, as a penalised deviation from temperature scaling: a scale and a bias for every option position.

    It corrects a preference for letters or positions, and may change answers. Without such a preference it is close to
    temperature scaling. Questions may differ in their numbers of options.

    References:
        Guo et al., "On calibration of modern neural networks", arXiv 1706.04599.
    """

    method = "vector"
    title = "vector scaling"

    def _shape(self, num_options: int) -> tuple[int, ...]:
        return (num_options,)

    def _weight(self, scale, deviation):
        return scale + deviation

    def _scores(self, inputs, weight, bias):
        return inputs * weight + bias

    def _gradient(self, residual, inputs):
        return (residual * inputs).sum(axis=0)


class MatrixScaling(_LinearScaling):
    """
    Matrix scaling of log-probabilities, as a penalised deviation from temperature scaling.

    The score of an option depends on the log-probabilities of all options, so all questions must have the same number
    of options. Answers may change.

    References:
        Guo et al., "On calibration of modern neural networks", arXiv 1706.04599; as Dirichlet calibration, Kull et
        al., arXiv 1910.12656.
    """

    method = "matrix"
    title = "matrix scaling"

    def _fit(self, logits, labels):
        _check_full(logits)
        super()._fit(logits, labels)

    def _transform(self, logits):
        _check_full(logits, len(self.bias))
        return super()._transform(logits)

    def _shape(self, num_options: int) -> tuple[int, ...]:
        return (num_options, num_options)

    def _weight(self, scale, deviation):
        return scale * np.eye(len(deviation)) + deviation

    def _scores(self, inputs, weight, bias):
        return inputs @ weight.T + bias

    def _gradient(self, residual, inputs):
        return residual.T @ inputs


def _check_full(logits: np.ndarray, num_options: int | None = None) -> None:
    counts = np.isfinite(logits).sum(axis=1)
    num_options = logits.shape[1] if num_options is None else num_options
    if (counts < num_options).any():
        row = int(np.argmax(counts < num_options))
        raise ValueError(
            f"Matrix scaling needs the same number of options in all rows: row {row} has {counts[row]}, not "
            f"{num_options}. Use vector scaling, or leave out these questions."
        )
