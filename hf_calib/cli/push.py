"""`hf-calib push`: a calibrated model, its evaluation and its card to the Hub, in one commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parser import command_parser


if TYPE_CHECKING:
    from ..hub.publish import Evaluation

DESCRIPTION = "Publish a model or adapter with a card that shows its calibration."

_EXAMPLES = """\
examples:
  # the model, and its evaluation before and after the repair, as `hf-calib evaluate` left them
  hf-calib push --model calibrated-model --evaluation after --before before --repo_id org/calibrated-model

  # with a post-hoc calibrator for hf_calib.load_calibrator, the predictions, on a branch of a private repository
  hf-calib push --model calibrated-model --evaluation after --repo_id org/calibrated-model --private true \\
      --calibrator calibration/calibrators/temperature --predictions true --revision v2

  # an adapter, merged into its base model: evaluated again, because merging moves calibration
  hf-calib push --model adapter --evaluation after --merge true --dataset test.parquet --repo_id org/merged-model

  # as a pull request on somebody else's repository
  hf-calib push --model calibrated-model --evaluation after --repo_id other/model --create_pr true

A training with `push_to_hub: true` ends in the same place. Card, diagrams, results.json and recipe are first written into the
folder of the model (or --output_dir), then everything goes in one commit. If that breaks off, nothing is half there; the
same command goes on, and large files that have arrived are not sent again. Weights are published as safetensors only.
You are who `hf auth whoami` says: `hf auth login`, or HF_TOKEN.
"""


@dataclass
class PushArguments:
    """What is published, and where."""

    model: str = field(metadata={"help": "Folder of a model or adapter, with its tokenizer."})
    repo_id: str = field(metadata={"help": "Name on the Hub."})
    evaluation: str | None = field(
        default=None,
        metadata={"help": "OUTPUT_DIR of its evaluation (default: MODEL/evaluation, where training leaves one)."},
    )
    before: str | None = field(
        default=None,
        metadata={"help": "OUTPUT_DIR of the evaluation of the model before its repair (default: EVALUATION/before)."},
    )
    calibrator: str | None = field(default=None, metadata={"help": "Folder of a post-hoc calibrator of this model."})
    predictions: bool = field(default=False, metadata={"help": "Publish predictions.npz too."})
    recipe: str | None = field(
        default=None,
        metadata={"help": "The recipe it was trained with (default: the one that MODEL/training.json records)."},
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Name of the base model on the Hub, where it was trained from a local folder."}
    )
    merge: bool = field(
        default=False, metadata={"help": "Publish the adapter merged into its base model, evaluated again."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "For --merge: the questions of the evaluation (default: those that it names)."}
    )
    batch_size: int = field(
        default=8, metadata={"help": "For --merge: questions of the longest kind in a forward pass."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that is made complete and sent (default: MODEL; for --merge MODEL-merged)."},
    )
    private: bool = field(default=False, metadata={"help": "Make the repository private."})
    revision: str | None = field(default=None, metadata={"help": "Branch to commit on; made if it is not there."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace a model that is there and was not published by hf-calib."}
    )
    commit_message: str | None = field(default=None, metadata={"help": "Message of the commit."})

    def __post_init__(self):
        if self.dataset and not self.merge:
            raise ValueError("--dataset is for --merge; without it, the evaluation is the one of --evaluation.")


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib push`: check the model, that the evaluation is its own, and the repository; the result writes and sends."""
    usage = "--model MODEL --evaluation OUTPUT_DIR --repo_id ORG/NAME"
    (args,) = command_parser("push", PushArguments, DESCRIPTION, usage, _EXAMPLES).parse_args_and_config(argv)
    from ..hub import publish
    from ..inference.model_loading import load_model
    from ..inference.predict import weights_digest

    folder = Path(args.model)
    if not folder.is_dir():
        raise ValueError(
            f"{args.model} is no folder: a model of the Hub comes with `hf download {args.model} --local-dir FOLDER`."
        )
    publish.model_files(folder)
    evaluation, before = _evaluations(args, folder)
    training = _training(args, folder)
    if args.calibrator:
        from ..posthoc import PostHocCalibrator

        PostHocCalibrator.load(args.calibrator)
    if args.merge and not (folder / "adapter_config.json").is_file():
        raise ValueError(f"--merge is for adapters; {folder} holds a whole model.")
    questions = evaluation.protocol.load_questions(_questions_of(args, evaluation)) if args.merge else None
    base_model = args.base_model
    if not args.merge:
        base_model = publish.set_base_model(folder, args.base_model) or args.base_model
        model, _ = load_model(str(folder), dtype=evaluation.protocol.dtype, use_safetensors=True)
        evaluation.check_weights(weights_digest(model), folder)
        del model
    repository = publish.open_model_repository(
        args.repo_id, args.overwrite, private=args.private or None, revision=args.revision, create_pr=args.create_pr
    )

    def push() -> None:
        nonlocal evaluation, base_model
        target = Path(args.output_dir or (f"{folder}-merged" if args.merge else folder))
        if args.merge:
            base_model = (
                base_model or json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
            )
            evaluation = publish.merge_and_evaluate(folder, target, evaluation, questions, args.batch_size)
        elif target.resolve() != folder.resolve():
            publish.copy_model(folder, target)
        files = publish.write_publication(
            target,
            repository.id,
            evaluation,
            before,
            args.calibrator,
            training,
            args.predictions,
            base_model,
            repository.read(publish.CARD),
        )
        print(f"complete: {target} ({len(files)} files)")
        commit = publish.publish(target, repository, files, args.commit_message)
        print(f"published: {commit.pr_url or commit.commit_url}")

    return push


def _evaluations(args: PushArguments, folder: Path) -> tuple[Evaluation, Evaluation | None]:
    from ..hub.publish import Evaluation

    place = Path(args.evaluation or folder / "evaluation")
    if not place.is_dir():
        raise ValueError(
            f"{place} is no folder: name the evaluation of the model with --evaluation, or make one with\n"
            f"hf-calib evaluate --model {args.model} --dataset QUESTIONS --output_dir {place}"
        )
    evaluation = Evaluation.load(place)
    earlier = Path(args.before) if args.before else place / "before"
    return evaluation, Evaluation.load(earlier) if args.before or earlier.is_dir() else None


def _training(args: PushArguments, folder: Path) -> dict[str, Any] | None:
    from ..hub.publish import TRAINING_RECORD
    from ..hub.recipe import without_secrets

    record = folder / TRAINING_RECORD
    training = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if args.recipe:
        training["recipe"] = without_secrets(Path(args.recipe).read_text(encoding="utf-8"))
    return training or None


def _questions_of(args: PushArguments, evaluation: Evaluation) -> str | None:
    """What --merge asks again: on this machine the path that the evaluation names still holds."""
    stated = evaluation.protocol.dataset
    return args.dataset or (stated if Path(stated).exists() else None)
