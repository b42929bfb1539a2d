"""Reliability diagrams of models, options and groups."""

import re

import numpy as np
import pytest

from hf_calib.measures.binning import reliability_bins, top_label
from hf_calib.measures.calibration_error import calibration_report, classwise_calibration_error
from hf_calib.plots import classwise_diagram, group_diagram, reliability_diagram, reliability_grid, save_figure


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


def test_caption_shows_the_values_of_the_report():
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


def test_extremes_can_be_drawn(tmp_path):
    stages = {"certain": ([[1.0, 0.0]] * 5, [0] * 5), "one row": ([[0.5, 0.5]], [1])}
    save_figure(reliability_grid(stages, n_bootstrap=10), tmp_path / "extremes")
    with pytest.raises(ValueError, match="`stages` is empty"):
        reliability_grid({})


def bars(axes, label="accuracy"):
    return next(container for container in axes.containers if container.get_label() == label)


def captions(figure):
    return [texts(axes) for axes in figure.axes[::2]]


def test_confidences_draw_what_probabilities_draw():
    probabilities, labels = make()
    whole = reliability_diagram(probabilities, labels, n_bootstrap=20)
    confidences, correct = top_label(probabilities, labels)
    for pair in ((confidences, correct), (confidences.tolist(), correct.astype(bool).tolist())):
        figure = reliability_diagram(*pair, n_bootstrap=20)
        assert captions(figure) == captions(whole)
        assert [bar.get_height() for bar in bars(figure.axes[0])] == [bar.get_height() for bar in bars(whole.axes[0])]


def test_weights_of_zero_and_one_draw_the_rows_of_weight_one():
    probabilities, labels = make()
    weight = (np.arange(len(labels)) % 3 > 0).astype(float)
    weighted = reliability_diagram(probabilities, labels, n_bootstrap=20, sample_weight=5 * weight)
    rows = reliability_diagram(probabilities[weight > 0], labels[weight > 0], n_bootstrap=20)
    assert captions(weighted) == captions(rows)
    for drawn, expected in zip(weighted.axes, rows.axes, strict=True):
        heights = [bar.get_height() for bar in expected.patches]
        assert [bar.get_height() for bar in drawn.patches] == pytest.approx(heights)
    for line, expected in zip(weighted.axes[0].collections, rows.axes[0].collections, strict=True):
        drawn, there = np.concatenate(line.get_segments()), np.concatenate(expected.get_segments())
        np.testing.assert_allclose(drawn, there)  # intervals of the accuracy


def test_classwise_panels_are_the_parts_of_the_classwise_error():
    probabilities, labels = make()
    figure = classwise_diagram(probabilities, labels, n_bootstrap=20)
    errors = [float(re.search(r"ECE (\S+)", caption)[1]) for caption in captions(figure)]
    expected = classwise_calibration_error(probabilities, labels)
    assert np.mean(errors) == pytest.approx(expected, abs=6e-4)
    assert figure.get_suptitle() == f"classwise ECE {expected:.3f}: the mean over 4 options"
    assert [caption.splitlines()[0] for caption in captions(figure)] == [f"option {letter}" for letter in "ABCD"]
    panel, column = figure.axes[2], reliability_bins(probabilities[:, 1], labels == 1)
    drawn = [bar.get_height() for bar in bars(panel, "frequency")]
    assert drawn == pytest.approx(list(column.accuracy[column.counts > 0]))


def test_classwise_keeps_the_options_that_are_right_most_often():
    labels = np.repeat([0, 1, 2], [10, 60, 30])
    probabilities = np.full((100, 4), 0.25)  # the fourth option is never right
    names = ["yes", "no", "maybe", "never"]
    figure = classwise_diagram(probabilities, labels, names, max_options=2, n_bootstrap=5)
    assert [caption.splitlines()[0] for caption in captions(figure)] == ["option no", "option maybe"]
    assert "over all 4 options; shown are the 2 that are right most often" in figure.get_suptitle()
    assert len(captions(classwise_diagram(probabilities, labels, n_bootstrap=5))) == 3
    with pytest.raises(ValueError, match="`names` has 1 entries for 4 options"):
        classwise_diagram(probabilities, labels, ["A"])


def test_groups_are_sorted_and_the_small_ones_share_a_panel():
    parts = {"good": make(300, 1.0, 1), "bad": make(100, 6.0, 2), "fair": make(200, 2.0, 3), "tiny": make(20, 1, 4)}
    probabilities, labels = (np.concatenate(arrays) for arrays in zip(*parts.values(), strict=True))
    groups = np.repeat(list(parts), [300, 100, 200, 20])

    def headings(**options):
        figure = group_diagram(probabilities, labels, groups, n_bootstrap=20, **options)
        return [caption.splitlines()[0] for caption in captions(figure)], figure.get_suptitle()

    panels, note = headings()
    assert panels == ["bad", "fair", "good", "1 other group"]
    assert (
        "4 groups, by the lower end of the ECE's interval" in note
        and "The last panel joins 1 of 20 to 20 questions" in note
    )
    assert headings(sort_by="size")[0] == ["good", "fair", "bad", "1 other group"]
    assert headings(max_groups=1, min_size=1)[0] == ["bad", "3 other groups"]
    assert headings(min_size=1)[0][-1] != "1 other group"
    assert headings(min_size=1000)[0] == ["4 other groups"]
    assert headings(sample_weight=groups != "bad")[0] == ["fair", "good", "1 other group"]

    figure = group_diagram(probabilities, labels, groups, n_bootstrap=20)
    alone = reliability_diagram(*parts["bad"], title="bad", n_bootstrap=20)
    assert captions(figure)[0] == captions(alone)[0]


def test_small_groups_do_not_come_first():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 2060)
    correct = rng.random(2060) < confidences - 0.1 * (np.arange(2060) < 2000)
    groups = np.repeat(["large and off by 0.1", "small and calibrated"], [2000, 60])
    small = reliability_bins(confidences[2000:], correct[2000:]).error
    assert small > reliability_bins(confidences[:2000], correct[:2000]).error  # noise
    headings = [
        [caption.splitlines()[0] for caption in captions(figure)]
        for figure in (
            group_diagram(confidences, correct, groups, n_bootstrap=50, sort_by=key) for key in ("ece", "size")
        )
    ]
    assert headings == 2 * [["large and off by 0.1", "small and calibrated"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["a"]}, "`groups` has 1 entries for 2 rows"),
        ({"sort_by": "name"}, "`sort_by` must be 'ece' or 'size'"),
        ({"max_groups": 0}, "`max_groups` must be at least 1"),
    ],
)
def test_group_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        group_diagram([0.5, 0.6], [0, 1], **{"groups": ["a", "b"], **options})


def test_long_headings_are_wrapped():
    name = "high_school_government_and_politics"
    first, second, *_ = captions(reliability_diagram([0.5, 0.6], [0, 1], title=name, n_bootstrap=5))[0].splitlines()
    assert first + second == name
    long = captions(reliability_diagram([0.5, 0.6], [0, 1], title="word " * 30, n_bootstrap=5))[0].splitlines()
    assert long[1].endswith("…") and long[2].startswith("ECE")
