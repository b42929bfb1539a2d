"""The training of `hf-calib restore`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ..data.questions import split_questions
from ..evaluation.protocol import is_hub_id
from ..evaluation.tables import write_json
from ..hub.publish import TRAINING_RECORD
from .restore_recipe import PROMPT_FIELDS, default_recipe, num_held_out, parse_recipe, write_recipe
from .restore_work import LABELS, UNLABELLED, RestoreWork
from .run import build_trainer, train_and_save


if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

# Labels where the trainer holds none out (CFT), in `data/`.
_KEPT_LABELS, _HELD_OUT = "labels_train.parquet", "labels_held_out.parquet"


@dataclass
class TrainingInputs:
    """
    What a training is made from.

    Args:
        work ([`~hf_calib.training.restore_work.RestoreWork`]):
            The restoration.
        objective (`str`):
            `"cft"` or `"rcft"`.
        single_tokens (`bool`):
            Whether every option is one token.
    """

    work: RestoreWork
    objective: str
    single_tokens: bool

    @property
    def trainer_holds_out(self) -> bool:
        """Whether the trainer itself keeps labels out of the training: for the E-step, or for the closing step."""
        recipe = self.work.config
        if recipe.get("em_holdout") == 0 or recipe.get("em_preset") is not None:
            return False
        return self.objective == "rcft" or str(recipe.get("closing_step")).lower() != "false"

    def _defaults(self) -> dict[str, Any]:
        work = self.work
        return default_recipe(work.num_parameters, work.kind, work.plan, self.single_tokens, work.state.num_processes)

    def recipe(self) -> dict[str, Any]:
        """All arguments of the training: defaults, overridden by the user's recipe, and the model and data."""
        work, options = self.work, self.work.options
        data = work.folder / "data"
        recipe = self._defaults()
        if not self.trainer_holds_out:
            recipe.pop("closing_step", None)
        recipe |= {"max_length": options.max_length, **work.config}
        recipe |= {name: getattr(options, name) for name in PROMPT_FIELDS}
        recipe |= {
            "objective": self.objective,
            "model_name_or_path": options.model,
            "model_revision": options.revision,
            "trust_remote_code": options.trust_remote_code,
            "dtype": work.dtype,
            "dataset_name": str(data / (LABELS if self.trainer_holds_out else _KEPT_LABELS)),
            "output_dir": str(work.training_folder),
            "seed": options.seed,
        }
        if work.questions.unlabelled is not None and (
            self.objective == "rcft" or self.trainer_holds_out or options.reference
        ):
            recipe["unlabelled_dataset_name"] = str(data / UNLABELLED)
        if options.reference:
            recipe["reference_model_name_or_path"] = options.reference
        return {name: value for name, value in recipe.items() if value is not None or name == "max_length"}


def train(
    inputs: TrainingInputs, recipe: dict[str, Any], model: PreTrainedModel, resume: bool
) -> tuple[PreTrainedModel | None, dict[str, Any]]:
    """
    Train, and save the whole model in `model/`.

    Args:
        inputs ([`TrainingInputs`]), recipe (`dict`):
            The restoration, and the arguments of the training.
        model ([`~transformers.PreTrainedModel`]):
            The aligned model. It is changed.
        resume (`bool`):
            Whether to resume from the newest checkpoint.

    Returns:
        `tuple`: the trained model if it is in memory as it is saved, and numbers of the training.
    """
    work, held_out = inputs.work, None
    if not inputs.trainer_holds_out:
        held_out = _hold_out(work)
    path = work.folder / "recipe.yaml"
    if work.state.is_main_process:
        write_recipe(path, recipe)
    work.state.wait_for_everyone()
    script_args, training_args, model_args = parse_recipe(path, recipe)
    training_args.resume_from_checkpoint = "auto" if resume else "false"
    quantized = model_args.load_in_4bit or model_args.load_in_8bit
    trainer = build_trainer(script_args, training_args, model_args, model=None if quantized else model)
    trainer.resume_hint = "resume with the same command"
    _complete_record(trainer, inputs, path)
    train_and_save(trainer)
    if held_out is not None:
        trained = trainer.accelerator.unwrap_model(trainer.model)
        work.predict(trained, held_out, work.held_out_path, resume=False)
    in_memory = not (quantized or training_args.bf16 or training_args.fp16)
    found = {"steps": trainer.state.global_step, "closing": getattr(trainer, "closing_report", None)}
    trained = _save_whole(trainer, work, quantized)
    if work.state.is_main_process:
        for checkpoint in work.training_folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    work.state.wait_for_everyone()
    return trained if in_memory else None, found


def _hold_out(work: RestoreWork) -> Dataset:
    """Divide the labels, write those to train on, and return the others."""
    labels = work.questions.labels
    parts = split_questions(labels, train=None, calibration=num_held_out(len(labels)), test=0, seed=work.options.seed)
    if work.state.is_main_process:
        parts["train"].to_parquet(work.folder / "data" / _KEPT_LABELS)
        parts["calibration"].to_parquet(work.folder / "data" / _HELD_OUT)
    work.state.wait_for_everyone()
    return parts["calibration"]


def _complete_record(trainer: Trainer, inputs: TrainingInputs, path: Path) -> None:
    """Name the user's data set instead of its part, and the command, in the record for the card."""
    work, record = inputs.work, trainer.training_record
    dataset = work.options.dataset
    shown = dataset if is_hub_id(dataset) else Path(dataset).name
    for part in (LABELS, _KEPT_LABELS):
        record["budget"] = [line.replace(f" of {part}", f" of {shown}") for line in record["budget"]]
    record["hub_datasets"] = [dataset.partition(":")[0]] if is_hub_id(dataset) else []
    record["recipe"] = path.read_text(encoding="utf-8")
    record["command"] = work.command or f"hf-calib train --config {path}"


def _save_whole(trainer: Trainer, work: RestoreWork, quantized: bool) -> PreTrainedModel:
    """Merge an adapter, and save the whole model with its tokenizer and record."""
    trained, folder = trainer.accelerator.unwrap_model(trainer.model), work.folder / "model"
    if work.training_folder == folder:
        return trained
    if quantized:
        trained = work.load(str(work.training_folder))
    trained = trained.merge_and_unload()
    if work.state.is_main_process:
        trained.save_pretrained(folder)
        work.tokenizer.save_pretrained(folder)
        record = json.loads((work.training_folder / TRAINING_RECORD).read_text(encoding="utf-8"))
        write_json(folder / TRAINING_RECORD, record)
    work.state.wait_for_everyone()
    return trained
