"""The M-step of EM-ECE: divergence of the option probabilities from their targets."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F


def finite_logits(option_logits: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Replace the logits of missing options by the lowest float32 number.

    Their softmax stays exactly 0, and all derivatives stay finite.

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits.
        mask (`torch.Tensor` of shape `(batch, num_options)`, *optional*):
            True where there is an option; by default where the logit is not -inf.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the logits in float32, and the mask.
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
    r"""
    Compute the divergence of the option probabilities q from their targets t.

    .. math::

        \text{brier:} \quad \sum_k (q_k - t_k)^2 \qquad\qquad
        \text{kl:} \quad \mathrm{KL}(t \| q) = \sum_k t_k \log \frac{t_k}{q_k}

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits; their softmax is computed in float32.
        targets (`torch.Tensor` of shape `(batch, num_options)`):
            Target distributions; no gradient flows through them.
        mask (`torch.Tensor` of shape `(batch, num_options)`, *optional*):
            True where there is an option; by default where the logit is not -inf.
        loss_type (`"brier"` or `"kl"`, *optional*, defaults to `"brier"`):
            `"brier"`: the squared error of the paper. `"kl"`: the Kullback-Leibler divergence, whose gradient with
            respect to the logits, q - t, does not vanish where q is close to 0 or 1.
        reduction (`"mean"` or `"sum"`, *optional*, defaults to `"mean"`):
            Reduction over the questions.

    Returns:
        `torch.Tensor`: a scalar, at least 0; 0 for an empty batch.

    Raises:
        `ValueError`: for an unknown `loss_type`.

    References:
        Xiao et al., ICML 2025, https://huggingface.co/papers/2505.01997, section 5 (the squared error). `"kl"` is
        ours.
    """
    targets = targets.detach().to(option_logits.device, torch.float32)
    logits, mask = finite_logits(option_logits, mask)
    if loss_type == "brier":
        per_option = (F.softmax(logits, dim=-1) - targets).square()
    elif loss_type == "kl":
        per_option = torch.special.xlogy(targets, targets) - targets * F.log_softmax(logits, dim=-1)
    else:
        raise ValueError(f"Unknown loss_type {loss_type!r}; choose 'brier' or 'kl'.")
    total = per_option.masked_fill(~mask, 0).sum()
    return total if reduction == "sum" else total / max(len(option_logits), 1)
