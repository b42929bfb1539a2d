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

# Weight of all questions, as a number of questions, in the temperature of a subject.
_POOLED = 5.0


@dataclass(frozen=True)
class AlignedMap:
    """
    The aligned model's calibrator, fitted on all labels: it was trained on none of them.

    Attributes:
        method (`str`):
            Method of least cross-validated negative log-likelihood, see [`~hf_calib.posthoc.choose_method`].
        calibrator ([`~hf_calib.posthoc.PostHocCalibrator`], *optional*):
            The calibrator; `None` for `"as is"`.
        outcomes (`np.ndarray` of shape `(N, K)`):
            Cross-validated probabilities of the labelled questions.
    """

    method: str
    calibrator: PostHocCalibrator | None
    outcomes: np.ndarray

    @classmethod
    def fit(cls, option_logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, seed: int) -> AlignedMap:
        """
        Choose and fit the calibrator.

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
        method, _ = choose_method(outcomes, labels, methods)
        calibrator = None if method == AS_IS else fit_calibrator(method, option_logits, labels, groups=groups)
        return cls(method, calibrator, outcomes[method])

    def transform(self, option_logits: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Calibrated probabilities `(N, K)` of the aligned model."""
        if self.calibrator is None:
            return softmax(option_logits, axis=1)
        return self.calibrator.transform(option_logits, groups=groups)


def blend(
    aligned: np.ndarray, option_logits: np.ndarray, untrained: np.ndarray, groups: np.ndarray | None = None
) -> np.ndarray:
    r"""
    Combine calibrated probabilities of the aligned model with the logits of the trained one.

    The labels calibrate the aligned model alone. On questions that the trained model has not learnt, the aligned
    model's probabilities p serve as soft labels, which have no noise of single answers: the temperature T of the
    trained model (of each subject, where there are groups) minimises the cross-entropy of `softmax(z / T)` to p. The
    result is the geometric mean of both, with one more temperature S fitted in the same way:

    .. math:: t \propto \left( p \cdot \mathrm{softmax}(z / T) \right)^{1 / (2 S)}

    Args:
        aligned (`np.ndarray` of shape `(N, K)`):
            Calibrated probabilities of the aligned model, 0 as padding.
        option_logits (`np.ndarray` of shape `(N, K)`):
            Option logits of the trained model, `-inf` as padding.
        untrained (`np.ndarray` of shape `(N,)`):
            True for questions whose answers the model was not trained on.
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
    mean = np.where(present, (np.where(present, trained, 0.0) + reference) / 2, -np.inf)
    return softmax(mean / np.exp(best_log_temperature(mean, aligned, weights)), axis=1)
