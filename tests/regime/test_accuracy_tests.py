"""Tests and intervals of an accuracy against a threshold: known results, agreement, weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_calib.regime.accuracy_tests import ThresholdTest, discordance_test, intersection_union, paired_test, rate_test


TESTS = {
    "rate": lambda correct, ceilings, other, alpha, weights=None: rate_test(correct, 0.6, alpha, weights),
    "paired": lambda correct, ceilings, other, alpha, weights=None: paired_test(correct, ceilings, alpha, weights),
    "discordance": lambda correct, ceilings, other, alpha, weights=None: discordance_test(
        correct, other, alpha, weights
    ),
}


def draw(seed, n):
    rng = np.random.default_rng(seed)
    rate = rng.random()
    ceilings = rng.uniform(0.3, 1, n)
    return [(rng.random(n) < rate).astype(float), ceilings, (rng.random(n) < ceilings).astype(float)]


def test_rate_test_is_the_binomial_test():
    correct = np.repeat([1.0, 0.0], [70, 30])
    result = rate_test(correct, 0.6, 0.05)
    assert result.p_above == pytest.approx(stats.binomtest(70, 100, 0.6, "greater").pvalue)
    assert result.p_below == pytest.approx(stats.binomtest(70, 100, 0.6, "less").pvalue)
    interval = stats.binomtest(70, 100).proportion_ci(0.9, "exact")
    assert (result.low, result.high) == pytest.approx((interval.low - 0.6, interval.high - 0.6))


def test_rate_test_with_a_threshold_per_question():
    correct = np.repeat([1.0, 0.0], [70, 30])
    assert rate_test(correct, np.full(100, 0.6), 0.05) == rate_test(correct, 0.6, 0.05)
    borders = np.tile([0.5, 0.25], 50)
    assert rate_test(correct, borders, 0.05) == paired_test(correct, borders, 0.05)


def test_paired_test_is_the_t_test_for_large_observed_variance():
    rng = np.random.default_rng(0)
    ceilings = rng.choice([0.5, 1.0], 200)
    correct = (rng.random(200) < 0.6).astype(float)
    result = paired_test(correct, ceilings, 0.05)
    oracle = stats.ttest_1samp(correct - ceilings, 0, alternative="greater")
    interval = stats.ttest_1samp(correct - ceilings, 0).confidence_interval(0.9)
    assert result.p_above == pytest.approx(oracle.pvalue) and result.p_below == pytest.approx(1 - oracle.pvalue)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("n", [2, 5, 10, 20])
def test_few_questions_all_right(n):
    """The observed variance is 0. The probability of this result is 0.6^n."""
    result = paired_test(np.ones(n), np.full(n, 0.6), 0.05)
    assert result.p_above > 0.3 * 0.6**n
    assert result.low < 0.4 < result.high


def test_discordance_test_is_mcnemars_test():
    correct, other = np.zeros(100), np.zeros(100)
    correct[:60], other[15:65] = 1, 1  # 15 questions to 5
    result = discordance_test(correct, other, 0.05)
    assert result.p_above == pytest.approx(stats.binomtest(15, 20, alternative="greater").pvalue)
    assert result.p_below == pytest.approx(stats.binomtest(15, 20, alternative="less").pvalue)
    assert result.low < 0.1 < result.high


def test_models_without_discordant_questions():
    result = discordance_test(np.ones(50), np.ones(50), 0.05)
    assert (result.p_above, result.p_below) == (1, 1)
    assert -0.1 < result.low < 0 < result.high < 0.1


def test_intersection_union():
    tests = ThresholdTest(0.01, 0.99, 0.1, 0.3, 0.15), ThresholdTest(0.2, 0.8, -0.1, 0.2, 0.1)
    assert intersection_union(*tests) == (0.2, 0.99, -0.1, 0.3, 0.15)


@pytest.mark.parametrize("name", ["rate", "paired"])
def test_the_detectable_distance_is_found_with_probability_four_fifths(name):
    n, runs, rng = 400, 1000, np.random.default_rng(7)
    thresholds = np.full(n, 0.6) if name == "rate" else rng.uniform(0.4, 0.8, n)
    test = rate_test if name == "rate" else paired_test
    correct = (rng.random(n) < thresholds).astype(float)
    distance = test(correct, thresholds, 0.05).detectable
    assert 0.04 < distance < 0.08
    found = [test((rng.random(n) < thresholds + distance).astype(float), thresholds, 0.05) for _ in range(runs)]
    assert 0.75 < np.mean([result.p_above < 0.05 for result in found]) < 0.85


def test_the_detectable_distance_falls_with_the_number_of_questions():
    for name, test in TESTS.items():
        few, many = (test(*draw(3, n), 0.05).detectable for n in (100, 10_000))
        assert few / many == pytest.approx(10, rel=0.25), name


@pytest.mark.parametrize("name", ["rate", "paired"])
@given(st.integers(0, 10_000), st.integers(1, 80), st.floats(0.001, 0.49), st.booleans())
@settings(max_examples=80)
def test_interval_and_test_agree(name, seed, n, alpha, weighted):
    weights = np.random.default_rng(seed).gamma(1.0, size=n) + 1e-3 if weighted else None
    result = TESTS[name](*draw(seed, n), alpha, weights)
    assert (result.p_above < alpha) == (result.low > 0)
    assert (result.p_below < alpha) == (result.high < 0)
    assert -1 <= result.low <= result.high <= 1


@pytest.mark.parametrize("name", TESTS)
@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(1e-6, 1e6))
@settings(max_examples=40)
def test_only_the_ratios_of_weights_matter(name, seed, n, scale):
    arrays, weights = draw(seed, n), np.random.default_rng(seed).gamma(1.0, size=n) + 1e-3
    once, scaled = (TESTS[name](*arrays, 0.05, w) for w in (weights, scale * weights))
    assert once == pytest.approx(scaled, abs=1e-9)


def test_unequal_weights_widen_the_interval():
    arrays = draw(1, 400)
    weights = np.random.default_rng(1).gamma(0.5, size=400) + 1e-3
    for name, test in TESTS.items():
        even, uneven = test(*arrays, 0.05, np.ones(400)), test(*arrays, 0.05, weights)
        assert 1.3 < (uneven.high - uneven.low) / (even.high - even.low) < 2.3, name  # 1.7 = sqrt(n / n_eff)


def test_rows_of_tiny_weight():
    """Variance and degrees of freedom are those of the ten rows with a large weight."""
    rng = np.random.default_rng(3)
    ceilings, other = rng.choice([0.5, 1.0], 300), (rng.random(300) < 0.5).astype(float)
    correct = (rng.random(300) < 0.6).astype(float)
    weights = np.where(np.arange(300) < 10, 1.0, 1e-9)
    for test, against in ((paired_test, ceilings), (discordance_test, other)):
        ten = test(correct[:10], against[:10], 0.05, np.ones(10))
        assert test(correct, against, 0.05, weights) == pytest.approx(ten, abs=1e-6)


def test_one_question():
    assert paired_test(np.ones(1), np.array([0.5]), 0.05) == (0.5, 0.5, -1, 1, 1)
    assert paired_test(np.ones(2), np.full(2, 0.5), 0.05, np.array([1.0, 1e-12])).low == -1


@pytest.mark.parametrize("name", TESTS)
def test_interval_coverage(name):
    """90% of the intervals contain the distance, also away from the threshold."""
    rng = np.random.default_rng(0)
    runs, held = 1000, 0
    for _ in range(runs):
        ceilings = rng.uniform(0.4, 1, 120)
        correct, other = (rng.random(120) < 0.9).astype(float), (rng.random(120) < ceilings).astype(float)
        result = TESTS[name](correct, ceilings, other, 0.05)
        held += result.low <= (0.3 if name == "rate" else 0.2) <= result.high
    assert held >= stats.binom.ppf(0.001, runs, 0.9)
    assert held <= stats.binom.ppf(0.999, runs, 0.96)  # not too wide
