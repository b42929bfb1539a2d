"""Figures that compare a model before and after alignment: confidence, and dependence on option order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measures.binning import top_label
from .style import BLACK, BLUE, GREY, GRID, SKY, STYLE, VERMILLION, add_legend, new_figure


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HISTOGRAM_BINS = 25


def confidence_shift(
    reference_probabilities,
    probabilities,
    labels,
    names: tuple[str, str] = ("reference", "aligned"),
    title: str | None = None,
    max_points: int = 1500,
    seed: int = 0,
) -> Figure:
    """
    Draw how alignment changed the confidence: for each question, and as histograms.

    On the left a point is a question, with its confidence before (x) and after (y). The colour and the marker show
    whether the answer is right after alignment. On the right are histograms of the confidence of both models, for
    right and wrong answers, with mean confidence and accuracy.

    Args:
        reference_probabilities (array-like of shape `(N, K)`):
            Option probabilities before.
        probabilities (array-like of shape `(N, K)`):
            Option probabilities after, for the same questions.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        names (`tuple[str, str]`, *optional*, defaults to `("reference", "aligned")`):
            Names of the two models.
        title (`str`, *optional*):
            Heading.
        max_points (`int`, *optional*, defaults to `1500`):
            Largest number of points, sampled with `seed`. The histograms contain all questions.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sample.

    Returns:
        `matplotlib.figure.Figure`.

    Example:

    ```python
    >>> from hf_calib.plots import confidence_shift
    >>> figure = confidence_shift([[0.6, 0.4], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]], [0, 0])

    ```
    """
    import matplotlib as mpl

    models = [top_label(reference_probabilities, labels), top_label(probabilities, labels)]
    n = len(models[0][0])
    picked = np.random.default_rng(seed).permutation(n)[:max_points]
    low = min(confidences.min() for confidences, _ in models)
    low = np.floor(10 * low) / 10
    with mpl.rc_context(STYLE):
        figure = new_figure(7.6, 4.3)
        grid = figure.add_gridspec(2, 2, width_ratios=[1.15, 1])
        points = figure.add_subplot(grid[:, 0])
        (before, _), (after, correct) = models
        for value, colour, marker, label in (
            (1.0, BLUE, "o", "right after"),
            (0.0, VERMILLION, "x", "wrong after"),
        ):
            rows = picked[correct[picked] == value]
            points.scatter(
                before[rows], after[rows], s=9, c=colour, marker=marker, linewidths=0 if marker == "o" else 0.7,
                alpha=0.45, label=label, zorder=3,
            )  # fmt: skip
        points.plot(
            [low, 1], [low, 1], color=BLACK, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=4, label="unchanged"
        )
        points.set(
            xlim=(low, 1),
            ylim=(low, 1.01),
            xlabel=f"confidence, {names[0]}",
            ylabel=f"confidence, {names[1]}",
            aspect="equal",
        )
        points.grid(**GRID)
        points.set_axisbelow(True)
        shown = f"{len(picked):,} of {n:,} questions" if len(picked) < n else f"{n:,} questions"
        surer = f"{np.mean(after > before):.0%} are answered with more confidence than before"
        points.set_title(f"{shown}\n{surer}", loc="left", fontsize=8)
        first = None
        for row, (name, (confidences, right)) in enumerate(zip(names, models, strict=True)):
            axes = figure.add_subplot(grid[row, 1], sharex=first, sharey=first)
            _draw_histogram(axes, confidences, right, low)
            axes.set_title(name, loc="left", fontsize=10, fontweight="bold", parse_math=False)
            axes.tick_params(labelbottom=row == 1)
            first = first or axes
        axes.set_xlabel("confidence")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
        add_legend(figure, columns=4)
    return figure


def _draw_histogram(axes: Axes, confidences: np.ndarray, correct: np.ndarray, low: float) -> None:
    edges = np.linspace(low, 1, _HISTOGRAM_BINS + 1)
    right, wrong = (np.histogram(confidences[correct == value], edges)[0] / len(correct) for value in (1, 0))
    bars = {"align": "edge", "width": np.diff(edges), "linewidth": 0.5}
    axes.bar(edges[:-1], right, color=SKY, edgecolor="white", label="right answers", zorder=2, **bars)
    axes.bar(
        edges[:-1], wrong, bottom=right, facecolor="white", edgecolor=VERMILLION, hatch="/////", label="wrong answers",
        zorder=2, **bars,
    )  # fmt: skip
    axes.axvline(correct.mean(), color=BLUE, linewidth=1.8, zorder=3, label="accuracy")
    axes.axvline(
        confidences.mean(), color=VERMILLION, linewidth=1.8, linestyle=(0, (2, 1.2)), zorder=4, label="mean confidence"
    )
    gap = f"confidence − accuracy = {confidences.mean() - correct.mean():+.3f}"
    axes.text(1, 1.02, gap, transform=axes.transAxes, ha="right", va="bottom", fontsize=8)
    axes.set(xlim=(low, 1), ylabel="share")
    axes.grid(axis="y", **GRID)
    axes.set_axisbelow(True)
    axes.locator_params(axis="y", nbins=4)


def order_diagram(
    report: Mapping[str, Any], names: tuple[str, str] = ("reference", "aligned"), title: str | None = None
) -> Figure:
    """
    Draw how a model depends on the order of options: accuracy and predictions by position.

    Without dependence both are level. Bars are the share of predictions at each position. Diamonds are the letter
    prior: the mean probability of a position over all orders of the options.

    Args:
        report (`Mapping`):
            Result of [`~hf_calib.measures.position_bias.order_report`], with or without a reference.
        names (`tuple[str, str]`, *optional*, defaults to `("reference", "aligned")`):
            Names of the reference and the model.
        title (`str`, *optional*):
            Heading.

    Returns:
        `matplotlib.figure.Figure`.
    """
    import matplotlib as mpl

    count = report["num_options"]
    places = np.arange(count)
    letters = [chr(ord("A") + place) if count <= 26 else str(place + 1) for place in places]
    models = (
        [("reference/", names[0], GREY), ("", names[1], BLUE)]
        if "reference/accuracy" in report
        else [("", names[1], BLUE)]
    )

    def by_place(key: str) -> np.ndarray:
        return np.array([report[key.format(place)] for place in places])

    with mpl.rc_context(STYLE):
        figure = new_figure(7.6, 3.6)
        accuracy, chosen = figure.subplots(1, 2)
        width = 0.8 / len(models)
        for index, (prefix, name, colour) in enumerate(models):
            offset = (index - (len(models) - 1) / 2) * width
            key = f"{prefix}accuracy_at/{{}}"
            value, low, high = by_place(key), by_place(f"{key}_low"), by_place(f"{key}_high")
            accuracy.errorbar(
                places + 0.5 * offset, value, (value - low, high - value), fmt="o" if prefix == "" else "s",
                color=colour, markersize=6, elinewidth=1.1, capsize=2, label=f"{name} (95% interval)", zorder=3,
            )  # fmt: skip
            accuracy.axhline(
                report[f"{prefix}accuracy"], color=colour, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=2
            )
            chosen.bar(
                places + offset, by_place(f"{prefix}predicted_at/{{}}"), width, color=colour if prefix == "" else
                "#C9C9C9", edgecolor="white", label=f"{name}: chosen", zorder=2,
            )  # fmt: skip
            chosen.plot(
                places + offset, by_place(f"{prefix}letter_prior/{{}}"), "D", color="white", markeredgecolor=BLACK,
                markersize=5, label="letter prior", zorder=4,
            )  # fmt: skip
        chosen.axhline(1 / count, color=BLACK, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=3, label="no preference")
        accuracy.set(ylabel="accuracy", xlabel="place of the right option")
        bottom, top = accuracy.get_ylim()
        accuracy.set_ylim(max(0, bottom - 0.05), min(1, top + 0.05))
        chosen.set(ylabel="share of the answers", xlabel="place")
        flips = ", ".join(f"{name} {report[f'{prefix}flip_rate']:.0%}" for prefix, name, _ in models)
        accuracy.set_title(f"answers that depend on the order: {flips}", loc="left", fontsize=8)
        chosen.set_title(f"{report['n']:,} questions in {count} orders each", loc="left", fontsize=8)
        for axes in (accuracy, chosen):
            axes.set_xticks(places, letters)
            axes.grid(axis="y", **GRID)
            axes.set_axisbelow(True)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
        add_legend(figure, columns=len(models) + 2)
    return figure
