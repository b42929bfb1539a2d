"""Calibration loss, against a loop over folds, and by simulation."""

import numpy as np
import pytest
from samples import make_logits
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import ttest_1samp
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold

from hf_calib.posthoc import TemperatureScaling, recalibration_gain


def losses_by_fold(logits, labels, n_folds=5, seed=0):
    """Loss of every question as it is and under the temperature of the other folds."""

    def loss(part, right, temperature):
        return -log_softmax(part / temperature, axis=1)[np.arange(len(right)), right]

    mapped = np.empty(len(labels))
    for train, held in KFold(n_folds, shuffle=True, random_state=seed).split(logits):
        found = minimize_scalar(
            lambda t, train=train: loss(logits[train], labels[train], t).mean(), bounds=(0.05, 50), method="bounded"
        )
        mapped[held] = loss(logits[held], labels[held], found.x)
    return loss(logits, labels, 1.0), mapped


def test_temperature_against_a_loop_over_folds():
    logits, labels = make_logits(600)
    stated, mapped = losses_by_fold(logits, labels)
    found = recalibration_gain(logits, labels, ["temperature"])
    assert found.gain == pytest.approx((stated - mapped).mean(), abs=1e-4)
    interval = ttest_1samp(stated - mapped, 0).confidence_interval()
    assert found.low == pytest.approx(interval.low, rel=0.05)
    fitted = TemperatureScaling().fit(logits, labels).transform(logits)
    interval = ttest_1samp(stated + np.log(fitted[np.arange(600), labels]), 0).confidence_interval()
    assert found.high == pytest.approx(interval.high, rel=0.05)
    probabilities = np.exp(log_softmax(logits, axis=1))
    assert found.nll == pytest.approx(log_loss(labels, probabilities))
    assert found.gain == pytest.approx(found.nll - found.recalibrated_nll)


def test_weights_are_of_the_means():
    logits, labels = make_logits(300, seed=1)
    weights = np.random.default_rng(0).uniform(0.5, 2, 300)
    stated, mapped = losses_by_fold(logits, labels)
    found = recalibration_gain(logits, labels, ["temperature"], weights)
    assert found.gain == pytest.approx(np.average(stated - mapped, weights=weights), abs=1e-4)
    weights[::2] = 0
    half = recalibration_gain(logits[1::2], labels[1::2])
    assert recalibration_gain(logits, labels, sample_weight=weights > 0) == pytest.approx(half)


def test_interval_holds_the_gain_on_new_questions_and_a_calibrated_model_gains_nothing():
    """The gain is known: the mean divergence of the true from the stated probabilities."""
    logits, _ = make_logits(100_000, temperature=2.0, seed=50)
    true = log_softmax(logits / 2.0, axis=1)
    truth = (np.exp(true) * (true - log_softmax(logits, axis=1))).sum(axis=1).mean()
    inside = above = 0
    for seed in range(60):
        found = recalibration_gain(*make_logits(400, temperature=2.0, seed=seed))
        inside += found.low <= truth <= found.high
        above += recalibration_gain(*make_logits(400, temperature=1.0, seed=seed)).low > 0
    assert inside >= 52 and above <= 5


def test_padding_is_no_option():
    logits, labels = make_logits(200, padding=True)
    wider = np.pad(logits, ((0, 0), (0, 1)), constant_values=-np.inf)
    assert recalibration_gain(wider, labels)[:5] == pytest.approx(recalibration_gain(logits, labels)[:5])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros((9, 2)), [0] * 9), "9 questions are too few for 5 folds"),
        ((np.zeros((10, 2)), [0] * 9), "labels"),
        ((np.full((10, 2), np.nan), [0] * 10), "row 0"),
        ((np.zeros((10, 2)), [0] * 10, ["subject_temperature"]), "names 'subject_temperature', which"),
        ((np.zeros((10, 2)), [0] * 10, []), "names None"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        recalibration_gain(*arguments)


def test_one_class_is_no_error():
    found = recalibration_gain(np.tile([2.0, 0.0], (50, 1)), np.zeros(50, int))
    assert np.isfinite(found[:5]).all() and found.gain > 0
