"""`hf-calib train`: train a model from a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ..training.distributed import cpu_training_arguments, end_with_launcher
from ..training.library_warnings import ignore_library_warnings
from .parser import CommandParser


_EXAMPLES = """\
examples:
  # calibration-aware fine-tuning from a recipe, on one process
  hf-calib train --config recipes/smollm2-135m/rcft.yaml

  # the same recipe for a model and questions of your own, with DeepSpeed ZeRO-2
  accelerate launch --config_file recipes/accelerate_configs/deepspeed_zero2.yaml recipes/train.py \\
      --config recipes/smollm2-135m/rcft.yaml --model_name_or_path ./my-dpo-model \\
      --dataset_name questions.parquet --output_dir my-calibrated-model

  # calibrated DPO on pairs of a file and pairs made of questions; measures preference collapse every 50 steps
  accelerate launch recipes/train.py --config recipes/smollm2-135m/dpo_calibrated.yaml \\
      --dataset_name pairs.parquet allenai/openbookqa:main --option_dataset_name allenai/ai2_arc:ARC-Easy \\
      --collapse_dataset_name allenai/ai2_arc:ARC-Challenge --collapse_steps 50

  # on preemptible machines: SIGTERM saves a checkpoint, and the same command resumes from it
  accelerate launch recipes/train.py --config recipes/smollm2-135m/rcft.yaml \\
      --save_strategy steps --save_steps 50 --save_total_limit 2 --resume_from_checkpoint auto

A recipe is a YAML file with the arguments as keys; an unknown key is an error. The command line overrides the recipe.
If it names another --dataset_name, the recipe's dataset_config does not apply.

trainers (the arguments differ: `hf-calib train --trainer calibrated_dpo --help`):
  calibrated_sft         CFT and RCFT on option questions
  calibrated_dpo         DPO on preference pairs, with EM-ECE on pairs or option questions
  sft, dpo               TRL's own trainers

Data sets are files, folders, or names on the Hub, as ID or ID:CONFIGURATION; several are mixed. Option questions
become preference pairs where pairs are needed: the correct option is chosen, another one rejected.

writes to --output_dir:
  the model or adapter with its tokenizer, training.json for the card, and held_out/ with the predictions for the
  questions held out from training, for `hf-calib calibrate --predictions`
"""


def _read_recipe(argv: Sequence[str]) -> tuple[str | None, dict[str, Any], str]:
    """Read the recipe's path and content, and the name of the trainer, on which the further arguments depend."""
    from ..hub.recipe import read_recipe

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--trainer")
    first.add_argument("--config")
    known, _ = first.parse_known_args(argv)
    content = read_recipe(known.config) if known.config else {}
    return known.config, content, known.trainer or content.get("trainer", "calibrated_sft")


def _recipe_parser(dataclass_types) -> CommandParser:
    """Make the parser of the arguments and of the recipe, `--config`."""
    from trl import TrlParser

    class RecipeParser(CommandParser, TrlParser):
        often_used = (
            "output_dir", "dataset_config", "dataset_train_split", "dataset_test_split", "learning_rate",
            "num_train_epochs", "per_device_train_batch_size", "max_length", "use_peft", "lora_r", "seed",
            "save_steps", "resume_from_checkpoint", "push_to_hub", "hub_model_id",
        )  # fmt: skip
        needed = ("model_name_or_path", "dataset_name")

        def instances(self, argv):
            *parsed, unknown, _ = self.parse_args_and_config(
                argv, return_remaining_strings=True, separate_remaining_strings=True
            )
            for name in unknown[::2]:  # names and values by turns
                self.check_known(name, " in the recipe")
            return parsed

        def given(self, argv):
            """The arguments of the command line alone, by name."""
            unset = object()
            namespace = argparse.Namespace(**{action.dest: unset for action in self._actions})
            known, _ = self.parse_known_args(list(argv), namespace)
            return {name: v for name, v in vars(known).items() if v is not unset and name != "config"}

    parser = RecipeParser("train", dataclass_types, "--config RECIPE.yaml", _EXAMPLES)
    text = "YAML file of arguments. The command line overrides it. It can hold the required ones."
    parser.add_argument("--config", metavar="RECIPE.yaml", default=argparse.SUPPRESS, help=text)
    parser.group_arguments()
    return parser


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the recipe, load and check model and data; the result trains."""
    end_with_launcher()
    ignore_library_warnings()
    from trl import ModelConfig

    from ..hub.recipe import Recipe
    from ..training.arguments import TRAINERS, TrainArguments
    from ..training.run import build_trainer, run_training

    path, content, name = _read_recipe(argv)
    if name not in TRAINERS:
        raise ValueError(f"unknown trainer {name!r}; choose one of {', '.join(TRAINERS)}.")
    parser = _recipe_parser((TrainArguments, TRAINERS[name][0], ModelConfig))
    script_args, *configurations = parser.parse([*cpu_training_arguments(), *argv])
    recipe = Recipe(path, content, parser.given(argv))
    if recipe.names_other_data:
        script_args.dataset_config = None
    trainer = build_trainer(script_args, *configurations)
    trainer.training_record |= {"command": recipe.command(), "recipe": recipe.effective()}
    return lambda: run_training(trainer)
