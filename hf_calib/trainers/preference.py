"""The margin of a preference pair as each of TRL's losses scores it, and the probability that it implies."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset


# TRL's losses that compare the two completions of a pair; "sft" has none to compare, "aot_unpaired" compares across pairs.
MARGIN_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
)
# Those that score a completion by its mean over tokens.
NORMALIZED_LOSSES = ("ipo", "sigmoid_norm")
# Those that regress the margin, and what it is to be multiplied by before a sigmoid reads it; see `preference_scale`.
REGRESSION_SCALES = {"ipo": 4.0, "sppo_hard": 2.0}


def sequence_log_probs(
    per_token: torch.Tensor, completion_mask: torch.Tensor, ld_alpha: float | None = None
) -> torch.Tensor:
    """
    Log-probabilities of completions.

    Args:
        per_token (`torch.Tensor` of shape `(2 * batch, length)`):
            Log-probabilities of the tokens, 0 outside the completions; chosen in the first half, rejected in the second.
        completion_mask (`torch.Tensor` of shape `(2 * batch, length)`):
            1 where a token belongs to the completion.
        ld_alpha (`float`, *optional*):
            Weight of the tokens beyond the length that both completions of a pair share (LD-DPO, arXiv 2409.06411).

    Returns:
        `torch.Tensor` of shape `(2 * batch,)`.
    """
    if ld_alpha is None:
        return per_token.sum(dim=1)
    shared_length = torch.minimum(*completion_mask.sum(dim=1).chunk(2)).repeat(2)
    beyond = completion_mask.cumsum(dim=1) > shared_length[:, None]
    return (per_token * torch.where(beyond, ld_alpha, 1.0)).sum(dim=1)


def divergence_scores(log_ratios: torch.Tensor, f_divergence_type: str, alpha: float) -> torch.Tensor:
    """
    Scores f'(pi / pi_ref) of completions under an f-divergence (f-DPO, arXiv 2309.16240), as TRL computes them.

    Args:
        log_ratios (`torch.Tensor`):
            log pi - log pi_ref.
        f_divergence_type (`str`):
            `f_divergence_type` of [`~trl.DPOConfig`].
        alpha (`float`):
            Its `f_alpha_divergence_coef`.
    """
    if f_divergence_type == "forward_kl":
        return 1 - torch.exp(-log_ratios)
    if f_divergence_type == "js_divergence":
        return math.log(2) + F.logsigmoid(log_ratios)
    if f_divergence_type == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        largest = 11.0 if log_ratios.dtype == torch.float16 else 80.0
        exponent = torch.clamp((alpha - 1) * log_ratios.float(), max=largest)
        return ((torch.exp(exponent) - 1) / (alpha - 1)).to(log_ratios.dtype)
    return log_ratios


def preference_margins(
    policy: torch.Tensor,
    reference: torch.Tensor,
    completion_mask: torch.Tensor,
    loss_types: list[str],
    f_divergence_type: str = "reverse_kl",
    alpha: float = 0.5,
) -> torch.Tensor:
    """
    By how much each chosen completion outscores the rejected one, as the loss sees it.

    Args:
        policy, reference (`torch.Tensor` of shape `(2 * batch,)`):
            Log-probabilities of the completions, chosen in the first half.
        completion_mask (`torch.Tensor` of shape `(2 * batch, length)`):
            1 where a token belongs to the completion.
        loss_types (`list[str]`):
            `loss_type` of [`~trl.DPOConfig`]. With several losses the first that has a margin decides whether it is
            of sums or, as in IPO, of means over tokens.
        f_divergence_type (`str`), alpha (`float`):
            See [`divergence_scores`].

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    scores = divergence_scores(policy - reference, f_divergence_type, alpha)
    if _loss_of_margin(loss_types) in NORMALIZED_LOSSES:
        scores = scores / completion_mask.sum(dim=1).clamp(min=1)
    chosen, rejected = scores.chunk(2)
    return chosen - rejected


def preference_scale(loss_types: list[str]) -> float:
    """
    Number c by which `sigmoid(c * beta * margin)` is the preference probability that a trained margin implies.

    It is 1 for DPO, whose expected loss is least where this is the probability of winning itself (Bradley-Terry), and
    for all losses without a reading of their own. IPO (Azar et al., arXiv 2310.12036) and SPPO (arXiv 2405.00675) regress
    the margin: for a completion that wins with probability p their expected loss is least at `beta * margin = p - 1/2` and
    `2 * p - 1`. The sigmoid that touches this line at the tie has c = 4 and 2. With c = 1 the margin of certainty would
    read as .62 under IPO, and calibration would ask for margins far beyond those that the loss allows.

    Args:
        loss_types (`list[str]`):
            `loss_type` of [`~trl.DPOConfig`].

    Returns:
        `float`.
    """
    return REGRESSION_SCALES.get(_loss_of_margin(loss_types), 1.0)


def _loss_of_margin(loss_types: list[str]) -> str | None:
    """With several losses, the first that has a margin decides how it is read."""
    return next((name for name in loss_types if name in MARGIN_LOSSES), None)


def as_two_options(chosen: np.ndarray) -> np.ndarray:
    """
    Probabilities `(N,)` of the chosen completion as those of two options, `(N, 2)`.

    In every second row the rejected completion comes first. The right option is then not always the same one, and a tie
    (where the policy still is its reference, all are) is decided rightly half of the time.
    """
    chosen = np.asarray(chosen, dtype=np.float64)
    columns = np.stack([chosen, 1 - chosen], axis=1)
    columns[1::2] = columns[1::2, ::-1]
    return columns


def comparisons(tokenized: Dataset) -> list[tuple]:
    """What each tokenized pair asks: its prompt and its two completions, whichever of them was chosen."""
    columns = (tokenized[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [(tuple(p), frozenset((tuple(c), tuple(r)))) for p, c, r in zip(*columns, strict=True)]
