"""
Fit a temperature for questions without answers, from labelled questions of another kind.

A temperature that was fitted on one kind of questions is wrong on harder or easier ones, and the model's confidence
does not show which they are. This module estimates the accuracy on the unlabelled questions from how often two scores
of the model prefer the same option, and chooses the temperature whose mean confidence equals that accuracy.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import norm

from .base import check_labels, check_option_logits
from .scaling import LOG_TEMPERATURE_LIMIT, TemperatureScaling


# Weight of the prior accuracy / agreement = 1, in labels on questions with full agreement. One label measures the
# accuracy with variance .4, and the prior has a standard deviation of .4: .4 / .4^2 = 2.5.
PSEUDO_COUNT = 2.5


class TransferredTemperature(TemperatureScaling):
    """
    Temperature scaling for unlabelled questions, from labelled questions of another kind.

    Two scores vote for an option: the log-likelihood, which also prefers options that are likely in general, and the
    pointwise mutual information, which corrects for that. Where both prefer the same option, the question itself
    decides.
    Let `g` be the rate of agreement and `a` the accuracy, both above chance:

    1. The ratio `a / g` is estimated on the labelled questions, with a prior at 1.
    2. The accuracy on the unlabelled questions is the ratio times their rate of agreement.
    3. The temperature is the one with which the mean confidence on them equals that accuracy.

    The unlabelled questions are calibrated together: pass all questions of one kind, at least some hundred. If the
    model was fine-tuned on the labels, pass the votes of the model before fine-tuning, because fine-tuning raises
    agreement. The estimator is derived in docs/concepts/transferred-temperature.md.

    Args:
        pseudo_count (`float`, *optional*, defaults to `2.5`):
            Weight of the prior `a / g = 1`, in labels on questions with full agreement. 0 uses the labels alone.

    Attributes:
        found (`dict[str, float]`):
            After `fit`: `known`, the accuracy on the labelled questions; `agreed` and `agreed_on_target`, the rates of
            agreement on both kinds (all three above chance); `expected_accuracy`, the estimate for the unlabelled
            questions.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.posthoc import TransferredTemperature
    >>> rng = np.random.default_rng(0)
    >>> def simulate(n, known):  # two scores that agree on known questions and guess independently on the others
    ...     votes = np.where(rng.random((n, 1)) < known, 0, rng.integers(0, 4, (n, 2)))
    ...     return 9.0 * np.eye(4)[votes[:, 0]], np.zeros(n, int), votes
    >>> easy, labels, votes = simulate(2000, known=0.8)
    >>> hard, _, hard_votes = simulate(2000, known=0.2)
    >>> calibrator = TransferredTemperature().fit(easy, labels, votes, hard, hard_votes)
    >>> bool(abs(calibrator.transform(hard).max(axis=1).mean() - (0.2 + 0.8 / 4)) < 0.03)
    True

    ```
    """

    method = "transferred_temperature"
    title = "transferred temperature"

    def __init__(self, pseudo_count: float = PSEUDO_COUNT):
        if not pseudo_count >= 0:
            raise ValueError(f"pseudo_count must be at least 0, got {pseudo_count}.")
        self.pseudo_count = pseudo_count

    def fit(self, option_logits, labels, votes, target_option_logits, target_votes) -> TransferredTemperature:
        """
        Fit the temperature for the unlabelled questions.

        Args:
            option_logits (array-like of shape `(N, K)`):
                Option logits of the labelled questions, `-inf` as padding.
            labels (array-like of shape `(N,)`):
                Index of the right option of each.
            votes (array-like of shape `(N', 2)`):
                Option that each of the two scores prefers (`votes` of [`~hf_calib.OptionPredictions`]), on the
                labelled questions or on others of their kind.
            target_option_logits (array-like of shape `(M, K')`):
                Option logits of the unlabelled questions.
            target_votes (array-like of shape `(M', 2)`):
                Votes on the unlabelled questions or on others of their kind.

        Returns:
            The calibrator itself.

        Raises:
            `ValueError`: for missing votes, votes of another shape, and a label that names padding.
        """
        logits, target = check_option_logits(option_logits), check_option_logits(target_option_logits)
        labels = check_labels(labels, logits)
        n, chance = len(labels), _chance(logits)
        known = ((logits.argmax(axis=1) == labels).mean() - chance) / (1 - chance)
        agreed = _agreement(votes, chance)
        chance = _chance(target)
        agreed_on_target = _agreement(target_votes, chance)
        # Least squares through the origin, of the labels and the prior.
        ratio = max(n * known * agreed + self.pseudo_count, 0.0) / (n * agreed**2 + self.pseudo_count)
        accuracy = chance + (1 - chance) * min(ratio * agreed_on_target, 1 - 1 / (n + 2))
        self.temperature = np.exp([_log_temperature_for(target, accuracy)])
        self.found = {
            "known": float(known),
            "agreed": agreed,
            "agreed_on_target": agreed_on_target,
            "expected_accuracy": float(accuracy),
        }
        return self


def _chance(logits: np.ndarray) -> float:
    """Accuracy of a random guess."""
    return float(np.mean(1.0 / np.isfinite(logits).sum(axis=1)))


def _agreement(votes, chance: float) -> float:
    """
    Estimate the rate of agreement above chance.

    The estimate is the posterior mean under a normal likelihood and a uniform prior on the positive numbers. So it is
    always positive, and the more so the fewer questions there are.
    """
    if votes is None:
        raise ValueError("There are no votes: predict with `predict_options(..., votes=True)`.")
    votes = np.asarray(votes)
    if votes.ndim != 2 or votes.shape[1] != 2 or not len(votes):
        raise ValueError(f"votes must have shape (N, 2), one column for each score, got {votes.shape}.")
    rate = ((votes[:, 0] == votes[:, 1]).mean() - chance) / (1 - chance)
    error = np.sqrt(chance / (1 - chance) / len(votes))  # standard error under independent guesses
    return float(rate + error * np.exp(norm.logpdf(rate / error) - norm.logcdf(rate / error)))


def _log_temperature_for(logits: np.ndarray, confidence: float) -> float:
    """Logarithm of the temperature with which `softmax(logits / T)` has this mean confidence, within the limits."""

    def excess(log_temperature: float) -> float:
        return float(softmax(logits / np.exp(log_temperature), axis=1).max(axis=1).mean() - confidence)

    limit = LOG_TEMPERATURE_LIMIT
    if excess(limit) >= 0:
        return limit
    return brentq(excess, -limit, limit) if excess(-limit) > 0 else -limit
