"""Links from the margin of a preference pair to a probability, one for each loss of TRL that has one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


# Losses that take the mean over the tokens of a completion.
NORMALIZED_LOSSES = ("ipo", "sigmoid_norm")
# "cdpo" is conservative DPO, which TRL has not: its loss "sigmoid" takes no `label_smoothing`.
LINKED_LOSSES = ("sigmoid", "sigmoid_norm", "cdpo", "robust", "nca_pair", "bco_pair", "ipo", "sppo_hard", "exo_pair")
SMOOTHED_LOSSES = ("cdpo", "robust", "exo_pair")
# Losses that compare the completions of a pair, but whose minimum does not tell the probability of winning.
UNLINKED_LOSSES = ("hinge", "aot", "apo_zero", "apo_down", "discopop")


@dataclass(frozen=True)
class PreferenceLink:
    r"""
    Link from the logit `x = beta * margin` of a pair to the probability that the chosen completion is preferred.

    .. math::

        p = \tfrac12 + g \, \left(\sigma(s x) - \tfrac12\right) \quad \text{(logistic)} \qquad
        p = \tfrac12 + g \, x \quad \text{(linear)}

    cut to [0, 1].

    Args:
        logistic (`bool`, *optional*, defaults to `True`):
            Whether the link is logistic.
        slope (`float`, *optional*, defaults to `1.0`):
            The slope s.
        gain (`float`, *optional*, defaults to `1.0`):
            The gain g.
    """

    logistic: bool = True
    slope: float = 1.0
    gain: float = 1.0

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """
        Compute preference probabilities.

        Args:
            logits (`torch.Tensor`):
                `beta * margin`, of any shape.

        Returns:
            `torch.Tensor` of that shape: probabilities in [0, 1].
        """
        centred = torch.sigmoid(self.slope * logits) - 0.5 if self.logistic else logits
        return (0.5 + self.gain * centred).clamp(0, 1)

    def log_odds(self, logits: torch.Tensor, smallest: float = 1e-3) -> torch.Tensor:
        """
        Compute the log-odds of preference probabilities.

        Args:
            logits (`torch.Tensor`):
                `beta * margin`, of any shape.
            smallest (`float`, *optional*, defaults to `1e-3`):
                Links other than the sigmoid reach 0 and 1; their probabilities are kept this far from both.

        Returns:
            `torch.Tensor` of that shape.
        """
        if self.logistic and self.gain == 1:
            return self.slope * logits
        return self.probabilities(logits).clamp(smallest, 1 - smallest).logit()


def preference_link(loss_types: str | Sequence[str] = "sigmoid", label_smoothing: float = 0.0) -> PreferenceLink:
    r"""
    Return the link of a loss: the map for which its expected loss is least at the probability of winning.

    With votes that the chosen completion wins with probability p, and :math:`x = \beta m`:

    - `"sigmoid"` (DPO), `"sigmoid_norm"`, `"nca_pair"`: :math:`p = \sigma(x)`;
    - `"cdpo"` with smoothing :math:`\epsilon`: the model predicts the smoothed vote,
      :math:`\sigma(x) = \epsilon + (1 - 2 \epsilon) p`, so :math:`p = (\sigma(x) - \epsilon) / (1 - 2 \epsilon)`;
    - `"robust"` (rDPO): the model predicts the vote before a share :math:`\epsilon` of the votes was turned round, so
      the votes in the data have :math:`p = \epsilon + (1 - 2 \epsilon) \sigma(x)`;
    - `"bco_pair"`: both rewards have a sigmoid of their own, :math:`p = \sigma(x / 2)`;
    - `"ipo"`: a regression of m on :math:`\pm 1 / (2 \beta)`, so :math:`p = 1/2 + x`;
    - `"sppo_hard"`: a regression of both log-ratios on :math:`\pm 1 / (2 \beta)`, so :math:`p = 1/2 + x / 2`;
    - `"exo_pair"`: a reverse KL, so :math:`p = 1/2 + x / (2 \log((1 - \epsilon) / \epsilon))`.

    The minimum is that of a pair by itself. Margins of several completions of a prompt are differences of scores.
    Under Bradley-Terry log-odds are too, but p - 1/2 is not: a linear link is exact for two completions alone.

    Args:
        loss_types (`str` or `Sequence[str]`, *optional*, defaults to `"sigmoid"`):
            `loss_type` of [`~trl.DPOConfig`], or `"cdpo"`. Of several losses, the first one that compares the
            completions of a pair counts.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            `label_smoothing` of [`~trl.DPOConfig`]; only `"cdpo"`, `"robust"` and `"exo_pair"` use it.

    Returns:
        [`PreferenceLink`]

    Raises:
        `ValueError`: for a loss without a link (`"hinge"`, `"aot"`, `"apo_zero"`, `"apo_down"` and `"discopop"`: their
        minimum tells only which completion wins more often), an unknown loss, and an impossible `label_smoothing`.

    References:
        DPO: https://huggingface.co/papers/2305.18290. cDPO: https://ericmitchell.ai/cdpo.pdf. rDPO:
        https://huggingface.co/papers/2403.00409. NCA: https://huggingface.co/papers/2402.05369. BCO:
        https://huggingface.co/papers/2404.04656. IPO: https://huggingface.co/papers/2310.12036. SPPO:
        https://huggingface.co/papers/2405.00675. EXO: https://huggingface.co/papers/2402.00856. The links of cDPO,
        rDPO, BCO, SPPO and EXO are derived here.
    """
    name = loss_of_margin(loss_types)
    if name not in LINKED_LOSSES:
        shown = loss_types if isinstance(loss_types, str) else ", ".join(loss_types)
        raise ValueError(
            f"loss_type={shown}: its margins imply no probability. Losses with a link are {', '.join(LINKED_LOSSES)}."
        )
    if name in SMOOTHED_LOSSES and not (0 < label_smoothing < 0.5 or (label_smoothing == 0 and name != "exo_pair")):
        raise ValueError(f"label_smoothing must lie in (0, 0.5) for loss_type={name}, got {label_smoothing}.")
    if name == "cdpo":
        return PreferenceLink(gain=1 / (1 - 2 * label_smoothing))
    if name == "robust":
        return PreferenceLink(gain=1 - 2 * label_smoothing)
    if name == "exo_pair":
        return PreferenceLink(logistic=False, gain=0.5 / math.log((1 - label_smoothing) / label_smoothing))
    linked = {
        "bco_pair": PreferenceLink(slope=0.5),
        "ipo": PreferenceLink(logistic=False),
        "sppo_hard": PreferenceLink(logistic=False, gain=0.5),
    }
    return linked.get(name, PreferenceLink())


def loss_of_margin(loss_types: str | Sequence[str]) -> str | None:
    """Return the first loss that compares the completions of a pair, or `None`."""
    names = [loss_types] if isinstance(loss_types, str) else loss_types
    return next((name for name in names if name in LINKED_LOSSES + UNLINKED_LOSSES), None)


def linked_probabilities(link: PreferenceLink, logits: np.ndarray) -> np.ndarray:
    """Apply [`PreferenceLink.probabilities`] to an array."""
    return link.probabilities(torch.from_numpy(np.asarray(logits, dtype=np.float64))).numpy()
