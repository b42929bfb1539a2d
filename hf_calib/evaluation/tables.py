"""Output of an evaluation: results.json, tables, diagrams and report.md."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import corp_diagram, group_diagram, regime_plane, reliability_diagram, reliability_grid, save_figure
from .evaluate import evaluate_confidences, evaluate_probabilities, groups_of


if TYPE_CHECKING:
    from rich.table import Table

    from ..inference.predictions import OptionPredictions

# Heading of each column, and how a row of results fills it.
_COLUMNS = {
    "N": "{n:,.0f}",
    "accuracy": "{accuracy:.3f}",
    "confidence": "{confidence:.3f}",
    "conf-ECE [95%]": "{ece:.3f} [{ece_low:.3f}, {ece_high:.3f}]",
    "noise floor": "{ece_noise_floor:.3f}",
    "cw-ECE": "{cw_ece:.3f}",
    "TCE": "{tce:.3f}",
    "NLL [95%]": "{nll:.3f} [{nll_low:.3f}, {nll_high:.3f}]",
    "Brier [95%]": "{brier:.3f} [{brier_low:.3f}, {brier_high:.3f}]",
    "AUROC [95%]": "{auroc:.3f} [{auroc_low:.3f}, {auroc_high:.3f}]",
    "regime": "{regime}",
}

# Without options no accuracy is too low for a calibrated confidence (docs/concepts/theory.md, Proposition 6).
_NO_REGIME = (
    "The regime of answers in free text is tested only with their critical accuracy (--critical_accuracy). They have "
    "no options, so no accuracy is below that of guessing, and any accuracy has a calibrated confidence. Until then "
    "RCFT, which calibrates to labels, is the safe choice."
)


def check_output_dir(path: str | Path, *inputs: str | Path | None) -> Path:
    """
    Create the output folder.

    Args:
        path (`str` or `Path`):
            The folder.
        inputs (`str`, `Path` or `None`):
            Folders of predictions, or their predictions.npz, that are read and must not be overwritten.

    Raises:
        `OSError`: if the folder cannot be written to.
        `ValueError`: if it is the folder of an input.
    """
    path = Path(path)
    for given in filter(None, inputs):
        place = Path(given).expanduser()
        if (place.parent if place.name == "predictions.npz" else place).resolve() == path.resolve():
            raise ValueError(f"output_dir {str(path)!r} holds {given}, which would be overwritten; choose another.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"output_dir {str(path)!r} cannot be written to ({error.strerror}); choose another.") from None
    return path


def evaluation_results(
    predictions: OptionPredictions, reference: OptionPredictions | None = None, **options
) -> dict[str, Any]:
    """
    Compute all measures of predictions, and their regime.

    Args:
        predictions ([`OptionPredictions`]):
            Predictions. Their `target_probabilities`, if any, add the target calibration error.
        reference ([`OptionPredictions`], *optional*):
            Predictions of the model before alignment for the same questions. They decide the regime.
        options:
            Options of [`evaluate_probabilities`], e.g. `n_bins`, `critical_accuracy`, `seed`, `groups`.

    Returns:
        `dict`: flat; see [`evaluate_probabilities`]. Of written answers: the measures of the confidence that the
        answer is right, see [`evaluate_confidences`], and NLL, Brier and cw-ECE of right and wrong as two options.
        Their regime needs `critical_accuracy`. Without it `judgement_regime` is that of P(True) as a question with the
        two options True and False.

    Raises:
        `ValueError`: if there is a reference for confidences of written answers, which each model writes for itself.
    """
    if predictions.of_answers:
        if reference is not None:
            raise ValueError("written answers have no reference: another model writes other answers")
        return _answer_results(predictions, **options)
    num_options = predictions.num_options
    if reference is not None:
        reference = reference.matching(predictions.ids, predictions.labels)
        num_options = np.maximum(
            num_options, reference.num_options
        )  # either may have logits of -inf among its options
        options["reference_probabilities"], *_ = reference.unpadded(num_options)
    probabilities, labels, target = predictions.unpadded(num_options)
    if reference is None:
        options["target_probabilities"] = target
    return evaluate_probabilities(probabilities, labels, **options)


def _answer_results(predictions: OptionPredictions, groups=None, **options) -> dict[str, Any]:
    two_options = evaluate_probabilities(predictions.probabilities, predictions.labels, **options)
    confidences, correct = predictions.outcomes
    results = two_options | evaluate_confidences(confidences, correct, groups=groups, **options)
    if results["test"] == "none":
        results["explanation"] = _NO_REGIME
        if predictions.metadata["answer_confidence"] == "p_true":
            results |= {f"judgement_{name}": two_options[name] for name in ("accuracy", "regime", "explanation")}
    return results


def write_evaluation(
    output_dir: str | Path,
    predictions: OptionPredictions,
    results: Mapping[str, Any],
    title: str | None = None,
    **diagram,
) -> None:
    """
    Write `results.json` and the figures `reliability`, `corp` and, with groups, `groups`, each as `.png` and `.svg`.

    Args:
        output_dir (`str` or `Path`):
            Folder; made if it is not there.
        predictions ([`OptionPredictions`]):
            What was predicted.
        results (`Mapping`):
            Result of [`evaluation_results`], perhaps with more keys.
        title (`str`, *optional*):
            Title of the diagram.
        diagram:
            Options of [`reliability_diagram`], e.g. `n_bins`: those that the results were made with. The CORP diagram
            uses `n_bootstrap` and `seed`.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "results.json", results)
    outcomes = predictions.outcomes
    save_figure(reliability_diagram(*outcomes, title=title, **diagram), output_dir / "reliability")
    simulation = {name: diagram[name] for name in ("n_bootstrap", "seed") if name in diagram}
    save_figure(corp_diagram(*outcomes, title=title, **simulation), output_dir / "corp")
    if "n_groups" in results:
        save_figure(group_diagram(*outcomes, predictions.subjects, **diagram), output_dir / "groups")


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary file and rename it: a reader never finds half a file. NaN becomes null."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")
    unfinished.replace(path)


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def _cells(results: Mapping[str, Any]) -> list[str]:
    return [_cell(template, results) for template in _COLUMNS.values()]


def _cell(template: str, results: Mapping[str, Any]) -> str:
    """Fill a cell; without the interval where the results have none, and with a dash without a value."""
    for part in (template, template.partition(" [")[0]):
        if not _missing(part, results):
            return part.format(**results)
    return "–"


def _missing(template: str, results: Mapping[str, Any]) -> bool:
    names = [part.split("}")[0].split(":")[0] for part in template.split("{")[1:]]
    return any(results.get(name) is None for name in names)


def results_table(stages: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """
    Format results of one or several stages as an aligned table for the terminal.

    Args:
        stages (`Sequence[Mapping]`):
            Results, each with its `stage`.
        title (`str`, *optional*):
            Title above the table.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("model", no_wrap=True)
    # TCE needs target probabilities, which few data sets have.
    names = [name for name in _COLUMNS if name != "TCE" or any(stage.get("tce") is not None for stage in stages)]
    for name in names:
        table.add_column(name, justify="left" if name == "regime" else "right", no_wrap=True)
    for stage in stages:
        cells = dict(zip(_COLUMNS, _cells(stage), strict=True))
        table.add_row(stage["stage"], *(cells[name] for name in names))
    return table


def print_table(stages: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print [`results_table`] with all columns; a narrow terminal wraps the lines."""
    print_plain(results_table(stages, title))


def print_plain(table: Table, width: int | None = None) -> None:
    """
    Print a table with its texts as they are: names of models and subjects are not read as markup of rich.

    Args:
        table (`rich.table.Table`):
            The table.
        width (`int`, *optional*):
            Least width in characters. By default that of the table.
    """
    from rich.console import Console

    plain = {"markup": False, "emoji": False}
    width = Console(width=1000, **plain).measure(table).maximum if width is None else width
    Console(width=max(Console().width, width), **plain).print(table)


def print_groups(results: Mapping[str, Any], most: int = 12) -> None:
    """
    Print the groups of an evaluation, sorted by the lower end of the interval of the ECE, largest first.

    Args:
        results (`Mapping`):
            Result of [`evaluation_results`] with groups.
        most (`int`, *optional*, defaults to `12`):
            Maximum number of rows. The others are counted below the table.
    """
    from rich import box
    from rich.table import Table

    groups = sorted(groups_of(results).items(), key=lambda item: -item[1]["ece_low"])
    title = f"{len(groups)} groups, {results['n_groups_miscalibrated']} of them miscalibrated beyond chance"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("group", no_wrap=True)
    for name in ("N", "accuracy", "confidence", "conf-ECE [95%]", "noise floor", "debiased", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    row = "{n:,}|{accuracy:.3f}|{confidence:.3f}|{ece:.3f} [{ece_low:.3f}, {ece_high:.3f}]|{ece_noise_floor:.3f}"
    row += "|{debiased_ece:.3f}|{ece_p_value_holm:.3f}"
    for name, group in groups[:most]:
        table.add_row(name, *row.format(**group).split("|"))
    if len(groups) > most:
        table.caption = f"and {len(groups) - most} more in results.json"
    print_plain(table, 140)


def print_comparison(results: Mapping[str, Any]) -> None:
    """
    Print the differences from another set of predictions.

    Args:
        results (`Mapping`):
            Results with the keys of [`~hf_calib.measures.paired.comparison_report`].
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title="Compared with the other predictions", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
    )
    table.add_column("measure", no_wrap=True)
    for name in ("other", "these", "difference [95%]", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, other in results.items():
        if key.startswith("other/"):
            name = f"difference/{key.removeprefix('other/')}"
            change, low, high, p_value = (results[f"{name}{end}"] for end in ("", "_low", "_high", "_p_value"))
            cells = (
                f"{other:.4f}",
                f"{other + change:.4f}",
                f"{change:+.4f} [{low:+.4f}, {high:+.4f}]",
                f"{p_value:.3f}",
            )
            table.add_row(key.removeprefix("other/"), *cells)
    print_plain(table, 100)


def markdown_table(stages: Sequence[Mapping[str, Any]], empty_columns: bool = True) -> str:
    """Format [`results_table`] in Markdown; `empty_columns=False` leaves out columns without a value."""
    rows = [["stage", *_COLUMNS], ["---", *("---:" for _ in _COLUMNS)]]
    rows += [[stage["stage"], *_cells(stage)] for stage in stages]
    if not empty_columns:
        rows = zip(*(column for column in zip(*rows, strict=True) if {"–"} != set(column[2:])), strict=True)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


_READING = """\
- **conf-ECE**: mean distance of confidence and accuracy over bins, with the 95% interval of the error on the whole
  population. A measured error that is pure noise can lie above the interval.
- **noise floor**: the conf-ECE that a perfectly calibrated model with these confidences would show on N questions. A
  smaller conf-ECE is no evidence of miscalibration.
- **cw-ECE**: the same over all options instead of the chosen one. **TCE**: the same against the true distribution, if
  it is known.
- **regime**: whether this accuracy is compatible with calibration (see docs/concepts/theory.md).
"""


def write_stage_report(
    output_dir: str | Path,
    stages: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, OptionPredictions],
    title: str,
    notes: str = "",
    runs: Sequence[Sequence[str]] = (),
    summary: str = "",
) -> Path:
    """
    Write the report of several stages: `results.json`, `report.md`, `reliability.png` / `.svg` and, if a critical
    accuracy is known, `regime.png` / `.svg`.

    Args:
        output_dir (`str` or `Path`):
            Folder of the report.
        stages (`Sequence[Mapping]`):
            Results of the stages, in order, each with its `stage`.
        predictions (`Mapping[str, OptionPredictions]`):
            Predictions of each stage, for the diagrams side by side.
        title (`str`):
            Heading of the report.
        notes (`str`, *optional*, defaults to `""`):
            Markdown under the table, e.g. how the figures were computed.
        runs (`Sequence[Sequence[str]]`, *optional*):
            Stages trained one from the other, joined by arrows in the regime plane.
        summary (`str`, *optional*, defaults to `""`):
            Markdown above the table: what a reader should know first.

    Returns:
        `Path`: of `report.md`.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_stage_report(output_dir)
    write_json(output_dir / "results.json", list(stages))
    figure = reliability_grid({name: p.outcomes for name, p in predictions.items()})
    save_figure(figure, output_dir / "reliability")
    report = output_dir / "report.md"
    parts = [f"# {title}", summary, markdown_table(stages), _READING, "![Reliability diagrams](reliability.png)"]
    if all(stage.get("critical_accuracy") is not None for stage in stages):
        save_figure(regime_plane(stages, runs), output_dir / "regime")
        parts.append("![Regime plane](regime.png)")
    parts.append(notes)
    report.write_text("\n\n".join(part.strip() for part in parts if part) + "\n", encoding="utf-8")
    return report


def remove_stage_report(output_dir: Path) -> None:
    """Remove the report and the figures of an earlier run, which do not match the new results.json."""
    for name in ("report.md", "reliability.png", "reliability.svg", "regime.png", "regime.svg"):
        (output_dir / name).unlink(missing_ok=True)
