"""Configuration of the calibrated trainers."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import SFTConfig

from ..data.prompts import PromptArguments
from ..losses.option_losses import BATCH_CALIBRATION_LOSSES
from .e_step import EMArguments, check_choices, check_weights
from .option_loss_arguments import OptionLossArguments


CALIBRATION_LOSSES = ("em_ece", *BATCH_CALIBRATION_LOSSES)


@dataclass
class CalibratedSFTConfig(PromptArguments, EMArguments, OptionLossArguments, SFTConfig):
    r"""
    Configuration class for the [`CalibratedSFTTrainer`].

    It adds to [`~trl.SFTConfig`] what calibration-aware fine-tuning needs. The loss is

        likelihood_weight * likelihood + option_loss_weight * loss over the options
            + lambda_ece * calibration_loss + reference_weight * KL(q_ref || q)

    where the first two teach the answer, token by token or as a choice; the third, which only `objective="rcft"` has, keeps
    the confidence honest; and the last, where there is a reference, keeps the model near what it was before its alignment.

    Parameters:
        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"rcft"`):
            `"cft"`: negative log-likelihood of the answers (L_SFT1 of Xiao et al. 2025), for calibratable models.
            `"rcft"`: the same plus `lambda_ece` times EM-ECE. The paper's likelihood here is L_SFT2, of question and
            answer: `likelihood="sequence"`.
        lambda_ece (`float`, *optional*, defaults to `1.0`):
            Weight of `calibration_loss`; at least 0. With 0 there is none, as with `"cft"`.
        calibration_loss (`str`, *optional*, defaults to `"em_ece"`):
            `"em_ece"`, or one of others to compare it with: `"mmce"` ([`~hf_calib.losses.option_losses.mmce`]) or
            `"sb_ece"` ([`~hf_calib.losses.option_losses.soft_binned_ece`]). These two need no E-step, so that no question
            is held out. They are statistics of a micro-batch: the larger it is, the better they are.
        likelihood_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the likelihood in training; at least 0. With 0 the loss over the options alone teaches the answer.
        reference_model_name_or_path (`str`, *optional*):
            A model to stay near in what it makes of the training questions' options, whatever their labels: best the one
            that preference alignment began with, which often is calibrated still. It is asked as the model is, once, before
            training, and must have its vocabulary.
        reference_weight (`float`, *optional*, defaults to `10.0`):
            Weight of KL(q_ref || q) over the options, in nats a question; at least 0.
        reference_pseudo_count (`float`, *optional*, defaults to `1000.0`):
            The reference itself is calibrated first: the odds of what it predicts are multiplied by a constant, so that its mean
            confidence agrees with its accuracy on all labels (it has learnt none of them) and on this many questions more, on
            which it is taken at its word. `0`: the labels alone decide, which suits a reference that is not calibrated, as the
            model itself. `inf`: the reference as it is.
        warm_start (`bool`, *optional*, defaults to `False`):
            Begin where temperature scaling ends: the temperature fitted on the E-step questions is folded into the weights
            before training. For `"rcft"` with full fine-tuning, and options of single tokens.
        likelihood (`str`, *optional*):
            Tokens whose likelihood counts: `"completion"` (the answer) or `"sequence"` (question and answer). By default the
            answer.

        > Parameters of the loss over the options, of option scoring, and of the E- and M-step

        Those of [`~hf_calib.trainers.option_loss_arguments.OptionLossArguments`] (`option_loss_weight`, `option_label_smoothing`,
        `option_focal_gamma`), of [`~hf_calib.data.prompts.PromptArguments`] (`scoring`, `option_normalization`,
        `prompt_template`, `use_chat_template`, `system_prompt`) and of [`~hf_calib.trainers.e_step.EMArguments`]
        (`em_estimator`, `em_n_bins`, `em_pseudo_count`, `em_estep_set`, `em_holdout_fraction`, `em_max_rows`,
        `em_refresh`, `em_loss`, `em_preset`). The preset `"paper"` sets `likelihood` too.
    """

    objective: str = field(
        default="rcft",
        metadata={
            "help": "'cft': likelihood of the answers. 'rcft': likelihood + lambda_ece * calibration_loss.",
            "choices": ["cft", "rcft"],
        },
    )
    lambda_ece: float = field(default=1.0, metadata={"help": "Weight of calibration_loss, at least 0."})
    calibration_loss: str = field(
        default="em_ece",
        metadata={"help": "'em_ece', or to compare with: 'mmce', 'sb_ece'.", "choices": list(CALIBRATION_LOSSES)},
    )
    likelihood_weight: float = field(default=1.0, metadata={"help": "Weight of the likelihood, at least 0."})
    reference_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model to stay near over the options, such as the one from before preference alignment."},
    )
    reference_weight: float = field(
        default=10.0, metadata={"help": "Weight of the divergence from the reference model, at least 0."}
    )
    reference_pseudo_count: float = field(
        default=1000.0,
        metadata={
            "help": "Questions on which the reference's confidence is trusted, against the labels that judge its accuracy; 0 to "
            "let the labels alone decide, inf to take the reference as it is."
        },
    )
    warm_start: bool = field(
        default=False, metadata={"help": "Fold the temperature fitted on the E-step questions into the weights first."}
    )
    likelihood: str | None = field(
        default=None,
        metadata={
            "help": "Tokens whose likelihood counts: 'completion' (default) or 'sequence' (question and answer).",
            "choices": ["completion", "sequence"],
        },
    )

    def __post_init__(self):
        if self.em_preset == "paper":
            # L_SFT2 is the likelihood of RCFT; that of CFT, L_SFT1, is the answer's.
            self.likelihood = "sequence" if self.objective == "rcft" else "completion"
        self.likelihood = self.likelihood or "completion"
        self._check_calibration()
        super().__post_init__()

    def _check_calibration(self) -> None:
        check_choices(
            self,
            objective=("cft", "rcft"),
            likelihood=("completion", "sequence"),
            calibration_loss=CALIBRATION_LOSSES,
            scoring=("letter", "text"),
            option_normalization=("sum", "mean"),
        )
        check_weights(self, "lambda_ece", "likelihood_weight", "reference_weight")
        if not self.reference_pseudo_count >= 0:
            raise ValueError(f"reference_pseudo_count must be at least 0, got {self.reference_pseudo_count}.")
        self._check_option_loss()
        self._set_up_em()
        if not (self.likelihood_weight or self.option_loss_weight or self.has_reference):
            raise ValueError("likelihood_weight=0 leaves nothing that teaches the answer: set option_loss_weight > 0.")
        if self.warm_start and not self.takes_e_steps:
            raise ValueError(
                "warm_start fits its temperature on E-step questions, which only objective='rcft' with lambda_ece > 0 and "
                "calibration_loss='em_ece' has."
            )
        for name in ("packing", "padding_free", "eval_packing"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}=True joins questions into one sequence, where an option can no longer be found at its "
                    f"position. Set {name}=False; questions are short, so little is lost."
                )

    @property
    def calibration_weight(self) -> float:
        """Weight of `calibration_loss` in the objective."""
        return self.lambda_ece if self.objective == "rcft" else 0.0

    @property
    def takes_e_steps(self) -> bool:
        """Whether the objective has EM-ECE, for which questions are held out."""
        return self.calibration_weight > 0 and self.calibration_loss == "em_ece"

    @property
    def has_reference(self) -> bool:
        """Whether the objective has the divergence from a reference."""
        return self.reference_model_name_or_path is not None and self.reference_weight > 0
