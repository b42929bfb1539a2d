"""From an aligned model and labelled questions to a calibrated checkpoint with a report."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..evaluation.alignment_report import ALIGNED, ALIGNMENT, REFERENCE, AlignmentReport
from ..evaluation.compare import compare_calibrators
from ..evaluation.option_mass import small_mass_sentence
from ..evaluation.tables import check_output_dir, write_json
from ..hub.publish import TRAINING_RECORD, Contents, Evaluation, write_publication
from ..inference.model_loading import process_state
from ..inference.predictions import OptionPredictions
from .distributed import end_with_launcher
from .judged_answers import with_judged_answers
from .library_warnings import ignore_library_warnings
from .restore_data import load_restore_records, without_bars
from .restore_method import choose_objective, choose_scoring
from .restore_options import RestoreOptions
from .restore_report import RESTORED, RestoreReport, write_restore_report
from .restore_stages import StageRecord
from .restore_training import TrainingInputs, train
from .restore_work import LABELS, TEST, UNLABELLED, RestoreWork


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Post-hoc calibrators of the aligned model that the restored one is compared with.
POST_HOC = ("temperature", "ensemble_temperature", "temperature_isotonic")


def run_restore(options: RestoreOptions, command: str | None = None) -> list[dict[str, Any]]:
    """
    Restore the calibration of a model: evaluate, choose a method, train, evaluate again, and report.

    What an earlier run with the same options left in `output_dir` is kept, and an interrupted training is resumed.

    Args:
        options ([`~hf_calib.training.restore_options.RestoreOptions`]):
            Model, data and everything else.
        command (`str`, *optional*):
            Command line, for the card of the model.

    Returns:
        `list[dict]`: content of `results.json`; empty on other processes than the main one.

    Raises:
        `ValueError`, `OSError`: for a wrong option, file or question, before the work begins.

    Questions with accepted texts and no options become questions about the model's own answers; see
    [`~hf_calib.training.judged_answers.with_judged_answers`].

    Example:

    ```python
    >>> from hf_calib import RestoreOptions, run_restore
    >>> rows = run_restore(RestoreOptions(model="org/aligned", dataset="questions.parquet"))  # doctest: +SKIP

    ```
    """
    return prepare_restore(options, command)()


def prepare_restore(options: RestoreOptions, command: str | None = None) -> Callable[[], list[dict[str, Any]]]:
    """Check everything and make the plan; arguments as in [`run_restore`]. The result does the work."""
    end_with_launcher()
    ignore_library_warnings()
    record = StageRecord(check_output_dir(options.output_dir), not options.no_resume, process_state())
    with without_bars():
        records = load_restore_records(options)
    options, records, notes = with_judged_answers(options, records, record)
    work = RestoreWork(options, records, record, notes, command)
    return lambda: _restore(work)


def _restore(work: RestoreWork) -> list[dict[str, Any]]:
    work.record.run("data", work.inputs(), lambda resume: _write_data(work), [work.folder / "data" / LABELS])
    _set_scoring(work)
    aligned = _evaluate(work, "aligned", work.options.model)
    if sentence := small_mass_sentence(aligned["labels"]):
        work.questions.notes.append(sentence)
        work.print(sentence)
    reference = _evaluate(work, "reference", work.options.reference) if work.options.reference else {}
    # True probabilities, where the questions have them, decide the regime.
    decides = {} if aligned["labels"].target_probabilities is not None else reference
    before = compare_calibrators(
        aligned["labels"], None, reference.get("labels"), _post_hoc(aligned, reference), seed=work.options.seed
    )
    chosen = work.record.run(
        "method",
        work.inputs("aligned", "reference", config=work.config.get("objective")),
        lambda resume: choose_objective(work, aligned["labels"], decides.get("labels")),
    )
    work.print(chosen["sentence"])
    report = RestoreReport(work, chosen, aligned, reference, before)
    if chosen["objective"]:
        trained = _train(work, chosen["objective"], bool(aligned["labels"].metadata["single_tokens"]))
        report.restored = _evaluate_restored(work, trained, aligned["test"], decides.get("test"))
        report.held_out = OptionPredictions.load(work.held_out_path)
        report.alignment = AlignmentReport.from_dict(_measure_alignment(work, trained))
    rows = write_restore_report(report) if work.state.is_main_process else []
    work.state.wait_for_everyone()
    return rows


def _post_hoc(aligned: dict[str, OptionPredictions], reference: dict[str, OptionPredictions]) -> list[str]:
    """Post-hoc calibrators that the predictions permit."""
    subjects = [predictions.subjects for predictions in aligned.values()]
    grouped = all(names is not None for names in subjects) and len(set(subjects[0].tolist())) > 1
    return [*POST_HOC, *(["agreement"] if reference else []), *(["subject_temperature"] if grouped else [])]


def _write_data(work: RestoreWork) -> None:
    folder = check_output_dir(work.folder / "data")
    named = {LABELS: work.questions.labels, TEST: work.questions.test, UNLABELLED: work.questions.unlabelled}
    with without_bars():
        for name, questions in named.items():
            if work.state.is_main_process and questions is not None:
                questions.to_parquet(folder / name)


def _set_scoring(work: RestoreWork) -> None:
    """Choose the scoring if there is a choice."""
    if len(work.scorings) > 1:
        found = work.record.run("scoring", work.inputs(), lambda resume: choose_scoring(work))
        work.scorings, work.scoring_reason = [found["scoring"]], found["sentence"]
    work.options = replace(work.options, scoring=work.scorings[0])
    if work.scoring_reason:
        work.print(work.scoring_reason)


def _evaluate(work: RestoreWork, stage: str, name: str) -> dict[str, OptionPredictions]:
    """Predictions of a model for labels and test questions."""
    sets = {"labels": work.questions.labels, "test": work.questions.test}
    paths = {part: work.folder / stage / f"{part}.npz" for part in sets}

    def predict(resume: bool) -> None:
        model = work.model if stage == "aligned" else work.load(name)
        for part, questions in sets.items():
            work.predict(model, questions, paths[part], resume=resume)

    work.record.run(stage, work.inputs(), predict, list(paths.values()))
    return {part: OptionPredictions.load(path) for part, path in paths.items()}


def _train(work: RestoreWork, objective: str, single_tokens: bool) -> Callable[[], PreTrainedModel]:
    """Train. Returns a function that gives the trained model, from memory or from its folder."""
    inputs, trained = TrainingInputs(work, objective, single_tokens), []
    recipe = inputs.recipe()
    # Another number of processes shares the same batches.
    depends = {name: value for name, value in recipe.items() if not name.startswith("per_device_")}

    def training(resume: bool) -> dict[str, Any]:
        if not resume and work.state.is_main_process:
            for folder in (work.model_folder, work.folder / "adapter"):
                shutil.rmtree(folder, ignore_errors=True)
        work.state.wait_for_everyone()
        model, found = train(inputs, recipe, work.pop_model(), resume)
        trained.append(model)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found

    stages = work.inputs("aligned", "reference", "method", recipe=depends)
    files = [work.model_folder / "config.json", work.held_out_path]
    work.closing = work.record.run("training", stages, training, files)["closing"] or {}
    return lambda: trained[0] if trained and trained[0] is not None else work.load(str(work.model_folder))


def _evaluate_restored(
    work: RestoreWork,
    trained: Callable[[], PreTrainedModel],
    aligned: OptionPredictions,
    reference: OptionPredictions | None,
) -> OptionPredictions:
    """Evaluate the checkpoint on the test questions, and complete its folder for `hf-calib push`."""
    folder, protocol = work.model_folder, work.protocol
    path = folder / "evaluation" / "predictions.npz"

    def evaluate(resume: bool) -> None:
        restored = work.predict(trained(), work.questions.test, path, resume=resume)
        if not work.state.is_main_process:
            return
        before = path.parent / "before"
        aligned.save(before / path.name)
        for place, name, predictions in ((path.parent, str(folder), restored), (before, work.options.model, aligned)):
            results = {"model": name, **protocol.statement(predictions, work.tokenizer)}
            results |= protocol.measure(predictions, reference)
            write_json(place / "results.json", results)

    work.record.run("restored", work.inputs("training"), evaluate, [path])
    return OptionPredictions.load(path)


def _measure_alignment(work: RestoreWork, trained: Callable[[], PreTrainedModel]) -> dict[str, Any]:
    """Measure the alignment of reference, aligned and restored model, and complete the folder for `hf-calib push`."""
    folder, meter = work.model_folder, work.meter
    path = folder / "evaluation" / ALIGNMENT

    def measure(resume: bool) -> dict[str, Any]:
        meter.measure(ALIGNED, work.model)
        if work.options.reference:
            meter.measure(REFERENCE, work.load(work.options.reference))
        meter.measure(RESTORED, trained())
        report = meter.report()
        if work.state.is_main_process:
            write_json(path, report.to_dict())
            contents = Contents(
                repo_id=work.folder.resolve().name,
                evaluation=Evaluation.load(path.parent),
                before=Evaluation.load(path.parent / "before"),
                alignment=report,
                training=json.loads((folder / TRAINING_RECORD).read_text(encoding="utf-8")),
                base_model=work.options.model,
            )
            write_publication(folder, contents)
        return report.to_dict()

    inputs = work.inputs("reference", "training", "restored", data=meter.data_digest)
    return work.record.run("alignment", inputs, measure, [path, folder / "README.md"])
