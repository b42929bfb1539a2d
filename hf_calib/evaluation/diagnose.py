"""Diagnosis: what alignment did to a model, from the predictions of both; results, report and recommended repair."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measures import position_bias as option_order
from ..measures import preference_collapse as collapse
from ..plots import confidence_shift, order_diagram, reliability_grid, save_figure
from .evaluate import groups_of
from .tables import evaluation_results, markdown_table, write_json


if TYPE_CHECKING:
    from rich.table import Table

    from ..inference.predictions import OptionPredictions

BASE, ALIGNED = "base", "aligned"


def same_questions(base: OptionPredictions, aligned: OptionPredictions) -> OptionPredictions:
    """The base model's predictions in the order of the aligned one's, after a check that both were asked the same."""
    base = base.select(aligned.ids)
    if (base.labels != aligned.labels).any():
        row = int(np.argmax(base.labels != aligned.labels))
        raise ValueError(
            f"the answer of question {str(aligned.ids[row])!r} is option {aligned.labels[row]}, in the base predictions option "
            f"{base.labels[row]}: predict both on the same questions, with their options in the same order"
        )
    # Questions with more options may have been among those that were not selected.
    base.option_logits = base.option_logits[:, : aligned.option_logits.shape[1]]
    return base


def diagnose(
    base: OptionPredictions,
    aligned: OptionPredictions,
    orders: tuple[Sequence[OptionPredictions], Sequence[OptionPredictions]] | None = None,
    pairs: tuple[np.ndarray, np.ndarray | None] | None = None,
    n_bins: int = 10,
    binning: str = "equal_width",
    alpha: float = 0.05,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Everything that two models' predictions tell about what happened between them.

    Args:
        base ([`OptionPredictions`]):
            Predictions of the model before alignment. The regime is judged by them.
        aligned ([`OptionPredictions`]):
            Predictions of the model after it, for the same questions.
        orders (`tuple`, *optional*):
            For the option-order experiment: predictions of both models with the options moved 0, 1, ..., K - 1 places down,
            of questions that all have K options.
        pairs (`tuple`, *optional*):
            For preference pairs: the probability that the chosen answer is preferred, by the aligned model over its base
            ([`~hf_calib.inference.preference_scores.preference_probabilities`]), and by annotators or `None`; `(N,)` each.
        n_bins, binning, alpha, n_bootstrap, seed:
            As in [`evaluate_probabilities`].

    Returns:
        `dict`: flat. The aligned model's measures and regime as in the `results.json` of an evaluation by a reference, with
        those of [`collapse_report`], and of its subjects as `group/<name>/<key>` ([`group_results`]) where there are several; the
        base model's as `reference/<key>`; changes with intervals as
        `change/<measure>`; `order/<key>` of [`order_report`] and `pairs/<key>` of [`pair_report`].
    """
    base = same_questions(base, aligned)
    measuring = {"n_bins": n_bins, "n_bootstrap": n_bootstrap, "seed": seed}
    evaluated = {"binning": binning, "alpha": alpha, **measuring}
    if aligned.subjects is not None and len(set(aligned.subjects.tolist())) > 1:
        evaluated["groups"] = aligned.subjects
    before, results = evaluation_results(base, **evaluated), evaluation_results(aligned, base, **evaluated)
    measured = collapse.collapse_report(
        aligned.probabilities,
        aligned.labels,
        base.probabilities,
        num_options=np.maximum(base.num_options, aligned.num_options),  # as in evaluation_results
        binning=binning,
        **measuring,
    )
    kept = ("n", "accuracy", "confidence", "cw_ece", "nll", "brier", "auroc", "ece_p_value")
    before = {key: value for key, value in before.items() if key in kept or key.startswith("group/")}
    results = {**results, **{f"reference/{key}": value for key, value in before.items()}, **measured}
    if orders is not None:
        # Where too long questions are left out, an order more or less may make the difference.
        ids = sorted(set.intersection(*(set(predictions.ids.tolist()) for one in orders for predictions in one)))
        orders = [[predictions.select(ids) for predictions in one] for one in orders]
        stacks = [np.stack([predictions.probabilities for predictions in one]) for one in orders]
        report = option_order.order_report(stacks[1], orders[1][0].labels, stacks[0], **measuring)
        results |= {f"order/{key}": value for key, value in report.items()}
    if pairs is not None:
        results |= {f"pairs/{key}": value for key, value in collapse.pair_report(*pairs, **measuring).items()}
    return results


def summary(results: Mapping[str, Any]) -> str:
    """The diagnosis in two or three sentences."""

    def change(name: str) -> str:
        low, high = results[f"change/{name}_low"], results[f"change/{name}_high"]
        return f"{results[f'change/{name}']:+.3f} [{low:+.3f}, {high:+.3f}]"

    sentences = [f"Confidence changed by {change('confidence')}, accuracy by {change('accuracy')}."]
    if results["change/overconfidence_low"] > 0:
        sentences.append(
            f"The model claims more for what it knows than before: its conf-ECE went from {results['reference/ece']:.3f} to "
            f"{results['ece']:.3f} (noise floor {results['ece_noise_floor']:.3f})."
        )
    elif results["change/overconfidence_high"] < 0:
        sentences.append("The model claims less for what it knows than before.")
    else:
        sentences.append("No change of overconfidence can be told from chance.")
    if results["ece_p_value"] >= 0.05:
        sentences.append("What is left of miscalibration lies within its noise floor: there is nothing to repair.")
    return " ".join(sentences)


def repair_command(results: Mapping[str, Any], model: str, metadata: Mapping[str, Any] | None = None) -> str:
    """
    The command line of the recommended repair; of an adapter, after that which merges it into its base model.

    Args:
        results (`Mapping`):
            Result of [`diagnose`].
        model (`str`):
            The aligned model.
        metadata (`Mapping`, *optional*):
            Metadata of its predictions: the repair asks as the evaluation did.
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
    """Measure, base, aligned, change with interval, meaning."""
    rows = []
    for name, meaning in collapse.MEANINGS.items():
        if f"change/{name}" in results:
            interval = f"[{results[f'change/{name}_low']:+.3f}, {results[f'change/{name}_high']:+.3f}]"
            change = f"{results[f'change/{name}']:+.3f} {interval}"
            base = f"{results[f'reference/{name}']:.3f}"
        else:
            base, change = "–", "–"
        aligned = f"{results[name]:.3f} [{results[f'{name}_low']:.3f}, {results[f'{name}_high']:.3f}]"
        rows.append([name, base, aligned, change, meaning])
    return rows


def changes_table(results: Mapping[str, Any]) -> Table:
    """The measures of collapse before and after, aligned for the terminal."""
    from rich import box
    from rich.table import Table

    table = Table(title="What alignment changed", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("measure", no_wrap=True)
    for name in (BASE, f"{ALIGNED} [95%]", "change [95%]"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _change_rows(results):
        table.add_row(*row[:4])
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
        f"{results['n_groups_miscalibrated']} of {results['n_groups']} subjects are miscalibrated beyond chance (p below "
        f"{results['alpha']:g} after Holm's correction); those whose error is surest first. Where they differ much, no one "
        "temperature repairs all."
    )
    header = ["subject", "N", f"overconfidence, {BASE}", ALIGNED, f"conf-ECE, {ALIGNED} [95%]", "p (Holm)"]
    left_out = results["n_groups"] - len(rows)
    more = [f"and {left_out} more in results.json"] if left_out else []
    return "\n\n".join(["## Subject by subject", text, _markdown(header, rows), *more])


def _order_section(results: Mapping[str, Any]) -> str:
    header = ["measure", BASE, ALIGNED, "what it means"]
    rows = [
        [name, _value(results, f"order/reference/{name}"), _value(results, f"order/{name}"), meaning]
        for name, meaning in option_order.MEANINGS.items()
    ]
    count = results["order/num_options"]
    text = f"{results['order/n']:,} questions with {count} options, asked in all {count} cyclic orders of the options."
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
    base: OptionPredictions,
    aligned: OptionPredictions,
    results: Mapping[str, Any],
    title: str,
    command: str,
    **diagram,
) -> Path:
    """
    Write `results.json`, `report.md` and the figures: `reliability`, `confidence` and, with the option-order experiment,
    `positions`, each as `.png` and `.svg`.

    Args:
        output_dir (`str` or `Path`):
            Folder of the report.
        base, aligned ([`OptionPredictions`]):
            What [`diagnose`] was given.
        results (`Mapping`):
            Its result, perhaps with more keys.
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
    base = same_questions(base, aligned)
    outcomes = {BASE: (base.probabilities, base.labels), ALIGNED: (aligned.probabilities, aligned.labels)}
    save_figure(reliability_grid(outcomes, **diagram), output_dir / "reliability")
    save_figure(confidence_shift(base.probabilities, aligned.probabilities, aligned.labels), output_dir / "confidence")
    sections = [
        f"# {title}",
        summary(results),
        markdown_table(stages(results)),
        "## What alignment changed",
        _markdown(["measure", BASE, f"{ALIGNED} [95%]", "change [95%]", "what it means"], _change_rows(results)),
        f"Noise floors: conf-ECE {results['ece_noise_floor']:.3f}, position_shift "
        f"{results['position_shift_noise_floor']:.3f}. Neither can be told from 0 below them.",
        "![Where the confidence went](confidence.png)",
        "![Reliability diagrams](reliability.png)",
    ]
    if "n_groups" in results:
        sections.append(_subject_section(results))
    if "order/n" in results:
        report = {key.removeprefix("order/"): value for key, value in results.items() if key.startswith("order/")}
        save_figure(order_diagram(report), output_dir / "positions")
        sections.append(_order_section(results))
    if "pairs/n" in results:
        sections.append(_pair_section(results))
    sections += [
        "## Regime and repair",
        f"**{results['regime']}**: {results['explanation']}",
        f"Recommended: **{results['recommended_method']}**, on labelled questions of the same kind, none of them among "
        f"those measured here.\n\n```bash\n{command}\n```",
    ]
    report = output_dir / "report.md"
    report.write_text("\n\n".join(section.strip() for section in sections) + "\n")
    return report


def stages(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Base and aligned model as two rows of [`results_table`]."""
    before = {key.removeprefix("reference/"): value for key, value in results.items() if key.startswith("reference/")}
    return [{"stage": BASE, **before}, {**results, "stage": ALIGNED}]
