"""CORP diagram: what is drawn is what was computed."""

import numpy as np
import pytest
from samples import make

from hf_calib.measures.corp import corp_curve
from hf_calib.plots import corp_diagram


@pytest.mark.parametrize("weighted", [False, True])
def test_lines_band_and_caption_are_those_of_the_curve(weighted):
    probabilities, labels, _ = make(400)
    weights = np.random.default_rng(0).uniform(0, 2, 400) if weighted else None
    confidences, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    curve = corp_curve(confidences, correct, sample_weight=weights, n_bootstrap=50)
    figure = corp_diagram(probabilities, labels, "a $title_", weights, n_bootstrap=50)
    axes = figure.axes[0]
    drawn = next(line for line in axes.lines if line.get_label() == "accuracy")
    assert np.array_equal(drawn.get_xdata(), curve.confidences) and np.array_equal(drawn.get_ydata(), curve.accuracies)
    (band,) = axes.collections
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(curve.low.min())
    caption = axes.texts[0].get_text()
    assert f"p = {curve.p_value:.3f}" in caption and "N = 400" in caption
    for part in curve.decomposition:
        assert f"{part:.4f}" in caption


def test_confidences_give_the_same_figure_and_few_values_are_points():
    confidences, correct = np.tile([0.9, 0.7, 0.6], 20), np.tile([1, 0, 1], 20)
    axes = corp_diagram(confidences, correct, score="nll", n_bootstrap=20).axes[0]
    assert axes.texts[0].get_text().startswith("NLL of the confidence")
    assert next(line for line in axes.lines if line.get_label() == "accuracy").get_marker() == "o"


def test_bad_score():
    with pytest.raises(ValueError, match="`score` must be one of"):
        corp_diagram([0.5, 0.6], [1, 0], score="ece")
