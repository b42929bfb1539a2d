"""Risk-coverage plot: the error rate of the answers against the share of questions that are answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..measures.risk_coverage import RiskCoverage, risk_coverage
from .style import BLACK, BLUE, GREY, GRID, PURPLE, SKY, STYLE, VERMILLION, add_legend, new_figure, wilson_interval


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = [(BLUE, "-"), (VERMILLION, (0, (5, 1.5))), (PURPLE, (0, (2, 1.2))), (SKY, (0, (6, 1.5, 1, 1.5))), (GREY, "-")]
_POINTS = 2000  # most points of a drawn curve


def risk_coverage_diagram(
    predictions: Mapping[str, tuple], target_risk: float | None = None, threshold: float | None = None, title=None
) -> Figure:
    """
    Draw risk-coverage curves.

    The band is the 95% interval of each risk by itself (Wilson's). The dotted line is the risk without an order: that
    of answering everything.

    Args:
        predictions (`Mapping[str, tuple]`):
            Confidences `(N,)` and outcomes `(N,)` (1 right, 0 wrong) by name; at most five.
        target_risk (`float`, *optional*):
            Risk to mark by a horizontal line.
        threshold (`float`, *optional*):
            Threshold to mark on the first curve.
        title (`str`, *optional*):
            Heading.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: There are no curves or more than five.

    Example:

    ```python
    >>> from hf_calib.plots import risk_coverage_diagram
    >>> figure = risk_coverage_diagram({"model": ([0.9, 0.7, 0.6], [1, 1, 0])}, target_risk=0.2)

    ```
    """
    import matplotlib as mpl

    if not 1 <= len(predictions) <= len(_LINES):
        raise ValueError(f"draw 1 to {len(_LINES)} curves, got {len(predictions)}.")
    with mpl.rc_context(STYLE):
        figure = new_figure(5.4, 4.6)
        axes = figure.subplots()
        curves = {name: risk_coverage(*arrays) for name, arrays in predictions.items()}
        for (name, curve), (colour, line) in zip(curves.items(), _LINES, strict=False):
            _draw_curve(axes, name, curve, colour, line, band=len(curves) <= 2)
        if target_risk is not None:
            axes.axhline(target_risk, color=BLACK, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=4, label="target")
        if threshold is not None:
            _mark(axes, next(iter(curves.values())), threshold)
        top = max(float(curve.risk[curve.coverage >= 0.05].max()) for curve in curves.values())
        axes.set(xlim=(0, 1), ylim=(0, min(1.0, max(1.35 * top, 1.5 * (target_risk or 0), 0.02))))
        axes.set(xlabel="coverage: share of the questions answered", ylabel="risk: error rate of the answers")
        axes.grid(**GRID)
        axes.set_axisbelow(True)
        if title:
            axes.set_title(title, loc="left", fontsize=10, fontweight="bold", parse_math=False)
        add_legend(figure, columns=1)
    return figure


def _draw_curve(axes: Axes, name: str, curve: RiskCoverage, colour: str, line, band: bool) -> None:
    picked = np.unique(np.linspace(0, len(curve.coverage) - 1, _POINTS).round().astype(int))
    coverage, risk = curve.coverage[picked], curve.risk[picked]
    if band:
        low, high = wilson_interval(risk, curve.n_effective * coverage)
        axes.fill_between(coverage, low, high, color=colour, alpha=0.14, linewidth=0, step="pre", zorder=1)
    label = f"{name} (AURC {curve.aurc:.3f})"
    axes.step(coverage, risk, where="pre", color=colour, linestyle=line, linewidth=1.6, label=label, zorder=3)
    axes.axhline(risk[-1], color=colour, linewidth=0.9, linestyle=":", zorder=2)


def _mark(axes: Axes, curve: RiskCoverage, threshold: float) -> None:
    """Mark the point of a threshold, with its numbers."""
    answered = int((curve.thresholds >= threshold).sum())
    if answered == 0:
        return
    coverage, risk = curve.coverage[answered - 1], curve.risk[answered - 1]
    label = f"threshold {threshold:.4g}: coverage {coverage:.1%}, risk {risk:.1%}"
    axes.plot(coverage, risk, "D", color="white", markeredgecolor=BLACK, markersize=7, zorder=5, label=label)
