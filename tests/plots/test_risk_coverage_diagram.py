"""Risk-coverage plot."""

import numpy as np
import pytest

from hf_calib.plots import risk_coverage_diagram, save_figure


def test_curves_and_marked_threshold(tmp_path):
    rng = np.random.default_rng(0)
    confidences = rng.random(500)
    correct = rng.random(500) < confidences
    figure = risk_coverage_diagram(
        {"a": (confidences, correct), "b": (rng.random(500), correct)}, 0.2, 0.8, "models $x$"
    )
    axes = figure.axes[0]
    first = next(line for line in axes.lines if line.get_label().startswith("a "))
    coverage, risk = first.get_data()
    assert coverage[-1] == 1 and risk[-1] == pytest.approx(1 - correct.mean())
    marked = next(line for line in axes.lines if line.get_label().startswith("threshold"))
    x, y = (float(value[0]) for value in marked.get_data())
    answered = confidences >= 0.8
    assert (x, y) == pytest.approx((answered.mean(), 1 - correct[answered].mean()))
    save_figure(figure, tmp_path / "curve")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_number_of_curves():
    with pytest.raises(ValueError, match="1 to 5 curves, got 0"):
        risk_coverage_diagram({})


def test_legend_of_long_names_is_inside_the_figure():
    confidences, correct = np.linspace(0.3, 1, 200), np.arange(200) % 8 > 0
    figure = risk_coverage_diagram(
        {"SmolLM2-135M-Instruct-aligned-on-preferences": (confidences, correct)}, 0.1, 0.8512
    )
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width
