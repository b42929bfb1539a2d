"""Calibration maps for few labels."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from hf_calib import EMCalibrator, TemperatureScaling


def overconfident(n, seed=0, factor=3.0, k=4):
    """Logits that are `factor` times too large, and labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k)) * 1.5
    labels = np.array([rng.choice(k, p=p) for p in softmax(z, axis=1)])
    return factor * z, labels


def test_with_many_labels_the_temperature_is_that_of_temperature_scaling():
    z, labels = overconfident(4_000)
    calibrator = EMCalibrator("temperature", tail="temperature").fit(softmax(z, axis=1), labels)
    scaling = TemperatureScaling().fit(z, labels)
    assert 1 / calibrator.state_dict()["ordinates"][0] == pytest.approx(scaling.temperature.item(), rel=2e-3)
    # With the temperature tail the targets are the scaled probabilities.
    np.testing.assert_allclose(calibrator.targets(softmax(z, axis=1)), scaling.transform(z), atol=2e-3)


@pytest.mark.parametrize("estimator", ["temperature", "beta"])
def test_few_labels_are_shrunk_towards_the_identity(estimator):
    """All right at confidence .7: without a prior the map would be 1."""
    q = np.tile([0.7, 0.2, 0.1], (5, 1))
    value = EMCalibrator(estimator).fit(q, np.zeros(5, int)).targets(q[:1])[0, 0]
    assert 0.7 < value < 0.99
    less = EMCalibrator(estimator).fit(q[:1], np.zeros(1, int)).targets(q[:1])[0, 0]
    assert 0.7 < less < value


def test_beta_agrees_with_logistic_regression():
    """The same posterior, with the slopes on the scale that the prior is on, up to the prior's form."""
    z, labels = overconfident(20_000)
    q = softmax(z, axis=1)
    c, correct = q.max(1).clip(1e-6, 1 - 1e-6), q.argmax(1) == labels
    features = np.stack([np.log(c), -np.log1p(-c)], axis=1)
    expected = LogisticRegression(C=1e6).fit(features, correct).predict_proba(features)[:, 1]
    np.testing.assert_allclose(EMCalibrator("beta").fit(q, labels).accuracy(q.max(1)), expected, atol=0.02)


def test_labels_may_be_probabilities_and_rows_padded():
    q = np.array([[0.9, 0.1, 0.0]] * 10)
    for estimator in ("temperature", "beta"):
        soft = EMCalibrator(estimator).fit(q, np.tile([0.7, 0.3, 0.0], (10, 1)))
        hard = EMCalibrator(estimator).fit(q, np.repeat([0, 1], [7, 3]))
        np.testing.assert_allclose(soft.targets(q), hard.targets(q), atol=1e-6)
        assert (soft.targets(q)[:, 2] <= soft.targets(q)[:, 1]).all()


def test_a_right_option_of_probability_zero_is_no_error():
    calibrator = EMCalibrator("temperature").fit(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, 0]))
    assert 0.5 <= calibrator.targets(np.array([[0.99, 0.01]]))[0, 0] < 0.7
