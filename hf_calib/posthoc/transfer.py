"""A temperature for another kind of questions, whose answers are not known: from how far two readings of a model agree on them."""

from __future__ import annotations

import numpy as np

from .base import check_labels, check_option_logits, softmax
from .scaling import TemperatureScaling


# As much is known as is agreed on, give or take: how many labels on wholly agreed questions that guess is worth. One label tells
# the known share to .63 (variance .4), the guess is taken to be good to .4, and .4 / .4² = 2.5 (docs/concepts/transferred-temperature.md).
PSEUDO_COUNT = 2.5

_LIMIT = 7.0  # log temperatures, as of temperature scaling


class TransferredTemperature(TemperatureScaling):
    """
    Temperature scaling for questions whose answers nobody knows, from labelled ones of another kind.

    A temperature fitted on one kind of questions is wrong where others are harder or easier, and nothing in a question's own
    confidence says so. Agreement does. The log-likelihood of an option prefers what is likely anyway, the pointwise mutual
    information takes that out again: what both prefer, the question has told. Let g be the share of questions on which they
    agree beyond chance, and a the share that is known (accuracy beyond chance). The ratio a / g, near 1, is learnt where there
    are labels; where there are none, a follows from g, and T is the one whose mean confidence is the accuracy so expected
    (derived in docs/concepts/transferred-temperature.md).

    The questions are judged together: give all that are of one kind, some hundred at least. Of a model that was fine-tuned on the
    labels, take the votes of the model before: what it agrees on afterwards is of the fine-tuning, too.

    Args:
        pseudo_count (`float`, *optional*, defaults to `2.5`):
            Labels, on questions that are all agreed on, that the guess a / g = 1 is worth; with 0 the labels alone decide.

    Attributes:
        found (`dict[str, float]`):
            After `fit`: `known`, the share known where there are labels, `agreed` and `agreed_on_target`, those agreed on (all
            beyond chance), and `expected_accuracy`, on the target.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.posthoc import TransferredTemperature
    >>> rng = np.random.default_rng(0)
    >>> def ask(n, known):  # two readings that agree on what is known, and guess the rest each for itself
    ...     votes = np.where(rng.random((n, 1)) < known, 0, rng.integers(0, 4, (n, 2)))
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
            votes (array-like of shape `(N', 2)`):
                The options that the two readings prefer (`votes` of [`~hf_calib.OptionPredictions`]) on questions of this kind: the
                same, or as many as there are.
            target_option_logits (array-like of shape `(M, K')`):
                Option logits of the questions to be calibrated.
            target_votes (array-like of shape `(M', 2)`):
                Votes on questions of their kind.

        Raises:
            `ValueError`: for votes that are none, or not of two readings, and for a label that names padding.
        """
        logits, target = check_option_logits(option_logits), check_option_logits(target_option_logits)
        labels = check_labels(labels, logits)
        n, chance = len(labels), _chance(logits)
        known = ((logits.argmax(axis=1) == labels).mean() - chance) / (1 - chance)
        agreed = _agreed(votes, chance)
        chance = _chance(target)
        agreed_on_target = _agreed(target_votes, chance)
        # The line through the origin that the labels and the guess agree on best (least squares).
        ratio = max(n * known * agreed + self.pseudo_count, 0.0) / (n * agreed**2 + self.pseudo_count)
        accuracy = chance + (1 - chance) * min(ratio * agreed_on_target, 1 - 1 / (n + 2))
        self.temperature = np.exp([_log_temperature_of(target, accuracy)])
        self.found = {
            "known": float(known),
            "agreed": agreed,
            "agreed_on_target": agreed_on_target,
            "expected_accuracy": float(accuracy),
        }
        return self


def _chance(logits: np.ndarray) -> float:
    """How often a guess is right."""
    return float(np.mean(1.0 / np.isfinite(logits).sum(axis=1)))


def _agreed(votes, chance: float) -> float:
    """
    Share of the questions that the readings agree on, beyond what guesses would: its mean under a normal likelihood, given
    that it is not negative. More than nothing, therefore, the more so the fewer questions tell.
    """
    from scipy.stats import norm

    if votes is None:
        raise ValueError("There are no votes: predict with `predict_options(..., votes=True)`.")
    votes = np.asarray(votes)
    if votes.ndim != 2 or votes.shape[1] != 2 or not len(votes):
        raise ValueError(f"votes must have shape (N, 2), one column for each reading, got {votes.shape}.")
    share = ((votes[:, 0] == votes[:, 1]).mean() - chance) / (1 - chance)
    error = np.sqrt(chance / (1 - chance) / len(votes))  # of guesses
    return float(share + error * np.exp(norm.logpdf(share / error) - norm.logcdf(share / error)))


def _log_temperature_of(logits: np.ndarray, confidence: float) -> float:
    """Logarithm of the T that gives `softmax(logits / T)` this mean confidence; the limit where none does."""
    from scipy.optimize import brentq

    def excess(log_temperature: float) -> float:
        return float(softmax(logits / np.exp(log_temperature)).max(axis=1).mean() - confidence)

    if excess(_LIMIT) >= 0:
        return _LIMIT
    return brentq(excess, -_LIMIT, _LIMIT) if excess(-_LIMIT) > 0 else -_LIMIT
