"""The command line: `hf-calib <command>`. Exit status: 0 done, 1 failed while working, 2 the call was wrong."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from . import __version__
from .data.prompts import PromptArguments
from .launch import cpu_training_arguments


@dataclass
class EvaluateArguments(PromptArguments):
    """What is evaluated, how, and where the results go."""

    model: str = field(metadata={"help": "Model or adapter: a local folder or a name on the Hub."})
    dataset: str = field(metadata={"help": "Questions: a parquet, jsonl or csv file, a folder, or a name on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set on the Hub."})
    split: str = field(default="test", metadata={"help": "Split of a data set that has several."})
    limit: int | None = field(default=None, metadata={"help": "Evaluate on so many questions, drawn by --seed."})
    seed: int = field(default=0, metadata={"help": "Seed of the draw of questions, the interval and the noise floor."})
    drop_invalid: bool = field(default=False, metadata={"help": "Leave out malformed questions instead of stopping."})
    output_dir: str = field(default="evaluation", metadata={"help": "Folder of results, predictions and diagram."})
    resume: bool = field(
        default=True, metadata={"help": "Go on from predictions already in --output_dir; 'false' makes them anew."}
    )
    batch_size: int = field(default=8, metadata={"help": "Questions of the longest kind in a forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens of a question with one option."})
    drop_too_long: bool = field(default=False, metadata={"help": "Leave out longer questions instead of stopping."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "'sdpa' or 'eager' for text scoring."})
    revision: str = field(default="main", metadata={"help": "Revision of the model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that the model's repository brings."})
    reference: str | None = field(
        default=None,
        metadata={
            "help": "Predictions of another model for the same questions, such as the one before its alignment: its "
            "OUTPUT_DIR, or predictions.npz. The regime is then judged by them."
        },
    )
    critical_accuracy: float | None = field(
        default=None, metadata={"help": "The critical accuracy, where it is known: decides the regime."}
    )
    alpha: float = field(default=0.05, metadata={"help": "Significance level of the regime test."})
    n_bins: int = field(default=10, metadata={"help": "Number of bins of the binned measures."})
    binning: str = field(
        default="equal_width", metadata={"help": "Kind of bins.", "choices": ["equal_width", "equal_mass"]}
    )
    n_bootstrap: int = field(default=1000, metadata={"help": "Draws behind the interval and behind the noise floor."})

    def __post_init__(self):
        for name in ("batch_size", "n_bins", "n_bootstrap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.critical_accuracy is not None and not 0 < self.critical_accuracy < 1:
            raise ValueError(f"critical_accuracy must lie in (0, 1), got {self.critical_accuracy}.")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must lie in (0, 0.5), got {self.alpha}.")


@dataclass
class QuickstartArguments:
    """Where the quickstart reports, and how large it is."""

    output_dir: str = field(default="quickstart-report", metadata={"help": "Folder of the report and of the models."})
    seed: int = field(default=0, metadata={"help": "Seed of the world and of every stage."})
    num_test_questions: int = field(default=10_000, metadata={"help": "Questions that every stage is evaluated on."})
    resume: bool = field(default=True, metadata={"help": "Keep the stages that an earlier run finished."})


@dataclass
class RegisterArguments:
    """Whether to look or to undo; by default the metric is registered."""

    check: bool = field(default=False, metadata={"help": "Say what evaluate.load finds, and why; change nothing."})
    remove: bool = field(default=False, metadata={"help": "Undo the registration."})

    def __post_init__(self):
        if self.check and self.remove:
            raise ValueError("--check and --remove exclude each other")


_USAGE = {
    "train": "--config RECIPE.yaml",
    "evaluate": "--model MODEL --dataset DATASET",
    "quickstart": "",
    "register": "[--check | --remove]",
}

_EXAMPLES = {
    "train": """\
examples:
  # calibration-aware fine-tuning from a recipe, on one process
  accelerate launch recipes/train.py --config recipes/smollm2-135m/rcft.yaml

  # the same recipe for a model and questions of your own, with DeepSpeed ZeRO-2
  accelerate launch --config_file recipes/accelerate_configs/deepspeed_zero2.yaml recipes/train.py \\
      --config recipes/smollm2-135m/rcft.yaml --model_name_or_path ./my-dpo-model \\
      --dataset_name questions.parquet --output_dir my-calibrated-model

A recipe is a YAML file of the arguments above; what stands on the command line wins. A key that no argument bears is an
error. `trainer: calibrated_sft` (the default) takes option questions; `sft` and `dpo` are TRL's own trainers.
""",
    "evaluate": """\
examples:
  # letters of the options, on a local file with the columns question, choices, answer
  hf-calib evaluate --model ./my-dpo-model --dataset questions.parquet --output_dir before

  # texts of the options, 1,000 questions of ARC-Easy from the Hub
  hf-calib evaluate --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset allenai/ai2_arc --dataset_config ARC-Easy \\
      --scoring text --limit 1000 --output_dir before

  # the regime, judged by the model before its alignment
  hf-calib evaluate --model ./my-base-model --dataset questions.parquet --output_dir base
  hf-calib evaluate --model ./my-dpo-model --dataset questions.parquet --output_dir aligned --reference base

  # on several GPUs
  accelerate launch --module hf_calib.cli evaluate --model ./my-dpo-model --dataset questions.parquet

OUTPUT_DIR then holds results.json (every measure, flat), predictions.npz (option_logits, probabilities, labels, ids, ...)
and reliability.png / .svg; where the questions have subjects, results.json also has the measures of each, and groups.png /
.svg shows them. A run that was cut off goes on where it stopped.
""",
    "quickstart": """\
example:
  hf-calib quickstart --output_dir quickstart-report

Pre-trains a small model in a synthetic world, aligns it with DPO until it is overconfident, repairs it with temperature
scaling, CFT and RCFT, and evaluates every stage. Some four minutes on two cores; nothing is downloaded.
""",
    "register": """\
examples:
  hf-calib register            # once; then, from every folder, online and offline:
                               #   evaluate.load("ece_regime").compute(predictions=probabilities, references=labels)
  hf-calib register --check    # what the name stands for here, and why; exit status 1 if it is not this metric
  hf-calib register --remove

A script of a few lines is put into evaluate's cache of modules, below $HF_MODULES_CACHE or $HF_HOME/modules. It imports the
metric from the installed package, so an upgrade of the package needs no new registration.
""",
}


def _parser(command: str, dataclass_types):
    from trl import TrlParser

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    return TrlParser(
        dataclass_types,
        prog=f"hf-calib {command}",
        # Generated, it would fill the screen: a training run has some two hundred arguments.
        usage=f"hf-calib {command} {_USAGE[command]} [--argument value ...]",
        description=_COMMANDS[command][1],
        epilog=_EXAMPLES[command],
        formatter_class=Formatter,
    )


def _trainer_name(argv: Sequence[str]) -> str:
    """The trainer decides which arguments there are, so it is looked up before they are parsed."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--trainer")
    peek.add_argument("--config")
    known, _ = peek.parse_known_args(argv)
    if known.trainer:
        return known.trainer
    if known.config:
        recipe = yaml.safe_load(Path(known.config).read_text()) or {}
        if isinstance(recipe, dict):
            return recipe.get("trainer", "calibrated_sft")
    return "calibrated_sft"


def prepare_train(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib train`: read the recipe, load and check model and data; the result trains."""
    from trl import ModelConfig

    from .trainers.run import TRAINERS, TrainArguments, build_trainer, run_training

    name = _trainer_name(argv)
    if name not in TRAINERS:
        raise ValueError(f"There is no trainer {name!r}; choose one of {', '.join(TRAINERS)}.")
    parser = _parser("train", (TrainArguments, TRAINERS[name][0], ModelConfig))
    trainer = build_trainer(*parser.parse_args_and_config([*cpu_training_arguments(), *argv]))
    return lambda: run_training(trainer)


def prepare_evaluate(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib evaluate`: load and check questions and model; the result predicts, prints and writes."""
    (args,) = _parser("evaluate", EvaluateArguments).parse_args_and_config(argv)
    from .data.mcq import load_questions
    from .loading import load_model
    from .options import OptionEncoder
    from .predict import predict_options
    from .predictions import OptionPredictions
    from .report import check_output_dir, evaluation_results, print_groups, print_table, write_evaluation

    output_dir = check_output_dir(args.output_dir)
    prompt_format = args.prompt_format()
    questions = load_questions(
        args.dataset, args.dataset_config, args.split, limit=args.limit, seed=args.seed, drop_invalid=args.drop_invalid
    )
    reference = None
    if args.reference:
        path = Path(args.reference)
        reference = OptionPredictions.load(path / "predictions.npz" if path.is_dir() else path)
    model, tokenizer = load_model(
        args.model,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )

    # Letters that are no tokens of their own show at the first question: a wrong call, not a failure while working.
    OptionEncoder(tokenizer, prompt_format).encode(questions[0])

    def evaluate() -> None:
        from accelerate import PartialState

        predictions = predict_options(
            model,
            tokenizer,
            questions,
            prompt_format=prompt_format,
            normalization=args.option_normalization,
            batch_size=args.batch_size,
            max_length=args.max_length,
            drop_too_long=args.drop_too_long,
            output_path=output_dir / "predictions.npz",
            resume=args.resume,
        )
        if not PartialState().is_main_process:
            return
        described = {"model": args.model, "dataset": args.dataset, "scoring": args.scoring, "seed": args.seed}
        names = ("critical_accuracy", "alpha", "n_bins", "binning", "n_bootstrap", "seed")
        options = {name: getattr(args, name) for name in names}
        if predictions.subjects is not None and len(set(predictions.subjects.tolist())) > 1:
            options["groups"] = predictions.subjects
        results = evaluation_results(predictions, reference, **options)
        diagram = {name: getattr(args, name) for name in ("n_bins", "binning", "n_bootstrap", "seed")}
        title = Path(args.model).name
        write_evaluation(output_dir, predictions, {**described, **results}, title, **diagram)
        print_table([{"stage": title, **results}])
        if "n_groups" in results:
            print_groups(results)
        print(f"{results['regime']}: {results['explanation']}")
        print(f"recommended: {results['recommended_method']}    results: {output_dir}")

    return evaluate


def prepare_quickstart(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib quickstart`: the whole story on a synthetic world."""
    (args,) = _parser("quickstart", QuickstartArguments).parse_args_and_config(argv)
    from .quickstart import run_quickstart
    from .report import check_output_dir

    output_dir = check_output_dir(args.output_dir)
    return lambda: run_quickstart(output_dir, args.seed, args.num_test_questions, args.resume)


def prepare_register(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib register`: make `evaluate.load("ece_regime")` work from every folder."""
    (args,) = _parser("register", RegisterArguments).parse_args_and_config(argv)
    from .registration import register, resolve, unregister

    def check() -> None:
        found = resolve()
        print(f'evaluate.load("ece_regime") resolves to: {found.resolves_to}\n  {found.path}\n  {found.reason}')
        if not found.ours:
            raise ValueError("that is not the metric of hf_calib")

    def remove() -> None:
        removed = unregister()
        print("\n".join(f"removed {script}" for script in removed) or "nothing was registered")

    def add() -> None:
        print(f"registered {register()}")
        check()

    return check if args.check else remove if args.remove else add


# Each reads its arguments and checks the call, and returns the work.
_COMMANDS = {
    "evaluate": (prepare_evaluate, "Measure the calibration of a model on option questions."),
    "train": (prepare_train, "Train from a recipe: CFT and RCFT, or TRL's SFT and DPO."),
    "quickstart": (prepare_quickstart, "The whole story in four minutes, on a synthetic world."),
    "register": (prepare_register, 'Make evaluate.load("ece_regime") work from every folder.'),
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name; by default those of the process.

    Returns:
        `int`: exit status; 0 done, 1 failed while working, 2 the call was wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, _COMMANDS))
    parser = argparse.ArgumentParser(
        "hf-calib",
        description="Measure, explain and restore the calibration of preference-aligned language models.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in _COMMANDS.items())
        + "\n\n`hf-calib <command> --help` explains each with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=_COMMANDS, metavar="command")
    try:
        command = parser.parse_args(argv[:1]).command
        work = _COMMANDS[command][0](argv[1:])
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2 if stop.code else 0
    except (ValueError, TypeError, OSError, ImportError, yaml.YAMLError) as error:
        print(f"hf-calib {argv[0]}: {error}", file=sys.stderr)
        return 2
    try:
        work()
    except KeyboardInterrupt:
        again = "the same command with --resume_from_checkpoint true" if command == "train" else "the same command"
        print(f"hf-calib {command}: interrupted; {again} goes on from what is saved", file=sys.stderr)
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"hf-calib {command}: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
