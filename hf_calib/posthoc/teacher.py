"""Targets of the closing step: the calibrated aligned model and the trained model, in one distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax

from .base import PostHocCalibrator
from .scaling import best_log_temperature
from .selection import AS_IS, choose_method, cross_validate, fit_calibrator


# Calibrators of the aligned model, from the simplest. All keep the order of the options.
TEACHER_METHODS = ("temperature", "ensemble_temperature", "beta", "subject_temperature")

# Prior log-odds of the temperature per subject against the others. It contains the single temperature, and with few
# labels cross-validation underrates it, which fits it on fewer labels a subject.
_SUBJECT_LOG_ODDS = 4.0

# Weight of all questions, as a number of questions, in the temperature of a subject.
_POOLED = 5.0

# Number of answers after which the trained model has half of its largest weight in the targets.
_HALF_TRUSTED = 200

# Standard deviation of the prior of the held-out labels' say on the last temperature, in nats; see [`blend`].
_SLOPE_SCALE = 0.02


@dataclass(frozen=True)
class AlignedMap:
    """
    The aligned model's calibrators, fitted on all labels, on none of which it was trained, and averaged.

    With few labels, the best of several calibrators cannot be told from the others, and a wrong choice costs more than
    an average. The weights are those of pseudo Bayesian model averaging: the softmax of the cross-validated
    log-likelihoods, to which the temperature per subject adds 4 nats.

    Attributes:
        method (`str`):
            The single method that [`~hf_calib.posthoc.choose_method`] chooses.
        weights (`dict[str, float]`):
            Weight of each method in the average.
        calibrators (`dict[str, PostHocCalibrator]`):
            The calibrator of each method; there is none for `"as is"`.
        outcomes (`np.ndarray` of shape `(N, K)`):
            Cross-validated probabilities of the labelled questions by `method`.

    References:
        Yao et al., "Using stacking to average Bayesian predictive distributions", 2018, section 3.4: pseudo Bayesian
        model averaging.
    """

    method: str
    weights: dict[str, float]
    calibrators: dict[str, PostHocCalibrator]
    outcomes: np.ndarray

    @classmethod
    def fit(cls, option_logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, seed: int) -> AlignedMap:
        """
        Fit the calibrators and weigh them.

        Args:
            option_logits (`np.ndarray` of shape `(N, K)`), labels (`np.ndarray` of shape `(N,)`):
                Of the labelled questions.
            groups (`np.ndarray` of shape `(N,)`, *optional*):
                Their subjects; without them there is no temperature per subject.
            seed (`int`):
                Seed of the folds.
        """
        methods = TEACHER_METHODS if groups is not None else TEACHER_METHODS[:-1]
        outcomes = cross_validate(methods, option_logits, labels, seed=seed, groups=groups)
        method, scores = choose_method(outcomes, labels, methods)
        prior = {TEACHER_METHODS[-1]: _SUBJECT_LOG_ODDS}
        weights = softmax([prior.get(name, 0.0) - len(labels) * scores[name]["cv_nll"] for name in outcomes])
        calibrators = {name: fit_calibrator(name, option_logits, labels, groups=groups) for name in methods}
        return cls(method, dict(zip(outcomes, weights.tolist(), strict=True)), calibrators, outcomes[method])

    def transform(self, option_logits: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Calibrated probabilities `(N, K)` of the aligned model."""
        average = self.weights[AS_IS] * softmax(option_logits, axis=1)
        for name, calibrator in self.calibrators.items():
            average += self.weights[name] * calibrator.transform(option_logits, groups=groups)
        return average

    def describe(self) -> str:
        """The methods that count in the average, e.g. `"beta (71%) and temperature (29%)"`."""
        most_first = sorted(self.weights.items(), key=lambda item: -item[1])
        named = [f"{name.replace('_', ' ')} ({weight:.0%})" for name, weight in most_first if weight >= 0.05]
        return " and ".join(named)


def blend(
    aligned: np.ndarray,
    option_logits: np.ndarray,
    untrained: np.ndarray,
    labels: np.ndarray,
    num_trained: int,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    r"""
    Combine calibrated probabilities of the aligned model with the logits of the trained one.

    On questions that the trained model has not learnt, the aligned model's probabilities p serve as soft labels, which
    have no noise of single answers: the temperature T of the trained model (of each subject, where there are groups)
    minimises the cross-entropy of `softmax(z / T)` to p. The result is a geometric mean of both, with one more
    temperature S:

    .. math:: t \propto \left( p^{1 - w} \, \mathrm{softmax}(z / T)^w \right)^{1 / S}

    After a training on n answers, the weight w of the trained model is n / (n + 200) / 2: few answers teach little,
    and add noise to p.

    Fitted to p alone, S makes t as confident as p, and so too little where the training has made the answers better.
    The labels held out from the training correct it, as far as they can be told from noise ([`_label_slope`]).

    Args:
        aligned (`np.ndarray` of shape `(N, K)`):
            Calibrated probabilities of the aligned model, 0 as padding.
        option_logits (`np.ndarray` of shape `(N, K)`):
            Option logits of the trained model, `-inf` as padding.
        untrained (`np.ndarray` of shape `(N,)`):
            True for questions whose answers the model was not trained on.
        labels (`np.ndarray` of shape `(N,)`):
            Index of the right option, negative where it is not known.
        num_trained (`int`):
            Number of answers that the model was trained on.
        groups (`np.ndarray` of shape `(N,)`, *optional*):
            Subject of each question.

    Returns:
        `np.ndarray` of shape `(N, K)`: the targets t.
    """
    weights = untrained / untrained.sum()
    temperatures = np.empty(len(option_logits))
    groups = np.zeros(len(option_logits)) if groups is None else groups
    for group in np.unique(groups):
        rows = groups == group
        of_group = rows * untrained + _POOLED * weights
        temperatures[rows] = np.exp(best_log_temperature(option_logits, aligned, of_group))
    present = np.isfinite(option_logits)
    trained = log_softmax(option_logits / temperatures[:, None], axis=1)
    reference = np.log(np.maximum(aligned, 1e-30))
    weight = 0.5 * num_trained / (num_trained + _HALF_TRUSTED)
    mean = np.where(present, weight * np.where(present, trained, 0.0) + (1 - weight) * reference, -np.inf)
    mean /= np.exp(best_log_temperature(mean, aligned, weights))
    slope = _label_slope(mean, reference, aligned, labels, untrained & (labels >= 0))
    return softmax(mean / np.exp(best_log_temperature(mean, aligned, weights, slope)), axis=1)


def _label_slope(
    logits: np.ndarray, reference: np.ndarray, soft: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> float:
    r"""
    Estimate how much steeper the logits u should be, by the labels y of some rows, than by soft labels p.

    That is the mean of :math:`g = \sum_k (y_k - p_k) u_k`. The soft labels' own logits v have the mean 0 of
    :math:`c = \sum_k (y_k - p_k) v_k`, because they are calibrated. The mean of c on these rows is noise that g
    shares, and is taken out by regression (a control variate). What is left shrinks towards 0 by its standard error.
    """
    if rows.sum() < 2:
        return 0.0
    residual = np.eye(logits.shape[1])[labels[rows]] - soft[rows]
    wanted, known = ((residual * np.where(residual == 0, 0.0, z[rows])).sum(axis=1) for z in (logits, reference))
    left = wanted - np.cov(wanted, known)[0, 1] / max(known.var(ddof=1), 1e-12) * known
    variance = left.var(ddof=1) / len(left)
    return float(left.mean() * _SLOPE_SCALE**2 / (_SLOPE_SCALE**2 + variance))
