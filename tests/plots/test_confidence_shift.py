"""Figures before and after alignment: points, shares and intervals."""

import doctest
import importlib

import numpy as np
import pytest
from samples import make

from hf_calib.measures.position_bias import order_report
from hf_calib.plots import confidence_shift, order_diagram, save_figure


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_question_is_a_point_coloured_by_its_answer():
    stated, labels, base = make(300)
    points, before, after = confidence_shift(base, stated, labels).axes
    right, wrong = (collection.get_offsets() for collection in points.collections)
    correct = stated.argmax(1) == labels
    assert (len(right), len(wrong)) == (correct.sum(), (~correct).sum())
    expected = np.stack([base.max(1), stated.max(1)], axis=1)
    np.testing.assert_allclose(np.sort(right, axis=0), np.sort(expected[correct], axis=0))
    for axes, model in ((before, base), (after, stated)):
        heights = [bar.get_height() for bar in axes.patches]
        assert sum(heights) == pytest.approx(1)
        assert sum(heights[: len(heights) // 2]) == pytest.approx((model.argmax(1) == labels).mean())


def test_sampled_points_are_noted():
    stated, labels, base = make(300)
    points = confidence_shift(base, stated, labels, max_points=50).axes[0]
    assert sum(len(collection.get_offsets()) for collection in points.collections) == 50
    assert "50 of 300 questions" in points.get_title(loc="left")
    with pytest.raises(ValueError, match="299 entries for 300 rows"):
        confidence_shift(base[:-1], stated, labels[:-1])


def test_order_diagram(tmp_path):
    stated, labels, base = make(200)
    stacks = [np.stack([np.roll(p, shift, axis=1) for shift in range(4)]) for p in (stated, base)]
    report = order_report(
        stacks[0] * [1.6, 1, 0.8, 0.6] / (stacks[0] @ [1.6, 1, 0.8, 0.6])[..., None], labels, stacks[1]
    )
    figure = order_diagram(report, title="positions")
    _, chosen = figure.axes
    assert [text.get_text() for text in chosen.get_xticklabels()] == ["A", "B", "C", "D"]
    heights = [bar.get_height() for bar in chosen.patches]
    assert heights[4:] == pytest.approx([report[f"predicted_at/{place}"] for place in range(4)])
    assert {"reference: chosen", "aligned: chosen", "letter prior", "no preference"} <= set(legend(figure))
    save_figure(figure, tmp_path / "positions")
    alone = {key: value for key, value in report.items() if not key.startswith(("reference/", "change/"))}
    assert len(order_diagram(alone).axes[1].patches) == 4


def test_example_runs():
    assert doctest.testmod(importlib.import_module("hf_calib.plots.confidence_shift")).failed == 0
