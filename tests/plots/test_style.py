"""Style, files and intervals of the figures."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from hf_calib.plots import reliability_diagram, save_figure, wilson_interval


def make(n=100):
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.3, 1, n)
    return confidences, rng.random(n) < confidences


def test_saved_files_are_reproducible(tmp_path):
    for name in ("a/b/figure.png", "figure"):
        png, svg = save_figure(reliability_diagram(*make(), n_bootstrap=10), tmp_path / name)
        assert png.suffix == ".png" and svg.suffix == ".svg" and png.stem == svg.stem == "figure"
        assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()
    assert (tmp_path / "figure.svg").read_bytes() == (tmp_path / "a/b/figure.svg").read_bytes()
    png, _ = save_figure(reliability_diagram(*make(), n_bootstrap=10), tmp_path / "model-v1.5")
    assert png.name == "model-v1.5.png"


def test_pyplot_and_display_are_not_used():
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
