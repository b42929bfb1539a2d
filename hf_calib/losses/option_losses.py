"""Cross-entropy over the options of a question."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .em_ece_loss import finite_logits


def option_cross_entropy(
    option_logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Compute the cross-entropy over the options, summed over the questions.

    .. math::

        - \sum_i \log \mathrm{softmax}(z_i)_{y_i}

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits z; their softmax is computed in float32.
        labels (`torch.Tensor` of shape `(batch,)`):
            Index y of the right option.
        mask (`torch.Tensor` of shape `(batch, num_options)`, *optional*):
            True where there is an option; by default where the logit is not -inf.

    Returns:
        `torch.Tensor`: a scalar, in nats; 0 for an empty batch.

    Example:

    ```python
    >>> import torch
    >>> option_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # log(2)
    tensor(0.6931)

    ```
    """
    logits, _ = finite_logits(option_logits, mask)
    return F.cross_entropy(logits, labels, reduction="sum")
