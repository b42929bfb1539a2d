"""Figures: reliability diagrams. Colours from the Okabe-Ito palette; hatching and shade tell them apart in grey."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .binning import ReliabilityBins, reliability_bins, top_label
from .uncertainty import floor_of_cells, group_cells, interval_of_cells


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, SKY, VERMILLION, BLACK, GREY = "#0072B2", "#56B4E9", "#D55E00", "#1A1A1A", "#8C8C8C"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": BLACK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "hatch.linewidth": 0.9,
    "legend.frameon": False,
    "text.color": BLACK,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "svg.hashsalt": "hf_calib",  # the same figure gives the same file
}
_PANEL_WIDTH, _PANEL_HEIGHT, _MOST_COLUMNS = 2.75, 4.3, 5


def reliability_diagram(
    probabilities,
    labels,
    title: str | None = None,
    n_bins: int = 10,
    binning: str = "equal_width",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Figure:
    """
    Accuracy against confidence for one set of predictions. See [`reliability_grid`] for what is drawn.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        title (`str`, *optional*):
            Heading of the panel.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Resamples behind the interval and the noise floor in the caption.
        seed (`int`, *optional*, defaults to `0`):
            Seed of both.

    Returns:
        `matplotlib.figure.Figure`, for [`save_figure`] or a notebook; pyplot is not touched.
    """
    return reliability_grid({title or "": (probabilities, labels)}, n_bins, binning, n_bootstrap, seed)


def reliability_grid(
    stages: Mapping[str, tuple],
    n_bins: int = 10,
    binning: str = "equal_width",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Figure:
    """
    Reliability diagrams of several models or stages side by side, on the same axes.

    Each panel has the accuracy of every confidence bin with its 95% Wilson interval, the hatched gap between accuracy
    and mean confidence, and the diagonal of perfect calibration; underneath, the share of predictions in each bin with
    accuracy and mean confidence marked; above, the ECE with its 95% interval, its noise floor and N.

    Args:
        stages (`Mapping[str, tuple]`):
            Heading of each panel to `(probabilities (N, K), labels (N,))`, in the order they are drawn.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Resamples behind the intervals and noise floors in the captions.
        seed (`int`, *optional*, defaults to `0`):
            Seed of both.

    Returns:
        `matplotlib.figure.Figure`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if not stages:
        raise ValueError("`stages` is empty: there is nothing to draw.")
    rows = -(-len(stages) // _MOST_COLUMNS)
    columns = -(-len(stages) // rows)
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(_PANEL_WIDTH * columns + 0.5, _PANEL_HEIGHT * rows + 0.35),
            layout="constrained",
            facecolor="white",
        )
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.04, hspace=0.02, wspace=0.02)
        grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3.3, 1] * rows)
        first = first_shares = None
        for index, (stage, (probabilities, labels)) in enumerate(stages.items()):
            row, column = divmod(index, columns)
            axes = figure.add_subplot(grid[2 * row, column], sharex=first, sharey=first)
            shares = figure.add_subplot(grid[2 * row + 1, column], sharex=axes, sharey=first_shares)
            first, first_shares = first or axes, first_shares or shares
            confidences, correct = top_label(probabilities, labels)
            cells = group_cells(confidences, correct, n_bins, binning)
            floor = floor_of_cells(cells, n_bootstrap, seed)
            low, high = interval_of_cells(cells, floor, n_bootstrap, 0.95, seed)
            bins = reliability_bins(confidences, correct, n_bins, binning)
            _draw_bins(axes, bins)
            _draw_shares(shares, reliability_bins(confidences, correct, n_bins), correct.mean(), confidences.mean())
            axes.set_title(stage, loc="left", fontsize=11, fontweight="bold", pad=42)
            caption = (
                f"ECE {bins.error:.3f}  [{low:.3f}, {high:.3f}]\n"
                f"noise floor {floor.mean:.3f},  N = {cells.n:,}\n"
                f"accuracy {correct.mean():.3f},  confidence {confidences.mean():.3f}"
            )
            axes.text(0, 1.025, caption, transform=axes.transAxes, va="bottom", fontsize=8, linespacing=1.35)
            axes.tick_params(labelbottom=False, labelleft=column == 0)
            shares.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel("accuracy")
                shares.set_ylabel("share")
            shares.set_xlabel("confidence")
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        narrow = columns == 1
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=2 if narrow else len(handles),
            fontsize=8,
            columnspacing=1.4,
            handlelength=1.6,
        )
    return figure


def _draw_bins(axes: Axes, bins: ReliabilityBins) -> None:
    from matplotlib.patheffects import withStroke

    filled = bins.counts > 0
    left, width = bins.edges[:-1][filled], np.diff(bins.edges)[filled]
    accuracy, confidence, counts = bins.accuracy[filled], bins.confidence[filled], bins.counts[filled]
    frame = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
    axes.bar(left, accuracy, width, color=SKY, label="accuracy", zorder=2, **frame)
    gaps = (
        ("overconfident", accuracy < confidence, accuracy, VERMILLION, "/////", "white"),
        ("underconfident", accuracy > confidence, confidence, "white", "\\\\\\\\\\", BLUE),
    )
    for label, here, bottom, colour, hatch, face in gaps:
        height = np.abs(confidence - accuracy)[here]
        if here.any():
            axes.bar(
                left[here], height, width[here], bottom[here], align="edge", label=label, zorder=3,
                facecolor=face, edgecolor=colour, hatch=hatch, linewidth=0.8,
            )  # fmt: skip
    low, high = wilson_interval(accuracy, counts)
    axes.errorbar(
        left + width / 2, accuracy, (np.maximum(accuracy - low, 0), np.maximum(high - accuracy, 0)), fmt="none",
        ecolor=BLACK, elinewidth=1.1, capsize=2, zorder=5, label="95% interval",
    )  # fmt: skip
    axes.plot(
        [0, 1], [0, 1], color=BLACK, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=4, label="perfect calibration",
        path_effects=[withStroke(linewidth=2.6, foreground="white")],
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)


def _draw_shares(axes: Axes, bins: ReliabilityBins, accuracy: float, confidence: float) -> None:
    axes.bar(
        bins.edges[:-1], bins.counts / bins.counts.sum(), np.diff(bins.edges), align="edge",
        color="#C9C9C9", edgecolor="white", linewidth=0.8, zorder=2,
    )  # fmt: skip
    axes.axvline(accuracy, color=BLUE, linewidth=1.8, zorder=3, label="mean accuracy")
    axes.axvline(
        confidence, color=VERMILLION, linewidth=1.8, linestyle=(0, (2, 1.2)), zorder=4, label="mean confidence"
    )
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.1 * bins.counts.max() / bins.counts.sum()))  # shared between panels
    axes.locator_params(axis="y", nbins=3)


def wilson_interval(rate: np.ndarray, counts: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """
    Wilson score interval of binomial rates.

    Args:
        rate (`np.ndarray` of shape `(bins,)`):
            Observed rates in [0, 1].
        counts (`np.ndarray` of shape `(bins,)`):
            Number of trials, at least 1.
        z (`float`, *optional*, defaults to `1.96`):
            Quantile of the normal distribution: 1.96 for 95%.
    """
    scale = 1 + z**2 / counts
    centre = (rate + z**2 / (2 * counts)) / scale
    margin = z * np.sqrt(rate * (1 - rate) / counts + z**2 / (4 * counts**2)) / scale
    return centre - margin, centre + margin


def save_figure(figure: Figure, path) -> tuple[Path, Path]:
    """
    Write a figure as PNG (200 dpi) and as SVG.

    Args:
        figure (`matplotlib.figure.Figure`):
            The figure.
        path (`str` or `PathLike`):
            Where to; an ending of `.png` or `.svg` may be given and is replaced for the other one. Missing folders are
            made.

    Returns:
        `tuple[Path, Path]`: the PNG and the SVG.
    """
    import matplotlib as mpl

    path = Path(path)
    stem = path.with_suffix("") if path.suffix.lower() in (".png", ".svg") else path
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.parent / f"{stem.name}.png", stem.parent / f"{stem.name}.svg"
    with mpl.rc_context(STYLE):
        figure.savefig(png, dpi=200)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg
