"""`hf-calib push`: publish a model, predictions or the metric on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parser import CommandParser


if TYPE_CHECKING:
    from huggingface_hub.hf_api import CommitInfo

    from ..evaluation.alignment_report import AlignmentReport
    from ..evaluation.gate import Gate
    from ..hub.publish import Evaluation
    from ..posthoc import PostHocCalibrator

_EXAMPLES = """\
examples:
  # a model with its evaluation before and after the repair, as `hf-calib evaluate` wrote them
  hf-calib push --model calibrated-model --evaluation after --evaluation_before before --repo_id org/calibrated-model

  # write and check all files, and send nothing; with --evaluation alone, write its card
  hf-calib push --model calibrated-model --evaluation after --repo_id org/calibrated-model --dry_run true

  # with the alignment that the model keeps, as `hf-calib diagnose --repaired calibrated-model` wrote it
  hf-calib push --model calibrated-model --evaluation after --alignment diagnosis --repo_id org/calibrated-model

  # with the threshold above which it may answer alone, for hf-calib answer; and the calibrator, if the gate has one
  hf-calib push --model calibrated-model --evaluation after --gate gate/gate.json --repo_id org/calibrated-model

  # with a post-hoc calibrator for hf_calib.load_calibrator, and the predictions, on a branch of a private repository
  hf-calib push --model calibrated-model --evaluation after --repo_id org/calibrated-model --private true \\
      --calibrator calibration/calibrators/temperature --include_predictions true --revision v2

  # an adapter merged into its base model; it is evaluated again, because merging changes calibration
  hf-calib push --model adapter --evaluation after --merge true --dataset test.parquet --repo_id org/merged-model

  # predictions alone, as a data set that others can score again; the metric ece_regime as a Space
  hf-calib push --what predictions --evaluation after --repo_id org/calibrated-model-predictions
  hf-calib push --what metric --repo_id org/ece_regime

Writes README.md (the card), results.json, diagrams, recipe.yaml and, if they are given, gate.json and calibrator/ into
the folder of the model or --output_dir, then sends everything in one commit. If the connection breaks, nothing is
published, and the same command resumes. Weights are published as safetensors only. The account is that of
`hf auth login` or HF_TOKEN. A training with `push_to_hub: true` publishes the same files.
"""

# Arguments that only a model, and those that only a model or predictions have a use for.
_FOR_MODELS = (
    "model", "evaluation_before", "alignment", "calibrator", "gate", "include_predictions", "recipe", "base_model",
    "merge",
)  # fmt: skip
_FOR_EVALUATIONS = ("evaluation", "output_dir", "revision", "create_pr")


@dataclass
class PushArguments:
    """Arguments of `hf-calib push`."""

    needed = ("repo_id", "model")

    what: str = field(
        default="model", metadata={"help": "What to publish.", "choices": ["model", "predictions", "metric"]}
    )
    repo_id: str | None = field(
        default=None, metadata={"help": "Repository on the Hub, ORG/NAME. Not needed with --dry_run."}
    )
    model: str | None = field(
        default=None, metadata={"help": "Folder of a model or adapter, with its tokenizer. Only for --what model."}
    )
    evaluation: str | None = field(
        default=None,
        metadata={
            "help": "Output folder of the model's `hf-calib evaluate` or `hf-calib measure`, or predictions that "
            "another tool saved (default: MODEL/evaluation)."
        },
    )
    evaluation_before: str | None = field(
        default=None,
        metadata={"help": "Output folder of the evaluation before the repair (default: EVALUATION/before)."},
    )
    alignment: str | None = field(
        default=None,
        metadata={
            "help": "Output folder of `hf-calib diagnose --repaired MODEL` (default: EVALUATION, if it has an "
            "alignment.json)."
        },
    )
    calibrator: str | None = field(default=None, metadata={"help": "Folder of a post-hoc calibrator of this model."})
    gate: str | None = field(
        default=None, metadata={"help": "gate.json of `hf-calib threshold` for this model, or its folder."}
    )
    include_predictions: bool = field(default=False, metadata={"help": "Publish predictions.npz with the model."})
    recipe: str | None = field(
        default=None, metadata={"help": "Recipe of the training (default: the one in MODEL/training.json)."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Base model on the Hub, if the model was trained from a local folder."}
    )
    merge: bool = field(default=False, metadata={"help": "Merge the adapter into its base model and evaluate it."})
    dataset: str | None = field(
        default=None, metadata={"help": "Questions for --merge (default: those of the evaluation)."}
    )
    batch_size: int = field(default=8, metadata={"help": "Batch size for --merge."})
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder to complete and send (default: MODEL, MODEL-merged with --merge, MODEL-published with "
            "another --base_model of an adapter, EVALUATION-dataset)."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "Write and check all files, and send nothing."})
    private: bool = field(default=False, metadata={"help": "Make the repository private."})
    revision: str | None = field(default=None, metadata={"help": "Branch to commit to. It is created if missing."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing."})
    overwrite: bool = field(default=False, metadata={"help": "Replace files that hf-calib did not publish."})
    commit_message: str | None = field(default=None, metadata={"help": "Message of the commit."})

    def __post_init__(self):
        if self.dataset and not self.merge:
            raise ValueError("--dataset is for --merge. Without it, the evaluation is the one of --evaluation.")
        for name in (*_FOR_MODELS, *(_FOR_EVALUATIONS if self.what == "metric" else ())):
            if self.what != "model" and getattr(self, name):
                raise ValueError(f"--{name} has no meaning with --what {self.what}.")
        if self.merge and self.alignment:
            raise ValueError("--alignment is of the adapter; with --merge, measure and push the merged model.")
        if self.merge and self.gate:
            raise ValueError("--gate is of the adapter; with --merge, make a gate of the merged model and push that.")
        if self.gate and self.what == "model" and not self.model:
            raise ValueError("--gate is published with its model: name the model with --model.")
        needed = {"model": ["model"], "predictions": ["evaluation"]}.get(self.what, [])
        if self.dry_run and self.evaluation:
            needed = []  # the card can be written without the model
        if not self.dry_run:
            needed = ["repo_id", *needed]
        if missing := [f"--{name}" for name in needed if not getattr(self, name)]:
            raise ValueError(f"the following arguments are required for --what {self.what}: {', '.join(missing)}")
        if self.what == "metric" and self.repo_id and self.repo_id.rpartition("/")[2] != "ece_regime":
            raise ValueError(
                f"evaluate loads the script named like its Space: use ORG/ece_regime, not {self.repo_id}."
            )

    @property
    def destination(self) -> dict[str, Any]:
        """Options of [`~hf_calib.hub.repository.Repository`]."""
        return {"private": self.private or None, "revision": self.revision, "create_pr": self.create_pr}


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check everything that is to be published, and the repository. The returned function writes and sends."""
    (args,) = CommandParser("push", PushArguments, "--model MODEL --repo_id ORG/NAME", _EXAMPLES).parse(argv)
    if args.what == "metric":
        return _prepare_metric(args)
    if args.what == "predictions":
        return _prepare_predictions(args)
    return _prepare_model(args) if args.model else _prepare_card(args)


def _prepare_metric(args: PushArguments) -> Callable[[], None]:
    from ..hub.repository import Repository
    from ..paths import metric_path

    folder = Path(metric_path())
    files = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".py", ".md", ".txt", ".j2")]
    repository = None
    if not args.dry_run:
        repository = Repository(args.repo_id, "space", args.private or None, space_sdk="gradio")
        repository.refuse_if_foreign("ece_regime.py", ("*.py", "Dockerfile", "*.html"), args.overwrite)

    def push() -> None:
        message = args.commit_message or "ECE and calibration regime"
        _send(folder, files, repository and (lambda: repository.commit(folder, files, message)))
        if repository is not None:
            print(f'evaluate.load("{repository.id}")')

    return push


def _prepare_predictions(args: PushArguments) -> Callable[[], None]:
    from ..evaluation.tables import check_output_dir
    from ..hub.prediction_dataset import METADATA, write_prediction_dataset
    from ..hub.publish import Evaluation
    from ..hub.repository import Repository

    evaluation = Evaluation.load(args.evaluation)
    folder = check_output_dir(args.output_dir or f"{Path(args.evaluation)}-dataset")
    repository = None
    if not args.dry_run:
        repository = Repository(args.repo_id, "dataset", **args.destination)
        repository.refuse_if_foreign(METADATA, ("*.parquet", "*.csv", "*.json", "*.jsonl", "*.arrow"), args.overwrite)

    def push() -> None:
        repo_id = repository.id if repository else args.repo_id or folder.resolve().name
        files = write_prediction_dataset(folder, repo_id, evaluation)
        message = args.commit_message or "Option predictions"
        _send(folder, files, repository and (lambda: repository.commit(folder, files, message)))

    return push


def _send(folder: Path, files: list[str], commit: Callable[[], CommitInfo] | None) -> None:
    """Commit the files. In a dry run, without `commit`, list them and check that they hold no token."""
    from ..hub.repository import refuse_secrets

    print(f"complete: {folder} ({len(files)} files)")
    if commit is None:
        refuse_secrets(folder, files)
        print("\n".join(f"  {name}" for name in sorted(files)) + "\ndry run: nothing was sent")
    else:
        made = commit()
        print(f"published: {made.pr_url or made.commit_url}")


def _prepare_card(args: PushArguments) -> Callable[[], None]:
    """Of an evaluation without its model, only the card can be made."""
    from ..hub.card import CalibrationCard
    from ..hub.publish import is_of_another_tool, write_card

    if is_of_another_tool(Path(args.evaluation)):
        raise ValueError(
            f"{args.evaluation}: the card alone is written beside a results.json; make one with `hf-calib measure "
            f"{args.evaluation} --output_dir DIR` and name DIR."
        )
    CalibrationCard.from_file(args.evaluation)
    return lambda: print(f"card: {write_card(Path(args.evaluation))}\ndry run: nothing was sent")


def _prepare_model(args: PushArguments) -> Callable[[], None]:
    from ..hub import publish
    from ..hub.gate import usable_gate
    from ..hub.model_folder import model_files
    from ..posthoc import PostHocCalibrator

    folder = Path(args.model)
    if not folder.is_dir():
        raise ValueError(
            f"{args.model} is not a folder. To download it: `hf download {args.model} --local-dir FOLDER`."
        )
    model_files(folder)
    evaluation, before = _evaluations(args, folder)
    training, alignment = _training(args, folder), _alignment(args, folder, evaluation)
    calibrator = PostHocCalibrator.load(args.calibrator) if args.calibrator else None
    gate = usable_gate(args.gate) if args.gate else None
    if args.merge and not (folder / "adapter_config.json").is_file():
        raise ValueError(f"--merge is for adapters; {folder} holds a whole model.")
    target = _target(args, folder)
    questions = evaluation.protocol.load_questions(_questions_of(args, evaluation)) if args.merge else None
    base_model = args.base_model if args.merge else _check_model(args, folder, evaluation, gate, calibrator)
    repository = None
    if not args.dry_run:
        repository = publish.open_model_repository(args.repo_id, args.overwrite, **args.destination)

    def push() -> None:
        nonlocal evaluation, base_model
        if args.merge:
            adapter = json.loads((folder / "adapter_config.json").read_text())
            base_model = base_model or adapter["base_model_name_or_path"]
            evaluation = publish.merge_and_evaluate(folder, target, evaluation, questions, args.batch_size)
        elif target.resolve() != folder.resolve():
            publish.copy_model(folder, target)
        contents = publish.Contents(
            repo_id=repository.id if repository else args.repo_id or folder.resolve().name,
            evaluation=evaluation,
            before=before,
            alignment=alignment,
            calibrator=args.calibrator,
            gate=gate,
            training=training,
            include_predictions=args.include_predictions,
            base_model=base_model,
            existing_card=repository.read(publish.CARD) if repository else None,
        )
        files = publish.write_publication(target, contents)
        send = repository and (lambda: publish.publish(target, repository, files, args.commit_message))
        _send(target, files, send)

    return push


def _target(args: PushArguments, folder: Path) -> Path:
    """Folder to complete: that of the model, unless another model or another configuration is published."""
    from ..hub.model_folder import names_another_base

    renamed = not args.merge and names_another_base(folder, args.base_model)
    copied = "merged" if args.merge else "published" if renamed else None
    if copied and args.output_dir and Path(args.output_dir).resolve() == folder.resolve():
        what = "model" if args.merge else "adapter, with --base_model in its configuration,"
        raise ValueError(f"--output_dir is the folder of the adapter; the {copied} {what} needs another one.")
    return Path(args.output_dir or (f"{folder}-{copied}" if copied else folder))


def _check_model(
    args: PushArguments,
    folder: Path,
    evaluation: Evaluation,
    gate: Gate | None,
    calibrator: PostHocCalibrator | None,
) -> str | None:
    """Check that the evaluation and the gate are of this model. Returns the base model of an adapter."""
    from ..hub.gate import check_gate_of_model
    from ..hub.model_folder import base_model_of
    from ..inference.model_loading import load_model
    from ..inference.predict import weights_digest

    base_model = base_model_of(folder, args.base_model) or args.base_model
    model, tokenizer = load_model(str(folder), dtype=evaluation.protocol.dtype, use_safetensors=True)
    evaluation.check_weights(weights_digest(model), folder)
    if gate is not None:
        check_gate_of_model(gate, model, tokenizer, evaluation.predictions, calibrator)
    return base_model


def _evaluations(args: PushArguments, folder: Path) -> tuple[Evaluation, Evaluation | None]:
    from ..hub.publish import Evaluation

    place = Path(args.evaluation or folder / "evaluation")
    if not place.exists():
        raise ValueError(
            f"{place} does not exist: name the evaluation of the model with --evaluation, or make one with\n"
            f"hf-calib evaluate --model {args.model} --dataset QUESTIONS --output_dir {place}"
        )
    before = Path(args.evaluation_before) if args.evaluation_before else place / "before"
    return Evaluation.load(place), Evaluation.load(before) if args.evaluation_before or before.is_dir() else None


def _alignment(args: PushArguments, folder: Path, evaluation: Evaluation) -> AlignmentReport | None:
    """The alignment report of the model; `None` if there is none."""
    from ..evaluation.alignment_report import ALIGNMENT, AlignmentReport

    place = Path(args.evaluation or folder / "evaluation")
    if args.merge or not (args.alignment or (place / ALIGNMENT).is_file()):
        return None
    return AlignmentReport.load(args.alignment or place).of(evaluation.results.get("weights"))


def _training(args: PushArguments, folder: Path) -> dict[str, Any] | None:
    from ..hub.publish import TRAINING_RECORD
    from ..hub.recipe import without_secrets

    record = folder / TRAINING_RECORD
    training = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if args.recipe:
        training["recipe"] = without_secrets(args.recipe)
    return training or None


def _questions_of(args: PushArguments, evaluation: Evaluation) -> str | None:
    """Questions for --merge: those given, or the local file that the evaluation names."""
    stated = evaluation.protocol.dataset
    return args.dataset or (stated if Path(stated).exists() else None)
