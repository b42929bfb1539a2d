"""Configuration of calibrated DPO."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import DPOConfig

from ..data.preference_pairs import PREFERENCE_COLUMN
from ..data.prompts import PromptArguments
from ..losses.preference_links import LINKED_LOSSES, loss_of_margin
from .e_step import EMArguments, check_choices, check_weights


@dataclass
class CalibratedDPOConfig(PromptArguments, EMArguments, DPOConfig):
    r"""
    Configuration class for the [`CalibratedDPOTrainer`].

    This class includes only the parameters that are specific to calibrated DPO. For the other training arguments see
    [`~trl.DPOConfig`]. The loss is

    .. math::

        L_{\text{DPO}} + \lambda_{\text{pref}} \, L_{\text{EM-ECE}}(\text{pairs}) + \lambda_{\text{options}} \left(
        L_{\text{EM-ECE}}(\text{questions}) + w_1 \, L_{\text{options}} + w_2 \, L_{\text{likelihood}} \right)

    with :math:`w_1` = `option_loss_weight` and :math:`w_2` = `option_likelihood_weight`. With both lambdas at 0, and
    pairs without preference probabilities, the training is that of [`~trl.DPOTrainer`].

    Parameters:
        > Parameters that control the objective

        lambda_pref (`float`, *optional*, defaults to `1.0`):
            Weight of EM-ECE on the pairs; at least 0. A pair is a question of two options with the probabilities
            (q, 1 - q), where q is the preference probability that the margin implies under `loss_type`; see
            [`~hf_calib.losses.preference_links.preference_link`]. It acts on pairs without an agreement of annotators.
        lambda_options (`float`, *optional*, defaults to `0.0`):
            Weight of the loss on option questions (`option_dataset`); at least 0.
        option_ratio (`float`, *optional*, defaults to `1.0`):
            Option questions per pair, above 0. Every optimizer step takes so many, at least one on each process.
        option_loss_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the cross-entropy over the options, within the loss on option questions; at least 0.
        option_likelihood_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the answer's negative log-likelihood (as in CFT), within the loss on option questions; at least
            0.
        preference_probability_column (`str` or `None`, *optional*, defaults to `"preference_probability"`):
            Column with the probability that the chosen completion is preferred, such as the share of annotators who
            agree. DPO's loss takes it as a soft label, whatever the lambdas, and the pairs then need no E-step. Where
            only the pairs of the E-step have the column, it replaces the label "the chosen completion wins". `None`
            trains on the votes.
        chat_template_path (`str`, *optional*):
            Jinja file with the chat template of a tokenizer that has none; it is saved with the tokenizer. Same
            argument as in [`~trl.SFTConfig`].

        > Parameters that control option scoring

        scoring, option_normalization, prompt_template, use_chat_template, system_prompt:
            See [`~hf_calib.data.prompts.PromptArguments`].

        > Parameters that control the E-step and the M-step

        em_estimator, em_pseudo_count, em_holdout, em_fold, em_refresh, em_loss, em_preset:
            See [`~hf_calib.trainers.e_step.EMArguments`].

    > [!NOTE]
    > These parameters have default values different from [`~hf_calib.trainers.e_step.EMArguments`]:
    > - `em_holdout`: Defaults to a tenth of the rows, at most 512, instead of `0.2`.
    > - `em_refresh`: Defaults to `"25"` steps instead of `"epoch"`. Before training, the policy equals its reference
    > and
    >   every pair is a tie, so the first map of the pairs is estimated after 25 steps. `"once"` would estimate it of a
    >   policy that has hardly moved.
    """

    help_group = "objective"

    lambda_pref: float = field(default=1.0, metadata={"help": "Weight of EM-ECE on the pairs, at least 0."})
    lambda_options: float = field(
        default=0.0, metadata={"help": "Weight of the loss on option questions, at least 0."}
    )
    option_ratio: float = field(default=1.0, metadata={"help": "Option questions per pair, above 0."})
    option_loss_weight: float = field(
        default=0.0,
        metadata={"help": "In the loss on option questions: weight of the cross-entropy over the options."},
    )
    option_likelihood_weight: float = field(
        default=0.0, metadata={"help": "In the loss on option questions: weight of the answer's likelihood (CFT)."}
    )
    preference_probability_column: str | None = field(
        default=PREFERENCE_COLUMN,
        metadata={"help": "Column with the probability that the chosen completion is preferred, the soft label."},
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file with the chat template of a tokenizer that has none."}
    )
    em_holdout: float | None = field(
        default=None,
        metadata={
            "help": "Rows held out for the E-step: a fraction in (0, 1), a number of rows, or 0 for the training rows "
            "(default: a tenth, at most 512 rows)."
        },
    )
    em_refresh: str = field(
        default="25", metadata={"help": "E-step every 'epoch', 'once', or every given number of optimizer steps."}
    )

    def __post_init__(self):
        super().__post_init__()
        self._set_up_em()
        check_choices(self, scoring=("letter", "text"), option_normalization=("sum", "mean"))
        check_weights(self, "lambda_pref", "lambda_options", "option_loss_weight", "option_likelihood_weight")
        if not 0 < self.option_ratio < float("inf"):
            raise ValueError(f"option_ratio must be above 0, got {self.option_ratio}.")
        if self.lambda_pref and loss_of_margin(self.loss_type) not in LINKED_LOSSES:
            raise ValueError(
                f"loss_type={', '.join(self.loss_type)} implies no preference probabilities: set lambda_pref=0, or "
                f"choose one of {', '.join(name for name in LINKED_LOSSES if name != 'cdpo')}."
            )
