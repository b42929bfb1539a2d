"""Calibration loss of the code that the authors of CFT and RCFT published, where it differs from their paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..measures.binning import bin_edges, inner_edges, reliability_bins
from .em_ece_loss import finite_logits


CALIBRATION_WEIGHT = 1e-3  # of the calibration loss in the objective
_NUM_BINS = 10


class ReleasedCodeLoss:
    r"""
    Calibration loss of the authors' code, for `em_preset="released_code"`.

    The E-step, `fit`, counts the questions and the right answers in ten equal-width bins of the confidence. The loss
    of a question whose confidence is in bin b, with :math:`n_b` questions and accuracy :math:`a_b` at the E-step, is

    .. math::

        \frac{1}{n_b} \Big[ (q_{(1)} - a_b)^2 + \sum_{j \ge 2} (q_{(j)} - t_{(j)})^2 \Big]

    for all bins but the last, where it is 0. The tail :math:`t_{(j)}` is that of the paper with the top target
    :math:`a_b`, but a function of the probabilities through which gradients flow. :math:`a_b` may be below 1/K, and is
    0 in a bin without questions. There the code divides by 0; here :math:`n_b` is then 1. The code has K = 4 options;
    with other numbers K - 1 takes the place of 3 in the tail.

    References:
        Xiao et al., ICML 2025, https://huggingface.co/papers/2505.01997; their code:
        https://github.com/ZhanliangAaronWang/RestoreLLMCalibration. The differences: docs/concepts/em-ece.md.
    """

    def __init__(self):
        self._counts: np.ndarray | None = None
        self._accuracies: np.ndarray | None = None

    @property
    def fitted(self) -> bool:
        """Whether the bins have been counted."""
        return self._counts is not None

    def fit(self, probabilities, labels) -> ReleasedCodeLoss:
        """
        Count the questions and the right answers in the bins of the confidence.

        Args:
            probabilities (`torch.Tensor` of shape `(N, K)`):
                Option probabilities; 0 in the columns beyond a question's options.
            labels (`torch.Tensor` of shape `(N,)`):
                Index of the right option.

        Returns:
            `ReleasedCodeLoss`: itself.
        """
        confidences, predictions = (array.double().numpy() for array in torch.as_tensor(probabilities).cpu().max(-1))
        correct = (predictions == torch.as_tensor(labels).cpu().numpy()).astype(np.float64)
        bins = reliability_bins(confidences, correct, _NUM_BINS, "equal_width")
        self._counts = np.asarray(bins.counts, dtype=np.float64)
        self._accuracies = np.where(self._counts > 0, np.nan_to_num(bins.accuracy), 0.0)
        return self

    def __call__(self, option_logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Compute the sum of the losses of the questions.

        Args:
            option_logits (`torch.Tensor` of shape `(batch, num_options)`):
                Option logits.
            mask (`torch.Tensor` of shape `(batch, num_options)`, *optional*):
                True where there is an option; by default where the logit is not -inf.

        Returns:
            `torch.Tensor`: a scalar.

        Raises:
            `RuntimeError`: if the bins have not been counted.
        """
        if not self.fitted:
            raise RuntimeError("The bins are not counted: call fit (the E-step) first.")
        logits, mask = finite_logits(option_logits, mask)
        ranked = logits.sort(dim=-1, descending=True, stable=True).values
        q = ranked.softmax(-1)
        edges = torch.as_tensor(inner_edges(bin_edges(np.empty(0), _NUM_BINS)), dtype=q.dtype, device=q.device)
        bins = torch.bucketize(q[:, 0].detach().contiguous(), edges, right=True)
        counts, accuracies = (
            torch.as_tensor(array, dtype=q.dtype, device=q.device)[bins] for array in (self._counts, self._accuracies)
        )
        errors = (q[:, 0] - accuracies) ** 2 + ((q - _tail(ranked, accuracies, mask.sum(-1))) ** 2)[:, 1:].sum(-1)
        return (errors / counts.clamp(min=1)).masked_fill(bins == _NUM_BINS - 1, 0.0).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and accuracies of the bins as lists, for JSON."""
        return {
            name: None if array is None else array.tolist()
            for name, array in (("counts", self._counts), ("accuracies", self._accuracies))
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ReleasedCodeLoss:
        """Rebuild a loss from the result of [`ReleasedCodeLoss.state_dict`]."""
        loss = cls()
        if state["counts"] is not None:
            loss._counts, loss._accuracies = np.array(state["counts"]), np.array(state["accuracies"])
        return loss


def _tail(ranked: torch.Tensor, top: torch.Tensor, num_options: torch.Tensor) -> torch.Tensor:
    """
    Compute the targets of the options after the first, as functions of the logits.

    Args:
        ranked (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits in descending order.
        top (`torch.Tensor` of shape `(batch,)`):
            Target of the first option, in [0, 1]; 1 leaves 0 for the others.
        num_options (`torch.Tensor` of shape `(batch,)`):
            Number of options of each question; the columns after them are padding.

    Returns:
        `torch.Tensor` of shape `(batch, num_options)`: the targets; the first column has no meaning, padding is 0.
    """
    others = torch.arange(ranked.size(-1), device=ranked.device) < num_options[:, None]
    others = others & (torch.arange(ranked.size(-1), device=ranked.device) > 0)
    rest = 1 - top
    scale = torch.log((num_options - 1).clamp(min=1).to(ranked.dtype)) / torch.where(rest > 0, rest, 1.0)
    # q_(j) / q_(2) from the logits, which does not overflow where q_(2) is 0
    ratio = (ranked - ranked[:, 1:2]).masked_fill(~others, 0.0).exp()
    saturation = torch.tanh(scale[:, None] * ratio).masked_fill(~others, 0.0)
    share = rest / (saturation.sum(-1) + num_options - 1).clamp(min=1)
    return torch.where(others, share[:, None] * (saturation + 1), 0.0)
