"""Trainers with the losses of others, for comparison: `trainer: rival_sft` and `trainer: rival_dpo` in a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from option_losses import BATCH_CALIBRATION_LOSSES, smoothed_focal_loss
from token_losses import catto_loss, entropy_bonus, token_statistics

from hf_calib import CalibratedDPOConfig, CalibratedDPOTrainer, CalibratedSFTConfig, CalibratedSFTTrainer
from hf_calib.inference.option_head import logit_transform, unwrap_causal_lm
from hf_calib.losses.preference_links import preference_link
from hf_calib.trainers.e_step import check_choices, check_weights
from hf_calib.training.arguments import TRAINERS


@dataclass
class RivalSFTConfig(CalibratedSFTConfig):
    """
    Configuration class for the [`RivalSFTTrainer`].

    Args:
        batch_loss (`str`, *optional*):
            Calibration error of a micro-batch that is added with the weight `lambda_ece`: `"mmce"` or `"sb_ece"`. It
            is for `objective="cft"`, since it needs no E-step. The larger the micro-batch, the better the estimate.
        option_label_smoothing (`float`, *optional*, defaults to `0.0`):
            Label smoothing of the cross-entropy over the options, in [0, 1).
        option_focal_gamma (`float`, *optional*, defaults to `0.0`):
            Exponent of the focal loss over the options; at least 0.
        likelihood (`str`, *optional*, defaults to `"completion"`):
            Tokens of the likelihood: `"completion"` (the answer) or `"sequence"` (question and answer).
    """

    batch_loss: str | None = field(
        default=None,
        metadata={"help": "Calibration error of a micro-batch.", "choices": list(BATCH_CALIBRATION_LOSSES)},
    )
    option_label_smoothing: float = field(default=0.0, metadata={"help": "Label smoothing over the options."})
    option_focal_gamma: float = field(default=0.0, metadata={"help": "Exponent of the focal loss over the options."})
    likelihood: str = field(
        default="completion",
        metadata={"help": "Tokens of the likelihood.", "choices": ["completion", "sequence"]},
    )

    def __post_init__(self):
        check_choices(self, likelihood=("completion", "sequence"))
        if self.batch_loss not in (None, *BATCH_CALIBRATION_LOSSES):
            raise ValueError(f"batch_loss={self.batch_loss!r} is none of {', '.join(BATCH_CALIBRATION_LOSSES)}.")
        check_weights(self, "option_label_smoothing", "option_focal_gamma")
        if self.option_label_smoothing >= 1:
            raise ValueError(f"option_label_smoothing must be below 1, got {self.option_label_smoothing}.")
        for name in ("option_label_smoothing", "option_focal_gamma"):
            if getattr(self, name) and not self.option_loss_weight:
                raise ValueError(f"{name} belongs to the loss over the options: set option_loss_weight > 0.")
        if self.batch_loss and self.objective != "cft":
            raise ValueError(f"batch_loss={self.batch_loss!r} replaces EM-ECE: set objective='cft'.")
        super().__post_init__()


class RivalSFTTrainer(CalibratedSFTTrainer):
    """Fine-tuning with label smoothing, the focal loss, MMCE or soft-binned ECE over the options."""

    def compute_option_loss(self, option_logits, labels, mask):
        args = self.args
        smoothing = args.option_label_smoothing, args.option_focal_gamma
        loss = args.option_loss_weight * smoothed_focal_loss(option_logits, labels, mask, *smoothing)
        if args.batch_loss:
            error = BATCH_CALIBRATION_LOSSES[args.batch_loss](option_logits, labels) * len(labels)
            self._log_means({args.batch_loss: error}, len(labels))
            loss = loss + args.lambda_ece * error
        return loss


@dataclass
class RivalDPOConfig(CalibratedDPOConfig):
    """
    Configuration class for the [`RivalDPOTrainer`]. EM-ECE is off: `lambda_pref` is 0 by default.

    Args:
        cdpo_smoothing (`float`, *optional*, defaults to `0.0`):
            Probability, in [0, 0.5), that a pair is labelled wrongly (conservative DPO, Mitchell 2023,
            https://ericmitchell.ai/cdpo.pdf). TRL's `label_smoothing` has no effect on its loss `"sigmoid"`.
        catto_weight (`float`, *optional*, defaults to `0.0`):
            Weight of [`catto_loss`].
        entropy_weight (`float`, *optional*, defaults to `0.0`):
            Weight of [`entropy_bonus`].
        option_em_weight (`float`, *optional*, defaults to `1.0`):
            Weight of EM-ECE within the loss on option questions. 0 leaves their likelihood and cross-entropy alone.
    """

    lambda_pref: float = field(default=0.0, metadata={"help": "Weight of EM-ECE on the pairs, at least 0."})
    cdpo_smoothing: float = field(default=0.0, metadata={"help": "Probability that a pair is labelled wrongly."})
    catto_weight: float = field(default=0.0, metadata={"help": "Weight of a term like CATTO's."})
    entropy_weight: float = field(default=0.0, metadata={"help": "Weight of the entropy of the chosen tokens."})
    option_em_weight: float = field(default=1.0, metadata={"help": "Weight of EM-ECE on the option questions."})

    def __post_init__(self):
        super().__post_init__()
        check_weights(self, "cdpo_smoothing", "catto_weight", "entropy_weight", "option_em_weight")
        if self.cdpo_smoothing >= 0.5:
            raise ValueError(f"cdpo_smoothing must be below 0.5, got {self.cdpo_smoothing}.")
        if self.cdpo_smoothing and self.loss_type != ["sigmoid"]:
            raise ValueError(f"cdpo_smoothing is for loss_type='sigmoid', not {', '.join(self.loss_type)}.")


class RivalDPOTrainer(CalibratedDPOTrainer):
    """DPO with smoothed labels (conservative DPO), a term like CATTO's, or an entropy bonus."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.cdpo_smoothing:
            self.preference_link = preference_link("cdpo", self.args.cdpo_smoothing)

    def compute_pair_loss(self, preference_logits, preference_probability=None):
        # The label p becomes p - e (2 p - 1), and DPO's loss of the label p is -log s(x) + (1 - p) x.
        loss = super().compute_pair_loss(preference_logits, preference_probability)
        decided = 1.0 if preference_probability is None else 2 * preference_probability - 1
        return loss + self.args.cdpo_smoothing * (decided * preference_logits).mean()

    def _option_losses(self, *args, calibration_weight, **kwargs):
        return super()._option_losses(
            *args, calibration_weight=calibration_weight * self.args.option_em_weight, **kwargs
        )

    def _compute_loss(self, model, inputs, return_outputs):
        args = self.args
        if not (self.model.training and (args.catto_weight or args.entropy_weight)):
            return super()._compute_loss(model, inputs, return_outputs)
        with _last_hidden_states(unwrap_causal_lm(self.model).base_model) as hidden_states:
            loss = super()._compute_loss(model, inputs, return_outputs)
        return loss + self._token_loss(hidden_states[0], inputs)  # the policy's pass is the first one

    def _token_loss(self, hidden_states: torch.Tensor, inputs: dict) -> torch.Tensor:
        chosen = inputs["completion_mask"][:, 1:].bool().clone()
        chosen[len(chosen) // 2 :] = False
        hidden_states = hidden_states[:, -chosen.size(1) - 1 : -1][chosen]
        tokens, model = inputs["input_ids"][:, 1:][chosen], unwrap_causal_lm(self.model)
        head, transform = model.get_output_embeddings(), logit_transform(model.config)
        statistics = token_statistics(head, hidden_states, tokens, transform)
        losses = {"catto": catto_loss(statistics), "entropy_bonus": entropy_bonus(statistics)}
        self._log_means(losses, 1)
        return self.args.catto_weight * losses["catto"] + self.args.entropy_weight * losses["entropy_bonus"]


@contextmanager
def _last_hidden_states(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the last hidden states of every forward pass of a backbone."""
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda module, args, outputs: kept.append(outputs.last_hidden_state))
    try:
        yield kept
    finally:
        handle.remove()


def register_rivals() -> None:
    """Make `rival_sft` and `rival_dpo` trainers of `hf-calib train`, in this process."""
    TRAINERS["rival_sft"] = (RivalSFTConfig, RivalSFTTrainer, "questions")
    TRAINERS["rival_dpo"] = (RivalDPOConfig, RivalDPOTrainer, "pairs")
