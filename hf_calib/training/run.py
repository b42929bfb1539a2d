"""From a recipe to a trained model: which trainer, which data, what is saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer, set_seed
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

from ..data.prompts import PromptArguments
from ..evaluation.tables import check_output_dir
from ..inference.encoding import OptionEncoder
from ..inference.model_loading import check_model_name, merge_command
from ..inference.predict import predict_options
from ..trainers.callbacks import CollapseCallback, divides_weights
from ..trainers.data import TEXT_COLUMNS
from ..trainers.dpo_config import CalibratedDPOConfig
from ..trainers.dpo_trainer import CalibratedDPOTrainer
from ..trainers.sft_config import CalibratedSFTConfig
from ..trainers.sft_trainer import CalibratedSFTTrainer
from .checkpoints import adapt_to_processes, check_disk_space, is_full_disk, last_checkpoint, resume_point
from .datasets import DataSources
from .distributed import Stopped
from .hub_push import Publication, describe, prepare_push, published_questions, training_record
from .sigterm import StopOnSigterm


@dataclass
class RecipeSFTConfig(PromptArguments, SFTConfig):
    """TRL's [`~trl.SFTConfig`], and how the questions of `collapse_dataset_name` are asked."""


@dataclass
class RecipeDPOConfig(PromptArguments, DPOConfig):
    """TRL's [`~trl.DPOConfig`], and how questions are asked: those made into pairs, and those of `collapse_dataset_name`."""


# By name in a recipe: configuration, trainer, and kind of training data. A program may add its own.
TRAINERS = {
    "calibrated_sft": (CalibratedSFTConfig, CalibratedSFTTrainer, "questions"),
    "calibrated_dpo": (CalibratedDPOConfig, CalibratedDPOTrainer, "pairs"),
    "sft": (RecipeSFTConfig, SFTTrainer, "rows"),
    "dpo": (RecipeDPOConfig, DPOTrainer, "pairs"),
}


@dataclass
class TrainArguments(ScriptArguments):
    """
    Arguments of `hf-calib train` for the trainer and its data, beside [`~trl.ScriptArguments`].

    `dataset_name` and every `..._dataset_name` take one name or several: files, folders, or data sets on the Hub, with
    their configuration after a colon, as in `allenai/ai2_arc:ARC-Easy`. Several data sets are mixed. A split such as
    `train[:2000]` takes that many rows of each.

    Args:
        trainer (`str`, *optional*, defaults to `"calibrated_sft"`):
            `"calibrated_sft"` (CFT and RCFT), `"calibrated_dpo"`, or TRL's `"sft"` and `"dpo"`.
        dataset_name (`list[str]`):
            Training data. For DPO preference pairs, or option questions, which become pairs: the right option is chosen,
            another one rejected; see [`~hf_calib.data.preference_pairs.pairs_from_questions`].
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
            Option questions, of the split `dataset_test_split`, on which preference collapse is measured during training,
            with any trainer; see [`~hf_calib.trainers.callbacks.CollapseCallback`].
        collapse_limit (`int`, *optional*, defaults to `500`):
            Measure preference collapse on so many of them.
        collapse_steps (`int`, *optional*, defaults to `100`):
            Measure it every so many optimizer steps, before the first and after the last.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Drop malformed questions and pairs instead of stopping at the first.
    """

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


def build_trainer(
    script_args: TrainArguments, training_args: SFTConfig | DPOConfig, model_args: ModelConfig
) -> Trainer:
    """
    The trainer that a recipe describes, its data loaded and checked.

    Args:
        script_args ([`TrainArguments`]):
            Trainer and data.
        training_args ([`CalibratedSFTConfig`], [`CalibratedDPOConfig`], [`RecipeSFTConfig`] or [`RecipeDPOConfig`]):
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
    _check_bitsandbytes(training_args, model_args)
    check_output_dir(training_args.output_dir)
    training_args.resume_from_checkpoint = resume_point(training_args.resume_from_checkpoint, training_args.output_dir)
    prepare_push(training_args, model_args)
    model, revision = model_args.model_name_or_path, model_args.model_revision
    check_model_name(model)
    if find_adapter_config_file(model, revision=revision) is not None:
        raise ValueError(
            f"{model} is an adapter, not a model: merge it into its base model first,\n"
            + merge_command(model, f"{Path(model).name}-merged")
        )
    tokenizer = AutoTokenizer.from_pretrained(
        model, revision=revision, trust_remote_code=training_args.trust_remote_code
    )
    if isinstance(training_args, CalibratedDPOConfig) and training_args.chat_template_path:
        tokenizer.chat_template = Path(training_args.chat_template_path).read_text(encoding="utf-8")
    datasets, collapse_questions = _load_data(script_args, training_args, tokenizer)
    training_args.model_init_kwargs = {
        "revision": revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    # The trainer seeds itself, but only after an adapter has drawn its first weights.
    set_seed(training_args.seed)
    trainer = TRAINERS[script_args.trainer][1](
        model=model,
        args=training_args,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        **datasets,
    )
    check_disk_space(trainer)
    trainer.add_callback(StopOnSigterm(trainer))
    if collapse_questions is not None:
        trainer.add_callback(
            CollapseCallback(
                trainer,
                collapse_questions,
                script_args.collapse_steps,
                prompt_format=training_args.prompt_format(),
                option_normalization=training_args.option_normalization,
                batch_size=training_args.per_device_eval_batch_size,
            )
        )
    held_out = len(getattr(trainer, "held_out_questions", None) or ())
    record = training_record(
        script_args.trainer, training_args, model_args, datasets, script_args.dataset_name, held_out
    )
    asked = published_questions(script_args, training_args, model_args, datasets, collapse_questions)
    trainer.training_record = record
    trainer.publication = Publication(record, *asked) if training_args.push_to_hub else None
    return trainer


def _check_bitsandbytes(training_args: SFTConfig | DPOConfig, model_args: ModelConfig) -> None:
    """Say at once what would else come out when the model is loaded, or before the first step."""
    wanted = [f"--{name} true" for name in ("load_in_4bit", "load_in_8bit") if getattr(model_args, name)]
    optimizer = str(getattr(training_args.optim, "value", training_args.optim))
    if "8bit" in optimizer or optimizer.startswith("paged_"):
        wanted.append(f"--optim {optimizer}")
    if wanted and find_spec("bitsandbytes") is None:
        raise ImportError(
            f"{', '.join(wanted)}: that is done by bitsandbytes, which is not installed: pip install bitsandbytes"
        )


def _load_data(
    script_args: TrainArguments, training_args: SFTConfig | DPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Dataset], Dataset | None]:
    """The data sets of the trainer, by argument, and the questions of the collapse callback."""
    _, trainer_class, kind = TRAINERS[script_args.trainer]
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    sources = DataSources(seed, script_args.drop_invalid)
    train_split, test_split = script_args.dataset_train_split, script_args.dataset_test_split
    names, config = script_args.dataset_name, script_args.dataset_config
    if config:  # a recipe's configuration belongs to its own data set on the Hub
        names = [name if ":" in name or Path(name).exists() else f"{name}:{config}" for name in names]
        script_args.dataset_name = names

    def load(names: list[str], split: str, limit: int | None) -> Dataset:
        if kind == "pairs":
            return sources.pairs(names, split, limit, tokenizer, training_args.prompt_format())
        return getattr(sources, kind)(names, split, limit)

    datasets = {"train_dataset": load(names, train_split, script_args.limit)}
    if script_args.text_dataset_name:
        texts = sources.rows(script_args.text_dataset_name, "train")
        if kind == "questions":
            # Their other columns (ids, say) need not be of the same type as the questions'.
            texts = texts.select_columns([name for name in TEXT_COLUMNS if name in texts.column_names])
        datasets["train_dataset"] = concatenate_datasets([datasets["train_dataset"], texts])
    if script_args.eval_dataset_name or training_args.eval_strategy != "no":
        if not script_args.eval_dataset_name and any(Path(name).is_file() for name in names):
            raise ValueError(
                f"eval_strategy={training_args.eval_strategy.value!r} wants evaluation data, but dataset_name is a "
                "file, the training data: name another file with eval_dataset_name."
            )
        datasets["eval_dataset"] = load(script_args.eval_dataset_name or names, test_split, script_args.eval_limit)
    if script_args.unlabelled_dataset_name:
        if not issubclass(trainer_class, CalibratedSFTTrainer):
            raise ValueError(f"unlabelled_dataset_name is for trainer: calibrated_sft, not {script_args.trainer}.")
        datasets["unlabelled_dataset"] = sources.questions(
            script_args.unlabelled_dataset_name, train_split, script_args.unlabelled_limit, labelled=False
        )
    for prefix, split in (("option", train_split), ("eval_option", test_split)):
        if asked := getattr(script_args, f"{prefix}_dataset_name"):
            if not issubclass(trainer_class, CalibratedDPOTrainer):
                raise ValueError(f"{prefix}_dataset_name is for trainer: calibrated_dpo, not {script_args.trainer}.")
            if prefix == "eval_option" and "eval_dataset" not in datasets:
                raise ValueError(
                    "eval_option_dataset_name is evaluated beside pairs, of which there are none: name them with "
                    "eval_dataset_name."
                )
            limit = script_args.option_limit if prefix == "option" else script_args.eval_limit
            datasets[f"{prefix}_dataset"] = sources.questions(asked, split, limit)
    if not script_args.collapse_dataset_name:
        return datasets, None
    questions = sources.questions(script_args.collapse_dataset_name, test_split, script_args.collapse_limit)
    # Letters that are no tokens of their own show at the first question, before the model is loaded.
    OptionEncoder(tokenizer, training_args.prompt_format()).encode(questions[0])
    return datasets, questions


def run_training(trainer: Trainer) -> None:
    """Train, evaluate if there is something to evaluate on, save, and push if asked to."""
    args, publication = trainer.args, trainer.publication
    evaluation = Path(args.output_dir) / "evaluation"
    if publication is not None:
        publication.measure(trainer, evaluation / "before")
    _train(trainer)
    trainer.save_model(args.output_dir, _internal_call=True)  # which is not to push: that comes once, at the end
    trainer.save_state()
    describe(trainer, trainer.training_record)
    _predict_held_out(trainer)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.accelerator.print(f"Model saved to {args.output_dir}")
    if publication is not None:
        publication.measure(trainer, evaluation)
        publication.push(trainer)
    trainer.accelerator.wait_for_everyone()  # see launch.leave_process_group
    trainer.end()


def _train(trainer: Trainer) -> None:
    checkpoint, again = (
        trainer.args.resume_from_checkpoint,
        "the same command with --resume_from_checkpoint auto goes on",
    )
    if isinstance(checkpoint, str):
        trainer.accelerator.print(f"Resuming from {checkpoint}")
        adapt_to_processes(trainer, checkpoint)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Stopped as stop:
        trainer.accelerator.print(f"Stopped by SIGTERM with {stop}: {again} from it.")
        raise
    except Exception as error:
        if not is_full_disk(error, trainer):
            raise
        kept = last_checkpoint(trainer.args.output_dir)
        raise OSError(
            f"the disk of {trainer.args.output_dir} is full: make room, and {again} from {kept or 'the beginning'} ({error})"
        ) from error
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, StopOnSigterm):
                callback.restore()


def _predict_held_out(trainer: Trainer) -> None:
    """
    Ask the trained model the questions that were held out for the E-step, and keep the answers in `held_out/`, where
    `hf-calib calibrate --predictions` finds them.
    """
    args, questions = trainer.args, getattr(trainer, "held_out_questions", None)
    if questions is None or divides_weights(trainer):
        return
    folder = Path(args.output_dir) / "held_out"
    says = predict_options(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        questions,
        prompt_format=args.prompt_format(),
        option_normalization=args.option_normalization,
        batch_size=args.per_device_eval_batch_size,
        output_path=folder / "predictions.npz",
        resume=False,
        progress=not args.disable_tqdm,
    )
    accuracy, confidence = (says.option_logits.argmax(1) == says.labels).mean(), says.probabilities.max(1).mean()
    trainer.accelerator.print(
        f"Held out: {len(says)} questions, accuracy {accuracy:.3f}, mean confidence {confidence:.3f}. What is missing between them: "
        f"hf-calib calibrate --predictions {folder}"
    )
