"""Configuration of the calibrated trainers."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import SFTConfig

from ..data.prompts import PromptArguments
from ..em_ece import ESTIMATORS


# `em_preset: paper` is the authors' setting: Xiao et al. 2025, sections 5 and 6.
EM_PRESETS = {
    "paper": {
        "em_estimator": "bins",
        "em_n_bins": 10,
        "em_pseudo_count": 0.0,
        "em_estep_set": "train",
        "em_refresh": "once",
        "em_loss": "brier",
    }
}


@dataclass
class CalibratedSFTConfig(PromptArguments, SFTConfig):
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

        > Parameters that control how options are scored

        scoring (`str`, *optional*, defaults to `"letter"`):
            `"letter"`: the options are listed, their letters scored. `"text"`: each option's own text is scored.
        option_normalization (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"` of an option's token log-likelihoods.
        prompt_template (`str`, *optional*):
            Template of the question with the fields `{question}`, `{options}` and `{subject}`.
        use_chat_template (`bool`, *optional*):
            Whether the question goes through the chat template; by default if the tokenizer has one.
        system_prompt (`str`, *optional*):
            System message; without a chat template it stands above the question.

        > Parameters that control the E-step

        em_estimator (`str`, *optional*, defaults to `"isotonic"`):
            Estimator of the calibration map: `"isotonic"`, `"bins"` (equal-width) or `"equal_mass"`.
        em_n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of a binned estimator.
        em_pseudo_count (`float`, *optional*, defaults to `2.0`):
            Shrinkage of small bins, in questions; see [`EMCalibrator`].
        em_estep_set (`str`, *optional*, defaults to `"holdout"`):
            `"holdout"`: a part of the training questions that no gradient sees. `"train"`: the training questions, the
            paper's choice; memorisation then looks like calibration.
        em_holdout_fraction (`float`, *optional*, defaults to `0.2`):
            Part of the training questions held out for the E-step, in (0, 1).
        em_refresh (`str`, *optional*, defaults to `"epoch"`):
            When the E-step is taken: `"epoch"`, `"once"`, or a number of optimizer steps.
        em_loss (`str`, *optional*, defaults to `"kl"`):
            M-step: `"kl"`, or `"brier"`, the paper's squared error; see [`em_ece_loss`].
        em_preset (`str`, *optional*):
            `"paper"`: the authors' setting. It overrides `likelihood` and the above `em_*` fields, all but
            `em_holdout_fraction`, which it leaves without effect.
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
    em_estimator: str = field(
        default="isotonic", metadata={"help": "Estimator of the calibration map.", "choices": list(ESTIMATORS)}
    )
    em_n_bins: int = field(default=10, metadata={"help": "Number of bins of a binned estimator."})
    em_pseudo_count: float = field(default=2.0, metadata={"help": "Shrinkage of small bins, in questions."})
    em_estep_set: str = field(
        default="holdout",
        metadata={"help": "E-step on 'holdout' questions or on the 'train' set.", "choices": ["holdout", "train"]},
    )
    em_holdout_fraction: float = field(
        default=0.2, metadata={"help": "Part of the training questions held out for the E-step, in (0, 1)."}
    )
    em_refresh: str = field(
        default="epoch", metadata={"help": "E-step every 'epoch', 'once', or every given number of optimizer steps."}
    )
    em_loss: str = field(
        default="kl", metadata={"help": "M-step: 'kl', or 'brier' (the paper's).", "choices": ["kl", "brier"]}
    )
    em_preset: str | None = field(
        default=None, metadata={"help": "'paper': the authors' setting.", "choices": list(EM_PRESETS)}
    )

    def __post_init__(self):
        if self.em_preset is not None:
            if self.em_preset not in EM_PRESETS:
                raise ValueError(f"Unknown em_preset {self.em_preset!r}; there is {', '.join(EM_PRESETS)}.")
            for name, value in EM_PRESETS[self.em_preset].items():
                setattr(self, name, value)
            # L_SFT2 is the likelihood of RCFT; that of CFT, L_SFT1, is the answer's.
            self.likelihood = "sequence" if self.objective == "rcft" else "completion"
        self.likelihood = self.likelihood or "completion"
        self._check_calibration()
        super().__post_init__()

    def _check_calibration(self) -> None:
        for name, allowed in (
            ("objective", ("cft", "rcft")),
            ("likelihood", ("completion", "sequence")),
            ("scoring", ("letter", "text")),
            ("option_normalization", ("sum", "mean")),
            ("em_estimator", ESTIMATORS),
            ("em_estep_set", ("holdout", "train")),
            ("em_loss", ("kl", "brier")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(allowed)}.")
        for name in ("lambda_ece", "option_loss_weight", "em_pseudo_count"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.warm_start and (self.objective != "rcft" or not self.lambda_ece):
            raise ValueError(
                "warm_start fits its temperature on E-step questions, which only objective='rcft' with lambda_ece > 0 has."
            )
        if not 0 < self.em_holdout_fraction < 1:
            raise ValueError(f"em_holdout_fraction must lie between 0 and 1, got {self.em_holdout_fraction}.")
        if self.em_n_bins < 1:
            raise ValueError(f"em_n_bins must be at least 1, got {self.em_n_bins}.")
        if self.em_refresh not in ("epoch", "once") and not (
            str(self.em_refresh).isdigit() and int(self.em_refresh) > 0
        ):
            raise ValueError(f"em_refresh must be 'epoch', 'once' or a number of steps, got {self.em_refresh!r}.")
        for name in ("packing", "padding_free", "eval_packing"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}=True joins questions into one sequence, where an option can no longer be found at its "
                    f"position. Set {name}=False; questions are short, so little is lost."
                )
