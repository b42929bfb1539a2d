"""Batch calibration: option logits less what the model gives an option on all questions, without answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from hf_calib.posthoc import cross_validate, fit_calibrator


STRENGTHS = tuple(np.linspace(0, 1, 11))


def option_priors(
    option_logits: np.ndarray, choices: Sequence[Sequence[str]], subjects: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Logarithm of the mean likelihood of each option, by subject and text, over questions without answers."""
    found: dict[tuple[str, str], list[float]] = {}
    for row, texts, subject in zip(option_logits, choices, subjects, strict=True):
        for value, text in zip(row, texts, strict=False):
            found.setdefault((subject, text), []).append(value)
    return {key: float(logsumexp(values) - np.log(len(values))) for key, values in found.items()}


class BatchCalibration:
    r"""
    Batch calibration with a strength chosen on labels (BCL), followed by a temperature.

    .. math:: \mathrm{softmax}\left( (z_k - \gamma \log \bar p_k) / T \right)

    with the mean likelihood of option k over unlabelled questions of the same subject. Contextual calibration
    (arXiv 2102.09690) takes the likelihood without content instead of this mean. Strength and temperature are those of
    least cross-validated negative log-likelihood.

    Args:
        priors (`dict[tuple[str, str], float]`):
            Of [`option_priors`]. An option that is not in it is not corrected.

    References:
        Zhou et al., "Batch Calibration", arXiv 2309.17249.
    """

    def __init__(self, priors: dict[tuple[str, str], float]):
        self.priors = priors

    def fit(self, option_logits, labels, choices, subjects) -> BatchCalibration:
        """Fit on option logits `(N, K)` with their labels, option texts and subjects."""
        losses = []
        for strength in STRENGTHS:
            logits = self._corrected(option_logits, choices, subjects, strength)
            outcomes = cross_validate(["temperature"], logits, labels)["temperature"]
            losses.append(-np.log(np.maximum(outcomes[np.arange(len(labels)), labels], 1e-12)).mean())
        self.strength = STRENGTHS[int(np.argmin(losses))]
        logits = self._corrected(option_logits, choices, subjects, self.strength)
        self.temperature = fit_calibrator("temperature", logits, labels)
        return self

    def transform(self, option_logits, choices, subjects) -> np.ndarray:
        """Calibrated probabilities `(N, K)`."""
        return self.temperature.transform(self._corrected(option_logits, choices, subjects, self.strength))

    def _corrected(self, option_logits, choices, subjects, strength: float) -> np.ndarray:
        corrected = np.array(option_logits, dtype=np.float64)
        for row, texts, subject in zip(corrected, choices, subjects, strict=True):
            row[: len(texts)] -= [strength * self.priors.get((subject, text), 0.0) for text in texts]
        return corrected
