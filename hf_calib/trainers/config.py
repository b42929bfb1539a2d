"""Configuration of the calibrated trainers."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import SFTConfig

from ..data.prompts import PromptArguments
from .estep import EMArguments, check_choices, check_weights


@dataclass
class CalibratedSFTConfig(PromptArguments, EMArguments, SFTConfig):
    r"""
    Configuration class for the [`CalibratedSFTTrainer`].

    It adds to [`~trl.SFTConfig`] what calibration-aware fine-tuning needs.

    Parameters:
        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"rcft"`):
            `"cft"`: negative log-likelihood of the answers (L_SFT1 of Xiao et al. 2025), for calibratable models.
            `"rcft"`: the same plus `lambda_ece` times EM-ECE. The paper's likelihood here is L_SFT2, of question and
            answer: `likelihood="sequence"`.
        lambda_ece (`float`, *optional*, defaults to `1.0`):
            Weight of the EM-ECE term; at least 0. With 0 there is none, as with `"cft"`.
        option_loss_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the cross-entropy over the options, -log q_y, beside the likelihood of the answer's tokens, with either
            objective; at least 0. With single-token options the two ask for the same. With texts they do not: the
            likelihood rewards writing the answer, the cross-entropy rewards preferring it to the other options.
        warm_start (`bool`, *optional*, defaults to `False`):
            Begin where temperature scaling ends: the temperature fitted on the E-step questions is folded into the weights
            before training. For `"rcft"` with full fine-tuning, and options of single tokens.
        likelihood (`str`, *optional*):
            Tokens whose likelihood counts: `"completion"` (the answer) or `"sequence"` (question and answer). By default the
            answer.

        > Parameters of option scoring and of the E- and M-step

        Those of [`~hf_calib.data.prompts.PromptArguments`] (`scoring`, `option_normalization`, `prompt_template`,
        `use_chat_template`, `system_prompt`) and of [`~hf_calib.trainers.estep.EMArguments`] (`em_estimator`, `em_n_bins`,
        `em_pseudo_count`, `em_estep_set`, `em_holdout_fraction`, `em_max_rows`, `em_refresh`, `em_loss`, `em_preset`). The preset
        `"paper"` sets `likelihood` too.
    """

    objective: str = field(
        default="rcft",
        metadata={
            "help": "'cft': likelihood of the answers. 'rcft': likelihood + lambda_ece * EM-ECE.",
            "choices": ["cft", "rcft"],
        },
    )
    lambda_ece: float = field(default=1.0, metadata={"help": "Weight of the EM-ECE term, at least 0."})
    option_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of the cross-entropy over the options, at least 0; for scoring='text'."}
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
            scoring=("letter", "text"),
            option_normalization=("sum", "mean"),
        )
        check_weights(self, "lambda_ece", "option_loss_weight")
        self._set_up_em()
        if self.warm_start and (self.objective != "rcft" or not self.lambda_ece):
            raise ValueError(
                "warm_start fits its temperature on E-step questions, which only objective='rcft' with lambda_ece > 0 has."
            )
        for name in ("packing", "padding_free", "eval_packing"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}=True joins questions into one sequence, where an option can no longer be found at its "
                    f"position. Set {name}=False; questions are short, so little is lost."
                )
