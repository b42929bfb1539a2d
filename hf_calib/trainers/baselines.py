"""Calibration terms of others, for comparison: what they add to DPO's loss on the tokens of the chosen completions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..inference.option_head import over_chunks


# Steepness with which a margin of probabilities in [-1, 1] becomes a surrogate of "correct"; the choice is ours.
CATTO_SHARPNESS = 10.0


def token_statistics(
    lm_head: nn.Module, hidden_states: torch.Tensor, tokens: torch.Tensor, transform: Callable
) -> torch.Tensor:
    """
    Confidence, margin and entropy of next-token predictions.

    Args:
        lm_head (`torch.nn.Module`):
            Output embeddings.
        hidden_states (`torch.Tensor` of shape `(tokens, hidden_size)`):
            Last hidden states that predict the tokens.
        tokens (`torch.Tensor` of shape `(tokens,)`):
            The tokens that came.
        transform (`Callable`):
            See [`~hf_calib.inference.option_head.logit_transform`].

    Returns:
        `torch.Tensor` of shape `(tokens, 3)`: the largest probability; the probability of the token that came less that of
        the best other one; the entropy in nats.
    """

    def statistics(hidden_states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        log_probs = transform(lm_head(hidden_states).float()).log_softmax(-1)
        probs = log_probs.exp()
        came = probs.gather(-1, tokens[:, None])[:, 0]
        best_other = probs.scatter(-1, tokens[:, None], -1.0).amax(-1)
        entropy = -(probs * log_probs).sum(-1)
        return torch.stack([torch.maximum(came, best_other), came - best_other, entropy], dim=-1)

    return over_chunks(statistics, lm_head, hidden_states, tokens)


def catto_loss(statistics: torch.Tensor) -> torch.Tensor:
    """
    A margin-based token-level calibration term in the manner of CATTO (Parikh et al., arXiv 2601.23096).

    Theirs: the confidence of every token is pulled, by an L1 loss added to DPO's, towards a differentiable surrogate of
    its being correct that grows with the margin between the true token and the best other one. Ours: the surrogate is
    `sigmoid(10 * margin)`, no gradient flows through it, and only the chosen completions count.

    Args:
        statistics (`torch.Tensor` of shape `(tokens, 3)`):
            See [`token_statistics`].

    Returns:
        `torch.Tensor`: mean over the tokens.
    """
    surrogate = torch.sigmoid(CATTO_SHARPNESS * statistics[:, 1]).detach()
    return (statistics[:, 0] - surrogate).abs().mean()


def entropy_bonus(statistics: torch.Tensor) -> torch.Tensor:
    """
    Minus the mean entropy: the confidence penalty of Pereyra et al. (arXiv 1701.06548), on the tokens of the chosen
    completions.

    Args:
        statistics (`torch.Tensor` of shape `(tokens, 3)`):
            See [`token_statistics`].

    Returns:
        `torch.Tensor`: in nats, at most 0.
    """
    return -statistics[:, 2].mean()
