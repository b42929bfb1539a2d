"""From a recipe to a trained model: which trainer, which data, what is saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, Trainer
from transformers.utils import find_adapter_config_file
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    get_peft_config,
    get_quantization_config,
)

from ..data.mcq import load_questions, load_rows
from ..report import check_output_dir
from .config import CalibratedSFTConfig
from .data import TEXT_COLUMNS
from .dpo import CalibratedDPOTrainer
from .dpo_config import CalibratedDPOConfig
from .preference import pair_fault
from .sft import CalibratedSFTTrainer


# Name in a recipe: configuration, trainer, and whether its data are option questions.
TRAINERS = {
    "calibrated_sft": (CalibratedSFTConfig, CalibratedSFTTrainer, True),
    "calibrated_dpo": (CalibratedDPOConfig, CalibratedDPOTrainer, False),
    "sft": (SFTConfig, SFTTrainer, False),
    "dpo": (DPOConfig, DPOTrainer, False),
}


@dataclass
class TrainArguments(ScriptArguments):
    """
    What `hf-calib train` trains on, beside [`~trl.ScriptArguments`].

    Args:
        trainer (`str`, *optional*, defaults to `"calibrated_sft"`):
            `"calibrated_sft"` (CFT and RCFT), `"calibrated_dpo"`, or TRL's own `"sft"` and `"dpo"`.
        num_train_examples (`int`, *optional*):
            Train on so many examples, drawn by `data_seed` (or `seed`); all by default.
        eval_dataset_name (`str`, *optional*):
            Evaluation data, if they are not the `dataset_test_split` of `dataset_name`.
        num_eval_examples (`int`, *optional*):
            Evaluate on so many examples.
        text_dataset_name (`str`, *optional*):
            Texts or instruction pairs to mix into the training questions; they count in the likelihood only.
        option_dataset_name (`str`, *optional*), num_option_examples (`int`, *optional*):
            For `"calibrated_dpo"`: option questions to interleave with the pairs, and how many of them.
        eval_option_dataset_name (`str`, *optional*), num_eval_option_examples (`int`, *optional*):
            For `"calibrated_dpo"`: option questions to evaluate on beside the pairs, and how many of them.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave out malformed questions and pairs instead of stopping at the first.
    """

    trainer: str = field(
        default="calibrated_sft",
        metadata={
            "help": "'calibrated_sft' (CFT, RCFT), 'calibrated_dpo', or TRL's 'sft' or 'dpo'.",
            "choices": list(TRAINERS),
        },
    )
    num_train_examples: int | None = field(
        default=None, metadata={"help": "Train on so many examples (default: all)."}
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Evaluation data, if not the test split of dataset_name."}
    )
    num_eval_examples: int | None = field(default=None, metadata={"help": "Evaluate on so many examples."})
    text_dataset_name: str | None = field(
        default=None, metadata={"help": "Texts to mix into the training questions, for their likelihood only."}
    )
    option_dataset_name: str | None = field(
        default=None, metadata={"help": "calibrated_dpo: option questions to interleave with the pairs."}
    )
    num_option_examples: int | None = field(default=None, metadata={"help": "Take so many of them (default: all)."})
    eval_option_dataset_name: str | None = field(
        default=None, metadata={"help": "calibrated_dpo: option questions to evaluate on beside the pairs."}
    )
    num_eval_option_examples: int | None = field(default=None, metadata={"help": "Evaluate on so many of them."})
    drop_invalid: bool = field(
        default=False, metadata={"help": "Leave out malformed questions and pairs instead of stopping."}
    )


def build_trainer(
    script_args: TrainArguments, training_args: SFTConfig | DPOConfig, model_args: ModelConfig
) -> Trainer:
    """
    The trainer that a recipe describes, its data loaded and checked.

    Args:
        script_args ([`TrainArguments`]):
            Trainer and data.
        training_args ([`CalibratedSFTConfig`], [`~trl.SFTConfig`] or [`~trl.DPOConfig`]):
            Training arguments of that trainer.
        model_args ([`~trl.ModelConfig`]):
            Model, PEFT and quantisation.

    Returns:
        [`~transformers.Trainer`]: ready to train.

    Raises:
        `ValueError`, `OSError`: for an argument, file or row that is wrong, before any long work.
    """
    if not model_args.model_name_or_path:
        raise ValueError("model_name_or_path is missing: name a model of the Hub or a local folder.")
    if not script_args.dataset_name:
        raise ValueError(
            "dataset_name is missing: name a parquet, jsonl or csv file, a folder, or a data set of the Hub."
        )
    check_output_dir(training_args.output_dir)
    if str(training_args.resume_from_checkpoint).lower() in ("true", "false"):
        # On the command line the argument is text.
        training_args.resume_from_checkpoint = str(training_args.resume_from_checkpoint).lower() == "true"
    _, trainer_class, questions = TRAINERS[script_args.trainer]
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed

    def load(name: str, config: str | None, split: str, limit: int | None, questions: bool = questions) -> Dataset:
        if Path(name).exists():
            config = None  # a recipe's configuration belongs to its own data set on the Hub
        if questions:
            return load_questions(name, config, split, limit=limit, seed=seed, drop_invalid=script_args.drop_invalid)
        dataset = load_rows(name, config, split)
        if script_args.drop_invalid and {"chosen", "rejected"} <= set(dataset.column_names):
            dataset = dataset.filter(lambda row: pair_fault(row) is None, desc="Leaving out rows that are no pairs")
        return dataset if limit is None else dataset.shuffle(seed=seed).select(range(min(limit, len(dataset))))

    train_dataset = load(
        script_args.dataset_name,
        script_args.dataset_config,
        script_args.dataset_train_split,
        script_args.num_train_examples,
    )
    if script_args.text_dataset_name:
        texts = load_rows(script_args.text_dataset_name, None, "train")
        if questions:
            # Their other columns (ids, say) need not be of the same type as the questions'.
            texts = texts.select_columns([name for name in TEXT_COLUMNS if name in texts.column_names])
        train_dataset = concatenate_datasets([train_dataset, texts])
    eval_dataset = None
    if script_args.eval_dataset_name or training_args.eval_strategy != "no":
        if not script_args.eval_dataset_name and Path(script_args.dataset_name).is_file():
            raise ValueError(
                f"eval_strategy={training_args.eval_strategy.value!r} wants evaluation data, but dataset_name is a single "
                "file, the training data: name another file with eval_dataset_name."
            )
        eval_dataset = load(
            script_args.eval_dataset_name or script_args.dataset_name,
            None if script_args.eval_dataset_name else script_args.dataset_config,
            script_args.dataset_test_split,
            script_args.num_eval_examples,
        )

    options = {}
    for argument, name, split, limit in (
        (
            "option_dataset",
            script_args.option_dataset_name,
            script_args.dataset_train_split,
            script_args.num_option_examples,
        ),
        (
            "eval_option_dataset",
            script_args.eval_option_dataset_name,
            script_args.dataset_test_split,
            script_args.num_eval_option_examples,
        ),
    ):
        if name is None:
            continue
        if trainer_class is not CalibratedDPOTrainer:
            raise ValueError(f"{argument}_name is for trainer: calibrated_dpo, not {script_args.trainer}.")
        options[argument] = load(name, None, split, limit, questions=True)

    model, revision = model_args.model_name_or_path, model_args.model_revision
    if find_adapter_config_file(model, revision=revision) is not None:
        raise ValueError(
            f"{model} is an adapter, not a model: merge it into its base model first "
            "(`AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)`)."
        )
    training_args.model_init_kwargs = {
        "revision": revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    return trainer_class(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=AutoTokenizer.from_pretrained(
            model,
            revision=revision,
            trust_remote_code=training_args.trust_remote_code,
        ),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        **options,
    )


def run_training(trainer: Trainer) -> None:
    """Train, evaluate if there is something to evaluate on, save, and push if asked to."""
    args = trainer.args
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.save_state()
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.accelerator.print(f"Model saved to {args.output_dir}")
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.end()
