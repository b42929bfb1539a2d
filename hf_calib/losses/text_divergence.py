"""Divergence of next-token distributions from anchors: the most probable tokens of another model."""

from __future__ import annotations

import torch


def anchor_divergence(log_probabilities: torch.Tensor, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""
    Compute the divergence of next-token distributions from anchors, with the rest as one token.

    .. math::

        \sum_{k \in \text{top}} p_k \log \frac{p_k}{q_k} + p_{\text{rest}} \log \frac{p_{\text{rest}}}{q_{\text{rest}}}

    It is at most the divergence over the whole vocabulary (data processing inequality).

    Args:
        log_probabilities (`torch.Tensor` of shape `(positions, vocabulary)`):
            The model's.
        tokens, targets (`torch.Tensor` of shape `(positions, tokens)`):
            Tokens of the anchors and their log-probabilities.

    Returns:
        `torch.Tensor` of shape `(positions,)`, in nats.
    """
    chosen = log_probabilities.gather(-1, tokens)
    smallest = torch.finfo(torch.float32).eps
    rest, other = ((1 - values.exp().sum(-1)).clamp(min=smallest) for values in (targets, chosen))
    return (targets.exp() * (targets - chosen)).sum(-1) + rest * (rest / other).log()
