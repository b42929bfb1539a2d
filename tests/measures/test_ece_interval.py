"""The interval of given bins: its quantiles, its margin and its draws."""

import numpy as np
import pytest

from hf_calib.measures.ece_interval import BinGaps, draw_errors, interval_of_bins


ALPHA = 0.05


def make_bins(gaps, count=100):
    gaps = np.asarray(gaps, dtype=float)
    confidence = np.linspace(0.5, 0.95, len(gaps))
    counts = np.full(len(gaps), float(count))
    return BinGaps(counts, counts, confidence, confidence - gaps)


SCATTERED = make_bins([0.02, 0.2, -0.01, 0.3, 0.05])
ALTERNATING = make_bins([0.04, -0.04] * 5)


def debiased(bins):
    return max(0.0, bins.error - bins.bias)


def interval(bins, p_value, level=1 - ALPHA, n_draws=4000):
    return interval_of_bins(bins, p_value, n_draws, level, np.random.default_rng(0))


# The lower end has the share 1 - p / alpha of its half of the risk, the upper end the rest.
@pytest.mark.parametrize(
    ("p_value", "below", "above"), [(0.0, 0.025, 0.025), (ALPHA / 4, 0.01875, 0.03125), (ALPHA / 2, 0.0125, 0.0375)]
)
def test_ends_are_quantiles_of_the_draws(p_value, below, above):
    rng = np.random.default_rng(0)
    every, some = draw_errors(SCATTERED, 4000, rng), draw_errors(SCATTERED, 4000, rng, sparse=True)
    low, high = interval(SCATTERED, p_value)
    assert high == pytest.approx(np.quantile(every, 1 - above), abs=1e-12)  # above the margin
    assert low == pytest.approx(np.quantile(some[some > 0], below), abs=1e-12)
    assert 0 < low < debiased(SCATTERED) < high


@pytest.mark.parametrize("p_value", [1.001 * ALPHA, 2 * ALPHA, 1.0])
def test_lower_end_is_zero_if_calibration_is_not_rejected(p_value):
    every = draw_errors(SCATTERED, 4000, np.random.default_rng(0))
    low, high = interval(SCATTERED, p_value)
    assert low == 0 and high == pytest.approx(np.quantile(every, 1 - ALPHA), abs=1e-12)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_p_value_equal_to_alpha(level):
    alpha = {0.9: 0.1, 0.95: 0.05, 0.99: 0.01}[level]  # 1 - level is rounded
    rng = np.random.default_rng(0)
    _, some = draw_errors(SCATTERED, 4000, rng), draw_errors(SCATTERED, 4000, rng, sparse=True)
    low, high = interval(SCATTERED, alpha, level)
    assert low == pytest.approx(some[some > 0].min(), abs=1e-9)  # no risk is left for the lower end
    assert high == pytest.approx(interval(SCATTERED, alpha * (1 + 1e-9), level)[1], abs=1e-6)


def test_gaps_of_one_size_and_alternating_sign():
    """The draws shrink such gaps too far, so above the noise floor the normal approximation gives the upper end."""
    for p_value, share in ((0.0, 1.0), (ALPHA / 2, 0.5)):
        quantile = np.quantile(draw_errors(ALTERNATING, 4000, np.random.default_rng(0)), 1 - ALPHA / 2 * (2 - share))
        margin = share * 1.959964 * ALTERNATING.standard_error
        _, high = interval(ALTERNATING, p_value)
        assert high == pytest.approx(max(quantile, debiased(ALTERNATING) + margin), abs=1e-6)
        if share == 1:
            assert high > quantile + 0.003
    _, high = interval(ALTERNATING, ALPHA)
    assert high == pytest.approx(
        np.quantile(draw_errors(ALTERNATING, 4000, np.random.default_rng(0)), 0.95), abs=1e-12
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_variance_of_the_draws_includes_the_masses(sparse):
    """One of two bins is miscalibrated: most of the variance comes from the number of examples in each."""
    rows, rng = 2000, np.random.default_rng(0)
    masses = rng.binomial(rows, 0.5, 5000)
    hits = rng.binomial(masses, 0.1), rng.binomial(rows - masses, 0.5)
    simulated = (np.abs(0.9 * masses - hits[0]) + np.abs(0.8 * (rows - masses) - hits[1])) / rows
    counts = np.full(2, rows / 2)
    bins = BinGaps(counts, counts, np.array([0.9, 0.8]), np.array([0.1, 0.5]))
    drawn = draw_errors(bins, 5000, np.random.default_rng(1), sparse)
    assert drawn.mean() == pytest.approx(simulated.mean(), abs=0.002)
    assert drawn.std() == pytest.approx(simulated.std(), rel=0.05)
    assert bins.standard_error == pytest.approx(simulated.std(), rel=0.05)
