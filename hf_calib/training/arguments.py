"""Arguments of `hf-calib train`, and the trainers that a recipe may name."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import DPOConfig, DPOTrainer, ScriptArguments, SFTConfig, SFTTrainer

from ..data.columns import ColumnArguments
from ..data.prompts import PromptArguments
from ..trainers.dpo_config import CalibratedDPOConfig
from ..trainers.dpo_trainer import CalibratedDPOTrainer
from ..trainers.sft_config import CalibratedSFTConfig
from ..trainers.sft_trainer import CalibratedSFTTrainer


@dataclass
class RecipeSFTConfig(PromptArguments, SFTConfig):
    """[`~trl.SFTConfig`] with prompt arguments, for the questions of `collapse_dataset_name`."""


@dataclass
class RecipeDPOConfig(PromptArguments, DPOConfig):
    """[`~trl.DPOConfig`] with prompt arguments, for questions that become pairs and for `collapse_dataset_name`."""


# By name in a recipe: configuration, trainer, and kind of training data. A program may add its own.
TRAINERS = {
    "calibrated_sft": (CalibratedSFTConfig, CalibratedSFTTrainer, "questions"),
    "calibrated_dpo": (CalibratedDPOConfig, CalibratedDPOTrainer, "pairs"),
    "sft": (RecipeSFTConfig, SFTTrainer, "rows"),
    "dpo": (RecipeDPOConfig, DPOTrainer, "pairs"),
}


@dataclass
class TrainArguments(ColumnArguments, ScriptArguments):
    """
    Arguments of `hf-calib train` for the trainer and its data, beside [`~trl.ScriptArguments`].

    `dataset_name` and every `..._dataset_name` take one name or several: files, folders, or data sets on the Hub, with
    their configuration after a colon, as in `allenai/ai2_arc:ARC-Easy`. Several data sets are mixed. A split such as
    `train[:2000]` takes that many rows of each.

    Args:
        trainer (`str`, *optional*, defaults to `"calibrated_sft"`):
            `"calibrated_sft"` (CFT and RCFT), `"calibrated_dpo"`, or TRL's `"sft"` and `"dpo"`.
        dataset_name (`list[str]`):
            Training data. For DPO preference pairs, or option questions, which become pairs: the right option is
            chosen, another one rejected; see [`~hf_calib.data.preference_pairs.pairs_from_questions`].
        limit (`int`, *optional*):
            Train on so many examples, drawn by `data_seed` (or `seed`); by default on all.
        eval_dataset_name (`list[str]`, *optional*):
            Evaluation data; by default the `dataset_test_split` of `dataset_name`.
        text_dataset_name (`list[str]`, *optional*):
            Texts or instruction pairs to mix into the training data; they count in the likelihood only.
        unlabelled_dataset_name (`list[str]`, *optional*):
            For `"calibrated_sft"`: questions to train on without their answers; see [`CalibratedSFTTrainer`].
        unlabelled_limit (`int`, *optional*):
            Take so many unlabelled questions; by default all.
        option_dataset_name (`list[str]`, *optional*):
            For `"calibrated_dpo"`: option questions to interleave with the pairs.
        option_limit (`int`, *optional*):
            Take so many of these option questions; by default all.
        eval_option_dataset_name (`list[str]`, *optional*):
            For `"calibrated_dpo"`: option questions to evaluate on beside the pairs.
        eval_limit (`int`, *optional*):
            Evaluate on so many examples of `eval_dataset_name`, and of `eval_option_dataset_name`; by default on all.
        collapse_dataset_name (`list[str]`, *optional*):
            Option questions, of the split `dataset_test_split`, on which preference collapse is measured during
            training, with any trainer; see [`~hf_calib.trainers.callbacks.CollapseCallback`].
        collapse_limit (`int`, *optional*, defaults to `500`):
            Measure preference collapse on so many of them.
        collapse_steps (`int`, *optional*, defaults to `100`):
            Measure it every so many optimizer steps, before the first and after the last.
        columns, answers_from:
            How all option questions are read; see [`~hf_calib.data.columns.ColumnArguments`].
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Drop malformed questions and pairs instead of stopping at the first.
    """

    help_group = "data"

    trainer: str = field(
        default="calibrated_sft",
        metadata={
            "help": "'calibrated_sft' (CFT, RCFT), 'calibrated_dpo', or TRL's 'sft' or 'dpo'.",
            "choices": TRAINERS,
        },
    )
    dataset_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training data, one name or several: files, folders, or data sets on the Hub (ID or "
            "ID:CONFIGURATION). For DPO preference pairs, or option questions, which become pairs."
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Train on so many examples (default: all)."})
    eval_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "Evaluation data (default: the test split of dataset_name)."}
    )
    text_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "Texts to mix into the training data, for their likelihood only."}
    )
    unlabelled_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "calibrated_sft: questions to train on without their answers."}
    )
    unlabelled_limit: int | None = field(
        default=None, metadata={"help": "Take so many unlabelled questions (default: all)."}
    )
    option_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "calibrated_dpo: option questions to interleave with the pairs."}
    )
    option_limit: int | None = field(default=None, metadata={"help": "Take so many option questions (default: all)."})
    eval_option_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "calibrated_dpo: option questions to evaluate on beside the pairs."}
    )
    eval_limit: int | None = field(
        default=None, metadata={"help": "Evaluate on so many examples of each evaluation data set (default: all)."}
    )
    collapse_dataset_name: list[str] | None = field(
        default=None,
        metadata={"help": "Option questions to measure preference collapse on during training, with any trainer."},
    )
    collapse_limit: int | None = field(
        default=500, metadata={"help": "Measure preference collapse on so many questions."}
    )
    collapse_steps: int = field(default=100, metadata={"help": "Measure it every so many optimizer steps."})
    drop_invalid: bool = field(
        default=False, metadata={"help": "Drop malformed questions and pairs instead of stopping at the first."}
    )

    def __post_init__(self):
        for prefix in ("", "eval_", "text_", "unlabelled_", "option_", "eval_option_", "collapse_"):
            value = getattr(self, f"{prefix}dataset_name")
            # A recipe may name one data set without a list around it.
            setattr(self, f"{prefix}dataset_name", [value] if isinstance(value, str) else value)
        if self.collapse_steps < 1:
            raise ValueError(f"collapse_steps must be at least 1, got {self.collapse_steps}.")
        for name in ("limit", "eval_limit", "unlabelled_limit", "option_limit", "collapse_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
