"""Paired comparison of two sets of predictions, against scipy and the functions of the measures."""

import numpy as np
import pandas as pd
import pytest
from samples import make
from scipy.stats import binomtest, ttest_rel

from hf_calib.measures import paired
from hf_calib.measures.calibration_error import calibration_report, expected_calibration_error
from hf_calib.measures.paired import MEASURES, compare_predictions, comparison_report
from hf_calib.measures.risk_coverage import risk_coverage


@pytest.fixture(scope="module")
def models():
    stated, labels, target = make(n=400, seed=5)
    return (stated, labels), (target, labels)


@pytest.mark.parametrize("measure", MEASURES)
def test_values_are_those_of_the_report(models, measure):
    found = compare_predictions(*models, measure, n_bootstrap=20)
    for value, (probabilities, labels) in zip(found[:2], models, strict=True):
        report = calibration_report(probabilities, labels, n_bootstrap=1)
        curve = risk_coverage(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
        expected = report | {"e_aurc": curve.e_aurc, "augrc": curve.augrc}
        assert value == pytest.approx(expected[measure])
    assert found.low <= found.difference <= found.high


def test_interval_and_p_value_of_a_mean_are_those_of_the_paired_t_test(models):
    (stated, labels), (target, _) = models
    rows = np.arange(400)
    losses = [-np.log(p[rows, labels]) for p in (stated, target)]
    expected = ttest_rel(losses[1], losses[0])
    interval = expected.confidence_interval()
    found = compare_predictions(*models, "nll", n_bootstrap=2000)
    assert (found.low, found.high) == pytest.approx(
        (interval.low, interval.high), abs=0.15 * (interval.high - interval.low)
    )
    weak = compare_predictions(
        models[0], (np.roll(stated, 1, axis=0)[:400] * 0 + stated, labels), "nll", n_bootstrap=50
    )
    assert weak.difference == 0 and weak.p_value == 1


@pytest.mark.parametrize("measure", ["brier", "ece", "auroc"])
def test_p_values_are_uniform_where_nothing_differs(measure):
    """Two noisy copies of one model: at most 10% of 150 tests reject at level .05."""
    rng, rejected = np.random.default_rng(6), 0
    for seed in range(150):
        logits = rng.normal(0, 1.5, (150, 4))
        cumulative = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).cumsum(axis=1)
        labels = (cumulative > rng.random((150, 1))).argmax(axis=1)
        pair = []
        for _ in range(2):
            noisy = np.exp(logits + rng.normal(0, 0.5, logits.shape))
            pair.append((noisy / noisy.sum(axis=1, keepdims=True), labels))
        rejected += compare_predictions(*pair, measure, n_bootstrap=100, seed=seed).p_value <= 0.05
    assert rejected <= 15


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_values_with_weights_ties_and_other_bins(measure, binning):
    stated, labels, _ = make(n=300, seed=3)
    stated = np.where(stated > 0.5, stated.round(1), stated)
    stated /= stated.sum(axis=1, keepdims=True)
    weights = np.random.default_rng(0).uniform(0, 2, 300)
    weights[::7] = 0
    options = {"n_bins": 7, "binning": binning, "n_bootstrap": 1}
    report = calibration_report(stated, labels, sample_weight=weights, **options)
    found = compare_predictions((stated[::-1][::-1], labels), (stated, labels), measure, weights, **options)
    assert found.first == found.second == pytest.approx(report[measure])
    assert (found.difference, found.p_value) == (0, 1)


@pytest.mark.parametrize("measure", ["nll", "auroc"])
def test_draws_of_a_sample_have_the_spread_of_all(measure, monkeypatch):
    stated, labels, target = make(n=8000, seed=8)
    weights = np.random.default_rng(0).uniform(0.5, 2, 8000)
    whole = compare_predictions((stated, labels), (target, labels), measure, weights, n_bootstrap=400)
    monkeypatch.setattr(paired, "_DRAWN_ROWS", 2000)
    sample = compare_predictions((stated, labels), (target, labels), measure, weights, n_bootstrap=400)
    assert sample[:3] == whole[:3]
    assert sample.high - sample.low == pytest.approx(whole.high - whole.low, rel=0.2)


def test_report_is_the_single_comparisons(models):
    report = comparison_report(*models, n_bootstrap=50)
    names = ["accuracy", "confidence", "ece", "auroc", "aurc", "cw_ece", "nll", "brier"]
    assert {key.partition("/")[2] for key in report if key.startswith("other/")} == set(names)
    for name in ("ece", "aurc", "nll"):
        alone = compare_predictions(*models, name, n_bootstrap=50)
        ends = ("", "_low", "_high", "_p_value")
        assert [report[f"difference/{name}{end}"] for end in ends] == pytest.approx(list(alone[2:]))
        assert report[f"other/{name}"] == alone.first


def test_report_of_confidences_and_of_groups(models):
    (stated, labels), (target, _) = models
    pairs = [(p.max(axis=1), p.argmax(axis=1) == labels) for p in (stated, target)]
    groups = np.repeat(["a/b", "c"], [150, 250])
    weights = np.where(np.arange(400) % 5, 1.5, 0)
    report = comparison_report(*pairs, sample_weight=weights, groups=groups, n_bootstrap=50)
    assert "other/nll" not in report and "group/c/other/auroc" not in report
    rows = groups == "a/b"
    alone = comparison_report(
        *((c[rows], z[rows]) for c, z in pairs), ["accuracy", "ece"], weights[rows], n_bootstrap=50
    )
    for key in ("other/ece", "difference/ece", "difference/accuracy"):
        assert report[f"group/a/b/{key}"] == pytest.approx(alone[key])


def test_function_as_measure_and_weights(models):
    weights = np.random.default_rng(0).random(400)
    found = compare_predictions(
        *models, lambda p, y, w: expected_calibration_error(p, y, 5, sample_weight=w), weights, n_bootstrap=10
    )
    assert found.first == expected_calibration_error(*models[0], 5, sample_weight=weights)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((([0.5], [1]), ([0.5], [1]), "nll"), "needs probabilities"),
        ((([0.5], [1]), ([0.5, 0.5], [1, 1]), "ece"), "of 1 questions, the second of 2"),
        ((([0.5], [1]), ([0.5], [1]), "f1"), "not known; use one of"),
        ((([[0.5, 0.5]], [1]), ([[0.5, 0.5]], [0]), "ece"), "right option of row 0 is 1 in the first"),
        ((([0.5, np.nan], [1, 1]), ([0.5, 0.5], [1, 1]), "ece"), "row 1"),
        ((([0.5, 0.5], [1, 1]), ([0.5, 0.5], [1, 1]), "ece", [1, -1]), "row 1"),
        ((([0.5], [1]), ([0.5, 0.5], [1, 1]), lambda c, z, w: 0.0), "of 1 questions, the second of 2"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_predictions(*arguments)


def test_one_class_has_no_auroc():
    found = compare_predictions(([0.5, 0.6], [1, 1]), ([0.5, 0.7], [1, 1]), "auroc", n_bootstrap=5)
    assert np.isnan(found.difference) and np.isnan(found.p_value)


def test_one_question_says_nothing_about_the_spread():
    found = compare_predictions(([0.9], [1]), ([0.6], [1]), "confidence")
    assert found.difference == pytest.approx(-0.3) and np.isnan([found.low, found.high, found.p_value]).all()


@pytest.mark.parametrize("n", [3, 5])
def test_few_questions_of_equal_models_seldom_differ(n):
    rng, correct, runs = np.random.default_rng(n), np.ones(n), 200
    pairs = [[(stated, correct) for stated in rng.uniform(0.3, 1, (2, n))] for _ in range(runs)]
    p_values = [
        compare_predictions(*pair, "confidence", n_bootstrap=100, seed=i).p_value for i, pair in enumerate(pairs)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.13


def test_accuracy_of_few_questions_against_the_exact_test():
    for n in (2, 3, 5, 6):  # one model is wrong on all questions, the other right
        stated = np.full(n, 0.8)
        found = compare_predictions((stated, np.zeros(n)), (stated, np.ones(n)), "accuracy")
        assert abs(found.p_value - binomtest(n, n).pvalue) < 0.31 and found.low < 1 < found.high
        assert (found.p_value < 0.05) == (n > 4)
    assert found.p_value > 0.003  # that of the exact test is 0.03


def test_no_p_value_where_a_draw_has_no_value(monkeypatch):
    monkeypatch.setattr(paired, "_DRAWN_ROWS", 10)  # none of these is the wrong one
    rng = np.random.default_rng(0)
    correct = (np.arange(1000) != 5).astype(float)
    found = compare_predictions(*((rng.random(1000), correct) for _ in range(2)), "auroc", n_bootstrap=20)
    assert np.isfinite(found.difference) and np.isnan([found.low, found.high, found.p_value]).all()


def test_pandas_objects_are_read_by_position():
    table = pd.DataFrame({"A": [0.9, 0.2, 0.6], "B": [0.1, 0.8, 0.4], "right": [0, 1, 1]}, index=[5, 6, 7])
    for columns, measure in ((["A", "B"], "nll"), ("A", "confidence")):
        first = table[columns], table["right"]
        second = table[columns].to_numpy(), table["right"].to_numpy()
        assert compare_predictions(first, second, measure).difference == 0


def test_probabilities_rounded_below_zero():
    probabilities = np.tile([-6e-7, 1 + 6e-7], (5, 1))
    found = compare_predictions((probabilities, [1] * 5), (probabilities, [1] * 5), "cw_ece", n_bootstrap=5)
    assert found.first == 0


def test_groups_must_fit(models):
    with pytest.raises(ValueError, match="`groups` has shape"):
        comparison_report(*models, groups=["a"])
