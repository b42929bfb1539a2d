"""Reliability diagrams show the numbers they are made of, and are written as PNG and SVG."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from hf_calib.binning import reliability_bins, top_label
from hf_calib.calibration_error import calibration_report
from hf_calib.plots import reliability_diagram, reliability_grid, save_figure, wilson_interval


def make(n=800, sharpness=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4))
    target = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    stated = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum(axis=1, keepdims=True)
    return stated, (target.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


def texts(axes):
    return "\n".join([axes.get_title(loc="left"), *(text.get_text() for text in axes.texts)])


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_bars_are_the_bins(binning):
    probabilities, labels = make()
    figure = reliability_diagram(probabilities, labels, title="dpo", binning=binning, n_bootstrap=50)
    bins = reliability_bins(*top_label(probabilities, labels), binning=binning)
    filled = bins.counts > 0
    accuracy = next(c for c in figure.axes[0].containers if c.get_label() == "accuracy")
    assert [bar.get_height() for bar in accuracy] == pytest.approx(list(bins.accuracy[filled]))
    assert [bar.get_x() for bar in accuracy] == pytest.approx(list(bins.edges[:-1][filled]))
    gaps = [c for c in figure.axes[0].containers if c.get_label() in ("overconfident", "underconfident")]
    drawn = sum(bar.get_height() for container in gaps for bar in container)
    assert drawn == pytest.approx(np.abs(bins.gaps[filled]).sum())
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == pytest.approx(1)  # shares


def test_caption_says_what_the_report_says():
    probabilities, labels = make(n=1234)
    report = calibration_report(probabilities, labels, n_bootstrap=100)
    caption = texts(reliability_diagram(probabilities, labels, title="after DPO", n_bootstrap=100).axes[0])
    assert "after DPO" in caption and "N = 1,234" in caption
    assert f"ECE {report['ece']:.3f}  [{report['ece_low']:.3f}, {report['ece_high']:.3f}]" in caption
    assert f"noise floor {report['ece_noise_floor']:.3f}" in caption
    assert f"accuracy {report['accuracy']:.3f}" in caption


def test_grid_shares_its_axes_and_wraps():
    stages = {f"stage {i}": make(n=200, sharpness=0.5 + i / 2, seed=i) for i in range(6)}
    figure = reliability_grid(stages, n_bootstrap=20)
    panels, shares = figure.axes[::2], figure.axes[1::2]
    assert [texts(panel).splitlines()[0] for panel in panels] == list(stages)
    assert len({panel.get_position().y0 for panel in panels}) == 2  # two rows of three
    assert len({panel.get_ylim() for panel in panels}) == len({share.get_ylim() for share in shares}) == 1
    tallest = max(bar.get_height() for share in shares for bar in share.patches)
    assert shares[0].get_ylim()[1] > tallest
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels)) and {"overconfident", "underconfident"} <= set(labels)


def test_saved_twice_and_alike(tmp_path):
    for name in ("a/b/figure.png", "figure"):
        png, svg = save_figure(reliability_diagram(*make(n=100), n_bootstrap=10), tmp_path / name)
        assert png.suffix == ".png" and svg.suffix == ".svg" and png.stem == svg.stem == "figure"
        assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()
    assert (tmp_path / "figure.svg").read_bytes() == (tmp_path / "a/b/figure.svg").read_bytes()
    png, _ = save_figure(reliability_diagram(*make(n=100), n_bootstrap=10), tmp_path / "model-v1.5")
    assert png.name == "model-v1.5.png"


def test_pyplot_and_the_display_are_left_alone():
    code = (
        "import sys; from hf_calib.plots import reliability_diagram;"
        "assert 'matplotlib' not in sys.modules;"
        "reliability_diagram([[0.9, 0.1], [0.4, 0.6]], [0, 0], n_bootstrap=5);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30)])
def test_wilson_agrees_with_scipy(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    low, high = wilson_interval(np.array([hits / n]), np.array([n]))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_extremes_can_be_drawn(tmp_path):
    stages = {"certain": ([[1.0, 0.0]] * 5, [0] * 5), "one row": ([[0.5, 0.5]], [1])}
    save_figure(reliability_grid(stages, n_bootstrap=10), tmp_path / "extremes")
    with pytest.raises(ValueError, match="`stages` is empty"):
        reliability_grid({})
