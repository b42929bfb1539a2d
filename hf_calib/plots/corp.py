"""CORP reliability diagram: accuracy against confidence by isotonic regression, without bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..measures.checked import check_scores
from ..measures.corp import CorpCurve, corp_curve
from .style import BLACK, BLUE, GREY, GRID, STYLE, add_legend, new_figure


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHARES = 50  # bins of the histogram below
_SCORE_NAMES = {"brier": "Brier score", "nll": "NLL"}


def corp_diagram(
    probabilities, labels, title: str | None = None, sample_weight=None, score: str = "brier", **options
) -> Figure:
    """
    Draw the CORP reliability diagram of the confidence in the predicted option.

    The curve is the isotonic regression of being right on the confidence. The band is where it would lie for 95 of
    100 perfectly calibrated models with the same confidences, at each confidence by itself. Above are the parts of
    the score, the miscalibration that noise alone would give, and the p-value of calibration. Below is the
    distribution of the confidences.

    Args:
        probabilities (array-like of shape `(N, K)` or `(N,)`):
            Option probabilities, rows summing to 1; or, in one dimension, the confidences of the predictions.
        labels (array-like of shape `(N,)`):
            Index of the right option; with confidences, whether each prediction is right (0 or 1).
        title (`str`, *optional*):
            Heading.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights.
        score (`str`, *optional*, defaults to `"brier"`):
            Score of the confidence that is split: `"brier"` or `"nll"`.
        options:
            `n_bootstrap` and `seed` of the band, see [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        `matplotlib.figure.Figure`, for [`save_figure`] or a notebook; pyplot is not touched.

    References:
        Dimitriadis, Gneiting & Jordan (2021), "Stable reliability diagrams for probabilistic classifiers", PNAS 118.

    Example:

    ```python
    >>> from hf_calib.plots import corp_diagram
    >>> figure = corp_diagram([0.9, 0.7, 0.6, 0.6], [1, 1, 0, 1])

    ```
    """
    import matplotlib as mpl

    examples = check_scores(probabilities, labels)
    curve = corp_curve(examples.confidences, examples.correct, score, sample_weight, **options)
    with mpl.rc_context(STYLE):
        figure = new_figure(4.9, 5.6)
        grid = figure.add_gridspec(2, 1, height_ratios=[4, 1])
        axes = figure.add_subplot(grid[0])
        shares = figure.add_subplot(grid[1], sharex=axes)
        _draw_curve(axes, curve)
        shares.hist(examples.confidences, _SHARES, range=(0, 1), weights=sample_weight, color="#C9C9C9")
        shares.set(xlabel="confidence", ylabel="predictions", yticks=[])
        caption = _caption(curve, score, len(examples))
        axes.text(0, 1.025, caption, transform=axes.transAxes, va="bottom", fontsize=8, linespacing=1.35)
        if title:
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=42, parse_math=False)
        add_legend(figure, columns=3)
    return figure


def _caption(curve: CorpCurve, score: str, n: int) -> str:
    parts = curve.decomposition
    return (
        f"{_SCORE_NAMES[score]} of the confidence {parts.score:.4f},  N = {n:,}\n"
        f"= miscalibration {parts.miscalibration:.4f} - discrimination {parts.discrimination:.4f}"
        f" + uncertainty {parts.uncertainty:.4f}\n"
        f"miscalibration of noise alone {curve.noise_floor:.4f},  p = {curve.p_value:.3f}"
    )


def _draw_curve(axes: Axes, curve: CorpCurve) -> None:
    axes.fill_between(
        curve.confidences, curve.low, curve.high, color=GREY, alpha=0.3, linewidth=0, label="95% consistency band"
    )
    axes.plot(
        [0, 1], [0, 1], color=BLACK, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=4, label="perfect calibration"
    )
    # a few confidences, such as those that a model states in words, are points
    marker = "o" if len(curve.confidences) <= 20 else None
    axes.plot(
        curve.confidences, curve.accuracies, color=BLUE, linewidth=1.8, marker=marker, markersize=4, zorder=5,
        label="accuracy",
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6), ylabel="accuracy")
    axes.grid(**GRID)
    axes.set_axisbelow(True)
    axes.tick_params(labelbottom=False)
