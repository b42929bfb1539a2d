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

    @property
    def better(self) -> bool:
        """Whether the trained model has the smaller negative log-likelihood."""
        return self.difference < 0

    def sentence(self) -> str:
        """The comparison in a sentence."""
        rival = "the aligned model as it is"
        if self.method != AS_IS:
            rival = f"the aligned model under {METHODS[self.method].title}"
        place = "better than" if self.better else "not better than"
        chance = ", within chance" if abs(self.difference) < 2 * self.difference_se else ""
        return (
            f"On {self.n:,} labels that no gradient saw, the restored model is {place} {rival}{chance}: NLL "
            f"{self.trained_nll:.3f} against {self.posthoc_nll:.3f} (difference {self.difference:+.3f} ± "
            f"{self.difference_se:.3f})."
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers, flat."""
        return {f"no_harm_{name}": value for name, value in {**asdict(self), "better": self.better}.items()}


def compare_with_posthoc(trained: OptionPredictions, before: Comparison) -> NoHarm:
    """
    Compare by the paired negative log-likelihood, on questions that neither was fitted on.

    Args:
        trained ([`OptionPredictions`]):
            Predictions of the trained model for questions that were held out from its training.
        before ([`~hf_calib.evaluation.compare.Comparison`]):
            Cross-validated calibrators of the model before training, on the labels, which include these questions.

    Raises:
        `ValueError`: if a question is not among the labels.
    """
    best = min(before.scores, key=lambda name: before.scores[name]["cv_nll"])
    rival = before.predictions[best].select(trained.ids)
    losses = [_losses(predictions, rival.labels) for predictions in (trained, rival)]
    difference = losses[0] - losses[1]
    return NoHarm(
        n=len(trained),
        method=best,
        trained_nll=float(losses[0].mean()),
        posthoc_nll=float(losses[1].mean()),
        difference=float(difference.mean()),
        difference_se=float(difference.std(ddof=1) / np.sqrt(len(difference))),
    )


def _losses(predictions: OptionPredictions, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(predictions.probabilities[np.arange(len(labels)), labels], 1e-12))
