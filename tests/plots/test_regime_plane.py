"""The regime plane: points, bound and labels."""

import json

import numpy as np
import pytest

from hf_calib.measures.calibration_error import calibration_report
from hf_calib.plots import regime_plane, save_figure
from hf_calib.plots.style import wilson_interval
from hf_calib.regime.classify import classify_regime
from hf_calib.regime.report import CALIBRATABLE, NON_CALIBRATABLE, TARGET_CONTRADICTED, UNDETERMINED


def point(accuracy, ece, **fields):
    return {"accuracy": accuracy, "ece": ece, "ece_low": ece - 0.01, "ece_high": ece + 0.02, "n": 400, **fields}


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def names(axes):
    return {text.get_text(): text for text in axes.texts if not set("◂▸") & set(text.get_text())}


def test_bound_starts_at_the_critical_accuracy_and_rises_one_to_one():
    (axes,) = regime_plane({"a": point(0.7, 0.02)}, critical_accuracy=0.6).axes
    assert set(line(axes, "critical accuracy ACC* = 0.600").get_xdata()) == {0.6}
    bound = line(axes, "ECE + TCE ≥ ACC − ACC* at TCE = 0")
    np.testing.assert_allclose(bound.get_ydata(), bound.get_xdata() - 0.6)
    (shade,) = axes.collections
    inside = shade.get_paths()[0].contains_point
    assert inside((0.68, 0.05)) and not inside((0.68, 0.09)) and not inside((0.59, 0.001))


def test_points_have_the_coordinates_of_the_results():
    (axes,) = regime_plane({"a": point(0.7, 0.05, regime="non-calibratable", critical_accuracy=0.6)}).axes
    marker = next(line for line in axes.lines if line.get_marker() == "s" and len(line.get_xdata()))
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (0.7, 0.05)
    spans = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 2 and line.get_marker() == "None"]
    assert any(np.allclose(span[:, 0], wilson_interval(0.7, 400)) and np.allclose(span[:, 1], 0.05) for span in spans)
    assert any(np.allclose(span[:, 1], [0.04, 0.07]) and np.allclose(span[:, 0], 0.7) for span in spans)


def test_weights_widen_the_interval_of_the_accuracy():
    (axes,) = regime_plane({"a": point(0.7, 0.05, n_effective=36.5)}).axes
    spans = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(span, wilson_interval(0.7, 36.5)) for span in spans)
    assert not any(np.allclose(span, wilson_interval(0.7, 400)) for span in spans)


@pytest.mark.parametrize(
    ("p_value", "hollow"), [(0.5, True), (0.05, True), (0.049, False), (0.001, False), (None, False)]
)
def test_a_marker_is_hollow_where_the_error_is_within_noise(p_value, hollow):
    figure = regime_plane({"a": point(0.7, 0.05, ece_p_value=p_value, regime="undetermined")})
    marker = next(line for line in figure.axes[0].lines if line.get_marker() == "D" and len(line.get_xdata()))
    colour = marker.get_color()
    assert marker.get_markerfacecolor() == ("white" if hollow else colour) and colour != "white"
    assert ("hollow: ECE within noise" in legend(figure)) == hollow


def test_every_verdict_has_a_marker_of_its_own():
    verdicts = (CALIBRATABLE, NON_CALIBRATABLE, TARGET_CONTRADICTED, UNDETERMINED)
    figure = regime_plane({regime: point(0.7, 0.05, regime=regime) for regime in verdicts})
    drawn = {line.get_label(): line.get_marker() for line in figure.axes[0].lines}
    assert len({drawn[regime] for regime in verdicts}) == len(verdicts)


def test_plane_of_a_results_file(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.dirichlet(np.ones(4), 500)
    labels = (target.cumsum(axis=1) > rng.random((500, 1))).argmax(axis=1)
    memorised = np.eye(4)[labels] * 0.9 + 0.025
    results = [
        {
            "stage": stage,
            **calibration_report(model, labels, target),
            **classify_regime(model, labels, target).to_dict(),
        }
        for stage, model in (("truth", target), ("memorised", memorised))
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    figure = regime_plane(json.loads((tmp_path / "results.json").read_text()), runs=[("truth", "memorised")])
    assert {"non-calibratable", "hollow: ECE within noise", "95% intervals"} <= set(legend(figure))
    assert set(names(figure.axes[0])) >= {"truth", "memorised"}
    png, svg = save_figure(figure, tmp_path / "plane")
    assert png.stat().st_size > 10_000 and b"<svg" in svg.read_bytes()


def test_arrows_follow_the_runs():
    points = {name: point(0.5 + i / 20, 0.2 - i / 20) for i, name in enumerate("abc")}
    (axes,) = regime_plane(points, runs=["ab", ("a", "c")]).axes
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None)]
    drawn = [(arrow.xyann, arrow.xy) for arrow in arrows]
    assert drawn == [((0.5, 0.2), (0.55, pytest.approx(0.15))), ((0.5, 0.2), (0.6, pytest.approx(0.1)))]
    with pytest.raises(ValueError, match="`runs` names 'd'.* a, b, c"):
        regime_plane(points, runs=[("a", "d")])


@pytest.mark.parametrize("seed", range(4))
def test_names_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    points = {f"model {i}": point(rng.uniform(0.5, 0.8), rng.uniform(0.02, 0.3)) for i in range(12)}
    figure = regime_plane(points, critical_accuracy=0.65)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for name, text in names(axes).items() if name in points]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axes.get_window_extent()
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 and frame.y0 - 1 <= box.y0 for box in boxes)


def test_without_critical_accuracy_there_is_no_border():
    figure = regime_plane({"a": point(0.7, 0.05, critical_accuracy=None)})
    assert not any("ACC" in label for label in legend(figure))
    assert "no critical accuracy is known" in figure.axes[0].texts[0].get_text()


def test_different_critical_accuracies_are_drawn_as_distances():
    points = {"a": point(0.7, 0.05, critical_accuracy=0.6), "b": point(0.7, 0.05, critical_accuracy=0.75)}
    (axes,) = regime_plane(points).axes
    assert axes.get_xlabel() == "accuracy − critical accuracy"
    markers = sorted(line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata()))
    assert markers == pytest.approx([-0.05, 0.1])
    assert set(line(axes, "critical accuracy ACC*").get_xdata()) == {0}
    with pytest.raises(ValueError, match="'c' has no critical accuracy and the others have different ones"):
        regime_plane({**points, "c": point(0.5, 0.1)})
    (axes,) = regime_plane({**points, "c": point(0.5, 0.1)}, critical_accuracy=0.6).axes
    assert axes.get_xlabel() == "accuracy"


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "`points` is empty"),
        ({"a": {"accuracy": 0.5, "n": 10}}, "point 'a' lacks `ece`"),
        ([point(0.5, 0.1)], "point 0 has no `stage`"),
        ([point(0.5, 0.1, stage="a"), point(0.6, 0.1, stage="a")], "two points are called 'a'"),
    ],
)
def test_invalid_points_raise(points, message):
    with pytest.raises(ValueError, match=message):
        regime_plane(points)


def test_invalid_critical_accuracy_raises():
    with pytest.raises(ValueError, match=r"`critical_accuracy` must lie in \(0, 1\), got 60"):
        regime_plane({"a": point(0.5, 0.1)}, critical_accuracy=60)


def test_extremes_can_be_drawn(tmp_path):
    certain = {"accuracy": 1.0, "ece": 0.0, "ece_low": 0.0, "ece_high": 0.0, "n": 1, "critical_accuracy": 0.999}
    save_figure(
        regime_plane({"certain": certain, "wrong": {**certain, "accuracy": 0.0, "ece": 1.0}}), tmp_path / "figure"
    )
