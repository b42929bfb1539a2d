"""Style of the figures: the Okabe-Ito palette, with hatching and markers that are distinct in greyscale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, SKY, VERMILLION, PURPLE = "#0072B2", "#56B4E9", "#D55E00", "#CC79A7"
BLACK, GREY = "#1A1A1A", "#8C8C8C"
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
    "svg.hashsalt": "hf_calib",  # reproducible files
}
GRID = {"color": "#E6E6E6", "linewidth": 0.7, "zorder": 0}


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure, with its size in inches, without pyplot. Draw on it under `rc_context(STYLE)`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.04, hspace=0.02, wspace=0.02)
    return figure


def add_legend(figure: Figure, columns: int | None = None, first: Sequence[str] = ()) -> None:
    """Add one legend under the figure, with each label of its panels once, and the labels in `first` first."""
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [*(label for label in first if label in handles), *(label for label in handles if label not in first)]
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=columns or len(labels),
        fontsize=8,
        columnspacing=1.4,
        handlelength=2.8,  # a dash and a gap
    )


def wilson_interval(rate, counts, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """
    Compute the Wilson score interval of binomial rates.

    Args:
        rate (`np.ndarray` of shape `(bins,)`):
            Observed rates in [0, 1].
        counts (`np.ndarray` of shape `(bins,)`):
            Number of trials, above 0; fractions are allowed, for effective numbers.
        z (`float`, *optional*, defaults to `1.96`):
            Quantile of the normal distribution; 1.96 gives 95%.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: lower and upper ends, `(bins,)`.
    """
    scale = 1 + z**2 / counts
    centre = (rate + z**2 / (2 * counts)) / scale
    margin = z * np.sqrt(rate * (1 - rate) / counts + z**2 / (4 * counts**2)) / scale
    return centre - margin, centre + margin


def save_figure(figure: Figure, path, svg: bool = True) -> tuple[Path, Path | None]:
    """
    Save a figure as PNG (200 dpi) and SVG.

    Args:
        figure (`matplotlib.figure.Figure`):
            The figure.
        path (`str` or `PathLike`):
            Path of the files; an ending of `.png` or `.svg` is replaced. Missing folders are created.
        svg (`bool`, *optional*, defaults to `True`):
            Whether to save the SVG too.

    Returns:
        `tuple[Path, Path | None]`: paths of the PNG and the SVG.
    """
    import matplotlib as mpl

    path = Path(path)
    stem = path.with_suffix("") if path.suffix.lower() in (".png", ".svg") else path
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, vector = stem.parent / f"{stem.name}.png", stem.parent / f"{stem.name}.svg"
    with mpl.rc_context(STYLE):
        figure.savefig(png, dpi=200)
        if svg:
            figure.savefig(vector, metadata={"Date": None})
    return png, vector if svg else None
