"""Reliability diagrams: accuracy against confidence, of one or several models, of each option, or of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..measures.binning import ReliabilityBins, assign_bins, reliability_bins, top_label
from ..measures.calibration_error import classwise_calibration_error
from ..measures.noise_floor import bootstrap_interval, noise_floor
from ..measures.options import MeasureOptions
from ..measures.validation import as_labels, as_outcomes, as_probabilities, as_weights
from .style import BLACK, BLUE, GRID, SKY, STYLE, VERMILLION, add_legend, new_figure, wilson_interval


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_WIDTH, _PANEL_HEIGHT, _MOST_COLUMNS = 2.75, 4.3, 5
_TITLE_WIDTH = 26  # characters


class _Panel(NamedTuple):
    """Data of one panel, of shape `(N,)` each."""

    confidences: np.ndarray
    correct: np.ndarray
    weights: np.ndarray | None

    def of(self, rows: np.ndarray) -> _Panel:
        return _Panel(*(None if array is None else array[rows] for array in self))


def _panel(predictions, outcomes, sample_weight=None) -> _Panel:
    if len(predictions) and np.ndim(predictions[0]) == 0:
        arrays = as_outcomes(predictions, outcomes)
    else:
        arrays = top_label(predictions, outcomes)
    return _Panel(*arrays, as_weights(sample_weight, len(arrays[0])))


def reliability_diagram(
    probabilities,
    labels,
    title: str | None = None,
    sample_weight=None,
    **options,
) -> Figure:
    """
    Draw accuracy against confidence for one set of predictions; see [`reliability_grid`].

    Args:
        probabilities (array-like of shape `(N, K)` or `(N,)`):
            Option probabilities, rows summing to 1; or, in one dimension, the confidences of the predictions.
        labels (array-like of shape `(N,)`):
            Index of the right option; with confidences, whether each prediction is right (0 or 1).
        title (`str`, *optional*):
            Heading of the panel.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights.
        options:
            Fields of [`~hf_calib.measures.options.MeasureOptions`]: `n_bins`, `binning`, and `n_bootstrap` and `seed`
            of the intervals and noise floors in the captions.

    Returns:
        `matplotlib.figure.Figure`, for [`save_figure`] or a notebook; pyplot is not touched.
    """
    return _draw({title or "": _panel(probabilities, labels, sample_weight)}, MeasureOptions(**options))


def reliability_grid(stages: Mapping[str, tuple], **options) -> Figure:
    """
    Draw reliability diagrams of several models side by side, on the same axes.

    A panel shows the accuracy of every confidence bin with its 95% Wilson interval, the gap between accuracy and mean
    confidence (hatched), and the diagonal of perfect calibration. Below is the share of predictions in each bin, with
    accuracy and mean confidence. Above is the ECE with its 95% interval, its noise floor, and N.

    Args:
        stages (`Mapping[str, tuple]`):
            Heading of each panel to `(probabilities, labels)` or `(probabilities, labels, sample_weight)` as in
            [`reliability_diagram`], in the order of the panels.
        options:
            Fields of [`~hf_calib.measures.options.MeasureOptions`]: `n_bins`, `binning`, and `n_bootstrap` and `seed`
            of the intervals and noise floors in the captions.

    Returns:
        `matplotlib.figure.Figure`.
    """
    if not stages:
        raise ValueError("`stages` is empty: there is nothing to draw.")
    panels = {stage: _panel(*arrays) for stage, arrays in stages.items()}
    return _draw(panels, MeasureOptions(**options))


def classwise_diagram(
    probabilities,
    labels,
    names: Sequence[str] | None = None,
    max_options: int = 5,
    n_bins: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Figure:
    """
    Draw one panel for each option: how often it is right, against its probability, whether predicted or not.

    The mean of the options' errors is the classwise ECE.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        names (`Sequence[str]`, *optional*):
            Name of each option, by default A, B, C, ... (numbers beyond 26 options).
        max_options (`int`, *optional*, defaults to `5`):
            Largest number of panels. The options that are right most often are drawn, and a note states the total.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of draws behind the intervals and noise floors in the captions.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `matplotlib.figure.Figure`.
    """
    probabilities = as_probabilities(probabilities)
    labels = as_labels(labels, *probabilities.shape)
    options = probabilities.shape[1]
    if names is None:
        names = [chr(ord("A") + k) if options <= 26 else str(k) for k in range(options)]
    elif len(names) != options:
        raise ValueError(f"`names` has {len(names)} entries for {options} options.")
    if max_options < 1:
        raise ValueError(f"`max_options` must be at least 1, got {max_options}.")
    counts = np.bincount(labels, minlength=options)
    drawn = np.sort(np.argsort(-counts, kind="stable")[: min(max_options, np.count_nonzero(counts))])
    panels = {
        f"option {names[k]}": _Panel(
            np.minimum(probabilities[:, k].astype(np.float64), 1.0), (labels == k).astype(float), None
        )
        for k in drawn
    }
    note = f"classwise ECE {classwise_calibration_error(probabilities, labels, n_bins):.3f}"
    note += f": the mean over {options} options" if options == len(drawn) else f" over all {options} options"
    if len(drawn) < options:
        note += f"; shown are the {len(drawn)} that are right most often"
    options = MeasureOptions(n_bins=n_bins, n_bootstrap=n_bootstrap, seed=seed)
    return _draw(panels, options, ("probability", "frequency"), note)


def group_diagram(
    probabilities,
    labels,
    groups,
    sort_by: str = "ece",
    max_groups: int = 9,
    min_size: int = 50,
    sample_weight=None,
    **options,
) -> Figure:
    """
    Draw one panel for each group of questions, e.g. for each subject.

    Args:
        probabilities (array-like of shape `(N, K)` or `(N,)`):
            Option probabilities, or confidences, as in [`reliability_diagram`].
        labels (array-like of shape `(N,)`):
            Index of the right option, or whether each prediction is right.
        groups (array-like of shape `(N,)`):
            Group of each question; converted to text.
        sort_by (`str`, *optional*, defaults to `"ece"`):
            `"ece"`: by the lower end of the ECE's interval, largest first, because the ECE itself is biased upwards in
            small groups. `"size"`: the largest group first.
        max_groups (`int`, *optional*, defaults to `9`):
            Largest number of groups with their own panel. The others share the last panel.
        min_size (`int`, *optional*, defaults to `50`):
            Smallest number of questions of a group with its own panel: the ECE of a smaller one is mostly noise.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights.
        options:
            Fields of [`~hf_calib.measures.options.MeasureOptions`]: `n_bins`, `binning`, and `n_bootstrap` and `seed`
            of the intervals and noise floors in the captions.

    Returns:
        `matplotlib.figure.Figure`.
    """
    options = MeasureOptions(**options)
    everything = _panel(probabilities, labels, sample_weight)
    groups = np.asarray([str(group) for group in groups])
    if len(groups) != len(everything.correct):
        raise ValueError(f"`groups` has {len(groups)} entries for {len(everything.correct)} rows of predictions.")
    if everything.weights is not None:  # ignore groups whose weights are all 0
        counted = everything.weights > 0
        everything, groups = everything.of(counted), groups[counted]
    if sort_by not in ("ece", "size"):
        raise ValueError(f"`sort_by` must be 'ece' or 'size', got {sort_by!r}.")
    if max_groups < 1:
        raise ValueError(f"`max_groups` must be at least 1, got {max_groups}.")
    names, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    large = [k for k in range(len(names)) if sizes[k] >= min_size]
    panels = {k: everything.of(index == k) for k in large}

    def rank(k: int) -> float:
        return -sizes[k] if sort_by == "size" else -_interval(panels[k], options)[0]

    large = sorted(large, key=rank)[:max_groups]
    drawn = {names[k]: panels[k] for k in large}
    order = "largest first" if sort_by == "size" else "by the lower end of the ECE's interval"
    note = f"{len(names)} groups, {order}; each 95% interval is for one group"
    if others := len(names) - len(large):
        label = f"{others} other group{'s' if others > 1 else ''}"
        drawn[label] = everything.of(~np.isin(index, large))
        rest = np.delete(sizes, large)
        note += f". The last panel joins {others} of {rest.min():,} to {rest.max():,} questions each"
    return _draw(drawn, options, note=note)


def _bins(panel: _Panel, n_bins: int, binning: str) -> ReliabilityBins:
    return reliability_bins(panel.confidences, panel.correct, n_bins, binning, panel.weights)


def _interval(panel: _Panel, options: MeasureOptions) -> tuple[float, float]:
    return bootstrap_interval(panel.confidences, panel.correct, sample_weight=panel.weights, **asdict(options))


def _caption(panel: _Panel, bins: ReliabilityBins, options: MeasureOptions, names: tuple[str, str]) -> str:
    """ECE with its interval and noise floor, N, and both means."""
    low, high = _interval(panel, options)
    floor = noise_floor(
        panel.confidences,
        panel.correct,
        options.n_bins,
        options.binning,
        n_simulations=options.n_bootstrap,
        seed=options.seed,
        sample_weight=panel.weights,
    )
    confidence, accuracy = _means(panel)
    across, up = names
    return (
        f"ECE {bins.error:.3f}  [{low:.3f}, {high:.3f}]\n"
        f"noise floor {floor.mean:.3f},  N = {bins.counts.sum():,}\n"
        f"{up} {accuracy:.3f},  {across} {confidence:.3f}"
    )


def _means(panel: _Panel) -> tuple[float, float]:
    """Mean confidence and accuracy."""
    confidence, accuracy = (np.average(values, weights=panel.weights) for values in (panel.confidences, panel.correct))
    return float(confidence), float(accuracy)


def _draw(
    panels: Mapping[str, _Panel],
    options: MeasureOptions,
    names: tuple[str, str] = ("confidence", "accuracy"),
    note: str | None = None,
) -> Figure:
    import matplotlib as mpl

    across, up = names
    rows = -(-len(panels) // _MOST_COLUMNS)
    columns = -(-len(panels) // rows)
    with mpl.rc_context(STYLE):
        figure = new_figure(_PANEL_WIDTH * columns + 0.5, _PANEL_HEIGHT * rows + 0.35 + 0.3 * bool(note))
        grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3.3, 1] * rows)
        first = first_shares = None
        for index, (heading, panel) in enumerate(panels.items()):
            row, column = divmod(index, columns)
            axes = figure.add_subplot(grid[2 * row, column], sharex=first, sharey=first)
            shares = figure.add_subplot(grid[2 * row + 1, column], sharex=axes, sharey=first_shares)
            first, first_shares = first or axes, first_shares or shares
            bins = _bins(panel, options.n_bins, options.binning)
            _draw_bins(axes, bins, _effective_counts(panel, bins), up)
            confidence, accuracy = _means(panel)
            _draw_shares(shares, _bins(panel, options.n_bins, "equal_width"))
            shares.axvline(accuracy, color=BLUE, linewidth=1.8, zorder=3, label=f"mean {up}")
            shares.axvline(
                confidence, color=VERMILLION, linewidth=1.8, linestyle=(0, (2, 1.2)), zorder=4, label=f"mean {across}"
            )
            caption = _caption(panel, bins, options, names)
            axes.text(0, 1.025, caption, transform=axes.transAxes, va="bottom", fontsize=8, linespacing=1.35)
            axes.set_title(_wrapped(heading), loc="left", fontsize=11, fontweight="bold", pad=42, parse_math=False)
            axes.tick_params(labelbottom=False, labelleft=column == 0)
            shares.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel(up)
                shares.set_ylabel("share")
            shares.set_xlabel(across)
        if note:
            figure.suptitle("\n".join(wrap(note, 42 * columns)), x=0.01, ha="left", fontsize=9)
        order = ("perfect calibration", up, "overconfident", "underconfident", "95% interval")
        add_legend(figure, columns={1: 2, 2: 4}.get(columns), first=order)
    return figure


def _wrapped(heading: str) -> str:
    """Wrap a heading to at most two lines, at spaces and underscores."""
    lines = [line.replace("_ ", "_") for line in wrap(heading.replace("_", "_ "), _TITLE_WIDTH)]
    return "\n".join(lines[:2]) + ("…" if len(lines) > 2 else "")


def _effective_counts(panel: _Panel, bins: ReliabilityBins) -> np.ndarray:
    """Effective sample size of each bin: `(sum w)^2 / sum w^2`."""
    if panel.weights is None:
        return bins.counts
    squares = np.bincount(assign_bins(panel.confidences, bins.edges), panel.weights**2, len(bins.counts))
    return np.divide(bins.weights**2, squares, out=np.zeros(len(squares)), where=squares > 0)


def _draw_bins(axes: Axes, bins: ReliabilityBins, effective_counts: np.ndarray, up: str) -> None:
    from matplotlib.patheffects import withStroke

    filled = bins.counts > 0
    left, width = bins.edges[:-1][filled], np.diff(bins.edges)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    frame = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
    axes.bar(left, accuracy, width, color=SKY, label=up, zorder=2, **frame)
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
    low, high = wilson_interval(accuracy, effective_counts[filled])
    axes.errorbar(
        left + width / 2, accuracy, (np.maximum(accuracy - low, 0), np.maximum(high - accuracy, 0)), fmt="none",
        ecolor=BLACK, elinewidth=1.1, capsize=2, zorder=5, label="95% interval",
    )  # fmt: skip
    axes.plot(
        [0, 1], [0, 1], color=BLACK, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=4, label="perfect calibration",
        path_effects=[withStroke(linewidth=2.6, foreground="white")],
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    axes.grid(axis="y", **GRID)
    axes.set_axisbelow(True)


def _draw_shares(axes: Axes, bins: ReliabilityBins) -> None:
    shares = bins.weights / bins.weights.sum()
    axes.bar(
        bins.edges[:-1], shares, np.diff(bins.edges), align="edge",
        color="#C9C9C9", edgecolor="white", linewidth=0.8, zorder=2,
    )  # fmt: skip
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.1 * shares.max()))  # shared between panels
    axes.locator_params(axis="y", nbins=3)
