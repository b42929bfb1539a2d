"""Losses over the options of a question: what teaches the answer, and the calibration terms of others beside EM-ECE."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .em_ece_loss import finite_logits


# Width of MMCE's Laplacian kernel in confidence (Kumar et al. 2018), and of SB-ECE's bins (see `soft_binned_ece`).
MMCE_WIDTH = 0.4
SB_ECE_BINS = 15
SB_ECE_TEMPERATURE = 0.01


def option_cross_entropy(
    option_logits: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> torch.Tensor:
    """
    Cross-entropy over the options, with smoothed labels and the focal factor where they are asked for.

    -sum_k s_k (1 - q_k)^gamma log q_k with s = (1 - e) onehot(y) + e / K, K being the options that the question has: label
    smoothing as of Szegedy et al. (arXiv 1512.00567), the focal loss of Lin et al. (arXiv 1708.02002), which Mukhoti et al.
    (arXiv 2002.09437) found to calibrate.

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits; -inf where there is no option.
        labels (`torch.Tensor` of shape `(batch,)`):
            Index of the right option.
        mask (`torch.Tensor` of shape `(batch, num_options)`, *optional*):
            True where there is an option. By default, where the logit is not -inf.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            The share e of every label that is spread over all options, in [0, 1).
        focal_gamma (`float`, *optional*, defaults to `0.0`):
            The exponent gamma; 0 gives the cross-entropy.

    Returns:
        `torch.Tensor`: sum over the questions, in nats.

    Example:
    ```python
    >>> import torch
    >>> option_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), focal_gamma=1.0)  # log(2) / 2
    tensor(0.3466)

    ```
    """
    logits, mask = finite_logits(option_logits, mask)
    log_probs = logits.log_softmax(-1)
    targets = label_smoothing * mask / mask.sum(-1, keepdim=True)
    targets = targets.scatter_add(-1, labels[:, None], torch.full_like(targets[:, :1], 1 - label_smoothing))
    if focal_gamma:
        # 1 - q >= 0 has an infinite slope at 0 for gamma < 1: there the loss is flat anyway.
        targets = targets * (-torch.expm1(log_probs)).clamp(min=1e-6) ** focal_gamma
    return -(targets * log_probs.masked_fill(~mask, 0.0)).sum()


def mmce(option_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Maximum mean calibration error of a batch (Kumar, Sarawagi and Jain, ICML 2018): the square root of
    mean_ij (correct_i - c_i) (correct_j - c_j) exp(-|c_i - c_j| / 0.4), c being the confidences.

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits; -inf where there is no option.
        labels (`torch.Tensor` of shape `(batch,)`):
            Index of the right option.

    Returns:
        `torch.Tensor`: a scalar in [0, 1].
    """
    confidence, correct = _confidence(option_logits, labels)
    gap = correct - confidence
    kernel = torch.exp(-(confidence[:, None] - confidence[None, :]).abs() / MMCE_WIDTH)
    # The root has no slope at 0, where a batch is calibrated (or empty).
    return (gap @ kernel @ gap / max(len(gap), 1) ** 2).clamp(min=1e-12).sqrt()


def soft_binned_ece(option_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Soft-binned ECE of a batch (SB-ECE, Karandikar et al., arXiv 2108.00106, equation 11 with p = 2): the root mean square
    gap between accuracy and confidence over 15 bins, to which a confidence c belongs as softmax(-(c - centre)^2 / 0.01) says.

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits; -inf where there is no option.
        labels (`torch.Tensor` of shape `(batch,)`):
            Index of the right option.

    Returns:
        `torch.Tensor`: a scalar in [0, 1].
    """
    confidence, correct = _confidence(option_logits, labels)
    centres = (torch.arange(SB_ECE_BINS, device=confidence.device) + 0.5) / SB_ECE_BINS
    membership = (-((confidence[:, None] - centres).square()) / SB_ECE_TEMPERATURE).softmax(-1)
    # Size times squared gap of a bin is (sum of the gaps of its members)^2 / size.
    sums, sizes = membership.T @ (correct - confidence), membership.sum(0).clamp(min=1e-12)
    return ((sums.square() / sizes).sum() / max(len(confidence), 1)).clamp(min=1e-12).sqrt()


def _confidence(option_logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    confidence, prediction = option_logits.float().softmax(-1).max(-1)
    return confidence, (prediction == labels).float()


# Calibration terms of a batch that ask for no E-step, by their name in `calibration_loss`.
BATCH_CALIBRATION_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mmce": mmce,
    "sb_ece": soft_binned_ece,
}
