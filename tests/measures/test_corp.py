"""CORP decomposition, against scipy's isotonic regression on single rows, and scikit-learn's scores."""

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from sklearn.metrics import brier_score_loss, log_loss

from hf_calib.measures.corp import corp_decomposition


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


def test_unknown_score():
    with pytest.raises(ValueError, match="`score` must be one of"):
        corp_decomposition([0.5], [1], "accuracy")
