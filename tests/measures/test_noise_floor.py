"""Noise floor and interval: cells, importance weights and coverage."""

import tracemalloc

import numpy as np
import pytest

from hf_calib.measures import noise_floor as uncertainty
from hf_calib.measures.binning import reliability_bins
from hf_calib.measures.calibration_error import confidence_report
from hf_calib.measures.ece_interval import draw_errors, interval_of_bins
from hf_calib.measures.noise_floor import CellTable, bootstrap_interval, group_cells, noise_floor


def draw(n=800, seed=0, right=lambda c: c**1.3):
    rng = np.random.default_rng(seed)
    confidences = 0.25 + 0.75 * rng.random(n)
    return confidences, (rng.random(n) < right(confidences)).astype(float)


# Cells


@pytest.mark.parametrize("n_bins", [1, 7, 10, 15, 300])
def test_cells_do_not_cross_bin_edges(n_bins):
    confidences, correct = draw()
    borders = np.arange(n_bins + 1) / n_bins
    confidences = np.concatenate([confidences, borders, np.nextafter(borders[1:], 0)])
    correct = np.resize(correct, len(confidences))
    cells = group_cells(confidences, correct, n_bins, "equal_width")
    bins = reliability_bins(confidences, correct, n_bins)
    filled = bins.counts > 0
    assert cells.n == len(confidences) and cells.measured == pytest.approx(bins.error, abs=1e-12)
    np.testing.assert_array_equal(cells.bins.counts, bins.counts[filled])
    np.testing.assert_allclose(cells.bins.gaps, bins.gaps[filled], atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_merged_tables_equal_one_table(weighted):
    confidences, correct = draw()
    weights = np.random.default_rng(1).random(800) if weighted else None
    whole, *parts = (CellTable(np.arange(11) / 10) for _ in range(3))
    whole.add(confidences, correct, weights)
    for index, rows in enumerate(np.split(np.arange(800), 8)):
        parts[index % 2].add(confidences[rows], correct[rows], None if weights is None else weights[rows])
    parts[0].merge(parts[1])
    np.testing.assert_allclose(parts[0].sums, whole.sums, rtol=1e-12)
    assert whole.cells().measured == group_cells(confidences, correct, 10, "equal_width", weights).measured


def test_bad_tables_are_errors():
    with pytest.raises(ValueError, match="bins"):
        CellTable(np.arange(11) / 10).merge(CellTable(np.arange(16) / 15))
    with pytest.raises(ValueError, match="examples"):
        CellTable(np.arange(11) / 10).cells()


# Importance weights


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
@pytest.mark.parametrize("measure", [noise_floor, bootstrap_interval])
def test_zero_weights_drop_rows_and_scale_does_not_matter(measure, binning):
    confidences, correct = draw()
    weights = np.random.default_rng(1).integers(0, 2, 800).astype(float)
    chosen = measure(confidences[weights > 0], correct[weights > 0], binning=binning)
    assert measure(confidences, correct, binning=binning, sample_weight=weights) == pytest.approx(chosen, abs=1e-12)
    weights *= np.random.default_rng(2).random(800)
    scaled = measure(confidences, correct, binning=binning, sample_weight=1e3 * weights)
    assert measure(confidences, correct, binning=binning, sample_weight=weights) == pytest.approx(scaled, abs=1e-9)


def test_weighted_noise_floor_against_row_by_row_simulation():
    confidences, correct = draw()
    rng = np.random.default_rng(1)
    weights = rng.exponential(size=800) * confidences
    slow = [
        reliability_bins(confidences, (rng.random(800) < confidences).astype(float), sample_weight=weights).error
        for _ in range(2000)
    ]
    floor = noise_floor(confidences, correct, n_simulations=4000, sample_weight=weights)
    assert floor.mean == pytest.approx(np.mean(slow), rel=0.03)
    assert floor.p95 == pytest.approx(np.quantile(slow, 0.95), rel=0.04)
    assert floor.mean > 1.2 * noise_floor(confidences, correct).mean  # unequal weights are fewer examples


# Draws


def test_simulations_in_blocks(monkeypatch):
    """Same numbers, constant memory."""
    rows = draw(5000)
    expected = noise_floor(*rows, n_simulations=300)
    monkeypatch.setattr(uncertainty, "_DRAWN_AT_ONCE", 10_000)  # 7 at a time here
    assert noise_floor(*rows, n_simulations=300) == expected
    tracemalloc.start()
    noise_floor(*rows, n_simulations=2000)
    assert tracemalloc.get_traced_memory()[1] < 5e6  # more than 40 MB in one block
    tracemalloc.stop()


@pytest.mark.parametrize("bad", [0, -3, 10.0, "10", True, None])
def test_bad_numbers_of_draws_are_named(bad):
    rows = draw(50)
    with pytest.raises(ValueError, match="`n_simulations`"):
        noise_floor(*rows, n_simulations=bad)
    for measure in (bootstrap_interval, confidence_report):
        with pytest.raises(ValueError, match="`n_bootstrap`"):
            measure(*rows, n_bootstrap=bad)


def test_seed():
    rows = draw(50)
    for measure in (noise_floor, bootstrap_interval, confidence_report):
        assert measure(*rows, seed=np.int64(3)) == measure(*rows, seed=3)
        assert measure(*rows, seed=None) != measure(*rows, seed=None)
        for bad in (-1, 1.0, "1", True):
            with pytest.raises(ValueError, match="`seed`"):
                measure(*rows, seed=bad)


# Interval


MODELS = {
    "calibrated": lambda c: c,
    "shifted": lambda c: c - 0.1,
    "overconfident": lambda c: c**1.4,
    "wavy": lambda c: c + 0.2 * np.sin(13 * c),
    "one bin off": lambda c: c - 0.3 * ((c >= 0.6) & (c < 0.7)),
    "just above the noise": lambda c: c - 0.02,
}


@pytest.mark.parametrize("weighted", [False, True])
def test_interval_covers_the_true_error(weighted):
    """Coverage of 92 to 97.5% over all models, and of each model; binomial tolerance of 3 standard deviations."""
    grid = 0.25 + 0.75 * (np.arange(75_000) + 0.5) / 75_000
    covered = {}
    for name, right in MODELS.items():
        truth = reliability_bins(grid, np.clip(right(grid), 0, 1), sample_weight=grid if weighted else None).error
        truth = 0.0 if truth < 1e-9 else truth
        covered[name] = []
        for seed in range(60):
            confidences, correct = draw(500, seed, right)
            weights = 4 * confidences * np.random.default_rng(seed).uniform(0.5, 1.5, 500) if weighted else None
            low, high = bootstrap_interval(confidences, correct, n_bootstrap=200, seed=seed, sample_weight=weights)
            covered[name].append(low <= truth <= high)
    for name, hits in covered.items():
        assert np.mean(hits) >= 0.92 - 3 * np.sqrt(0.92 * 0.08 / 60), name
    pooled, n = np.mean(list(covered.values())), 60 * len(MODELS)
    assert 0.92 - 3 * np.sqrt(0.92 * 0.08 / n) <= pooled <= 0.975 + 3 * np.sqrt(0.975 * 0.025 / n)


def test_interval_seed_and_level():
    rows = draw()
    assert bootstrap_interval(*rows, seed=3) == bootstrap_interval(*rows, seed=3) != bootstrap_interval(*rows, seed=4)
    ends = np.array([bootstrap_interval(*rows, level=level) for level in (0.5, 0.8, 0.95, 0.99)])
    assert (np.diff(ends[:, 0]) < 0).all() and (np.diff(ends[:, 1]) > 0).all()
    with pytest.raises(ValueError, match="`level`"):
        bootstrap_interval(*rows, level=1.0)


def test_interval_has_its_own_stream_of_draws():
    """The draws are independent of those behind the p-value."""
    rows = draw(400, right=lambda c: c - 0.05)
    bins, p_value = group_cells(*rows, 10, "equal_width").bins, noise_floor(*rows, n_simulations=300, seed=5).p_value
    expected = interval_of_bins(bins, p_value, 300, 0.9, np.random.default_rng([5, 1]))
    assert bootstrap_interval(*rows, n_bootstrap=300, level=0.9, seed=5) == expected


def test_interval_narrows_with_n():
    truth = 0.1
    widths = []
    for n in (500, 50_000):
        low, high = bootstrap_interval(*draw(n, right=lambda c: c - truth))
        assert low < truth < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.25)


def test_interval_starts_at_zero_if_calibration_is_not_rejected():
    for seed in range(40):
        rows = draw(400, seed, right=lambda c: c - 0.05)
        low, _ = bootstrap_interval(*rows, seed=seed)
        assert (low == 0) == (noise_floor(*rows, seed=seed).p_value > 1 - 0.95)


@pytest.mark.parametrize(
    ("confidences", "correct"),
    [([0.5], [1]), ([1.0] * 5, [1] * 5), ([1.0] * 5, [0] * 5), ([0.0], [0]), ([0.9] * 300, [1] * 300)],
)
@pytest.mark.filterwarnings("error")
def test_interval_of_few_rows(confidences, correct):
    measured = reliability_bins(confidences, correct).error
    for n_bootstrap in (1, 200):
        low, high = bootstrap_interval(confidences, correct, n_bootstrap=n_bootstrap)
        assert 0 <= low <= high <= 1
    assert low <= measured <= high + 1e-12


def test_draws_shrink_noise_only():
    """The error is drawn below the measured one if the gaps are noise, and around it if they are not."""
    rng = np.random.default_rng(0)
    noise = group_cells(*draw(500, right=lambda c: c), 10, "equal_width")
    assert draw_errors(noise.bins, 2000, rng).mean() < noise.measured
    assert draw_errors(noise.bins, 2000, rng, sparse=True).mean() < draw_errors(noise.bins, 2000, rng).mean()
    signal = group_cells(*draw(50_000, right=lambda c: c - 0.2), 10, "equal_width")
    for sparse in (False, True):
        assert draw_errors(signal.bins, 2000, rng, sparse).mean() == pytest.approx(signal.measured, abs=5e-4)
