"""Publication of a checkpoint: complete its folder with evaluation, card, calibrator and recipe, then send it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub.hf_api import CommitInfo

from ..evaluation.alignment_report import AlignmentReport
from ..evaluation.gate import FILE as GATE
from ..evaluation.gate import Gate
from ..evaluation.measure import measure_predictions
from ..evaluation.protocol import EvaluationProtocol, is_hub_id, questions_digest
from ..evaluation.tables import check_output_dir, write_evaluation, write_json
from ..inference.model_loading import load_model
from ..inference.predictions import OptionPredictions
from ..plots import group_diagram, regime_plane, reliability_grid, save_figure
from ..posthoc import PostHocCalibrator
from .card import CARD, FIGURES, RECIPE, RESULTS, CalibrationCard, inherit
from .gate import write_gate
from .markup import BEGIN
from .model_folder import ADAPTER, MODEL_FILES, code_files, model_files, names_another_base
from .recipe import published_record
from .repository import Repository
from .saved_predictions import load_option_predictions


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth", "*.h5")
CALIBRATOR, PREDICTIONS = "calibrator", "predictions.npz"
_CALIBRATOR_FILES = (f"{CALIBRATOR}/calibrator.json", f"{CALIBRATOR}/calibrator.safetensors")
TRAINING_RECORD = "training.json"


@dataclass(eq=False)
class Evaluation:
    """
    Output of `hf-calib evaluate`.

    Args:
        results (`dict`):
            Content of results.json.
        predictions ([`OptionPredictions`]):
            Content of predictions.npz.
    """

    results: dict[str, Any]
    predictions: OptionPredictions

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """
        Load an output folder of `hf-calib evaluate` or `hf-calib measure`; its two files must belong together. A file
        or folder of predictions of another tool is measured.
        """
        folder = Path(folder)
        if is_of_another_tool(folder):
            predictions = load_option_predictions(folder)
            return cls(measure_predictions(predictions), predictions)
        results = dict(CalibrationCard.from_file(folder).results)
        predictions = OptionPredictions.load(folder / PREDICTIONS)
        if results.get("questions") != questions_digest(predictions.ids, predictions.labels):
            raise ValueError(
                f"{folder}: results.json and predictions.npz are not of the same questions. Run `hf-calib evaluate` "
                "with the same arguments again; saved predictions are kept."
            )
        return cls(results, predictions)

    @property
    def protocol(self) -> EvaluationProtocol:
        return EvaluationProtocol.of(self.results)

    def check_weights(self, weights: str, model: str | Path) -> None:
        """Raise `ValueError` if the evaluation is of other weights than those to publish."""
        if self.results.get("weights") not in (None, weights):
            raise ValueError(
                f"the evaluation is of other weights than those in {model}. Evaluate it again with --no_resume."
            )


def is_of_another_tool(place: Path) -> bool:
    """Whether a file or folder has predictions, but no results of `hf-calib evaluate` or `hf-calib measure`."""
    if place.is_dir():
        return not any((place / name).is_file() for name in (RESULTS, PREDICTIONS))
    return place.is_file() and place.name != RESULTS


@dataclass(kw_only=True)
class Contents:
    """
    What is published with a model.

    Args:
        repo_id (`str`):
            Name of the repository.
        evaluation ([`Evaluation`], *optional*), before ([`Evaluation`], *optional*):
            Evaluation of this model, and of the model before its repair.
        alignment ([`~hf_calib.evaluation.alignment_report.AlignmentReport`], *optional*):
            Alignment of this model, the only repaired one, and of the model before its repair.
        calibrator (`str` or `Path`, *optional*):
            Folder of a post-hoc calibrator of this model.
        gate ([`~hf_calib.Gate`], *optional*):
            Threshold of the confidence of this model.
        training (`Mapping`, *optional*):
            Record of the training; see [`training_record`].
        include_predictions (`bool`, *optional*, defaults to `False`):
            Publish predictions.npz.
        base_model (`str`, *optional*):
            Model from which license, language and similar metadata are taken; an adapter is loaded on it.
        existing_card (`str`, *optional*):
            Card of the repository. It is used if the folder has none, or if only this one has a calibration section.
    """

    repo_id: str
    evaluation: Evaluation | None = None
    before: Evaluation | None = None
    alignment: AlignmentReport | None = None
    calibrator: str | Path | None = None
    gate: Gate | None = None
    training: Mapping[str, Any] | None = None
    include_predictions: bool = False
    base_model: str | None = None
    existing_card: str | None = None


def write_publication(folder: str | Path, contents: Contents) -> list[str]:
    """
    Write card, results, diagrams, recipe and calibrator into the folder of a model.

    Args:
        folder (`str` or `Path`):
            Folder of the model or adapter, with its tokenizer.
        contents ([`Contents`]):
            What is published with it.

    Returns:
        `list[str]`: the files to publish, relative to the folder.
    """
    evaluation, before, training = contents.evaluation, contents.before, published_record(contents.training)
    folder = check_output_dir(folder)
    files = model_files(folder)
    if missing := [name for name in code_files(folder, files) if name not in files]:
        logger.warning(
            f"{folder} lacks {', '.join(missing)}, which its configuration names in auto_map: the published model "
            "cannot be loaded with trust_remote_code=True. Copy the code into the folder to publish it."
        )
    results = _results(contents.repo_id, evaluation, before, training)
    fitted = PostHocCalibrator.load(contents.calibrator) if contents.calibrator else None
    results["adapter"] = ADAPTER in files
    if names_another_base(folder, contents.base_model):
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        write_json(folder / ADAPTER, {**config, "base_model_name_or_path": contents.base_model})
    shown: dict[str, OptionPredictions] = {}
    if evaluation is not None:
        if before is not None:
            shown["before"] = before.predictions
        shown["this model"] = evaluation.predictions
        if fitted is not None:
            shown[f"+ {fitted.title}"] = calibrated = evaluation.predictions.recalibrated(fitted)
            results["with_calibrator"] = {"calibrator": fitted.title, **evaluation.protocol.measure(calibrated)}
    if fitted is not None:
        fitted.save(folder / CALIBRATOR)
        files += _CALIBRATOR_FILES
    if contents.gate is not None:
        measured = None if evaluation is None else evaluation.predictions
        results["gate"] = write_gate(folder, contents.gate, contents.repo_id, measured, fitted)
        files.append(GATE)
    results["figures"] = _draw(folder, results, evaluation, shown)
    files += results["figures"]
    if training and training.get("recipe"):
        (folder / RECIPE).write_text(training["recipe"], encoding="utf-8")
        files.append(RECIPE)
    if contents.include_predictions and evaluation is not None:
        evaluation.predictions.save(folder / PREDICTIONS)
        files.append(PREDICTIONS)
    if contents.alignment is not None:
        results["alignment"] = contents.alignment.to_dict()
    training = training or {}
    results["inherited"] = inherit(contents.base_model or training.get("base_model")) or training.get("inherited", {})
    write_json(folder / RESULTS, results)
    write_card(folder, contents.existing_card)  # reads results.json back: the card depends on nothing else
    return [*files, RESULTS, CARD]


def write_card(results: str | Path, existing: str | None = None) -> Path:
    """
    Write the card of a results.json beside it. Of an existing card, only the calibration section is replaced.

    Args:
        results (`str` or `Path`):
            A results.json, or its folder.
        existing (`str`, *optional*):
            Card to use instead if it has a calibration section and the one beside results.json has none.

    Returns:
        `Path`: README.md.
    """
    card = CalibrationCard.from_file(results)
    path = (Path(results) if Path(results).is_dir() else Path(results).parent) / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    if existing and BEGIN in existing and BEGIN not in (text or ""):
        text = existing
    try:
        rendered = card.render(text or existing)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"{path}: its front matter cannot be read ({error}); correct it, or delete the card to write a new one."
        ) from None
    unfinished = path.with_name(f".{path.name}.tmp")
    rendered.save(unfinished)
    unfinished.replace(path)
    return path


def _results(
    repo_id: str, evaluation: Evaluation | None, before: Evaluation | None, training: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Content of the published results.json, with names instead of local paths."""
    results: dict[str, Any] = {**evaluation.results, **_named(evaluation.results)} if evaluation is not None else {}
    results |= {"repo_id": repo_id, "model": repo_id}
    if before is not None:
        results["before"] = {**before.results, **_named(before.results)}
    if training:
        shown = {key: value for key, value in training.items() if value is not None}
        shown.pop("inherited", None)  # it is beside the training
        results["training"] = shown
    return results


def _named(results: Mapping[str, Any]) -> dict[str, Any]:
    names = {key: results.get(key) for key in ("model", "dataset") if results.get(key)}
    return {key: name if is_hub_id(name) else Path(name).name for key, name in names.items()}


def _draw(
    folder: Path, results: Mapping[str, Any], evaluation: Evaluation | None, shown: Mapping[str, OptionPredictions]
) -> dict[str, str]:
    """Draw the figures. Returns the description of each file."""
    for stale in FIGURES:
        (folder / stale).unlink(missing_ok=True)
    if evaluation is None:
        return {}
    drawing = evaluation.protocol.drawing
    panels = {name: predictions.outcomes for name, predictions in shown.items()}
    figures = {"reliability.png": reliability_grid(panels, **drawing)}
    stages = CalibrationCard(results).stages
    if all(stage.get("critical_accuracy") is not None for stage in stages):
        runs = [[stage["stage"] for stage in stages[:2]]] if "before" in results else []
        figures["regime.png"] = regime_plane(stages, runs)
    if "n_groups" in results:
        mine = evaluation.predictions
        figures["groups.png"] = group_diagram(*mine.outcomes, mine.subjects, **drawing)
    for name, figure in figures.items():
        save_figure(figure, folder / name, svg=False)
    return {name: FIGURES[name] for name in figures}


def publish(folder: str | Path, repository: Repository, files: list[str], message: str | None = None) -> CommitInfo:
    """
    Send a folder completed by [`write_publication`], in one commit.

    The same commit deletes weights, diagrams, calibrator and gate of an earlier publication that are not among the
    files.

    Args:
        folder (`str` or `Path`), files (`list[str]`):
            Folder and result of [`write_publication`].
        repository ([`Repository`]):
            Repository to commit to.
        message (`str`, *optional*):
            Message of the commit.
    """
    folder = Path(folder)
    own = (*FIGURES, *_CALIBRATOR_FILES, GATE, PREDICTIONS, RECIPE)

    def stale(path: str) -> bool:
        # `hub_strategy` sends checkpoints with files that a training keeps for itself.
        internal = path.startswith(("evaluation/", "collapse/", "held_out/", "last-checkpoint/"))
        own_model = "/" not in path and any(fnmatch(path, kind) for kind in (*MODEL_FILES, "*.bin"))
        return path in own or own_model or internal

    return repository.commit(folder, files, message or "Calibrated model with its evaluation", stale)


def open_model_repository(repo_id: str, overwrite: bool = False, **options) -> Repository:
    """Open a repository for a model; other weights there must have been published by hf-calib."""
    repository = Repository(repo_id, **options)
    repository.refuse_if_foreign(RESULTS, _WEIGHTS, overwrite)
    return repository


def copy_model(folder: Path, target: Path) -> Path:
    """Copy the files of a model to another folder, which is then completed in its place."""
    target = check_output_dir(target)
    for name in [*model_files(folder), *(extra for extra in (CARD, TRAINING_RECORD) if (folder / extra).is_file())]:
        shutil.copy2(folder / name, target / name)
    return target


def merge_and_evaluate(
    adapter: Path, target: Path, evaluation: Evaluation, questions: Dataset, batch_size: int = 8
) -> Evaluation:
    """
    Merge an adapter into its base model, save it, and evaluate the saved model as the adapter was.

    The merged weights are rounded to their type, which changes calibration.

    Args:
        adapter (`Path`), target (`Path`):
            Folder of the adapter, and of the merged model.
        evaluation ([`Evaluation`]):
            Evaluation of the adapter, whose protocol is repeated.
        questions (`Dataset`):
            Questions of that evaluation.
        batch_size (`int`, *optional*, defaults to `8`):
            Longest questions in a forward pass; of shorter ones more.

    Returns:
        [`Evaluation`]: that of the merged model.
    """
    dtype = evaluation.protocol.dtype
    model, tokenizer = load_model(str(adapter), dtype=dtype, use_safetensors=True)
    check_output_dir(target)
    model.merge_and_unload().save_pretrained(target)
    tokenizer.save_pretrained(target)
    del model
    merged, tokenizer = load_model(str(target), dtype=dtype, use_safetensors=True)
    protocol = evaluation.protocol
    predictions = protocol.predict(
        merged, tokenizer, questions, batch_size, target / "evaluation" / PREDICTIONS, resume=False
    )
    statement = protocol.statement(predictions, tokenizer)
    if statement["questions"] != evaluation.results["questions"]:
        logger.warning("the merged model was evaluated on other questions than the adapter")
    results = {"model": str(target), **statement, **protocol.measure(predictions)}
    write_evaluation(target / "evaluation", predictions, results, "merged", **protocol.drawing)
    moved = results["ece"] - evaluation.results["ece"]
    logger.warning(f"merging changed the conf-ECE by {moved:+.4f}, to {results['ece']:.4f}")
    return Evaluation(results, predictions)
