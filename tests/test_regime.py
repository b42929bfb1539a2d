"""The regime: every inequality on random distributions, and error rates of the tests on simulated ones."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_calib.calibration_error import expected_calibration_error, target_calibration_error
from hf_calib.regime import RegimeReport, classify_regime, recalibration_test


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def draw(probabilities, rng):
    return (probabilities.cumsum(axis=1) > rng.random((len(probabilities), 1))).argmax(axis=1)


def world(n, seed, sharpness=1.0, k=4):
    """Target, labels that follow it, and a model that ranks like the target but states it `sharpness` times as sharply."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k))
    target = softmax(logits)
    return softmax(sharpness * logits), draw(target, rng), target


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 5), st.integers(1, 12), st.floats(0.1, 8))
@settings(max_examples=150, deadline=None)
def test_every_inequality_holds(seed, n, k, n_bins, scale):
    """On any finite data set, whatever the model, the labels and the target."""
    rng = np.random.default_rng(seed)
    probabilities, target = softmax(rng.normal(size=(n, k)) * scale), softmax(rng.normal(size=(n, k)) * scale)
    labels = rng.integers(0, k, n) if seed % 2 else probabilities.argmax(axis=1)  # the odd and the memorised
    report = classify_regime(probabilities, labels, target, n_bins=n_bins)
    hair = 1e-9
    assert report.ece == pytest.approx(expected_calibration_error(probabilities, labels, n_bins))
    assert report.tce == pytest.approx(target_calibration_error(probabilities, target, n_bins))
    assert report.ece_lower_bound - hair <= report.ece <= report.ece_upper_bound + hair
    assert report.tce_lower_bound - hair <= report.tce <= report.tce_upper_bound + hair
    assert report.tce_lower_bound + hair >= report.confidence - report.critical_accuracy
    assert report.ece + report.tce + hair >= report.sum_lower_bound
    assert report.sum_lower_bound + hair >= report.border_distance
    assert report.critical_accuracy == pytest.approx(target.max(axis=1).mean())
    assert report.border_distance == pytest.approx(report.accuracy - report.critical_accuracy)


@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_constant_confidence_attains_the_bound(seed, k, share):
    rng = np.random.default_rng(seed)
    n = 40
    target, prediction = softmax(rng.normal(size=(n, k)) * 3), rng.integers(0, k, n)
    labels = np.where(rng.random(n) < 0.7, prediction, rng.integers(0, k, n))
    accuracy, expected = (prediction == labels).mean(), target[np.arange(n), prediction].mean()
    confidence = share * accuracy + (1 - share) * expected
    if confidence <= 1 / k + 1e-6:
        return
    probabilities = np.full((n, k), (1 - confidence) / (k - 1))
    probabilities[np.arange(n), prediction] = confidence
    report = classify_regime(probabilities, labels, target)
    assert report.ece + report.tce == pytest.approx(abs(accuracy - expected), abs=1e-9)
    assert report.sum_lower_bound == pytest.approx(abs(accuracy - expected), abs=1e-9)


def test_overconfident_is_calibratable_and_memorised_is_not():
    probabilities, labels, target = world(4000, seed=0, sharpness=4.0)
    weak = probabilities.copy()  # every fifth prediction goes to another option: accuracy below critical, on purpose
    weak[::5] = np.roll(weak[::5], 1, axis=1)
    report = classify_regime(weak, labels, target)
    assert (report.regime, report.recommended_method, report.test) == ("calibratable", "cft", "target")
    assert report.ece > 0.2 and report.border_distance < 0 and report.p_value > 0.95

    memorised = np.full((4000, 4), 0.01)
    memorised[np.arange(4000), labels] = 0.97
    report = classify_regime(memorised, labels, target)
    assert (report.regime, report.recommended_method) == ("non-calibratable", "rcft")
    assert report.ece < 0.05 and report.tce > report.border_distance - report.ece - 1e-9
    assert report.p_value < 1e-6


@pytest.mark.parametrize("known", ["target", "critical_accuracy"])
def test_error_rate_at_the_border(known):
    """At ACC = ACC* each one-sided verdict comes with probability alpha."""
    verdicts = []
    critical = world(400_000, seed=99)[2].max(axis=1).mean()
    for seed in range(400):
        probabilities, labels, target = world(300, seed=seed)
        given_ = {"target_probabilities": target} if known == "target" else {"critical_accuracy": critical}
        verdicts.append(classify_regime(probabilities, labels, alpha=0.1, **given_).regime)
    assert 0.05 < verdicts.count("non-calibratable") / 400 < 0.15  # 0.1 +- 3 standard errors
    assert 0.05 < verdicts.count("calibratable") / 400 < 0.15


def test_recalibration_test_keeps_its_level():
    """Overconfident models that an isotonic map repairs are rejected with probability alpha at most."""
    rejected = 0
    for seed in range(20):
        probabilities, labels, _ = world(600, seed=seed, sharpness=3.0)
        confidences, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        rejected += recalibration_test(confidences, correct, 0.25, seed=seed)[0] < 0.1
    assert rejected / 20 <= 0.3


def test_without_a_target():
    probabilities, labels, _ = world(3000, seed=1, sharpness=4.0)
    report = classify_regime(probabilities, labels)
    assert (report.regime, report.recommended_method, report.test) == ("calibratable", "cft", "recalibration")
    assert report.critical_accuracy is None and report.tce is None
    assert report.recalibrated_ece < 0.06 < report.ece
    few = classify_regime(probabilities[:15], labels[:15])
    assert (few.regime, few.recommended_method, few.p_value) == ("undetermined", "rcft", None)
    assert classify_regime(probabilities[:60], labels[:60]).regime == "undetermined"  # too few to vouch for


def test_confident_and_worse_than_chance_cannot_be_repaired():
    rng = np.random.default_rng(0)
    confidences = 0.3 + 0.69 * rng.random(3000)
    probabilities = np.repeat(((1 - confidences) / 3)[:, None], 4, axis=1)
    probabilities[:, 0] = confidences
    labels = np.where(rng.random(3000) < 0.05, 0, 1)
    report = classify_regime(probabilities, labels)
    assert report.regime == "non-calibratable" and report.p_value < 0.05


def test_critical_accuracy_goes_before_the_target():
    probabilities, labels, target = world(1000, seed=3)
    report = classify_regime(probabilities, labels, target, critical_accuracy=0.99)
    assert report.regime == "calibratable" and report.test == "critical_accuracy" and report.tce is not None
    assert report.critical_accuracy == 0.99


def test_the_report_is_frozen_flat_and_json():
    probabilities, labels, target = world(100, seed=4)
    for report in (classify_regime(probabilities, labels, target), classify_regime(probabilities, labels)):
        assert isinstance(report, RegimeReport)
        with pytest.raises(AttributeError):
            report.regime = "calibratable"
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_certainty_without_spread():
    target = np.tile([1.0, 0.0], (30, 1))
    report = classify_regime(target, np.zeros(30, dtype=int), target)
    assert report.regime == "undetermined" and report.border_distance == 0 and report.ece == 0


def test_bad_input_is_named():
    good = [[0.5, 0.5]] * 2, [0, 1]
    with pytest.raises(ValueError, match="`alpha` must lie in"):
        classify_regime(*good, alpha=1.0)
    with pytest.raises(ValueError, match="`critical_accuracy` must lie in"):
        classify_regime(*good, critical_accuracy=60)
    with pytest.raises(ValueError, match="`target_probabilities` row 0 sums"):
        classify_regime(*good, target_probabilities=[[0.5, 0.4]] * 2)
    with pytest.raises(ValueError, match="`target_probabilities` has shape"):
        classify_regime(*good, target_probabilities=[[0.5, 0.5]])
