"""Publication of a training: its record, the evaluation before and after it, and one push at the end."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from .. import __version__
from ..data.prompts import PromptArguments
from ..evaluation.protocol import EvaluationProtocol, is_hub_id
from ..evaluation.tables import write_evaluation, write_json
from ..hub.card import CARD
from ..hub.model_folder import base_model_of
from ..hub.publish import (
    PREDICTIONS,
    TRAINING_RECORD,
    Contents,
    Evaluation,
    open_model_repository,
    publish,
    write_publication,
)
from ..hub.recipe import published_record
from ..trainers.callbacks import divides_weights


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_OBJECTIVES = {
    "sft": "Supervised fine-tuning with TRL's SFTTrainer.",
    "dpo": "Direct preference optimization with TRL's DPOTrainer.",
    "cft": "Calibration-aware fine-tuning (CFT): the likelihood of the answers to questions of the domain.",
    "rcft": "Regularised calibration-aware fine-tuning (RCFT): the likelihood of the answers, and EM-ECE, which pulls "
    "the option probabilities towards a map from confidence to accuracy that is estimated on held-out questions.",
    "calibrated_dpo": "Calibrated DPO: direct preference optimization with EM-ECE on pairs and on option questions.",
}
# Settings on the card, where the configuration of the trainer has them and they are not None.
_SETTINGS = (
    "objective", "scoring", "option_normalization", "lambda_ece", "likelihood_weight",
    "option_loss_weight", "reference_model_name_or_path", "reference_weight", "beta", "loss_type", "label_smoothing",
    "lambda_pref", "lambda_options", "em_estimator", "em_holdout", "em_refresh", "em_loss", "em_preset",
    "learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "max_length", "seed",
)  # fmt: skip


def prepare_push(args, model_args) -> None:
    """
    Check, before anything is loaded, the repository's name, the token and the base model of the push.

    The token is moved to the environment of this process, since the configuration is saved with every checkpoint. The
    model is pushed once, at the end, unless `hub_strategy` pushes checkpoints.
    """
    if args.hub_token:
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    if not args.push_to_hub:
        return
    if model_args.use_peft and not is_hub_id(model_args.model_name_or_path):
        raise ValueError(
            f"push_to_hub: an adapter of the local folder {model_args.model_name_or_path!r} cannot be loaded "
            "elsewhere. Publish that model and train on it by its name, or train without push_to_hub and use "
            "`hf-calib push --merge true`."
        )
    if args.hub_strategy == HubStrategy.EVERY_SAVE:
        args.hub_strategy = HubStrategy.END
    # A resumed run may replace what it pushed before.
    args.hub_model_id = _open(args, overwrite=bool(args.resume_from_checkpoint)).id


def _open(args, overwrite: bool):
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    return open_model_repository(name, overwrite, private=args.hub_private_repo, revision=args.hub_revision)


def training_record(
    script_args, args, model_args, datasets: Mapping[str, Dataset], held_out: int | None
) -> dict[str, Any]:
    """
    Collect what a model card shows about a training.

    Args:
        script_args ([`~hf_calib.training.arguments.TrainArguments`]):
            Trainer and names of the data.
        args ([`~transformers.TrainingArguments`]):
            Configuration of the trainer.
        model_args ([`~trl.ModelConfig`]):
            Model and PEFT.
        datasets (`Mapping[str, Dataset]`):
            Data sets of the trainer, by argument.
        held_out (`int`, *optional*):
            Number of questions that were held out for the E-step.

    Returns:
        `dict`: `base_model`, `hub_datasets`, `objective`, `settings`, `budget` (a list of sentences) and `hf_calib`
        (the version). The command adds `command` and `recipe`.
    """
    trainer, names = script_args.trainer, script_args.dataset_name
    settings = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name, None) is not None}
    for name in ("max_steps", "label_smoothing"):
        if settings.get(name, 0) <= 0:
            settings.pop(name, None)
    if isinstance(settings.get("loss_type"), list):
        settings["loss_type"] = ", ".join(settings["loss_type"])
    if not getattr(args, "calibration_weight", True):
        settings = {name: value for name, value in settings.items() if not name.startswith("em_")}
    if not getattr(args, "has_reference", True):
        settings.pop("reference_weight", None)
    settings["batch size"] = (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)
    )
    if model_args.use_peft:
        settings["LoRA rank"], settings["LoRA alpha"] = model_args.lora_r, model_args.lora_alpha
    settings["processes"] = args.world_size
    if reference := settings.get("reference_model_name_or_path"):
        settings["reference_model_name_or_path"] = reference if is_hub_id(reference) else Path(reference).name
    settings = {name: getattr(value, "value", value) for name, value in settings.items()}
    settings = {
        name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in settings.items()
    }
    on_hub = [name.partition(":")[0] for name in names if is_hub_id(name)]
    return {
        "base_model": model_args.model_name_or_path,
        "hub_datasets": list(dict.fromkeys(on_hub)),
        "objective": _OBJECTIVES.get(getattr(args, "objective", trainer), f"Training with the trainer `{trainer}`."),
        "settings": settings,
        "budget": _budget(datasets, names, held_out),
        "hf_calib": __version__,
    }


def _budget(datasets: Mapping[str, Dataset], names: Sequence[str], held_out: int | None) -> list[str]:
    train = datasets["train_dataset"]
    shown = ", ".join(name if is_hub_id(name) else Path(name).name for name in names)
    if "chosen" in train.column_names:
        lines = [f"{len(train):,} preference pairs of {shown}."]
    elif "answer" in train.column_names:
        labelled = sum(answer is not None for answer in train["answer"])
        lines = [f"{labelled:,} labelled questions of {shown}."]
        if texts := len(train) - labelled:
            lines.append(f"{texts:,} texts, for their likelihood.")
    else:
        lines = [f"{len(train):,} rows of {shown}."]
    for name, what in (
        ("unlabelled_dataset", "questions without answers"),
        ("option_dataset", "labelled option questions"),
    ):
        if name in datasets:
            lines.append(f"{len(datasets[name]):,} {what}.")
    if held_out:
        unseen = (
            "" if "chosen" in train.column_names else ": their answers were not trained on"
        )  # pairs may be made of the same questions
        lines.append(f"{held_out:,} of the labelled questions were held out for the E-step{unseen}.")
    return lines


def published_questions(
    script_args, training_args, model_args, datasets: dict[str, Dataset], collapse_questions: Dataset | None
) -> tuple[EvaluationProtocol | None, Dataset | None]:
    """Choose the questions that are evaluated for the card, and their protocol, with the prompts of the trainer."""
    names, limit, questions = script_args.collapse_dataset_name, script_args.collapse_limit, collapse_questions
    if script_args.trainer == "calibrated_sft" and "eval_dataset" in datasets:
        names, limit = script_args.eval_dataset_name or script_args.dataset_name, script_args.eval_limit
        questions = datasets["eval_dataset"]
    elif "eval_option_dataset" in datasets:
        names, limit = script_args.eval_option_dataset_name, script_args.eval_limit
        questions = datasets["eval_option_dataset"]
    if questions is None:
        return None, None
    if model_args.load_in_4bit or model_args.load_in_8bit:
        logger.warning(
            "push_to_hub: the model is trained on quantized weights, and quantization changes the calibration: no "
            "evaluation is published. `hf-calib evaluate` on the weights that users load, and `hf-calib push`, add it."
        )
        return None, None
    dataset, own_split = " + ".join(names), None
    if len(names) == 1 and is_hub_id(dataset) and dataset.count(":") > 1:
        dataset, _, own_split = dataset.rpartition(":")
    protocol = EvaluationProtocol(
        dataset=dataset,
        split=own_split or script_args.dataset_test_split,
        # An adapter is evaluated in the type of its base model, a whole model as it is saved.
        dtype=str(model_args.dtype or "auto").removeprefix("torch.") if model_args.use_peft else "auto",
        limit=limit,
        seed=training_args.seed if training_args.data_seed is None else training_args.data_seed,
        drop_invalid=script_args.drop_invalid,
        **script_args.reading,
        **{asked.name: getattr(training_args, asked.name) for asked in fields(PromptArguments)},
    )
    return protocol, questions


class Publication:
    """
    Evaluation and push of a training.

    Args:
        record (`dict`):
            From [`training_record`].
        protocol ([`EvaluationProtocol`], *optional*), questions (`Dataset`, *optional*):
            Questions that the model is evaluated on before and after the training, and how; by default none.
    """

    def __init__(
        self, record: dict[str, Any], protocol: EvaluationProtocol | None = None, questions: Dataset | None = None
    ):
        self.record, self.protocol, self.questions = record, protocol, questions
        if questions is None:
            logger.warning(
                "push_to_hub: without option questions the card will show no calibration; name some with "
                "eval_dataset_name (calibrated_sft), eval_option_dataset_name (calibrated_dpo) or "
                "collapse_dataset_name."
            )

    def measure(self, trainer: Trainer, folder: Path) -> None:
        """Evaluate the model and write the files of `hf-calib evaluate`, on the main process."""
        if self.questions is None or divides_weights(trainer):
            return
        args, tokenizer = trainer.args, trainer.processing_class
        predictions = self.protocol.predict(
            trainer.accelerator.unwrap_model(trainer.model).to(trainer.accelerator.device),
            tokenizer,
            self.questions,
            args.per_device_eval_batch_size,
            folder / PREDICTIONS,
            resume=False,
            progress=not args.disable_tqdm,
        )
        if trainer.is_world_process_zero():
            results = {"model": args.output_dir, **self.protocol.statement(predictions, tokenizer)}
            results |= self.protocol.measure(predictions)
            write_evaluation(folder, predictions, results, folder.name, **self.protocol.drawing)

    def push(self, trainer: Trainer) -> None:
        """Write the card and send everything, in one commit, from the main process."""
        args, folder = trainer.args, Path(trainer.args.output_dir)
        place, measured = folder / "evaluation", self.questions is not None and not divides_weights(trainer)
        if self.questions is not None and not measured:
            logger.warning("push_to_hub: the weights are partitioned among processes, so no evaluation is published; "
                           "`hf-calib evaluate` and `hf-calib push` add the evaluation.")  # fmt: skip
        if not trainer.is_world_process_zero():
            return
        # Files of an earlier run belong to other weights.
        evaluation, before = (Evaluation.load(part) if measured else None for part in (place, place / "before"))
        command = ["hf-calib", "push", "--model", str(folder), "--repo_id", args.hub_model_id, "--overwrite", "true"]
        command += ["--revision", args.hub_revision] if args.hub_revision else []
        command += ["--private", "true"] if args.hub_private_repo else []
        try:
            base_model = base_model_of(folder, None) or self.record["base_model"]
            repository = _open(args, overwrite=True)
            contents = Contents(
                repo_id=repository.id,
                evaluation=evaluation,
                before=before,
                training=self.record,
                base_model=base_model,
                existing_card=repository.read(CARD),
            )
            files = write_publication(folder, contents)
            commit = publish(folder, repository, files)
        except (OSError, ValueError) as error:
            raise type(error)(
                f"{error}\nThe model is trained and saved; to publish it, run\n{shlex.join(command)}"
            ) from error
        print(f"Published: {commit.commit_url}")


def describe(trainer: Trainer, record: Mapping[str, Any]) -> None:
    """Write TRL's card and the record to the model's folder, for `hf-calib push`."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    name = trainer.args.hub_model_id or folder.absolute().name
    trainer.create_model_card(model_name=name.rpartition("/")[2])
    card = (folder / CARD).read_text(encoding="utf-8")
    # TRL writes "None" for a base model in a local folder, and for a model that is not pushed.
    card = card.replace("[None](https://huggingface.co/None)", Path(record["base_model"]).name)
    card = card.replace('model="None"', f'model="{name}"')
    (folder / CARD).write_text(card, encoding="utf-8")
    write_json(folder / TRAINING_RECORD, published_record(record))
