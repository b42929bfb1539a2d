"""The regime plane: models by accuracy and calibration error, with the critical accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .style import BLACK, BLUE, GREY, GRID, PURPLE, STYLE, VERMILLION, add_legend, new_figure, wilson_interval


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHADE = "#F6DFD2"
_MARKERS = {
    "calibratable": ("o", BLUE),
    "non-calibratable": ("s", VERMILLION),
    "target-contradicted": ("^", PURPLE),
    "undetermined": ("D", "#5A5A5A"),
    None: ("o", BLACK),
}
_WITHIN_NOISE = 0.05  # least p-value of the noise-floor test for a hollow marker


class _Point(NamedTuple):
    name: str
    x: float
    x_interval: tuple[float, float]
    y: float
    y_interval: tuple[float, float]
    regime: str | None
    hollow: bool


def regime_plane(
    points: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
    runs: Iterable[Sequence[str]] = (),
    critical_accuracy: float | None = None,
    title: str | None = None,
) -> Figure:
    """
    Draw models in the plane of accuracy (x) and conf-ECE (y).

    The vertical line is the critical accuracy ACC*. Right of it, the slanted line is `ECE = ACC - ACC*`. Because of
    `ECE + TCE >= ACC - ACC*` (Proposition 3 in docs/concepts/theory.md), a model below that line, in the shaded
    region, has a target calibration error of at least its vertical distance to the line. So ECE and TCE cannot both be
    0 right of ACC*.

    Every point has 95% intervals: Wilson's for the accuracy, with the effective number of questions if they are
    weighted, and the reported one for the ECE. The marker shows the regime, and is hollow if the ECE is within its
    noise floor.

    If the points differ in their critical accuracies, the x axis is `ACC - ACC*` and the line is at 0.

    Args:
        points (`Mapping[str, Mapping]` or `Sequence[Mapping]`):
            Results by name, or a sequence of results with their name as `stage`, as in the `results.json` of a report.
            Their keys are those of [`calibration_report`] and [`RegimeReport`]: `accuracy`, `ece`, `n`, and optionally
            `n_effective`, `ece_low`, `ece_high`, `ece_p_value`, `critical_accuracy` and `regime`.
        runs (`Iterable[Sequence[str]]`, *optional*):
            Training runs: names of points in their order, connected by arrows. Runs may share points.
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1) of all points; overrides theirs.
        title (`str`, *optional*):
            Heading.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        `ValueError`: if a point lacks a measure or a name, a name is repeated, a run names an unknown point, or some
            points have different critical accuracies and others have none.

    Example:

    ```python
    >>> from hf_calib.plots import regime_plane
    >>> before = {"accuracy": 0.55, "ece": 0.18, "n": 1000, "critical_accuracy": 0.6}
    >>> after = {"accuracy": 0.58, "ece": 0.03, "n": 1000, "critical_accuracy": 0.6}
    >>> figure = regime_plane({"DPO": before, "CFT": after}, runs=[("DPO", "CFT")])

    ```
    """
    import matplotlib as mpl

    named = _named(points)
    if critical_accuracy is not None and not 0 < critical_accuracy < 1:
        raise ValueError(f"`critical_accuracy` must lie in (0, 1), got {critical_accuracy}.")
    borders = {name: critical_accuracy or results.get("critical_accuracy") for name, results in named.items()}
    known = [border for border in borders.values() if border is not None]
    distances = bool(known) and max(known) - min(known) > 1e-9
    if distances and len(known) < len(named):
        name = next(name for name, border in borders.items() if border is None)
        raise ValueError(
            f"point {name!r} has no critical accuracy and the others have different ones: give `critical_accuracy`, "
            "or leave the point out."
        )
    placed = {name: _place(name, named[name], borders[name] if distances else 0.0) for name in named}
    border = 0.0 if distances else known[0] if known else None
    arrows = []
    for run in runs:
        if unknown := [name for name in run if name not in placed]:
            raise ValueError(f"`runs` names {unknown[0]!r}, which is not a point; the points are {', '.join(placed)}.")
        arrows += [(placed[start], placed[end]) for start, end in zip(run, run[1:], strict=False)]

    with mpl.rc_context(STYLE):
        figure = new_figure(4.6, 4.5)
        axes = figure.add_subplot()
        _set_limits(axes, list(placed.values()), border)
        if border is not None:
            _draw_border(axes, border, distances)
        for start, end in arrows:
            style = {"arrowstyle": "-|>", "color": "#5A5A5A", "linewidth": 1.1, "shrinkA": 5, "shrinkB": 6}
            axes.annotate("", (end.x, end.y), (start.x, start.y), arrowprops=style, zorder=4)
        _draw_points(axes, list(placed.values()))
        axes.set(xlabel="accuracy − critical accuracy" if distances else "accuracy", ylabel="conf-ECE")
        axes.grid(**GRID)
        axes.set_axisbelow(True)
        if title:
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=22, parse_math=False)
        if border is None:
            note = "no critical accuracy is known, so there is no border to draw"
            axes.text(0, 1.015, note, transform=axes.transAxes, va="bottom", fontsize=8, color="#5A5A5A")
        add_legend(figure, columns=2)
        figure.draw_without_rendering()  # the labels are placed on the final layout
        _place_labels(axes, list(placed.values()), arrows, border)
    return figure


def _named(points) -> dict[str, Mapping[str, Any]]:
    if isinstance(points, Mapping):
        named = {str(name): results for name, results in points.items()}
    else:
        named = {}
        for index, results in enumerate(points):
            if "stage" not in results:
                raise ValueError(f"point {index} has no `stage`: name it, or give a dict of results by name.")
            if results["stage"] in named:
                raise ValueError(f"two points are called {results['stage']!r}: names must differ.")
            named[results["stage"]] = results
    if not named:
        raise ValueError("`points` is empty: there is nothing to draw.")
    return named


def _place(name: str, results: Mapping[str, Any], origin: float) -> _Point:
    if missing := [key for key in ("accuracy", "ece", "n") if results.get(key) is None]:
        raise ValueError(f"point {name!r} lacks {', '.join(f'`{key}`' for key in missing)}.")
    accuracy, error = results["accuracy"], results["ece"]
    low, high = wilson_interval(accuracy, results.get("n_effective") or results["n"])
    ends = (results.get("ece_low"), results.get("ece_high"))
    p_value = results.get("ece_p_value")
    regime = results.get("regime")
    return _Point(
        name,
        accuracy - origin,
        (low - origin, high - origin),
        error,
        (error, error) if None in ends else ends,
        regime if regime in _MARKERS else None,
        p_value is not None and p_value >= _WITHIN_NOISE,
    )


def _set_limits(axes: Axes, points: list[_Point], border: float | None) -> None:
    ends = [end for point in points for end in point.x_interval] + ([] if border is None else [border])
    low, high = min(ends), max(ends)
    pad = max(0.12 * (high - low), 0.01)
    low, high = low - pad, high + pad
    if border is not None:  # space for the captions on both sides
        side = 0.3 * (high - low)
        low, high = min(low, border - side), max(high, border + side)
    axes.set_xlim(low, high)
    axes.locator_params(nbins=6)
    axes.set_ylim(0, max(1.18 * max(max(point.y, *point.y_interval) for point in points), 0.05))


def _draw_border(axes: Axes, border: float, distances: bool) -> None:
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    symbol = "ACC − ACC*"
    axes.fill_between(
        [border, right], [0, right - border], color=_SHADE, linewidth=0, zorder=1,
        label=f"here TCE ≥ ({symbol}) − ECE > 0",
    )  # fmt: skip
    axes.plot(
        [border, right],
        [0, right - border],
        color=VERMILLION,
        linewidth=1.4,
        zorder=2,
        label=f"ECE + TCE ≥ {symbol} at TCE = 0",
    )
    axes.axvline(
        border, color=BLACK, linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=2,
        label="critical accuracy ACC*" if distances else f"critical accuracy ACC* = {border:.3f}",
    )  # fmt: skip
    axes.set_ylim(0, top)
    captions = (("right", -4, "◂ calibratable if ACC = T"), ("left", 4, "non-calibratable ▸"))
    for side, offset, text in captions:
        axes.annotate(
            text, (border, 1), (offset, 4), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
            ha=side, va="bottom", fontsize=8, color="#3A3A3A",
        )  # fmt: skip


def _draw_points(axes: Axes, points: list[_Point]) -> None:
    for point in points:
        marker, colour = _MARKERS[point.regime]
        line = {"color": colour, "linewidth": 1.0, "alpha": 0.75, "zorder": 3, "solid_capstyle": "butt"}
        axes.plot(point.x_interval, (point.y, point.y), **line)
        axes.plot((point.x, point.x), point.y_interval, **line)
        face = "white" if point.hollow else colour
        axes.plot(
            point.x, point.y, marker, markersize=6.5, color=colour, markerfacecolor=face, zorder=5, clip_on=False
        )
    for regime in dict.fromkeys(point.regime for point in points):
        marker, colour = _MARKERS[regime]
        axes.plot([], [], marker, markersize=6.5, color=colour, label=regime or "model")
    if any(point.hollow for point in points):
        axes.plot([], [], "o", markersize=6.5, color=GREY, markerfacecolor="white", label="hollow: ECE within noise")
    axes.plot([], [], "|-", color=GREY, linewidth=1.0, markersize=5, label="95% intervals")


def _place_labels(axes: Axes, points: list[_Point], arrows: list[tuple[_Point, _Point]], border: float | None) -> None:
    """Place each name where it covers least of the other names, points, intervals and arrows (greedy, in pixels)."""
    pixel = axes.figure.dpi / 72
    frame, to_pixels = axes.get_window_extent().extents, axes.transData.transform

    def strip(start, end) -> np.ndarray:
        """Small boxes (x0, y0, x1, y1) along a line."""
        start, end = to_pixels(start), to_pixels(end)
        along = np.linspace(start, end, max(2, int(np.hypot(*(end - start)) / (4 * pixel))))
        return np.hstack([along - pixel, along + pixel])

    lines = [strip((point.x_interval[0], point.y), (point.x_interval[1], point.y)) for point in points]
    lines += [strip((point.x, point.y_interval[0]), (point.x, point.y_interval[1])) for point in points]
    lines += [strip((start.x, start.y), (end.x, end.y)) for start, end in arrows]
    if border is not None:
        right, top = axes.get_xlim()[1], axes.get_ylim()[1]
        lines += [strip((border, 0), (border, top)), strip((border, 0), (right, right - border))]
    centres = to_pixels([(point.x, point.y) for point in points])
    # Boxes to avoid, with their weights.
    taken = [(np.vstack(lines), 1), (np.hstack([centres - 5 * pixel, centres + 5 * pixel]), 4)]
    ways = np.array([(1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0)])
    for index in np.argsort([-point.y for point in points], kind="stable"):
        point, centre = points[index], centres[index]
        text = axes.annotate(
            point.name, (point.x, point.y), (0, 0), textcoords="offset points", fontsize=9, zorder=6, parse_math=False
        )
        half = np.array(text.get_window_extent().size) / 2
        best = (np.inf, None, 0)
        for reach in (3, 7, 14, 24, 36, 50):
            for way in ways:
                middle = centre + way * (half + reach * pixel)
                box = np.concatenate([middle - half - pixel, middle + half + pixel])
                cost = sum(weight * _overlap(boxes, box).sum() for boxes, weight in taken) + reach * pixel**2
                cost += 100 * ((box[2:] - box[:2]).prod() - _overlap(frame, box))  # area outside the frame
                best = min(best, (cost, box, reach), key=lambda candidate: candidate[0])
        _, box, reach = best
        taken.append((box[None], 50))
        text.set_position((box[:2] + pixel - centre) / pixel)
        if reach > 7:  # a thin line connects a distant name to its point
            ends = axes.transData.inverted().transform([centre, np.clip(centre, box[:2], box[2:])])
            axes.plot(*ends.T, color=GREY, linewidth=0.7, zorder=3)


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Area of the intersection of each box (x0, y0, x1, y1) with one box."""
    sides = np.minimum(boxes[..., 2:], box[2:]) - np.maximum(boxes[..., :2], box[:2])
    return np.maximum(sides, 0).prod(axis=-1)
