"""A temperature for another kind of questions, whose answers are not known: from how far a model's readings agree on them."""

from __future__ import annotations

import logging

import numpy as np

from ..inputs import as_labels
from .base import check_option_logits, softmax
from .scaling import TemperatureScaling


# How much is known of what is agreed on, and how many labels that guess is worth. Readings of one model share its mistakes, hence
# less than 1; what comes out hardly depends on either (docs/calibrate.md).
KNOWN_PER_AGREED = 0.7
PSEUDO_COUNT = 50.0

_LIMIT = 7.0  # log temperatures, as of temperature scaling

logger = logging.getLogger(__name__)


class TransferredTemperature(TemperatureScaling):
    """
    Temperature scaling for questions whose answers nobody knows, from labelled ones of another kind.

    A temperature fitted on one kind of questions is wrong where others are harder or easier, and nothing in a question's own
    confidence says so. Agreement does: what a model knows it answers alike by every reading of its log-likelihoods, and what
    it guesses it does not. Let g be the share of questions that is answered alike beyond chance, and a the share that is known
    (accuracy beyond chance). The ratio a / g is learnt where there are labels; where there are none, a follows from g, and T
    is the one whose mean confidence is the accuracy so expected (derived in docs/calibrate.md).

    The questions are judged together: give all that are of one kind, some hundred at least.

    Args:
        pseudo_count (`float`, *optional*, defaults to `50.0`):
            Labels that the guess a / g = 0.7 is worth; with 0 the labels alone decide.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.posthoc import TransferredTemperature
    >>> rng = np.random.default_rng(0)
    >>> def ask(n, known):  # three readings that agree on what is known, and guess the rest each for itself
    ...     votes = np.where(rng.random((n, 1)) < known, 0, rng.integers(0, 4, (n, 3)))
    ...     return 9.0 * np.eye(4)[votes[:, 0]], np.zeros(n, int), votes
    >>> easy, labels, votes = ask(2000, known=0.8)
    >>> hard, _, hard_votes = ask(2000, known=0.2)
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
        Learn the temperature of the target's questions.

        Args:
            option_logits (array-like of shape `(N, K)`):
                Option logits of the labelled questions, `-inf` as padding.
            labels (array-like of shape `(N,)`):
                Index of the right option.
            votes (array-like of shape `(N, R)`):
                The option that each of R readings prefers (`votes` of [`~hf_calib.OptionPredictions`]); at least two.
            target_option_logits (array-like of shape `(M, K')`), target_votes (array-like of shape `(M, R)`):
                The same of the questions to be calibrated.

        Raises:
            `ValueError`: for votes that are none, of one reading, or of other readings than the target's.
        """
        logits, target = check_option_logits(option_logits), check_option_logits(target_option_logits)
        labels = as_labels(labels, *logits.shape)
        votes, target_votes = _as_votes(votes, logits), _as_votes(target_votes, target)
        if votes.shape[1] != target_votes.shape[1]:
            raise ValueError(
                f"`votes` are of {votes.shape[1]} readings and `target_votes` of {target_votes.shape[1]}: both must be of the same."
            )
        n, chance = len(labels), _chance(logits)
        known = ((logits.argmax(axis=1) == labels).mean() - chance) / (1 - chance)
        agreed, agreed_on_target = _agreed(votes, logits), _agreed(target_votes, target)
        weight = n * max(agreed, 0.0)
        # (n a + m 0.7 g) / (n g + m g), and where nothing is agreed on the labels say nothing of the ratio
        pseudo = self.pseudo_count * max(agreed, 1 / n)
        ratio = max(n * known + pseudo * KNOWN_PER_AGREED, 0.0) / (weight + pseudo) if weight + pseudo else 0.0
        chance = _chance(target)
        accuracy = chance + (1 - chance) * float(np.clip(ratio * agreed_on_target, 0.0, 1 - 1 / (n + 2)))
        self.temperature = np.exp([_log_temperature_of(target, accuracy)])
        logger.info(
            f"{agreed:.3f} agreed on beyond chance and {known:.3f} known where there are labels, {agreed_on_target:.3f} agreed "
            f"on here: accuracy {accuracy:.3f} is expected, T = {self.temperature.item():.3g}"
        )
        return self


def _as_votes(votes, logits: np.ndarray) -> np.ndarray:
    if votes is None:
        raise ValueError("There are no votes: predict both with `predict_options(..., votes=True)`.")
    votes = np.asarray(votes)
    if votes.ndim != 2 or len(votes) != len(logits) or votes.shape[1] < 2:
        raise ValueError(f"votes must have shape ({len(logits)}, R) with two readings or more, got {votes.shape}.")
    return votes


def _chance(logits: np.ndarray, readings: int = 1) -> float:
    """How often so many independent guesses name one given option."""
    return float(np.mean(np.isfinite(logits).sum(axis=1).astype(np.float64) ** -readings))


def _agreed(votes: np.ndarray, logits: np.ndarray) -> float:
    """Share of the questions on which all readings agree, beyond what guesses would."""
    by_chance = _chance(logits, votes.shape[1] - 1)
    return float(((votes == votes[:, :1]).all(axis=1).mean() - by_chance) / (1 - by_chance))


def _log_temperature_of(logits: np.ndarray, confidence: float) -> float:
    """Logarithm of the T that gives `softmax(logits / T)` this mean confidence; the limit where none does."""
    from scipy.optimize import brentq

    def excess(log_temperature: float) -> float:
        return float(softmax(logits / np.exp(log_temperature)).max(axis=1).mean() - confidence)

    if excess(_LIMIT) >= 0:
        return _LIMIT
    return brentq(excess, -_LIMIT, _LIMIT) if excess(-_LIMIT) > 0 else -_LIMIT
