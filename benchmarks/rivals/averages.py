"""Averages of an aligned model and its parent: of weights (WiSE-FT) and of probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.special import softmax
from transformers import PreTrainedModel

from hf_calib.posthoc import AS_IS, PostHocCalibrator, cross_validate, fit_calibrator


SHARES = (0.0, 0.02, 0.05, *(round(0.1 * step, 1) for step in range(1, 11)))  # of the parent


def average_weights(aligned: PreTrainedModel, parent: PreTrainedModel, share: float) -> PreTrainedModel:
    """
    Write the average of two models' weights into the first one.

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903.
    """
    with torch.no_grad():
        for weight, other in zip(aligned.parameters(), parent.parameters(), strict=True):
            weight.lerp_(other, share)
    return aligned


def choose_share(
    option_logits: Mapping[float, np.ndarray], labels: np.ndarray, shares: Sequence[float] = SHARES
) -> tuple[float, PostHocCalibrator | None]:
    """
    Choose the parent's share, and whether a temperature follows, by cross-validated negative log-likelihood.

    Args:
        option_logits (`Mapping[float, np.ndarray]`):
            Option logits `(N, K)` of the labelled questions, by the share.
        labels (`np.ndarray` of shape `(N,)`):
            Index of the right option.
        shares (`Sequence[float]`, *optional*):
            Shares to choose from.
    """
    losses = {}
    for share in shares:
        for name, outcome in cross_validate(["temperature"], option_logits[share], labels).items():
            losses[share, name] = negative_log_likelihood(outcome, labels)
    share, name = min(losses, key=losses.get)
    return share, None if name == AS_IS else fit_calibrator(name, option_logits[share], labels)


class ProbabilityAverage:
    """
    `(1 - w) p_aligned + w p_parent`, each with or without a temperature; all chosen by the likelihood of the labels.
    """

    def fit(self, aligned: np.ndarray, parent: np.ndarray, labels: np.ndarray) -> ProbabilityAverage:
        """Fit on the option logits `(N, K)` of both models."""
        losses = {}
        for which in ((False, False), (True, False), (True, True)):
            sides = [
                cross_validate(["temperature"], logits, labels)["temperature"] if scaled else softmax(logits, axis=1)
                for logits, scaled in zip((aligned, parent), which, strict=True)
            ]
            for share in SHARES:
                losses[share, which] = negative_log_likelihood(_mixed(*sides, share), labels)
        self.share, which = min(losses, key=losses.get)
        self.calibrators = [
            fit_calibrator("temperature", logits, labels) if scaled else None
            for logits, scaled in zip((aligned, parent), which, strict=True)
        ]
        return self

    def transform(self, aligned: np.ndarray, parent: np.ndarray) -> np.ndarray:
        """Averaged probabilities `(N, K)`."""
        sides = [
            softmax(logits, axis=1) if calibrator is None else calibrator.transform(logits)
            for logits, calibrator in zip((aligned, parent), self.calibrators, strict=True)
        ]
        return _mixed(*sides, self.share)

    def scores(self, aligned: np.ndarray, parent: np.ndarray) -> np.ndarray:
        """Log-likelihoods of completions under the mixture of both models."""
        with np.errstate(divide="ignore"):
            return np.logaddexp(np.log(1 - self.share) + aligned, np.log(self.share) + parent)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())


def _mixed(aligned: np.ndarray, parent: np.ndarray, share: float) -> np.ndarray:
    return (1 - share) * aligned + share * parent
