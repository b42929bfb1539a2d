"""Losses over the tokens of the chosen completions: a term like CATTO's, and an entropy bonus."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hf_calib.inference.option_head import over_chunks


# Slope of the sigmoid that makes a surrogate of "correct" out of a margin in [-1, 1]; the value is ours.
CATTO_SHARPNESS = 10.0


def token_statistics(
    lm_head: nn.Module, hidden_states: torch.Tensor, tokens: torch.Tensor, transform: Callable
) -> torch.Tensor:
    """
    Compute confidence, margin and entropy of next-token predictions.

    Args:
        lm_head (`torch.nn.Module`):
            Output embeddings.
        hidden_states (`torch.Tensor` of shape `(tokens, hidden_size)`):
            Last hidden states that predict the tokens.
        tokens (`torch.Tensor` of shape `(tokens,)`):
            The tokens.
        transform (`Callable`):
            See [`~hf_calib.inference.option_head.logit_transform`].

    Returns:
        `torch.Tensor` of shape `(tokens, 3)`: the largest probability; the probability of the token minus that of the
        best other token; the entropy in nats.
    """

    def statistics(hidden_states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        log_probs = transform(lm_head(hidden_states).float()).log_softmax(-1)
        probs = log_probs.exp()
        given = probs.gather(-1, tokens[:, None])[:, 0]
        best_other = probs.scatter(-1, tokens[:, None], -1.0).amax(-1)
        entropy = -(probs * log_probs).sum(-1)
        return torch.stack([torch.maximum(given, best_other), given - best_other, entropy], dim=-1)

    return over_chunks(statistics, lm_head, hidden_states, tokens)


def catto_loss(statistics: torch.Tensor) -> torch.Tensor:
    """
    Compute a margin-based calibration term over tokens, in the manner of CATTO.

    In CATTO, an L1 loss pulls the confidence of every token towards a differentiable surrogate of its being correct,
    which grows with the margin between the token and the best other one. Here the surrogate is `sigmoid(10 * margin)`,
    no gradient flows through it, and only the chosen completions count.

    Args:
        statistics (`torch.Tensor` of shape `(tokens, 3)`):
            See [`token_statistics`].

    Returns:
        `torch.Tensor`: a scalar, the mean over the tokens.

    References:
        Parikh et al., https://huggingface.co/papers/2601.23096.
    """
    surrogate = torch.sigmoid(CATTO_SHARPNESS * statistics[:, 1]).detach()
    return (statistics[:, 0] - surrogate).abs().mean()


def entropy_bonus(statistics: torch.Tensor) -> torch.Tensor:
    """
    Compute minus the mean entropy of the next-token predictions (the confidence penalty).

    Args:
        statistics (`torch.Tensor` of shape `(tokens, 3)`):
            See [`token_statistics`].

    Returns:
        `torch.Tensor`: a scalar in nats, at most 0.

    References:
        Pereyra et al., https://huggingface.co/papers/1701.06548.
    """
    return -statistics[:, 2].mean()
