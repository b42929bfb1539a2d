"""What benchmarks/headline/headline.py leaves for a reader: tables, figures, results.json."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from headline_cells import Place, Results, best_of, over_seeds, read_bar
from headline_config import Bar, Config, slug
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib.evaluation.tables import write_json
from hf_calib.plots.style import BLUE, GREY, GRID, SKY, STYLE, VERMILLION, add_legend, new_figure, save_figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[list[str]]

HEADINGS = {
    "accuracy": "accuracy", "confidence": "confidence", "ece": "conf-ECE", "ece_noise_floor": "floor",
    "debiased_ece": "debiased", "one_vs_rest_debiased": "one-vs-rest", "one_vs_rest_noise_floor": "its floor",
    "smooth_ece": "smooth",
    "tce": "TCE", "nll": "NLL", "brier": "Brier",
    "brier_calibration": "its calibration", "brier_refinement": "refinement", "auroc": "AUROC", "aurc": "AURC",
}  # fmt: skip
DRAWN = ("ece", "one_vs_rest_debiased", "nll", "accuracy")
DOMAINS = {"in": "in-domain", "out": "out-of-domain"}

# Estimate of each measure of ours less a baseline, `(value, low, high)`, by place and baseline.
Comparisons = Mapping[Place, Mapping[str, Mapping[str, Sequence[float]]]]


def write_report(config: Config, output_dir: Path, results: Results, comparisons: Comparisons, missing: int) -> None:
    """
    Write report.md, cells.md, results.json and the figures, and print what matters.

    Args:
        config ([`Config`]):
            Configuration.
        output_dir (`Path`):
            Folder.
        results (`Mapping`), comparisons (`Mapping`):
            What has been measured.
        missing (`int`):
            Number of cells that have not.
    """
    bars = {bar.name: read_bar(bar, results, config.ours, config.baselines, config.original) for bar in config.bars}
    groups = _groups(results)
    tables = {"Bars": bar_table(config.bars, bars)} if config.bars else {}
    tables |= {
        f"{config.ours} against the better of {' and '.join(config.baselines)}, the same labels and questions": (
            comparison_table(results, comparisons, config)
        )
    }
    for (model, domain, budget), places in groups.items():
        tables[f"{model}, {DOMAINS[domain]}, {budget:,} labels"] = summary_table(places, list(config.methods))
    tables = {title: rows for title, rows in tables.items() if len(rows) > 1}

    parts = [f"# {config.title}", config.notes, _reading(config)]
    if missing:
        parts.append(f"**{missing:,} cells are not measured yet.**")
    figures = []
    for domain in dict.fromkeys(domain for _, domain, _ in groups):
        for model in dict.fromkeys(name for name, d, _ in groups if d == domain):
            name = f"methods-{slug(model)}-{domain}"
            chosen = {budget: places for (m, d, budget), places in groups.items() if (m, d) == (model, domain)}
            save_figure(methods_figure(chosen, list(config.methods)), output_dir / name)
            figures.append(f"![{model}, {DOMAINS[domain]}]({name}.png)")
    for title, rows in tables.items():
        parts.append(f"## {title}")
        parts.append(markdown(rows))
        print_rows(title, rows)
    (output_dir / "report.md").write_text("\n\n".join(part.strip() for part in [*parts, *figures] if part) + "\n")
    (output_dir / "cells.md").write_text(f"# {config.title}: every cell\n\n{markdown(cell_table(results))}\n")
    cells = [{**p._asdict(), "method": m, **v} for p, found in results.items() for m, v in found.items()]
    compared = [
        {**place._asdict(), "ours": config.ours, "against": name, "differences": estimates}
        for place, found in comparisons.items()
        for name, estimates in found.items()
    ]
    write_json(
        output_dir / "results.json", {"cells": cells, "comparisons": compared, "bars": bars, "missing_cells": missing}
    )
    print(f"{output_dir / 'report.md'}")
    print(json.dumps({bar.name: _line(bar, bars[bar.name]) for bar in config.bars}))


def _line(bar: Bar, read: dict[str, Any] | None) -> dict[str, Any]:
    threshold = {"at_most": bar.at_most} if bar.at_most is not None else {"at_least": bar.at_least}
    return {"value": None, **threshold, "met": None} if read is None else {
        "value": round(read["value"], 4), **threshold, "met": read["met"]
    }  # fmt: skip


def _groups(results: Results) -> dict[tuple[str, str, int], dict[Place, Mapping[str, Mapping[str, float]]]]:
    groups = defaultdict(dict)
    for place, found in results.items():
        groups[place.model, place.domain, place.budget][place] = found
    order = sorted(groups, key=lambda group: (group[0], group[1], group[2]))
    return {group: groups[group] for group in order}


def summary_table(places: Mapping[Place, Mapping[str, Mapping[str, float]]], methods: Sequence[str]) -> Rows:
    """A row for each method: its measures, mean over the cells and seeds, with the interval over the seeds."""
    present = {name for found in places.values() for measures in found.values() for name in measures}
    names = [name for name in HEADINGS if name in present]
    rows = [["method", *(HEADINGS[name] for name in names)]]
    for method in methods:
        cells = {place: found[method] for place, found in places.items() if method in found}
        if cells:
            rows.append([method, *(_value({p: v[name] for p, v in cells.items()}) for name in names)])
    return rows


def comparison_table(results: Results, comparisons: Comparisons, config: Config) -> Rows:
    """A row for each source, test and budget: ratios to the better baseline, and how often the difference is sure."""
    rows = [
        ["labels of → questions of", "labels", "conf-ECE", "better baseline", "its floor", "ratio", "debiased ratio",
         "one-vs-rest ratio", "less NLL", "less Brier", "less accuracy", "surely better", "surely worse"]
    ]  # fmt: skip
    groups = defaultdict(list)
    for place, found in results.items():
        if {config.ours, *config.baselines} <= set(found) and place in comparisons:
            groups[place.model, place.source, place.test, place.budget].append(place)
    for (_, source, test, budget), places in sorted(groups.items(), key=lambda item: (item[0][3], item[0][:3])):
        opponents = {place: best_of(config.baselines, results[place], "ece") for place in places}
        ours = [results[place][config.ours] for place in places]
        theirs = [results[place][opponents[place]] for place in places]

        def ratio(name: str, places=places, ours=ours) -> str:
            least = [min(results[place][b][name] for b in config.baselines) for place in places]
            return f"{sum(mine[name] for mine in ours) / sum(least):.2f}" if any(least) else "–"

        def difference(name: str, places=places) -> str:
            values = []
            for place in places:
                better = best_of(config.baselines, results[place], name)
                values.append(results[place][config.ours][name] - results[place][better][name])
            return f"{np.mean(values):+.3f}"

        sure = [comparisons[place][opponents[place]]["ece"] for place in places]
        better, worse = sum(high < 0 for _, _, high in sure), sum(low > 0 for _, low, _ in sure)
        gained = np.mean([mine["accuracy"] - other["accuracy"] for mine, other in zip(ours, theirs, strict=True)])
        rows.append(
            [
                f"{source} → {test}", f"{budget:,}",
                f"{np.mean([mine['ece'] for mine in ours]):.3f}",
                f"{np.mean([other['ece'] for other in theirs]):.3f} ({', '.join(dict.fromkeys(opponents.values()))})",
                f"{np.mean([other['ece_noise_floor'] for other in theirs]):.3f}",
                *map(ratio, ("ece", "debiased_ece", "one_vs_rest_debiased")),
                *map(difference, ("nll", "brier")),
                f"{gained:+.3f}", f"{better} of {len(places)}", f"{worse} of {len(places)}",
            ]
        )  # fmt: skip
    return rows


def bar_table(bars: Sequence[Bar], read: Mapping[str, dict[str, Any] | None]) -> Rows:
    rows = [["bar", "wanted", "measured", "cells", "met"]]
    for bar in bars:
        wanted = f"at most {bar.at_most}" if bar.at_most is not None else f"at least {bar.at_least}"
        if (found := read[bar.name]) is None:
            rows.append([bar.name, wanted, "–", "0", "–"])
            continue
        met = "**yes**" if found["met"] else "no"
        measured = _with_half(found["value"], found["half"])
        rows.append([bar.name, wanted, measured, f"{found['cells']}", met])
    return rows


def cell_table(results: Results) -> Rows:
    """Every cell with the interval of its conf-ECE."""
    rows = [
        [
            "model",
            "labels of",
            "labels",
            "questions of",
            "seed",
            "method",
            "N",
            "conf-ECE [95%]",
            "p",
            *HEADINGS.values(),
        ]
    ]
    for place, found in results.items():
        for method, v in found.items():
            interval = "{ece:.3f} [{ece_low:.3f}, {ece_high:.3f}]".format(**v)
            rows.append(
                [place.model, place.source, f"{place.budget:,}", place.test, str(place.seed), method, f"{v['n']:,.0f}",
                 interval, f"{v['ece_p_value']:.3f}", *(f"{v[n]:.3f}" if n in v else "–" for n in HEADINGS)]
            )  # fmt: skip
    return rows


def methods_figure(budgets: Mapping[int, Mapping[Place, Mapping]], methods: Sequence[str]) -> Figure:
    """Each method's measures, a mark for each number of labels, with the interval over the seeds."""
    import matplotlib as mpl

    present = [m for m in methods if any(m in found for places in budgets.values() for found in places.values())]
    with mpl.rc_context(STYLE):
        figure = new_figure(2.4 * len(DRAWN) + 1.2, 0.34 * len(present) + 1.3)
        for axes, name in zip(figure.subplots(1, len(DRAWN), sharey=True), DRAWN, strict=True):
            styles = zip(sorted(budgets), "osD^v", (SKY, BLUE, VERMILLION, GREY, GREY), strict=False)
            for shift, (budget, mark, colour) in enumerate(styles):
                for row, method in enumerate(present):
                    values = {p: found[method][name] for p, found in budgets[budget].items() if method in found}
                    if values:
                        mean, half = over_seeds(values)
                        axes.errorbar(
                            mean, row + 0.16 * (shift - (len(budgets) - 1) / 2),
                            xerr=half if np.isfinite(half) else None,
                            fmt=mark, color=colour, markersize=4.5, linewidth=1,
                            label=f"{budget:,} labels" if row == 0 else "_",
                        )  # fmt: skip
            if name == "ece":
                floors = [
                    v["ece_noise_floor"] for places in budgets.values() for f in places.values() for v in f.values()
                ]
                axes.axvspan(0, np.mean(floors), color=GRID["color"], zorder=0, label="noise floor", linewidth=0)
            axes.set_xlabel(HEADINGS[name])
            axes.set_yticks(range(len(present)), present)
            axes.grid(axis="x", **GRID)
            axes.set_axisbelow(True)
        figure.axes[0].invert_yaxis()
        add_legend(figure)
    return figure


def markdown(rows: Rows) -> str:
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def print_rows(title: str, rows: Rows) -> None:
    """A table for the terminal, whole, however narrow that is."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(cell.replace("**", "") for cell in row))
    Console(width=max(Console().width, Console(width=1000).measure(table).maximum)).print(table)


def _value(values: Mapping[Place, float]) -> str:
    return _with_half(*over_seeds(values))


def _with_half(value: float, half: float) -> str:
    return f"{value:.3f}" + (f" ± {half:.3f}" if np.isfinite(half) else "")


def _reading(config: Config) -> str:
    return (
        f"{len(config.seeds)} seeds; every method has the same labels, however it divides them. ± is half a 95% t "
        "interval over the seeds. **floor**: the conf-ECE that a perfectly calibrated model with these confidences "
        "would show on as many questions. **ratio**: mean over the seeds of ours over that of the better baseline, "
        "which is chosen for each measure and seed. **surely better**: seeds in which the 95% interval of the paired "
        "difference in conf-ECE lies below 0; **surely worse**: the other way round. Every single cell is in cells.md."
    )
