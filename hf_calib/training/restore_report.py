"""Report of `hf-calib restore`: report.md, results.json, figures, and the last lines on the terminal."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Any

from ..evaluation.alignment_report import ALIGNED, REFERENCE, AlignmentReport
from ..evaluation.compare import Comparison, stage_name
from ..evaluation.no_harm import NoHarm, best_posthoc, compare_with_posthoc
from ..evaluation.tables import evaluation_results, print_table, write_stage_report
from ..inference.predictions import OptionPredictions
from ..plots import confidence_shift, save_figure
from ..posthoc import AS_IS, METHODS
from .restore_work import TEST, RestoreWork


RESTORED = "restored"


@dataclass
class RestoreReport:
    """
    Content of the report.

    Args:
        work ([`~hf_calib.training.restore_work.RestoreWork`]):
            The restoration.
        chosen (`dict`):
            The method, see [`~hf_calib.training.restore_method.choose_objective`].
        aligned (`dict[str, OptionPredictions]`), reference (`dict[str, OptionPredictions]`):
            Predictions for `"labels"` and `"test"`; none of a reference if there is none.
        before ([`~hf_calib.evaluation.compare.Comparison`]):
            Cross-validated post-hoc calibrators of the aligned model on the labels.
        restored ([`OptionPredictions`], *optional*), held_out ([`OptionPredictions`], *optional*):
            Predictions of the restored model for the test questions, and for the labels held out from training.
        alignment ([`~hf_calib.evaluation.alignment_report.AlignmentReport`], *optional*):
            How much of the alignment the restored model keeps.
    """

    work: RestoreWork
    chosen: dict[str, Any]
    aligned: dict[str, OptionPredictions]
    reference: dict[str, OptionPredictions]
    before: Comparison
    restored: OptionPredictions | None = None
    held_out: OptionPredictions | None = None
    alignment: AlignmentReport | None = None

    @property
    def predictions(self) -> dict[str, OptionPredictions]:
        """Predictions for the test questions, by row of the table."""
        test = self.aligned["test"]
        found = {REFERENCE: self.reference["test"]} if self.reference else {}
        found[ALIGNED] = test
        for method, calibrator in self.before.calibrators.items():
            found[f"{ALIGNED} + {stage_name(method)}"] = test.recalibrated(calibrator)
        return found if self.restored is None else found | {RESTORED: self.restored}

    @cached_property
    def no_harm(self) -> dict[str, NoHarm]:
        """Comparison with the best post-hoc calibrator on the held-out labels and on the test questions."""
        if self.restored is None:
            return {}
        method, test = best_posthoc(self.before), self.aligned["test"]
        calibrated = test if method == AS_IS else test.recalibrated(self.before.calibrators[method])
        return {
            "labels": compare_with_posthoc(self.held_out, self.before.predictions[method], method),
            "test": compare_with_posthoc(self.restored, calibrated, method),
        }

    @property
    def better(self) -> bool:
        """Whether the restored model is better on the held-out labels, and not clearly worse on the test questions."""
        labels, test = self.no_harm["labels"], self.no_harm["test"]
        return labels.better and test.difference < 2 * test.difference_se

    def rows(self) -> list[dict[str, Any]]:
        """Measures of every row, with the seconds that its model took."""
        protocol, seconds = self.work.protocol, self.work.record.seconds
        reference = self.reference.get("test") if self.aligned["test"].target_probabilities is None else None
        rows = []
        for name, predictions in self.predictions.items():
            known = dict(protocol.drawing)
            if name == REFERENCE and reference is not None:
                known["critical_accuracy"] = float(reference.probabilities.max(1).mean())
            results = evaluation_results(predictions, None if name == REFERENCE else reference, **known)
            stages = ("training", RESTORED) if name == RESTORED else (name,)
            spent = sum(seconds[stage] for stage in stages if stage in seconds)
            rows.append({"stage": name, **results, "seconds": round(spent, 2)})
            for measure, estimate in (self.alignment.models.get(name, {}) if self.alignment else {}).items():
                if not isnan(estimate.value):
                    rows[-1] |= estimate.named(f"alignment_{measure}")
        if self.restored is not None:
            rows[-1] |= {
                "objective": self.chosen["objective"],
                "better_than_posthoc": self.better,
            }
            rows[-1] |= {f"closing_{key.removeprefix('closing_')}": value for key, value in self.work.closing.items()}
            for part, found in self.no_harm.items():
                rows[-1] |= {f"no_harm_{part}_{key}": value for key, value in found.to_dict().items()}
        return rows


def write_restore_report(report: RestoreReport) -> list[dict[str, Any]]:
    """
    Write and print the report.

    Args:
        report ([`RestoreReport`]):
            Its content.

    Returns:
        `list[dict]`: the rows, which are the content of `results.json`.
    """
    work, rows, predictions = report.work, report.rows(), report.predictions
    shift = work.folder / "confidence_shift"
    if report.restored is not None:
        before = report.aligned["test"].select(report.restored.ids)
        figure = confidence_shift(
            before.probabilities, report.restored.probabilities, before.labels, names=(ALIGNED, RESTORED)
        )
        save_figure(figure, shift)
    title = f"Restoring the calibration of {Path(work.options.model).name}"
    last = [*(report.alignment.lines() if report.alignment else []), *last_lines(report)]
    runs = [(ALIGNED, RESTORED)] if report.restored is not None else []
    runs = [(REFERENCE, *runs[0])] if runs and report.reference else runs
    summary = "\n".join(f"- {line}" for line in [*_changes(rows), report.chosen["sentence"], *last])
    path = write_stage_report(work.folder, rows, predictions, title, _notes(report), runs, summary)
    print_table(rows, title)
    if report.alignment is not None:
        report.alignment.print()
    print("\n".join([f"report: {path}", *last]))
    return rows


def _changes(rows: list[dict[str, Any]]) -> list[str]:
    """The main figures before and after, in a sentence."""
    by_name = {row["stage"]: row for row in rows}
    before, after = by_name[ALIGNED], by_name.get(RESTORED)
    if after is None:
        return []
    shown = ("conf-ECE {ece:.3f} (noise floor {ece_noise_floor:.3f})", "NLL {nll:.3f}", "accuracy {accuracy:.3f}")
    pairs = (f"{text.format(**before)} before, {text.split(' ', 1)[1].format(**after)} after" for text in shown)
    return [f"On {after['n']:,} test questions: {'; '.join(pairs)}."]


def last_lines(report: RestoreReport) -> list[str]:
    """Whether the restored model is better than the aligned one with a calibrator, and what to do next."""
    work = report.work
    if report.restored is None:
        return ["The aligned model can be used as it is."]
    names = {"labels": "held-out labels", "test": "test questions"}
    lines, method = (
        [found.sentence(names[part]) for part, found in report.no_harm.items()],
        best_posthoc(report.before),
    )
    push = ["hf-calib", "push", "--model", str(work.model_folder), "--repo_id", "ORG/NAME"]
    if report.better:
        return [*lines, f"Checkpoint: {work.model_folder}. To publish it: {shlex.join(push)}"]
    if method == AS_IS:
        return [*lines, f"Use {work.options.model} as it is. The checkpoint is in {work.model_folder}."]
    calibrate = ["hf-calib", "calibrate", "--predictions", str(work.folder / ALIGNED / "labels.npz"), "--apply_to"]
    calibrate += [str(work.folder / ALIGNED / "test.npz"), "--method", method]
    calibrate += ["--output_dir", str(work.folder / "calibration")]
    if method == "agreement":
        calibrate += ["--reference_predictions", str(work.folder / REFERENCE / "labels.npz")]
    return [*lines, f"The simpler repair is a calibrator beside the aligned model: {shlex.join(calibrate)}"]


def _notes(report: RestoreReport) -> str:
    """The sections under the table."""
    work = report.work
    done = [*work.questions.notes, work.plan.describe(work.options.budget), work.scoring_reason]
    done += [report.chosen["sentence"], _training_sentence(report)]
    seconds = [f"| {name} | {value:.1f} |" for name, value in work.record.seconds.items()]
    seconds.append(f"| all stages | {sum(work.record.seconds.values()):.1f} |")
    parts = [
        "![Confidence before and after](confidence_shift.png)" if report.restored is not None else "",
        report.alignment.section() if report.alignment is not None else "",
        "## What was done",
        "\n".join(f"{place}. {line}" for place, line in enumerate(filter(None, done), 1)),
        "## Post-hoc calibrators of the aligned model",
        "Cross-validated on the labels; those in the table above are fitted on all labels.",
        _calibrators(report),
        _closing_table(report),
        "## Time",
        "\n".join(["| stage | seconds |", "|---|---:|", *seconds]),
        "## Files",
        _files(report),
    ]
    return "\n\n".join(filter(None, parts))


def _training_sentence(report: RestoreReport) -> str:
    """What was trained, with its main settings."""
    work = report.work
    record = work.model_folder / "training.json"
    if report.restored is None or not record.is_file():
        return ""
    settings = json.loads(record.read_text(encoding="utf-8"))["settings"]
    kind = "full fine-tuning" if work.kind == "full" else f"LoRA of rank {settings.get('LoRA rank')}, merged"
    return (
        f"Training: {kind}, {settings['num_train_epochs']:g} epochs at a learning rate of "
        f"{settings['learning_rate']:g}, {settings['batch size']} questions a step; {len(report.held_out):,} labels "
        "were held out."
    )


def _calibrators(report: RestoreReport) -> str:
    rows = ["| calibrator | cross-validated NLL |", "|---|---:|"]
    for method, score in report.before.scores.items():
        name = AS_IS if method == AS_IS else METHODS[method].title
        rows.append(f"| {name} | {score['cv_nll']:.4f} |")
    return "\n".join(rows)


def _closing_table(report: RestoreReport) -> str:
    found = report.work.closing
    if not found:
        return ""
    rows = [f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
            for name, value in found.items()]  # fmt: skip
    return "\n".join(["## The closing step", "", "| | |", "|---|---|", *rows])


def _files(report: RestoreReport) -> str:
    """What the folder holds."""
    rows = {
        "results.json": "the rows of the table, with every measure",
        f"data/{TEST}": "the test questions; `labels.parquet` beside it: the labels",
        "aligned/": "predictions of the aligned model, for `hf-calib calibrate`",
    }
    if report.restored is not None:
        rows = {
            "model/": "the checkpoint with card and evaluation, for `from_pretrained` and `hf-calib push`",
            "recipe.yaml": "arguments of the training, for `hf-calib train --config`",
            **rows,
        }
    return "\n".join(["| file | content |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in rows.items())])
