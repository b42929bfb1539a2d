"""Configuration of CFT and RCFT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from ..data.prompts import PromptArguments
from ..losses.em_calibrator import ESTIMATORS
from ..losses.released_code import CALIBRATION_WEIGHT
from .closing_options import ClosingOptions
from .e_step import EM_PRESETS, RELEASED_CODE, EMArguments, check_choices, check_weights


# Fields that `em_preset="released_code"` decides or has no place for, with their defaults.
_NOT_RELEASED = {
    "lambda_ece": 1.0,
    "likelihood_weight": 1.0,
    "option_loss_weight": 0.0,
    "reference_model_name_or_path": None,
}


@dataclass
class CalibratedSFTConfig(PromptArguments, EMArguments, SFTConfig):
    r"""
    Configuration class for the [`CalibratedSFTTrainer`].

    This class includes only the parameters that are specific to calibration-aware fine-tuning. For the other training
    arguments see [`~trl.SFTConfig`]. The loss is

    .. math::

        w_1 \, L_{\text{likelihood}} + w_2 \, L_{\text{options}} + \lambda \, L_{\text{EM-ECE}}
        + w_3 \, \mathrm{KL}(q_{\text{ref}} \| q)

    with :math:`w_1` = `likelihood_weight`, :math:`w_2` = `option_loss_weight`, :math:`\lambda` = `lambda_ece` (for
    `objective="rcft"`) and :math:`w_3` = `reference_weight` (with a reference).

    Parameters:
        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"rcft"`):
            `"cft"`: negative log-likelihood of the answers (L_SFT1 of the paper), for calibratable models. `"rcft"`:
            the same plus `lambda_ece` times EM-ECE.
        lambda_ece (`float`, *optional*, defaults to `1.0`):
            Weight of EM-ECE for `objective="rcft"`; at least 0.
        likelihood_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the likelihood in training; at least 0. With 0, set `option_loss_weight` or a reference.
        option_loss_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the cross-entropy over the options; at least 0. With single-token options its minimum is that of
            the likelihood. With texts it is not: the likelihood rewards writing the answer, the cross-entropy rewards
            preferring it to the other options.
        reference_model_name_or_path (`str`, *optional*):
            Model whose option probabilities on the training questions are kept near, usually the model before
            preference alignment. It is evaluated once, before training, and must have the vocabulary of the model.
        reference_weight (`float`, *optional*, defaults to `10.0`):
            Weight of the divergence from the reference over the options, in nats a question; at least 0.
        reference_pseudo_count (`float`, *optional*, defaults to `1000.0`):
            The reference is calibrated first: a constant is added to the logit of its prediction, so that its mean
            confidence agrees with its accuracy on all labels and on this many pseudo-questions on which it is
            perfectly calibrated. `0` uses the labels alone, `inf` leaves the reference as it is.
        closing_step (`bool`, `dict` or `str`, *optional*):
            Whether the closing step follows the training: the trained model, calibrated, is distilled into its
            weights. By default it does for `objective="rcft"` if rows are held out; set it to `True` for `"cft"`,
            which then holds out rows too. With `em_preset` it never does. A dictionary, or its JSON, sets the fields
            of [`~hf_calib.trainers.closing_options.ClosingOptions`], such as `{"steps": 1.0}`.

        > Parameters that control option scoring

        scoring, option_normalization, prompt_template, use_chat_template, system_prompt:
            See [`~hf_calib.data.prompts.PromptArguments`].

        > Parameters that control the E-step and the M-step

        em_estimator, em_pseudo_count, em_holdout, em_fold, em_refresh, em_loss, em_preset:
            See [`~hf_calib.trainers.e_step.EMArguments`].

    References:
        Xiao et al., "Restoring Calibration for Aligned Large Language Models: A Calibration-Aware Fine-Tuning
        Approach", ICML 2025, https://huggingface.co/papers/2505.01997.

    > [!NOTE]
    > `em_estimator` defaults to `"temperature"` instead of `"isotonic"`.
    """

    help_group = "objective"

    objective: str = field(
        default="rcft",
        metadata={
            "help": "'cft': likelihood of the answers. 'rcft': likelihood + lambda_ece * EM-ECE.",
            "choices": ["cft", "rcft"],
        },
    )
    lambda_ece: float = field(default=1.0, metadata={"help": "Weight of EM-ECE for objective='rcft', at least 0."})
    likelihood_weight: float = field(default=1.0, metadata={"help": "Weight of the likelihood, at least 0."})
    option_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of the cross-entropy over the options, at least 0; for scoring='text'."}
    )
    reference_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model to stay near over the options, usually the model before preference alignment."},
    )
    reference_weight: float = field(
        default=10.0, metadata={"help": "Weight of the divergence from the reference model, at least 0."}
    )
    reference_pseudo_count: float = field(
        default=1000.0,
        metadata={
            "help": "Pseudo-questions on which the reference is taken as calibrated; 0: the labels alone decide, "
            "inf: the reference as it is."
        },
    )

    em_estimator: str = field(
        default="temperature", metadata={"help": "Estimator of the calibration map.", "choices": list(ESTIMATORS)}
    )
    closing_step: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Whether to distil the trained model, calibrated, into its weights "
            "(default: for 'rcft'); JSON sets its options, as in '{\"steps\": 1.0}'."
        },
    )

    def __post_init__(self):
        self._check_calibration()
        super().__post_init__()

    def _check_calibration(self) -> None:
        check_choices(
            self, objective=("cft", "rcft"), scoring=("letter", "text"), option_normalization=("sum", "mean")
        )
        check_weights(self, "lambda_ece", "likelihood_weight", "option_loss_weight", "reference_weight")
        if not self.reference_pseudo_count >= 0:
            raise ValueError(f"reference_pseudo_count must be at least 0, got {self.reference_pseudo_count}.")
        if self.em_preset == RELEASED_CODE:
            self._check_released_code()
        self._set_up_em()
        if isinstance(self.closing_step, str) and self.closing_step.lower() in ("true", "false", "none"):
            self.closing_step = {"true": True, "false": False, "none": None}[self.closing_step.lower()]
        self.closing_options  # noqa: B018 (checks the values)
        if not (self.likelihood_weight or self.option_loss_weight or self.has_reference):
            raise ValueError("likelihood_weight=0 leaves nothing that teaches the answer: set option_loss_weight > 0.")
        for name in ("packing", "padding_free", "eval_packing"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}=True joins questions into one sequence, where the options cannot be found at their "
                    f"positions. Set {name}=False."
                )

    def _check_released_code(self) -> None:
        """Refuse what has no meaning in the authors' code."""
        given = [name for name, default in _NOT_RELEASED.items() if getattr(self, name) != default]
        if self.closing_step not in (None, False, "false", "False"):
            given.append("closing_step")
        if given:
            raise ValueError(
                f"em_preset='released_code' has no {given[0]}: its objective is the likelihood (objective='cft') or "
                f"{CALIBRATION_WEIGHT} times the calibration loss (objective='rcft'). Leave {given[0]} out."
            )

    @property
    def em_presets(self) -> tuple[str, ...]:
        """Presets that the trainer knows."""
        return tuple(EM_PRESETS)

    @property
    def likelihood(self) -> str:
        """Tokens of the likelihood: `"completion"` (the answer), or `"sequence"` (question and answer, L_SFT2)."""
        return "sequence" if self.em_preset == "paper" and self.objective == "rcft" else "completion"

    @property
    def likelihood_factor(self) -> float:
        """Weight of the likelihood in the objective; 0 for RCFT by the authors' code."""
        released = self.em_preset == RELEASED_CODE and self.objective == "rcft"
        return 0.0 if released else self.likelihood_weight

    @property
    def calibrates_labelled(self) -> bool:
        """Whether EM-ECE acts on the labelled training questions where there are unlabelled ones."""
        return True

    @property
    def calibration_weight(self) -> float:
        """Weight of EM-ECE in the objective; above 0 there are E-steps."""
        if self.objective != "rcft":
            return 0.0
        return CALIBRATION_WEIGHT if self.em_preset == RELEASED_CODE else self.lambda_ece

    @property
    def closing_options(self) -> ClosingOptions | None:
        """Options of the closing step; `None` without one."""
        default = self.calibration_weight > 0 and self.holds_out
        wanted = default if self.closing_step is None else self.closing_step is not False
        wanted = wanted and self.em_preset is None
        return ClosingOptions.parse(self.closing_step) if wanted else None

    @property
    def has_reference(self) -> bool:
        """Whether the objective has the divergence from a reference."""
        return self.reference_model_name_or_path is not None and self.reference_weight > 0
