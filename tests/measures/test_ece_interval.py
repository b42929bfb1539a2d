"""The rules of the interval, on bins given by hand: which quantiles, which margin, and what its draws hold."""

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


# With the p-value the risk moves from the lower end, 1 - p / alpha of its half, to the upper end.
@pytest.mark.parametrize(
    ("p_value", "below", "above"), [(0.0, 0.025, 0.025), (ALPHA / 4, 0.01875, 0.03125), (ALPHA / 2, 0.0125, 0.0375)]
)
def test_ends_are_quantiles_of_the_draws_that_share_the_risk(p_value, below, above):
    rng = np.random.default_rng(0)
    every, some = draw_errors(SCATTERED, 4000, rng), draw_errors(SCATTERED, 4000, rng, sparse=True)
    low, high = interval(SCATTERED, p_value)
    assert high == pytest.approx(np.quantile(every, 1 - above), abs=1e-12)  # here above what the margin asks for
    assert low == pytest.approx(np.quantile(some[some > 0], below), abs=1e-12)
    assert 0 < low < debiased(SCATTERED) < high


@pytest.mark.parametrize("p_value", [1.001 * ALPHA, 2 * ALPHA, 1.0])
def test_where_perfection_is_plausible_the_lower_end_is_zero_and_all_risk_lies_above(p_value):
    every = draw_errors(SCATTERED, 4000, np.random.default_rng(0))
    low, high = interval(SCATTERED, p_value)
    assert low == 0 and high == pytest.approx(np.quantile(every, 1 - ALPHA), abs=1e-12)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_a_p_value_of_exactly_alpha_rejects_and_the_upper_end_does_not_jump_there(level):
    alpha = {0.9: 0.1, 0.95: 0.05, 0.99: 0.01}[level]  # 1 - level rounds, up or down
    rng = np.random.default_rng(0)
    _, some = draw_errors(SCATTERED, 4000, rng), draw_errors(SCATTERED, 4000, rng, sparse=True)
    low, high = interval(SCATTERED, alpha, level)
    assert low == pytest.approx(some[some > 0].min(), abs=1e-9)  # no risk is left below
    assert high == pytest.approx(interval(SCATTERED, alpha * (1 + 1e-9), level)[1], abs=1e-6)


def test_gaps_of_one_size_and_alternating_sign_are_held_by_the_margin():
    """The draws shrink them too far: above the noise the upper end is the usual theory's, and it fades into the noise."""
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
def test_draws_vary_as_the_measured_error_does_masses_included(sparse):
    """One bin far off, one not: most of the error's spread is how many examples fall into which."""
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
