"""The recalibration test: error left (Proposition 6), weights, cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from hf_calib.measures.binning import reliability_bins
from hf_calib.regime.recalibration_test import recalibration_test


def overconfident(n, seed):
    rng = np.random.default_rng(seed)
    confidences = 0.25 + 0.75 * rng.random(n)
    return confidences, (rng.random(n) < 0.25 + 0.5 * (confidences - 0.25)).astype(float)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 15), st.sampled_from([0.0, 0.2, 0.25, 0.5]))
@settings(max_examples=150)
def test_error_left_by_an_isotonic_recalibration(seed, levels, n_bins, floor):
    """Proposition 6 in a population of a few confidences: the error for any bins, and where it is 0."""
    rng = np.random.default_rng(seed)
    share, accuracy = rng.dirichlet(np.ones(levels)), rng.random(levels) ** rng.choice([0.5, 1, 2])
    isotonic = isotonic_regression(accuracy, weights=share).x
    recalibrated = np.maximum(isotonic, floor)
    error = share @ np.maximum(floor - isotonic, 0)
    for binning in ("equal_width", "equal_mass"):
        assert reliability_bins(recalibrated, accuracy, n_bins, binning, share).error == pytest.approx(error, abs=1e-9)
    least_confident = np.cumsum(share * accuracy) / np.cumsum(share)
    assert (error < 1e-12) == bool((least_confident >= floor - 1e-12).all())


def test_error_is_detected():
    rng = np.random.default_rng(0)
    confidences = 0.25 + 0.75 * rng.random(20_000)
    correct = (rng.random(20_000) < np.where(confidences < 0.5, 0.1, 0.8)).astype(float)
    result = recalibration_test(confidences, correct, least_confidence=0.25)
    assert result.error == pytest.approx((0.25 - 0.1) / 3, abs=0.02) and result.p_value < 0.01
    assert recalibration_test(confidences, correct, least_confidence=0.0).p_value > 0.05
    assert result.deviation == pytest.approx(0.5 / np.sqrt(10_000))


def test_weights_select_rows_and_only_ratios_matter():
    confidences, correct = overconfident(800, seed=1)
    chosen = np.random.default_rng(1).random(800) < 0.6
    plain = recalibration_test(confidences[chosen], correct[chosen], 0.25)
    assert recalibration_test(confidences, correct, 0.25, sample_weight=chosen) == pytest.approx(plain)
    weights = np.random.default_rng(2).gamma(1.0, size=800)
    assert recalibration_test(confidences, correct, 0.25, sample_weight=weights) == pytest.approx(
        recalibration_test(confidences, correct, 0.25, sample_weight=1e5 * weights)
    )


def test_effective_number_of_questions():
    """Weights that halve the effective number give the noise of half the sample, within 25%."""
    confidences, correct = overconfident(4000, seed=3)
    weights = np.random.default_rng(3).exponential(size=4000)  # n_eff = n / 2
    weighted = recalibration_test(confidences, correct, 0.25, sample_weight=weights)
    half = recalibration_test(confidences[:2000], correct[:2000], 0.25)
    assert weighted.p95 == pytest.approx(half.p95, rel=0.25)
    assert weighted.deviation == pytest.approx(half.deviation, rel=0.1)


def test_weights_change_the_population():
    """A sample is weighted to a population whose low confidences are right too rarely."""
    rng = np.random.default_rng(4)
    confidences = np.where(rng.random(6000) < 0.15, 0.3, 0.9)
    correct = (rng.random(6000) < np.where(confidences < 0.5, 0.1, 0.8)).astype(float)
    weights = np.where(confidences < 0.5, 0.7 / 0.15, 0.3 / 0.85)
    assert recalibration_test(confidences, correct, 0.25, sample_weight=weights).error == pytest.approx(
        0.105, abs=0.03
    )


def test_few_questions():
    assert recalibration_test(*overconfident(19, seed=0)) is None
    assert recalibration_test(*overconfident(40, seed=0), sample_weight=np.arange(40) < 19) is None


def test_same_seed_same_result():
    data = overconfident(300, seed=5)
    assert recalibration_test(*data, seed=7) == recalibration_test(*data, seed=7) != recalibration_test(*data, seed=8)


def test_halves_are_random():
    """Outcomes alternate, so alternating halves would each hold one outcome only."""
    result = recalibration_test(np.full(400, 0.5), np.arange(400) % 2)
    assert result.error < 0.15 and result.p_value > 0.01
