"""Recipe of the training of `hf-calib restore`: defaults for any model, overridden by the user's recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import Any

import torch
import yaml
from trl import ModelConfig, TrlParser

from ..data.prompts import PromptArguments
from ..hub.recipe import read_recipe
from ..trainers.sft_config import CalibratedSFTConfig
from .arguments import TrainArguments
from .distributed import cpu_training_arguments
from .restore_options import RestoreOptions
from .restore_plan import BATCH, CLOSING_SHARE, CLOSING_STEPS, PASSES_OF_A_STEP, Plan, default_epochs


FULL_BELOW = 50e6  # parameters: smaller models are fine-tuned in full, larger ones by LoRA
_CHECKPOINTING_ABOVE = 500e6
PROMPT_FIELDS = tuple(field.name for field in fields(PromptArguments))
# Arguments of a recipe that `restore` sets itself.
_OWN = {
    "model_name_or_path", "model_revision", "output_dir", "resume_from_checkpoint", "trainer", "seed",
    "trust_remote_code", "attn_implementation", "push_to_hub", "reference_model_name_or_path", "columns",
    "answers_from", *PROMPT_FIELDS,
}  # fmt: skip
_DATA = ("dataset", "limit", "split", "eval_", "collapse_", "hub_")


def read_config(options: RestoreOptions) -> dict[str, Any]:
    """
    Read and check the recipe of `--config`.

    What `restore` sets itself (model, data, output folder, prompt, push) is left out. The prompt of the recipe applies
    where the options have none, see [`with_prompt_of`].

    Raises:
        `ValueError`: for a missing file, an unknown or wrong argument, or another trainer.
    """
    if options.config is None:
        return {}
    content = read_recipe(options.config)
    if (trainer := content.get("trainer", "calibrated_sft")) != "calibrated_sft":
        raise ValueError(f"{options.config} is a recipe of the trainer {trainer}; restore needs calibrated_sft.")
    parse_recipe(options.config, content)
    kept = {}
    for name, value in content.items():
        ours = name in _OWN or any(part in name for part in _DATA)
        if not ours or name in ("text_dataset_name", "train_sampling_strategy"):
            kept[name] = value
    return kept


def with_prompt_of(options: RestoreOptions) -> dict[str, Any]:
    """Prompt arguments of the recipe of `--config`, where the options have their defaults."""
    content = read_recipe(options.config) if options.config else {}
    unset = {field.name: field.default for field in fields(RestoreOptions) if field.name in PROMPT_FIELDS}
    return {
        name: content[name] for name, default in unset.items() if name in content and getattr(options, name) == default
    }


def parse_recipe(path: str | Path, content: dict[str, Any]) -> tuple[TrainArguments, CalibratedSFTConfig, ModelConfig]:
    """
    Make the arguments of a training from a recipe.

    Args:
        path (`str` or `Path`):
            The recipe's file, for messages.
        content (`dict`):
            Its arguments.

    Raises:
        `ValueError`: for an unknown or wrong argument, which is named.
    """
    parser = TrlParser((TrainArguments, CalibratedSFTConfig, ModelConfig))
    known = {action.dest for action in parser._actions}
    if unknown := sorted(set(content).difference(known)):
        raise ValueError(f"{path}: unknown argument {unknown[0]!r}.")
    given = {"output_dir": "unused", **content}
    parser.set_defaults_with_config(**given)
    try:
        return parser.parse_args_into_dataclasses(cpu_training_arguments(), look_for_args_file=False)
    except SystemExit:
        raise ValueError(f"{path} has a wrong argument, see above.") from None
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None


def is_small(num_parameters: int, config: dict[str, Any]) -> bool:
    """Whether the model is fine-tuned in full, because it is small or the recipe wants it."""
    return not config["use_peft"] if "use_peft" in config else num_parameters < FULL_BELOW


def full_plan(
    options: RestoreOptions, config: Mapping[str, Any], num_parameters: int, numbers: Mapping[str, int], **measured
) -> Plan:
    """
    Make the plan with all questions and the default epochs.

    Args:
        options ([`RestoreOptions`]), config (`Mapping`), num_parameters (`int`):
            Options, recipe and size of the model.
        numbers (`Mapping`):
            Numbers of questions: `labels`, `test` and `unlabelled`.
        measured:
            Further fields of [`~hf_calib.training.restore_plan.Plan`].
    """
    small, epochs = is_small(num_parameters, config), config.get("num_train_epochs")
    kind = "full" if small else "lora"
    step = kind if small or torch.accelerator.is_available() else "lora on CPUs"
    return Plan(
        **numbers,
        epochs=epochs or default_epochs(numbers["labels"], kind),
        passes_of_a_step=PASSES_OF_A_STEP[step],
        least_closing=CLOSING_STEPS[kind] * BATCH[kind],
        has_reference=options.reference is not None,
        **measured,
    )


def default_recipe(num_parameters: int, kind: str, plan: Plan, single_tokens: bool, processes: int) -> dict[str, Any]:
    """
    Make the arguments that need no knowledge of the model.

    Args:
        num_parameters (`int`):
            Size of the model.
        kind (`str`):
            `"lora"` or `"full"`.
        plan ([`Plan`]):
            Numbers of questions and epochs.
        single_tokens (`bool`):
            Whether every option is one token. The likelihood of the answer is then its cross-entropy over the options,
            up to the option mass.
        processes (`int`):
            Number of processes, which share a batch.

    Returns:
        `dict`: arguments by name.
    """
    batch = max(1, BATCH[kind] // processes)
    steps = ceil(plan.epochs * (plan.labels + plan.unlabelled) / (batch * processes))
    recipe = {
        "num_train_epochs": plan.epochs,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "learning_rate": learning_rate(num_parameters, kind),
        "lr_scheduler_type": "cosine" if kind == "lora" else "linear",
        "warmup_steps": 0.1,
        "em_holdout": num_held_out(plan.labels),
        "em_refresh": str(max(5, steps // 10)),
        "gradient_checkpointing": num_parameters >= _CHECKPOINTING_ABOVE,
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "logging_steps": ceil(steps / 5),
        "save_strategy": "steps",
        "save_steps": max(10, ceil(steps / 5)),
        "save_total_limit": 1,
        "report_to": "none",
    }
    recipe["closing_step"] = json.dumps(closing_options(kind, steps))
    if not single_tokens:
        recipe["option_loss_weight"] = 5.0
    if kind == "lora":
        recipe["train_sampling_strategy"] = "group_by_length"
        recipe |= {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear"}
    return recipe


def closing_options(kind: str, steps: int) -> dict[str, Any]:
    """Options of the closing step after a training of so many steps."""
    options = {"steps": max(CLOSING_SHARE, round(CLOSING_STEPS[kind] / steps, 2))}
    return options if kind == "lora" else {**options, "learning_rate": 5e-4}


def num_held_out(labels: int) -> int:
    """Number of labels to hold out: a fifth, but at least 10, and 20 where they are at most a quarter."""
    return max(round(0.2 * labels), min(20, labels // 4), 10)


def learning_rate(num_parameters: int, kind: str) -> float:
    """Learning rate for a model of this size."""
    if kind == "full":
        return 1e-4
    # At 1e-3 SmolLM2-135M learns no more and forgets how it wrote: docs/research/closing-step.md.
    return 3e-4 if num_parameters < 300e6 else 2e-4 if num_parameters < 3e9 else 1e-4


def write_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Write a recipe, which `hf-calib train --config` takes as well."""
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
