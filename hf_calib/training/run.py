"""From the arguments of a recipe to a trained, evaluated and saved model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed
from transformers.utils import find_adapter_config_file
from trl import DPOConfig, ModelConfig, SFTConfig, get_peft_config, get_quantization_config

from ..evaluation.tables import check_output_dir
from ..hub.model_folder import ADAPTER
from ..inference.model_loading import check_model_name, merge_command
from ..inference.predict import PredictionOptions, predict_options
from ..trainers.callbacks import CollapseCallback, divides_weights
from ..trainers.closing_options import describe_closing
from ..trainers.data import report_too_long
from ..trainers.dpo_config import CalibratedDPOConfig
from ..trainers.last_checkpoint import last_checkpoint
from .arguments import TRAINERS, TrainArguments
from .checkpoints import adapt_to_processes, check_disk_space, is_full_disk, resume_point
from .datasets import load_datasets
from .distributed import Stopped
from .hub_push import Publication, describe, prepare_push, published_questions, training_record
from .sigterm import StopOnSigterm


LEAST_FOR_CALIBRATION = 10  # predictions that `hf-calib calibrate` needs for its five folds


def build_trainer(
    script_args: TrainArguments,
    training_args: SFTConfig | DPOConfig,
    model_args: ModelConfig,
    model: PreTrainedModel | None = None,
) -> Trainer:
    """
    Load and check model and data, and build the trainer.

    Args:
        script_args ([`~hf_calib.training.arguments.TrainArguments`]):
            Trainer and data.
        training_args ([`CalibratedSFTConfig`], [`CalibratedDPOConfig`], [`RecipeSFTConfig`] or [`RecipeDPOConfig`]):
            Training arguments of that trainer.
        model_args ([`~trl.ModelConfig`]):
            Model, PEFT and quantization.
        model ([`~transformers.PreTrainedModel`], *optional*):
            The model, if it is in memory already. It is trained in place.

    Returns:
        [`~transformers.Trainer`]: ready to train, with the attributes `training_record` and `publication`.

    Raises:
        `ValueError`, `OSError`, `ImportError`: for a wrong argument, file or row.
    """
    missing = {
        "model_name_or_path is missing: name a model of the Hub or a local folder.": model_args.model_name_or_path,
        "dataset_name is missing: name a parquet, jsonl or csv file, a folder, or a data set of the Hub.": (
            script_args.dataset_name
        ),
    }
    if not all(missing.values()):
        raise ValueError("\n".join(text for text, value in missing.items() if not value))
    _check_bitsandbytes(training_args, model_args)
    refuse_other_kind(check_output_dir(training_args.output_dir), adapter=model_args.use_peft)
    training_args.resume_from_checkpoint = resume_point(training_args.resume_from_checkpoint, training_args.output_dir)
    prepare_push(training_args, model_args)
    tokenizer = _load_tokenizer(training_args, model_args)
    datasets, collapse_questions = load_datasets(script_args, training_args, tokenizer)
    loading = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    training_args.model_init_kwargs = loading if model is None else None
    # The trainer sets the seed, but only after the weights of an adapter have been drawn.
    set_seed(training_args.seed)
    trainer = TRAINERS[script_args.trainer][1](
        model=model_args.model_name_or_path if model is None else model,
        args=training_args,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args) if model is None else None,
        peft_config=get_peft_config(model_args),
        **datasets,
    )
    if script_args.trainer in ("sft", "dpo"):  # the calibrated trainers do it themselves
        _report_too_long(trainer, datasets)
    check_disk_space(trainer)
    trainer.add_callback(StopOnSigterm(trainer))
    if collapse_questions is not None:
        options = PredictionOptions(
            prompt_format=training_args.prompt_format(),
            option_normalization=training_args.option_normalization,
            batch_size=training_args.per_device_eval_batch_size,
        )
        every = script_args.collapse_steps
        trainer.add_callback(CollapseCallback(trainer, collapse_questions, every, prediction_options=options))
    held_out = len(getattr(trainer, "held_out_questions", None) or ())
    trainer.training_record = training_record(script_args, training_args, model_args, datasets, held_out)
    trainer.publication = None
    if training_args.push_to_hub:
        published = published_questions(script_args, training_args, model_args, datasets, collapse_questions)
        trainer.publication = Publication(trainer.training_record, *published)
    return trainer


def _report_too_long(trainer: Trainer, datasets: dict[str, Dataset]) -> None:
    """Log how many rows TRL's own trainers left out or cut; an error if none is left."""
    if not getattr(trainer.args, "packing", False):
        for name, rows in datasets.items():
            prepared = getattr(trainer, name)
            kind = "pairs" if "chosen" in rows.column_names else "texts"
            report_too_long(rows, prepared, trainer.args.max_length, f"{name.removesuffix('_dataset')} {kind}")


def _check_bitsandbytes(training_args: SFTConfig | DPOConfig, model_args: ModelConfig) -> None:
    """Raise an `ImportError`, before the model is loaded, if bitsandbytes is needed and not installed."""
    wanted = [f"--{name} true" for name in ("load_in_4bit", "load_in_8bit") if getattr(model_args, name)]
    optimizer = str(getattr(training_args.optim, "value", training_args.optim))
    if "8bit" in optimizer or optimizer.startswith("paged_"):
        wanted.append(f"--optim {optimizer}")
    if wanted and find_spec("bitsandbytes") is None:
        raise ImportError(f"{', '.join(wanted)} needs bitsandbytes, which is not installed: pip install bitsandbytes")


def _load_tokenizer(training_args: SFTConfig | DPOConfig, model_args: ModelConfig) -> PreTrainedTokenizerBase:
    model, revision = model_args.model_name_or_path, model_args.model_revision
    refuse_adapter(model, revision)
    tokenizer = AutoTokenizer.from_pretrained(
        model, revision=revision, trust_remote_code=training_args.trust_remote_code
    )
    if isinstance(training_args, CalibratedDPOConfig) and training_args.chat_template_path:
        tokenizer.chat_template = Path(training_args.chat_template_path).read_text(encoding="utf-8")
    return tokenizer


def refuse_adapter(model: str, revision: str) -> None:
    """Raise a `ValueError` for an adapter, which is not trained further."""
    check_model_name(model)
    if find_adapter_config_file(model, revision=revision) is not None:
        raise ValueError(
            f"{model} is an adapter, not a model: merge it into its base model first,\n"
            + merge_command(model, f"{Path(model).name}-merged")
        )


def refuse_other_kind(folder: Path, adapter: bool) -> None:
    """Raise a `ValueError` if an adapter would be saved beside a whole model, or the reverse: it hides the model."""
    whole = next(folder.glob("model*.safetensors"), None)
    if adapter and whole is not None:
        raise ValueError(
            f"output_dir {folder} holds a whole model ({whole.name}), and an adapter is trained: choose another."
        )
    if not adapter and (folder / ADAPTER).is_file():
        raise ValueError(
            f"output_dir {folder} holds an adapter ({ADAPTER}), and a whole model is trained: choose another."
        )


def train_and_save(trainer: Trainer) -> None:
    """Train, save model and state with the record, and predict the held-out questions."""
    _train(trainer)
    trainer.save_model(trainer.args.output_dir, _internal_call=True)  # `_internal_call`: without a push
    trainer.save_state()
    describe(trainer, trainer.training_record)
    _predict_held_out(trainer)


def run_training(trainer: Trainer) -> None:
    """Train, save, evaluate where there are evaluation data, and push where that is set."""
    args, publication = trainer.args, trainer.publication
    evaluation = Path(args.output_dir) / "evaluation"
    if publication is not None:
        publication.measure(trainer, evaluation / "before")
    train_and_save(trainer)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.accelerator.print(f"Model saved to {args.output_dir}")
    if publication is not None:
        publication.measure(trainer, evaluation)
        publication.push(trainer)
    if report := getattr(trainer, "closing_report", None):
        trainer.accelerator.print(describe_closing(report))
    trainer.accelerator.wait_for_everyone()  # see distributed.leave_process_group
    trainer.end()


def _train(trainer: Trainer) -> None:
    checkpoint = trainer.args.resume_from_checkpoint
    resume = getattr(trainer, "resume_hint", "resume with the same command and --resume_from_checkpoint auto")
    if isinstance(checkpoint, str):
        trainer.accelerator.print(f"Resuming from {checkpoint}")
        adapt_to_processes(trainer, checkpoint)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Stopped as stop:
        trainer.accelerator.print(f"Stopped by SIGTERM with {stop}: {resume}.")
        raise
    except Exception as error:
        if not is_full_disk(error, trainer):
            raise
        kept = last_checkpoint(trainer.args.output_dir)
        raise OSError(
            f"the disk of {trainer.args.output_dir} is full: free some space and {resume}; "
            f"the last checkpoint is {kept or 'none'} ({error})"
        ) from error
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, StopOnSigterm):
                callback.restore()


def _predict_held_out(trainer: Trainer) -> None:
    """Save the trained model's predictions on the held-out questions in `held_out/`, for `hf-calib calibrate`."""
    args, questions = trainer.args, getattr(trainer, "held_out_questions", None)
    folder = Path(args.output_dir) / "held_out"
    if questions is None or divides_weights(trainer):
        if trainer.is_world_process_zero():
            (folder / "predictions.npz").unlink(missing_ok=True)  # of an earlier run, and so of another model
        return
    predictions = predict_options(
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
    accuracy = (predictions.option_logits.argmax(1) == predictions.labels).mean()
    confidence = predictions.probabilities.max(1).mean()
    trainer.accelerator.print(
        f"Held out: {len(predictions)} questions, accuracy {accuracy:.3f}, mean confidence {confidence:.3f}. "
        + (
            f"To calibrate on them: hf-calib calibrate --predictions {folder}"
            if len(predictions) >= LEAST_FOR_CALIBRATION
            else f"To calibrate on held-out questions, hold out {LEAST_FOR_CALIBRATION} or more (--em_holdout)."
        )
    )
