"""Intervals of NLL, Brier score, AUROC and AURC: jackknife, known formulas, special cases."""

import math

import numpy as np
import pytest
from samples import make
from scipy import stats
from scipy.special import logit

from hf_calib.measures.calibration_error import calibration_report, confidence_report
from hf_calib.measures.checked import check_examples
from hf_calib.measures.score_intervals import MeanSums, aurc_estimate, auroc_estimate
from hf_calib.measures.selective import TieGroups


MEASURES = ("nll", "brier", "auroc", "aurc")


def answers(n, seed=0, digits=None):
    rng = np.random.default_rng(seed)
    confidences = 0.25 + 0.75 * rng.random(n)
    correct = (rng.random(n) < confidences).astype(float)
    return (confidences if digits is None else np.round(confidences, digits)), correct


@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize(("estimate", "measure"), [(auroc_estimate, TieGroups.auroc), (aurc_estimate, TieGroups.aurc)])
def test_standard_error_is_that_of_the_jackknife(estimate, measure, digits):
    n = 250
    confidences, correct = answers(n, digits=digits)
    left_out = [
        measure(TieGroups.of(check_examples(np.delete(confidences, i), np.delete(correct, i)))) for i in range(n)
    ]
    expected = math.sqrt((n - 1) * np.var(left_out))
    found = estimate(TieGroups.of(check_examples(confidences, correct)), n)
    assert found.value == pytest.approx(measure(TieGroups.of(check_examples(confidences, correct))))
    on_log_odds = (logit(found.high) - logit(found.low)) / 2 / stats.norm.ppf(0.975)
    assert on_log_odds * found.value * (1 - found.value) == pytest.approx(expected, rel=0.03)


def test_merged_groups_give_the_same_interval():
    confidences, correct = answers(100_000)
    fine = aurc_estimate(TieGroups.of(check_examples(confidences, correct)), 1e5)
    coarse = aurc_estimate(TieGroups.of(check_examples(np.round(confidences, 4), correct)), 1e5)
    assert (fine.low, fine.high) == pytest.approx((coarse.low, coarse.high), abs=2e-5)


def test_mean_without_skewness_has_the_interval_of_students_t():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    sums = MeanSums()
    sums.add(values[:2])
    sums.add(values[2:])
    expected = stats.t.interval(0.95, 4, 0, stats.sem(values))
    assert sums.estimate(-9, 9)[1:] == pytest.approx(expected)
    other = MeanSums()
    other.add(np.concatenate([values, [50.0]]), np.array([1, 1, 1, 1, 1, 1e-9]))
    assert other.estimate(-9, 9)[1:] == pytest.approx(expected, rel=1e-4)


def test_skewed_means_are_covered():
    """The mean of few exponential numbers; Student's t covers about 92%."""
    rng, held, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        sums = MeanSums()
        sums.add(rng.exponential(size=40))
        _, low, high = sums.estimate(0.0, math.inf)
        held += low <= 1 <= high
    assert stats.binom.ppf(0.001, runs, 0.94) <= held <= stats.binom.ppf(0.999, runs, 0.965)


def test_weights_widen_and_their_scale_does_not_matter():
    probabilities, labels, _ = make(n=2000)
    weights = np.random.default_rng(1).gamma(0.5, size=2000) + 1e-3
    even, uneven, scaled = (
        calibration_report(probabilities, labels, sample_weight=w, n_bootstrap=10)
        for w in (None, weights, 1e3 * weights)
    )
    for name in MEASURES:
        widths = [report[f"{name}_high"] - report[f"{name}_low"] for report in (even, uneven, scaled)]
        assert 1.3 < widths[1] / widths[0] < 2.3 and widths[2] == pytest.approx(widths[1]), name
        assert uneven[f"{name}_low"] < uneven[name] < uneven[f"{name}_high"], name


def test_an_integer_weight_of_one_half_of_the_rows_selects_them():
    probabilities, labels, _ = make(n=1000)
    weights = (np.arange(1000) % 2).astype(float)
    some = calibration_report(probabilities[1::2], labels[1::2], n_bootstrap=10)
    weighted = calibration_report(probabilities, labels, sample_weight=weights, n_bootstrap=10)
    for name in MEASURES:
        for end in ("low", "high"):
            assert weighted[f"{name}_{end}"] == pytest.approx(some[f"{name}_{end}"]), name


def test_special_cases():
    one = calibration_report([[0.7, 0.3]], [0])
    assert (one["nll_low"], one["brier_low"], one["brier_high"]) == (0.0, 0.0, 2.0) and one["nll_high"] > 27
    assert math.isnan(one["auroc"]) and math.isnan(one["auroc_low"]) and math.isnan(one["auroc_high"])
    assert one["aurc_low"] == one["aurc"] == 0 < one["aurc_high"] < 1
    same = calibration_report([[0.7, 0.3]] * 50, [0] * 50)
    assert same["nll_low"] == same["nll_high"] == same["nll"]
    all_right = confidence_report(np.linspace(0.5, 1, 100), np.ones(100))
    assert all_right["aurc_low"] == 0 < 0.02 < all_right["aurc_high"] < 0.1
    apart = confidence_report(np.linspace(0, 1, 100), np.arange(100) >= 50)
    assert apart["auroc"] == apart["auroc_high"] == 1 and 0.9 < apart["auroc_low"] < 0.99
    upside_down = confidence_report(np.linspace(0, 1, 100), np.arange(100) < 50)
    assert upside_down["auroc"] == upside_down["auroc_low"] == 0 < upside_down["auroc_high"] < 0.1
    lone = confidence_report([0.9, 0.5, 0.6, 0.8], [0, 1, 1, 1])
    assert 0 <= lone["auroc_low"] <= lone["auroc"] == 0 < lone["auroc_high"] <= 1
