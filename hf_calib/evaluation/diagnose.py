"""Comparison of a model before and after alignment, and after a repair: measures, report and recommended repair."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measures import position_bias as option_order
from ..measures import preference_collapse as collapse
from ..measures.paired import comparison_report
from ..plots import confidence_shift, order_diagram, reliability_grid, save_figure
from .alignment_report import ALIGNED, REFERENCE, AlignmentReport
from .evaluate import groups_of
from .tables import evaluation_results, markdown_table, write_json


if TYPE_CHECKING:
    from rich.table import Table

    from ..inference.predictions import OptionPredictions

REPAIRED = "repaired"
# Further measures whose change is reported, and what they mean.
_SCORES = {
    "nll": "Negative log-probability of the right option, in nats.",
    "brier": "Brier score over all options.",
    "auroc": "How well confidence separates right from wrong answers: .5 is chance, 1 is perfect.",
    "aurc": "Mean error rate over all shares of the questions answered, the most confident first.",
}
_CHANGE_HEADER = ("measure", REFERENCE, f"{ALIGNED} [95%]", "change [95%]", "p", "what it means")


def same_questions(reference: OptionPredictions, aligned: OptionPredictions) -> OptionPredictions:
    """
    Put the predictions of the reference into the order of the aligned model's.

    Raises:
        `ValueError`: if the two are of different questions, or of options in another order.
    """
    reference = reference.matching(aligned.ids, aligned.labels)
    # Questions with more options may have been among those that were not selected.
    reference.option_logits = reference.option_logits[:, : aligned.option_logits.shape[1]]
    return reference


def diagnose(
    reference: OptionPredictions,
    aligned: OptionPredictions,
    orders: tuple[Sequence[OptionPredictions], Sequence[OptionPredictions]] | None = None,
    pairs: tuple[np.ndarray, np.ndarray | None] | None = None,
    repaired: OptionPredictions | None = None,
    **options,
) -> dict[str, Any]:
    """
    Compare the predictions of a model before and after alignment.

    Args:
        reference ([`OptionPredictions`]):
            Predictions of the model before alignment. They decide the regime.
        aligned ([`OptionPredictions`]):
            Predictions of the model after alignment, for the same questions.
        orders (`tuple`, *optional*):
            For the option-order experiment: predictions of both models with the options moved 0, 1, ..., K - 1 places
            down, of questions that all have K options.
        pairs (`tuple`, *optional*):
            For preference pairs: the probability that the chosen answer is preferred, by the aligned model over the
            reference ([`~hf_calib.inference.preference_scores.preference_probabilities`]), and by annotators or
            `None`; `(N,)` each.
        repaired ([`OptionPredictions`], *optional*):
            Predictions of the model after a repair, for the same questions.
        options:
            `n_bins`, `binning`, `n_bootstrap`, `seed` and `alpha`; see
            [`~hf_calib.evaluation.options.EvaluationOptions`].

    Returns:
        `dict`: flat. The aligned model's measures and regime, as `hf-calib evaluate --reference_predictions` has them,
        with those of [`collapse_report`] and, where the questions have subjects, of [`group_results`]; the reference's
        measures as `reference/<key>`; differences as `change/<measure>`, with `change/<measure>_p_value` where
        [`~hf_calib.measures.paired.compare_predictions`] knows the measure; `order/<key>` of [`order_report`],
        `pairs/<key>` of [`pair_report`], and the repaired model's measures as `repaired/<key>`.
    """
    reference = same_questions(reference, aligned)
    measuring = {name: value for name, value in options.items() if name in ("n_bins", "n_bootstrap", "seed")}
    binning = {name: value for name, value in options.items() if name == "binning"}
    evaluated = dict(options)
    if aligned.subjects is not None and len(set(aligned.subjects.tolist())) > 1:
        evaluated["groups"] = aligned.subjects
    before = evaluation_results(reference, **evaluated)
    kept = {"n", "accuracy", "confidence", "cw_ece", "ece_p_value"}
    kept |= {f"{key}{end}" for key in _SCORES for end in ("", "_low", "_high")}
    results = evaluation_results(aligned, reference, **evaluated)
    results |= {f"reference/{key}": value for key, value in before.items() if key in kept or key.startswith("group/")}
    results |= collapse.collapse_report(
        aligned.probabilities,
        aligned.labels,
        reference.probabilities,
        num_options=np.maximum(reference.num_options, aligned.num_options),  # as in evaluation_results
        **binning,
        **measuring,
    )
    results |= _score_changes(reference, aligned, **measuring, **binning)
    if orders is not None:
        orders = _common_questions(orders)
        stacks = [np.stack([predictions.probabilities for predictions in one]) for one in orders]
        report = option_order.order_report(stacks[1], orders[1][0].labels, stacks[0], **measuring)
        results |= {f"order/{key}": value for key, value in report.items()}
    if pairs is not None:
        results |= {f"pairs/{key}": value for key, value in collapse.pair_report(*pairs, **measuring).items()}
    if repaired is not None:
        after = evaluation_results(same_questions(repaired, aligned), reference, **options)
        results |= {f"{REPAIRED}/{key}": value for key, value in after.items()}
    return results


def _score_changes(reference: OptionPredictions, aligned: OptionPredictions, **measuring) -> dict[str, float]:
    """Changes of the scores with paired intervals, and p-values of these and of the changes that have an interval."""
    tested = ("accuracy", "confidence", "overconfidence", "ece")
    pair = [(one.probabilities, one.labels) for one in (reference, aligned)]
    report = comparison_report(*pair, [*tested, *_SCORES], **measuring)
    changes = {f"change/{name}_p_value": report[f"difference/{name}_p_value"] for name in tested}
    for name in _SCORES:
        for end in ("", "_low", "_high", "_p_value"):
            changes[f"change/{name}{end}"] = report[f"difference/{name}{end}"]
    return changes


def _common_questions(orders: Sequence[Sequence[OptionPredictions]]) -> list[list[OptionPredictions]]:
    """Select the questions that all have; with long questions left out, they need not be the same."""
    ids = [predictions.ids.tolist() for one in orders for predictions in one]
    if all(names == ids[0] for names in ids):
        return [list(one) for one in orders]
    counts = [Counter(names) for names in ids]
    common = sorted(name for name in counts[0] if all(count[name] == 1 for count in counts))
    return [[predictions.select(common) for predictions in one] for one in orders]


def summary(results: Mapping[str, Any]) -> str:
    """Summarise a diagnosis in two or three sentences."""

    def change(name: str) -> str:
        low, high = results[f"change/{name}_low"], results[f"change/{name}_high"]
        return f"{results[f'change/{name}']:+.3f} [{low:+.3f}, {high:+.3f}]"

    sentences = [f"Confidence changed by {change('confidence')}, accuracy by {change('accuracy')}."]
    if results["change/overconfidence_low"] > 0:
        sentences.append(
            f"The model is more overconfident: its conf-ECE went from {results['reference/ece']:.3f} to "
            f"{results['ece']:.3f} (noise floor {results['ece_noise_floor']:.3f})."
        )
    elif results["change/overconfidence_high"] < 0:
        sentences.append("The model is less overconfident.")
    else:
        sentences.append("Overconfidence did not change significantly.")
    if results["ece_p_value"] >= 0.05:
        sentences.append("On these questions the conf-ECE is no larger than noise.")
    return " ".join(sentences)


def repair_command(results: Mapping[str, Any], model: str, metadata: Mapping[str, Any] | None = None) -> str:
    """
    Write the command line of the recommended repair. For an adapter, a command that merges it comes first.

    Args:
        results (`Mapping`):
            Result of [`diagnose`].
        model (`str`):
            The aligned model.
        metadata (`Mapping`, *optional*):
            Metadata of its predictions. The repair uses the same prompt and scoring.
    """
    method, output_dir = results["recommended_method"], Path(model).name
    lines = []
    if (Path(model) / "adapter_config.json").is_file():  # training starts from a whole model
        from ..inference.model_loading import merge_command

        lines.append(merge_command(model, f"{output_dir}-merged"))
        model = f"{output_dir}-merged"
    command = ["hf-calib", "train", "--objective", method, "--model_name_or_path", model]
    command += ["--dataset_name", "TRAIN_QUESTIONS.parquet"]
    asked = (metadata or {}).get("prompt_format", {})
    for name in ("scoring", "prompt_template", "use_chat_template", "system_prompt"):
        if asked.get(name) is not None:
            command += [f"--{name}", str(asked[name]).lower() if name == "use_chat_template" else asked[name]]
    if (metadata or {}).get("option_normalization") == "mean":
        command += ["--option_normalization", "mean"]
    return "\n".join([*lines, shlex.join([*command, "--output_dir", f"{output_dir}-{method}"])])


def _change_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows of measure, reference, aligned model, change with its interval, p-value, and meaning."""
    rows = []
    for name, meaning in (collapse.MEANINGS | _SCORES).items():
        if f"change/{name}" in results:
            interval = f"[{results[f'change/{name}_low']:+.3f}, {results[f'change/{name}_high']:+.3f}]"
            change = f"{results[f'change/{name}']:+.3f} {interval}"
            before = f"{results[f'reference/{name}']:.3f}"
        else:
            before, change = "–", "–"
        aligned = f"{results[name]:.3f} [{results[f'{name}_low']:.3f}, {results[f'{name}_high']:.3f}]"
        p_value = f"{results[key]:.3f}" if (key := f"change/{name}_p_value") in results else "–"
        rows.append([name, before, aligned, change, p_value, meaning])
    return rows


def changes_table(results: Mapping[str, Any]) -> Table:
    """Format the measures of preference collapse, before and after alignment, for the terminal."""
    from rich import box
    from rich.table import Table

    table = Table(title="What alignment changed", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("measure", no_wrap=True)
    for name in _CHANGE_HEADER[1:5]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in _change_rows(results):
        table.add_row(*row[:5])
    return table


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:-1]), "---"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _value(results: Mapping[str, Any], key: str) -> str:
    if results.get(f"{key}_low") is None:
        return f"{results[key]:.3f}"
    return f"{results[key]:.3f} [{results[f'{key}_low']:.3f}, {results[f'{key}_high']:.3f}]"


def _subject_section(results: Mapping[str, Any], most: int = 15) -> str:
    before = groups_of(
        {key.removeprefix("reference/"): value for key, value in results.items() if key[:10] == "reference/"}
    )
    rows = []
    for name, group in sorted(groups_of(results).items(), key=lambda item: -item[1]["ece_low"])[:most]:
        ece = f"{group['ece']:.3f} [{group['ece_low']:.3f}, {group['ece_high']:.3f}]"
        row = [f"{group['n']:,}", *(f"{one['overconfidence']:+.3f}" for one in (before[name], group)), ece]
        rows.append([name, *row, f"{group['ece_p_value_holm']:.3f}"])
    text = (
        f"{results['n_groups_miscalibrated']} of {results['n_groups']} subjects are miscalibrated beyond chance "
        f"(p below {results['alpha']:g} after Holm's correction). They are sorted by the lower end of the interval. "
        "If they differ much, one temperature does not repair all."
    )
    header = ["subject", "N", f"overconfidence, {REFERENCE}", ALIGNED, f"conf-ECE, {ALIGNED} [95%]", "p (Holm)"]
    left_out = results["n_groups"] - len(rows)
    more = [f"and {left_out} more in results.json"] if left_out else []
    return "\n\n".join(["## Subjects", text, _markdown(header, rows), *more])


def _order_section(results: Mapping[str, Any]) -> str:
    header = ["measure", REFERENCE, ALIGNED, "what it means"]
    rows = [
        [name, _value(results, f"order/reference/{name}"), _value(results, f"order/{name}"), meaning]
        for name, meaning in option_order.MEANINGS.items()
    ]
    count = results["order/num_options"]
    text = f"{results['order/n']:,} questions with {count} options, in all {count} cyclic orders of the options."
    return "\n\n".join(["## The order of the options", text, _markdown(header, rows), "![Positions](positions.png)"])


def _pair_section(results: Mapping[str, Any]) -> str:
    rows = [
        [name, _value(results, f"pairs/{name}"), meaning]
        for name, meaning in collapse.PAIR_MEANINGS.items()
        if f"pairs/{name}" in results
    ]
    text = (
        f"{results['pairs/n']:,} preference pairs; the noise floor of their ECE is "
        f"{results['pairs/ece_noise_floor']:.3f}."
    )
    return "\n\n".join(["## Preference pairs", text, _markdown(["measure", ALIGNED, "what it means"], rows)])


def write_diagnosis(
    output_dir: str | Path,
    predictions: Mapping[str, OptionPredictions],
    results: Mapping[str, Any],
    title: str,
    command: str,
    **diagram,
) -> Path:
    """
    Write `results.json`, `report.md` and the figures `reliability`, `confidence` and, with the option-order
    experiment, `positions`, each as `.png` and `.svg`.

    Args:
        output_dir (`str` or `Path`):
            Folder of the report.
        predictions (`Mapping[str, OptionPredictions]`):
            Predictions of the models `"reference"`, `"aligned"` and, after a repair, `"repaired"`.
        results (`Mapping`):
            Result of [`diagnose`], perhaps with more keys; those of an
            [`~hf_calib.evaluation.alignment_report.AlignmentReport`] as `alignment/<key>`.
        title (`str`):
            Heading of the report.
        command (`str`):
            Command line of the repair.
        diagram:
            Options of [`reliability_grid`], e.g. `n_bins`.

    Returns:
        `Path`: of `report.md`.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "results.json", results)
    aligned = predictions[ALIGNED]
    reference = same_questions(predictions[REFERENCE], aligned)
    outcomes = {name: (p.probabilities, p.labels) for name, p in predictions.items()}
    save_figure(reliability_grid(outcomes, **diagram), output_dir / "reliability")
    shift = confidence_shift(reference.probabilities, aligned.probabilities, aligned.labels, (REFERENCE, ALIGNED))
    save_figure(shift, output_dir / "confidence")
    sections = [
        f"# {title}",
        summary(results),
        markdown_table(stages(results)),
        "## What alignment changed",
        _markdown(_CHANGE_HEADER, _change_rows(results)),
        f"Noise floors: conf-ECE {results['ece_noise_floor']:.3f}, position_shift "
        f"{results['position_shift_noise_floor']:.3f}. Smaller values are not evidence of an error.",
        "![Confidence before and after alignment](confidence.png)",
        "![Reliability diagrams](reliability.png)",
    ]
    if "n_groups" in results:
        sections.append(_subject_section(results))
    if "order/n" in results:
        report = {key.removeprefix("order/"): value for key, value in results.items() if key.startswith("order/")}
        save_figure(order_diagram(report, (REFERENCE, ALIGNED)), output_dir / "positions")
        sections.append(_order_section(results))
    if "pairs/n" in results:
        sections.append(_pair_section(results))
    alignment = {key.removeprefix("alignment/"): value for key, value in results.items() if key[:10] == "alignment/"}
    if alignment:
        measured = AlignmentReport.from_dict(alignment)
        sections += [measured.section(), *measured.lines()]
    sections += [
        "## Regime and repair",
        f"**{results['regime']}**: {results['explanation']}",
        f"Recommended: **{results['recommended_method']}**, on labelled questions of the same kind, other than those "
        f"measured here.\n\n```bash\n{command}\n```",
    ]
    report = output_dir / "report.md"
    report.write_text("\n\n".join(section.strip() for section in sections) + "\n", encoding="utf-8")
    return report


def stages(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make the rows of [`results_table`]: the reference, the aligned model and, if there is one, the repaired one."""

    def row(stage: str) -> dict[str, Any]:
        prefix = f"{stage}/"
        return {
            "stage": stage,
            **{key.removeprefix(prefix): results[key] for key in results if key.startswith(prefix)},
        }

    rows = [row(REFERENCE), {**results, "stage": ALIGNED}]
    return [*rows, row(REPAIRED)] if f"{REPAIRED}/n" in results else rows
