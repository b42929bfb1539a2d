"""Configuration of calibrated DPO and of the baselines that stand beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import DPOConfig

from ..data.preference_pairs import PREFERENCE_COLUMN
from ..data.prompts import PromptArguments
from .e_step import EMArguments, check_choices, check_weights
from .option_loss_arguments import OptionLossArguments
from .preference import MARGIN_LOSSES


@dataclass
class CalibratedDPOConfig(PromptArguments, EMArguments, OptionLossArguments, DPOConfig):
    r"""
    Configuration class for the [`CalibratedDPOTrainer`].

    It adds to [`~trl.DPOConfig`] what keeps a model calibrated while it is aligned. With both lambdas at 0, and no
    baseline, training is [`~trl.DPOTrainer`]'s to the last digit.

    Parameters:
        > Parameters that control the objective

        lambda_pref (`float`, *optional*, defaults to `1.0`):
            Weight of EM-ECE on the pairs: q = sigmoid(beta * margin), the preference probability that the policy implies,
            against how often held-out pairs of this confidence are decided rightly; at least 0. The margin is that of
            the loss: under its f-divergence, and of means over tokens for `"ipo"` and `"sigmoid_norm"`. IPO and SPPO, which
            regress it, are read with 4 * beta and 2 * beta; see [`~hf_calib.trainers.preference.preference_scale`].
        lambda_options (`float`, *optional*, defaults to `0.0`):
            Weight of the loss on option questions (`option_dataset`), which are interleaved with the pairs; at least 0.
            That loss is EM-ECE plus, by the two weights below, what teaches the answers.
        option_ratio (`float`, *optional*, defaults to `1.0`):
            Option questions for each pair. Every optimizer step takes so many, at least one on each process.
        option_loss_weight (`float`, *optional*, defaults to `0.0`):
            Within that loss, weight of the cross-entropy over the options; see
            [`~hf_calib.trainers.option_loss_arguments.OptionLossArguments`], with `option_label_smoothing` and `option_focal_gamma`.
        option_likelihood_weight (`float`, *optional*, defaults to `0.0`):
            Within that loss, weight of the answer's negative log-likelihood (that of CFT), in nats a question; at least 0.
        preference_probability_column (`str`, *optional*, defaults to `"preference_probability"`):
            Column with the probability that the chosen completion is preferred, such as the share of annotators who
            agree. Training pairs that have it need no E-step: it is the target of q. Where only the pairs of the E-step
            have it, it takes the place of "the chosen one wins".

        > Parameters of baselines (for robust DPO and IPO see `loss_type="robust"`, with `label_smoothing`, and `"ipo"`)

        cdpo_smoothing (`float`, *optional*, defaults to `0.0`):
            Conservative DPO (Mitchell 2023, https://ericmitchell.ai/cdpo.pdf): probability in [0, .5) that a pair is
            labelled the wrong way round. TRL's `label_smoothing` has no effect on its loss `"sigmoid"`.
        catto_weight (`float`, *optional*, defaults to `0.0`):
            Weight of a token-level calibration term in the manner of CATTO; see
            [`~hf_calib.trainers.baselines.catto_loss`].
        entropy_weight (`float`, *optional*, defaults to `0.0`):
            Weight of an entropy bonus; see [`~hf_calib.trainers.baselines.entropy_bonus`].

        > Parameters of option scoring and of the E- and M-step

        chat_template_path (`str`, *optional*):
            Jinja file with the chat template of a model whose tokenizer has none; it is saved with the tokenizer. (CFT and RCFT
            have TRL's argument of that name.)

        Those of [`~hf_calib.data.prompts.PromptArguments`] and of [`~hf_calib.trainers.e_step.EMArguments`].

    > [!NOTE]
    > These parameters have default values different from [`~hf_calib.trainers.e_step.EMArguments`]:
    > - `em_holdout_fraction`: Defaults to `0.1` instead of `0.2`.
    > - `em_max_rows`: Defaults to `512` instead of none.
    > - `em_refresh`: Defaults to `"25"` steps instead of `"epoch"`. Before training the policy is its reference and every
    >   pair a tie, so that the first map is taken after as many steps. `"once"` takes it as soon as there are no longer
    >   ties alone, of a policy that has hardly moved: seldom what one wants for pairs.
    """

    lambda_pref: float = field(default=1.0, metadata={"help": "Weight of EM-ECE on the pairs, at least 0."})
    lambda_options: float = field(
        default=0.0, metadata={"help": "Weight of the loss on option questions among the pairs, at least 0."}
    )
    option_ratio: float = field(default=1.0, metadata={"help": "Option questions for each pair."})
    option_likelihood_weight: float = field(
        default=0.0, metadata={"help": "Within the loss on questions: weight of the answer's likelihood (CFT)."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file with the chat template of a tokenizer that has none."}
    )
    preference_probability_column: str = field(
        default=PREFERENCE_COLUMN, metadata={"help": "Column with the probability that the chosen one is preferred."}
    )
    cdpo_smoothing: float = field(
        default=0.0, metadata={"help": "Conservative DPO: probability in [0, .5) that a pair is labelled wrongly."}
    )
    catto_weight: float = field(default=0.0, metadata={"help": "Weight of a calibration term like CATTO's."})
    entropy_weight: float = field(default=0.0, metadata={"help": "Weight of the entropy of the chosen tokens."})

    em_holdout_fraction: float = field(
        default=0.1, metadata={"help": "Part of the training rows held out for the E-step, in (0, 1)."}
    )
    em_max_rows: int | None = field(default=512, metadata={"help": "Hold out no more rows than so many."})
    em_refresh: str = field(
        default="25", metadata={"help": "E-step every 'epoch', 'once', or every given number of optimizer steps."}
    )

    def __post_init__(self):
        super().__post_init__()
        self._set_up_em()
        self._check_option_loss()
        check_choices(self, scoring=("letter", "text"), option_normalization=("sum", "mean"))
        check_weights(
            self,
            "lambda_pref",
            "lambda_options",
            "option_likelihood_weight",
            "cdpo_smoothing",
            "catto_weight",
            "entropy_weight",
        )
        if not 0 < self.option_ratio < float("inf"):
            raise ValueError(f"option_ratio must be above 0, got {self.option_ratio}.")
        if self.cdpo_smoothing >= 0.5:
            raise ValueError(f"cdpo_smoothing must be below 0.5, got {self.cdpo_smoothing}.")
        if self.cdpo_smoothing and self.loss_type != ["sigmoid"]:
            raise ValueError(f"cdpo_smoothing is for loss_type='sigmoid', not {', '.join(self.loss_type)}.")
        if self.lambda_pref and not set(self.loss_type) & set(MARGIN_LOSSES):
            raise ValueError(
                f"loss_type={', '.join(self.loss_type)} compares no chosen completion with its rejected one: set "
                f"lambda_pref=0, or add one of {', '.join(MARGIN_LOSSES)}."
            )
