"""Intervals of means: coverage, pairing, and shares of 0 and 1."""

import numpy as np
import pytest
from scipy import stats

from hf_calib.measures.bootstrap import Estimate, ResampledMeans


def test_interval_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(0).exponential(size=400)
    mean, low, high = ResampledMeans([{"x": values}], 400, n_bootstrap=4000).estimate("x")
    margin = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((margin, margin), rel=0.1)


def test_chunks_do_not_matter():
    values = np.random.default_rng(0).random(1000)
    whole = ResampledMeans([{"x": values}], 1000).estimate("x")
    parts = ResampledMeans([{"x": part} for part in np.split(values, [300, 301])], 1000).estimate("x")
    assert parts == pytest.approx(whole)


def test_blocks_of_questions():
    # sorted, so that blocks of neighbours would differ
    values = np.sort(np.random.default_rng(0).random(50_000))
    _, low, high = ResampledMeans([{"x": values}], len(values), n_bootstrap=4000).estimate("x")
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(len(values)), rel=0.08)


def test_differences_are_paired():
    base = np.random.default_rng(0).normal(size=500)
    means = ResampledMeans([{"x": base + 1, "reference/x": base}], 500)
    assert means.estimate("x", minus="reference/x") == pytest.approx((1, 1, 1))
    means.define("gap", "x", "reference/x")
    assert means.estimate("gap") == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("n", [30, 1000])
def test_upper_end_of_a_share_of_zero(n):
    estimate = ResampledMeans([{"x": np.zeros(n)}], n, binary=["x"], n_bootstrap=20_000).estimate("x")
    exact = stats.binomtest(0, n).proportion_ci(0.95).high
    assert estimate.value == estimate.low == 0 and estimate.high == pytest.approx(exact, rel=0.08)


@pytest.mark.parametrize("truth", [0.02, 0.4])
def test_coverage_of_a_paired_difference_of_shares(truth):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        base = rng.random(80) < 0.02
        model = np.where(rng.random(80) < 0.5, base, rng.random(80) < 2 * truth - 0.02)
        chunk = {"x": model.astype(float), "reference/x": base.astype(float)}
        means = ResampledMeans([chunk], 80, ["x", "reference/x"], n_bootstrap=300)
        _, low, high = means.estimate("x", minus="reference/x")
        hits += low <= truth - 0.02 <= high
    assert hits >= 0.92 * 300


@pytest.mark.parametrize("truth", [(0.25, 0.25, 0.25, 0.25), (0.4, 0.3, 0.2, 0.1)])
def test_total_variation_coverage_and_noise_floor(truth):
    rng, hits, measured, floors = np.random.default_rng(0), 0, [], []
    exact = 0.5 * np.abs(np.array(truth) - 0.25).sum()
    for _ in range(200):
        picked = rng.choice(4, size=150, p=truth)
        chunk = {"x": (picked == np.arange(4)[:, None]).astype(float)}
        (value, low, high), floor = ResampledMeans([chunk], 150, n_bootstrap=300).total_variation("x", 0.25)
        hits += low <= exact <= high
        measured.append(value)
        floors.append(floor)
    assert hits >= 0.94 * 200
    if exact == 0:
        assert np.mean(measured) == pytest.approx(np.mean(floors), rel=0.1)


def test_difference_of_two_intervals():
    difference = Estimate(0.5, 0.4, 0.6).minus(Estimate(0.2, 0.1, 0.4))
    assert difference == pytest.approx((0.3, 0.3 - np.hypot(0.1, 0.2), 0.3 + np.hypot(0.1, 0.1)))
    # a measured ECE may be outside its interval; the interval of the difference includes the measured difference
    value, low, high = Estimate(0.03, 0.0, 0.02).minus(Estimate(0.0, 0.0, 0.0))
    assert value == high == 0.03 and low <= 0.01


def test_number_of_draws_is_checked():
    with pytest.raises(ValueError, match="n_bootstrap"):
        ResampledMeans([{"x": np.ones(3)}], 3, n_bootstrap=0)
