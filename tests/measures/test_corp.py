"""CORP decomposition, against scipy's isotonic regression on single rows, and scikit-learn's scores."""

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from scipy.stats import binom
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss

from hf_calib.measures import corp
from hf_calib.measures.corp import corp_curve, corp_decomposition


def slow(confidences, correct, score, weights):
    """One row after the other; ties are made one observation, as CORP wants them."""
    values, place = np.unique(confidences, return_inverse=True)
    mass = np.bincount(place, weights)
    rates = np.bincount(place, weights * correct) / mass
    fitted = isotonic_regression(rates, weights=mass).x[place]
    base = np.full(len(correct), np.average(correct, weights=weights))
    loss = (
        brier_score_loss
        if score == "brier"
        else (lambda y, p, sample_weight: log_loss(y, p, sample_weight=sample_weight))
    )
    stated, best, constant = (
        loss(correct, np.clip(p, 1e-12, 1 - 1e-12), sample_weight=weights) for p in (confidences, fitted, base)
    )
    return stated, stated - best, constant - best, constant


@pytest.mark.parametrize("score", ["brier", "nll"])
@pytest.mark.parametrize("digits", [1, 12])
def test_against_scipy_and_sklearn(score, digits):
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.05, 0.95, 300).round(digits)
    correct, weights = (rng.random(300) < confidences**2).astype(float), rng.uniform(0.5, 2, 300)
    found = corp_decomposition(confidences, correct, score, weights)
    assert found == pytest.approx(slow(confidences, correct, score, weights), abs=1e-9)
    assert found.score == pytest.approx(found.miscalibration - found.discrimination + found.uncertainty)


@pytest.mark.parametrize("score", ["brier", "nll"])
def test_extremes(score):
    """A constant at the base rate has neither part, a perfect forecast the whole discrimination."""
    constant = corp_decomposition([0.5] * 4, [1, 0, 1, 0], score)
    assert constant.miscalibration == constant.discrimination == 0
    perfect = corp_decomposition([1.0, 0.0, 1.0, 0.0], [1, 0, 1, 0], score)
    assert perfect.score == perfect.miscalibration == pytest.approx(0, abs=1e-11)
    assert perfect.discrimination == pytest.approx(perfect.uncertainty)
    one_class = corp_decomposition([0.9, 0.7], [1, 1], score)
    assert one_class.uncertainty == pytest.approx(0, abs=1e-11) and one_class.discrimination == pytest.approx(
        0, abs=1e-11
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_curve_is_the_isotonic_regression_of_the_rows(weighted):
    rng = np.random.default_rng(1)
    confidences = rng.uniform(0, 1, 400).round(2)
    correct, weights = (rng.random(400) < confidences**2).astype(float), rng.uniform(0.5, 2, 400)
    weights = weights if weighted else None
    curve = corp_curve(confidences, correct, sample_weight=weights, n_bootstrap=2)
    expected = IsotonicRegression().fit(confidences, correct, weights).predict(curve.confidences)
    assert curve.confidences == pytest.approx(np.unique(confidences))
    assert curve.accuracies == pytest.approx(expected)
    assert curve.decomposition == corp_decomposition(confidences, correct, sample_weight=weights)


def test_band_against_a_loop_over_single_rows():
    rng = np.random.default_rng(2)
    confidences = np.sort(rng.uniform(0.3, 1, 60))
    fits, gaps = [], []
    for _ in range(2000):
        correct = (rng.random(60) < confidences).astype(float)
        fits.append(isotonic_regression(correct).x)
        gaps.append(np.mean((confidences - correct) ** 2 - (fits[-1] - correct) ** 2))
    low, high = np.quantile(fits, [0.025, 0.975], axis=0)
    curve = corp_curve(confidences, correct, n_bootstrap=2000)
    assert np.abs(curve.low - low).mean() < 0.02 and np.abs(curve.high - high).mean() < 0.02
    assert curve.noise_floor == pytest.approx(np.mean(gaps), rel=0.05)
    expected = np.mean(np.array(gaps) >= curve.decomposition.miscalibration)
    assert curve.p_value == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("score", ["brier", "nll"])
@pytest.mark.parametrize("cells", [1024, 40])
def test_calibrated_models_are_rejected_as_often_as_the_level_says(score, cells, monkeypatch):
    """150 tests at level .1, also with neighbours merged into cells; a part has weights."""
    monkeypatch.setattr(corp, "_CELLS", cells)
    rng, rejected = np.random.default_rng(3), 0
    for seed in range(150):
        confidences = rng.beta(3, 1.5, 200)
        weights = rng.integers(1, 3, 200) if seed % 2 else None
        correct = rng.random(200) < confidences
        rejected += corp_curve(confidences, correct, score, weights, n_bootstrap=60, seed=seed).p_value <= 0.1
    assert binom.ppf(0.001, 150, 0.1) <= rejected <= binom.ppf(0.999, 150, 0.1)


def test_overconfidence_lies_below_the_band():
    rng = np.random.default_rng(4)
    confidences = rng.uniform(0.5, 1, 5000)
    curve = corp_curve(confidences, rng.random(5000) < confidences - 0.2)
    assert len(curve.confidences) <= 1024 and curve.p_value < 0.01
    assert (curve.accuracies < curve.low).mean() > 0.9


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0.5], [1], "accuracy"), "`score` must be one of"),
        (([0.5, np.nan], [1, 1]), "row 1"),
        (([0.5, 1.2], [1, 1]), "row 1"),
        (([0.5], [1, 1]), "confidences"),
        (([], []), "empty"),
    ],
)
@pytest.mark.parametrize("function", [corp_decomposition, corp_curve])
def test_bad_input(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize("correct", [[1, 1, 1], [0, 0, 0], [1, 0, 1]])
def test_one_class_and_extreme_confidences(correct):
    for score in ("brier", "nll"):
        curve = corp_curve([1.0, 0.0, 0.5], correct, score, n_bootstrap=20)
        assert np.isfinite(curve.decomposition).all() and 0 < curve.p_value <= 1
