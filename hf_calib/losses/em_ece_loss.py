"""M-step of EM-ECE: the divergence of option probabilities from their targets."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F


def finite_logits(option_logits: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Option logits in float32, and the mask of the options: by default, where the logit is not -inf. Elsewhere a finite floor
    in place of -inf keeps every derivative finite; its softmax is exactly 0 all the same.
    """
    mask = option_logits != -torch.inf if mask is None else mask
    return option_logits.float().masked_fill(~mask, torch.finfo(torch.float32).min), mask


def em_ece_loss(
    option_logits: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None = None,
    loss_type: Literal["brier", "kl"] = "brier",
    reduction: Literal["mean", "sum"] = "mean",
) -> torch.Tensor:
    """
    The M-step: how far the option probabilities are from their targets.

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits; softmax is taken in float32.
        targets (`torch.Tensor` of shape `(batch, num_options)`):
            Target distributions; no gradient flows through them.
        mask (`torch.Tensor` of shape `(batch, num_options)`, *optional*):
            True where there is an option. By default, where the logit is not -inf.
        loss_type (`"brier"` or `"kl"`, *optional*, defaults to `"brier"`):
            `"brier"`: the squared error ||q - t||^2 of the paper. `"kl"`: KL(t || q), whose gradient in the logits is q - t
            and does not fade where q is saturated (derived in docs/method.md).
        reduction (`"mean"` or `"sum"`, *optional*, defaults to `"mean"`):
            Over the questions.

    Returns:
        `torch.Tensor`: a scalar, at least 0; 0 for an empty batch.

    Raises:
        `ValueError`: for an unknown `loss_type`.
    """
    targets = targets.detach().to(option_logits.device, torch.float32)
    logits, mask = finite_logits(option_logits, mask)
    if loss_type == "brier":
        per_question = (F.softmax(logits, dim=-1) - targets).masked_fill(~mask, 0).square().sum(-1)
    elif loss_type == "kl":
        log_ratio = (torch.special.xlogy(targets, targets) - targets * F.log_softmax(logits, dim=-1)).masked_fill(
            ~mask, 0
        )
        per_question = log_ratio.sum(-1)
    else:
        raise ValueError(f"Unknown loss_type {loss_type!r}; choose 'brier' or 'kl'.")
    total = per_question.sum()
    return total if reduction == "sum" else total / max(len(option_logits), 1)
