"""Margins of preference pairs under each of TRL's losses, and soft labels."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset

from ..data.preference_pairs import PREFERENCE_COLUMN
from ..losses.preference_links import LINKED_LOSSES, NORMALIZED_LOSSES, UNLINKED_LOSSES, loss_of_margin


# Losses that can take a probability as the label of a pair.
SOFT_LOSSES = ("sigmoid", "sigmoid_norm", "robust", "ipo")


def sequence_log_probs(
    per_token: torch.Tensor, completion_mask: torch.Tensor, ld_alpha: float | None = None
) -> torch.Tensor:
    """
    Compute the log-probabilities of completions.

    Args:
        per_token (`torch.Tensor` of shape `(2 * batch, length)`):
            Log-probabilities of the tokens, 0 outside the completions; the first half is chosen, the second rejected.
        completion_mask (`torch.Tensor` of shape `(2 * batch, length)`):
            1 where a token belongs to the completion.
        ld_alpha (`float`, *optional*):
            Weight of the tokens beyond the length of the shorter completion (LD-DPO,
            https://huggingface.co/papers/2409.06411).

    Returns:
        `torch.Tensor` of shape `(2 * batch,)`.
    """
    if ld_alpha is None:
        return per_token.sum(dim=1)
    shared_length = torch.minimum(*completion_mask.sum(dim=1).chunk(2)).repeat(2)
    beyond = completion_mask.cumsum(dim=1) > shared_length[:, None]
    return (per_token * torch.where(beyond, ld_alpha, 1.0)).sum(dim=1)


def divergence_scores(log_ratios: torch.Tensor, f_divergence_type: str, alpha: float) -> torch.Tensor:
    r"""
    Compute the scores of completions under an f-divergence, as TRL does.

    .. math::

        f'(\pi / \pi_{\text{ref}})

    Args:
        log_ratios (`torch.Tensor`):
            log pi - log pi_ref.
        f_divergence_type (`str`):
            `f_divergence_type` of [`~trl.DPOConfig`].
        alpha (`float`):
            Its `f_alpha_divergence_coef`.

    Returns:
        `torch.Tensor` of the shape of `log_ratios`.

    References:
        f-DPO, https://huggingface.co/papers/2309.16240.
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
    Compute the margins of pairs: the score of the chosen completion minus that of the rejected one.

    Args:
        policy, reference (`torch.Tensor` of shape `(2 * batch,)`):
            Log-probabilities of the completions, chosen in the first half.
        completion_mask (`torch.Tensor` of shape `(2 * batch, length)`):
            1 where a token belongs to the completion.
        loss_types (`list[str]`):
            `loss_type` of [`~trl.DPOConfig`]. With several losses, the first one with a margin decides whether scores
            are sums or, as in IPO, means over tokens.
        f_divergence_type (`str`, *optional*, defaults to `"reverse_kl"`):
            See [`divergence_scores`].
        alpha (`float`, *optional*, defaults to `0.5`):
            See [`divergence_scores`].

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    scores = divergence_scores(policy - reference, f_divergence_type, alpha)
    if loss_of_margin(loss_types) in NORMALIZED_LOSSES:
        scores = scores / completion_mask.sum(dim=1).clamp(min=1)
    chosen, rejected = scores.chunk(2)
    return chosen - rejected


def soft_label_slope(
    loss_types: list[str],
    loss_weights: list[float],
    beta: float,
    label_smoothing: float = 0.0,
    use_weighting: bool = False,
) -> float:
    r"""
    Return the number s by which soft labels change the loss of votes.

    With the probability p that the chosen completion is preferred, the loss of a pair is the mean over both votes,

    .. math::

        p \, \ell(x) + (1 - p) \, \ell(-x) = \ell(x) + (1 - p) \, s \, x, \qquad x = \beta m

    Args:
        loss_types (`list[str]`), loss_weights (`list[float]`), beta (`float`), label_smoothing (`float`),
        use_weighting (`bool`):
            Those of [`~trl.DPOConfig`].

    Returns:
        `float`: s, times the weight of the loss.

    Raises:
        `ValueError`: unless one loss alone compares the completions of a pair, and it is one of `SOFT_LOSSES`; for
            `use_weighting`.
    """
    if use_weighting:
        raise ValueError(
            "use_weighting has no form with preference probabilities: set preference_probability_column=None."
        )
    compared = [name for name in loss_types if name in LINKED_LOSSES + UNLINKED_LOSSES + ("aot_unpaired",)]
    if len(compared) != 1 or compared[0] not in SOFT_LOSSES:
        raise ValueError(
            f"The pairs have preference probabilities, which loss_type={', '.join(loss_types)} cannot take as labels. "
            f"Choose one of {', '.join(SOFT_LOSSES)}, or train on the votes: preference_probability_column=None."
        )
    slopes = {"ipo": 2 / beta**2, "robust": 1 / (1 - 2 * label_smoothing)}
    return loss_weights[loss_types.index(compared[0])] * slopes.get(compared[0], 1.0)


def as_two_options(chosen: np.ndarray) -> np.ndarray:
    """
    Convert probabilities of the chosen completions into probabilities of two options.

    In every second row the rejected completion comes first, so that the right option is not always the same one, and a
    tie is right half of the time.

    Args:
        chosen (`np.ndarray` of shape `(N,)`):
            Probabilities of the chosen completions.

    Returns:
        `np.ndarray` of shape `(N, 2)`.
    """
    chosen = np.asarray(chosen, dtype=np.float64)
    columns = np.stack([chosen, 1 - chosen], axis=1)
    columns[1::2] = columns[1::2, ::-1]
    return columns


def comparisons(tokenized: Dataset) -> list[tuple]:
    """Return a key for each tokenized pair: its prompt and the set of its two completions."""
    columns = (tokenized[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [(tuple(p), frozenset((tuple(c), tuple(r)))) for p, c, r in zip(*columns, strict=True)]


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """Return the columns of a data set; those of a stream that does not state them are read from its first row."""
    names = dataset.column_names
    return list(next(iter(dataset), ())) if names is None else names


def rename_preferences(dataset: Dataset | IterableDataset, column: str | None) -> Dataset | IterableDataset:
    """Rename the column of the preference probabilities to `preference_probability`; `None` leaves no such column."""
    if column == PREFERENCE_COLUMN:
        return dataset
    names = column_names(dataset)
    if PREFERENCE_COLUMN in names:
        dataset = dataset.remove_columns(PREFERENCE_COLUMN)
    return dataset.rename_column(column, PREFERENCE_COLUMN) if column in names else dataset
