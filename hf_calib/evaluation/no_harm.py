"""Comparison of a trained model with the model it was trained from, under its best post-hoc calibrator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..inference.predictions import OptionPredictions
from ..posthoc import AS_IS, METHODS
from .compare import Comparison


@dataclass(frozen=True)
class NoHarm:
    """
    Result of [`compare_with_posthoc`].

    Attributes:
        n (`int`): Number of questions.
        method (`str`): Post-hoc method of the model before training, or `"as is"`.
        trained_nll (`float`): Mean negative log-likelihood of the trained model, in nats.
        posthoc_nll (`float`): That of the model before training under cross-validated calibrators.
        difference (`float`): `trained_nll - posthoc_nll`.
        difference_se (`float`): Standard error of the paired difference.
    """

    n: int
    method: str
    trained_nll: float
    posthoc_nll: float
    difference: float
    difference_se: float

    @classmethod
    def from_losses(cls, trained: np.ndarray, posthoc: np.ndarray, method: str) -> NoHarm:
        """Compare by the negative log-likelihoods `(N,)` of both models on the same questions."""
        difference = trained - posthoc
        return cls(
            n=len(difference),
            method=method,
            trained_nll=float(trained.mean()),
            posthoc_nll=float(posthoc.mean()),
            difference=float(difference.mean()),
            difference_se=float(difference.std(ddof=1) / np.sqrt(len(difference))),
        )

    @property
    def better(self) -> bool:
        """Whether the trained model has the smaller negative log-likelihood."""
        return self.difference < 0

    def sentence(self, questions: str) -> str:
        """
        The comparison in a sentence.

        Args:
            questions (`str`):
                What the questions are, e.g. `"test questions"`.
        """
        rival = "the aligned model as it is"
        if self.method != AS_IS:
            rival = f"the aligned model under {METHODS[self.method].title}"
        place = "better than" if self.better else "not better than"
        chance = ", within chance" if abs(self.difference) < 2 * self.difference_se else ""
        return (
            f"On {self.n:,} {questions}, the trained model is {place} {rival}{chance}: NLL {self.trained_nll:.3f} "
            f"against {self.posthoc_nll:.3f} (difference {self.difference:+.3f} ± {self.difference_se:.3f})."
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers, and whether the trained model is better."""
        return {**asdict(self), "better": self.better}


def best_posthoc(before: Comparison) -> str:
    """The method with the smallest cross-validated negative log-likelihood, or `"as is"`."""
    return min(before.scores, key=lambda method: before.scores[method]["cv_nll"])


def compare_with_posthoc(trained: OptionPredictions, rival: OptionPredictions, method: str) -> NoHarm:
    """
    Compare by the paired negative log-likelihood.

    Args:
        trained ([`OptionPredictions`]):
            Predictions of the trained model, for labelled questions that it was not fitted to.
        rival ([`OptionPredictions`]):
            Calibrated predictions of the model before training for these and perhaps more questions, by calibrators
            fitted without them.
        method (`str`):
            Their post-hoc method.

    Raises:
        `ValueError`: if a question was predicted by one of them only.
    """
    rival = rival.matching(trained.ids, trained.labels)
    losses = [log_losses(predictions.probabilities, rival.labels) for predictions in (trained, rival)]
    return NoHarm.from_losses(*losses, method)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each label `(N,)` under option probabilities `(N, K)`, in nats."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))
