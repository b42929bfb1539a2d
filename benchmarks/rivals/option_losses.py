"""Losses over options: label smoothing, focal loss, MMCE and soft-binned ECE."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hf_calib.losses.em_ece_loss import finite_logits


MMCE_WIDTH = 0.4  # of its Laplacian kernel, in confidence
SB_ECE_BINS = 15
SB_ECE_TEMPERATURE = 0.01


def smoothed_focal_loss(
    option_logits: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> torch.Tensor:
    r"""
    Compute the cross-entropy over the options with smoothed labels and the focal factor, summed over the questions.

    .. math::

        - \sum_k s_k (1 - q_k)^\gamma \log q_k, \qquad s = (1 - \epsilon) \, \mathrm{onehot}(y) + \epsilon / K

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits; -inf where there is no option.
        labels (`torch.Tensor` of shape `(batch,)`):
            Index y of the right option.
        mask (`torch.Tensor` of shape `(batch, num_options)`, *optional*):
            True where there is an option; by default where the logit is not -inf.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Share epsilon of the label that is spread over the K options of the question, in [0, 1).
        focal_gamma (`float`, *optional*, defaults to `0.0`):
            Exponent gamma of the focal loss; at least 0.

    Returns:
        `torch.Tensor`: a scalar, in nats.

    References:
        Label smoothing: Szegedy et al., https://huggingface.co/papers/1512.00567. Focal loss: Lin et al.,
        https://huggingface.co/papers/1708.02002, and Mukhoti et al., https://huggingface.co/papers/2002.09437.
    """
    logits, mask = finite_logits(option_logits, mask)
    log_probs = logits.log_softmax(-1)
    targets = label_smoothing * mask / mask.sum(-1, keepdim=True)
    targets = targets.scatter_add(-1, labels[:, None], torch.full_like(targets[:, :1], 1 - label_smoothing))
    if focal_gamma:
        # 1 - q has an infinite slope at 0 for gamma < 1.
        targets = targets * (-torch.expm1(log_probs)).clamp(min=1e-6) ** focal_gamma
    return -(targets * log_probs.masked_fill(~mask, 0.0)).sum()


def mmce(option_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""
    Compute the maximum mean calibration error (MMCE) of a batch.

    .. math::

        \sqrt{\frac{1}{N^2} \sum_{ij} (y_i - c_i) (y_j - c_j) \exp(-|c_i - c_j| / 0.4)}

    with the confidences c and y = 1 where the prediction is right.

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits; -inf where there is no option.
        labels (`torch.Tensor` of shape `(batch,)`):
            Index of the right option.

    Returns:
        `torch.Tensor`: a scalar in [0, 1].

    References:
        Kumar, Sarawagi and Jain, "Trainable Calibration Measures for Neural Networks from Kernel Mean Embeddings",
        ICML 2018.
    """
    confidence, correct = _confidence(option_logits, labels)
    gap = correct - confidence
    kernel = torch.exp(-(confidence[:, None] - confidence[None, :]).abs() / MMCE_WIDTH)
    # The root has no derivative at 0, where a batch is calibrated (or empty).
    return (gap @ kernel @ gap / max(len(gap), 1) ** 2).clamp(min=1e-12).sqrt()


def soft_binned_ece(option_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""
    Compute the soft-binned ECE (SB-ECE) of a batch: the root mean square gap of 15 bins with soft membership.

    A confidence c belongs to the bins in the proportions :math:`\mathrm{softmax}(-(c - \text{centres})^2 / 0.01)`.

    Args:
        option_logits (`torch.Tensor` of shape `(batch, num_options)`):
            Option logits; -inf where there is no option.
        labels (`torch.Tensor` of shape `(batch,)`):
            Index of the right option.

    Returns:
        `torch.Tensor`: a scalar in [0, 1].

    References:
        Karandikar et al., https://huggingface.co/papers/2108.00106, equation 11 with p = 2.
    """
    confidence, correct = _confidence(option_logits, labels)
    centres = (torch.arange(SB_ECE_BINS, device=confidence.device) + 0.5) / SB_ECE_BINS
    membership = (-((confidence[:, None] - centres).square()) / SB_ECE_TEMPERATURE).softmax(-1)
    # The size of a bin times its squared gap is (sum of its members' gaps)^2 / size.
    sums, sizes = membership.T @ (correct - confidence), membership.sum(0).clamp(min=1e-12)
    return ((sums.square() / sizes).sum() / max(len(confidence), 1)).clamp(min=1e-12).sqrt()


def _confidence(option_logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    confidence, prediction = option_logits.float().softmax(-1).max(-1)
    return confidence, (prediction == labels).float()


# Statistics of a batch of labelled questions, by name.
BATCH_CALIBRATION_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mmce": mmce,
    "sb_ece": soft_binned_ece,
}
