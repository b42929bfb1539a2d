"""Kernel calibration test, against sums over all pairs, and by simulation of calibrated models."""

import numpy as np
import pytest
from samples import make
from scipy.stats import binom

from hf_calib.measures import kernel_test
from hf_calib.measures.kernel_test import kernel_calibration_test


def over_pairs(kernel, residuals, weights):
    """Mean over pairs of different rows."""
    terms = kernel * (residuals @ residuals.T) * np.outer(weights, weights)
    np.fill_diagonal(terms, 0)
    return terms.sum() / (weights.sum() ** 2 - (weights**2).sum())


def draw(probabilities, rng):
    return (probabilities.cumsum(axis=1) > rng.random((len(probabilities), 1))).argmax(axis=1)


@pytest.mark.parametrize("digits", [1, 12])
@pytest.mark.parametrize("bandwidth", [None, 0.002, 3.0])
def test_confidences_against_all_pairs(digits, bandwidth):
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0, 1, 300).round(digits)
    correct, weights = (rng.random(300) < confidences**2).astype(float), rng.uniform(0, 2, 300)
    weights[:20] = 0
    found = kernel_calibration_test(confidences, correct, weights, bandwidth, n_bootstrap=5)
    kernel = np.exp(-np.abs(confidences[:, None] - confidences) / found.bandwidth)
    expected = over_pairs(kernel, (correct - confidences)[:, None], weights)
    assert found.skce == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_options_against_all_pairs(monkeypatch):
    """The features approximate the kernel. With many of them little is left of the difference."""
    probabilities, labels, _ = make(400, seed=1)
    weights = np.random.default_rng(0).uniform(0.5, 2, 400)
    residuals = np.eye(4)[labels] - probabilities
    distance = np.abs(probabilities[:, None] - probabilities).sum(axis=2) / 2
    found = kernel_calibration_test(probabilities, labels, weights, n_bootstrap=5)
    expected = over_pairs(np.exp(-distance / found.bandwidth), residuals, weights)
    assert found.bandwidth == pytest.approx(np.median(distance[np.triu_indices(400, 1)]))
    assert found.skce == pytest.approx(expected, rel=0.25)
    monkeypatch.setattr(kernel_test, "_FREQUENCIES", 20_000)
    found = kernel_calibration_test(probabilities, labels, weights, n_bootstrap=5)
    assert found.skce == pytest.approx(expected, rel=0.03)


def test_chunks_change_nothing_and_questions_may_differ_in_options(monkeypatch):
    probabilities, labels, _ = make(300, k=3)
    assert all(type(number) is float for number in kernel_calibration_test(probabilities, labels, n_bootstrap=5))
    found = kernel_calibration_test(probabilities, labels, n_bootstrap=20)
    monkeypatch.setattr(kernel_test, "_FEATURE_ROWS", 64)
    monkeypatch.setattr(kernel_test, "_DRAWN_AT_ONCE", 1)
    in_parts = kernel_calibration_test(probabilities, labels, n_bootstrap=20)
    assert in_parts.skce == pytest.approx(found.skce, rel=1e-4)
    ragged = [row[:2] / row[:2].sum() if i % 2 else row for i, row in enumerate(probabilities)]
    labels = np.where(np.arange(300) % 2, np.minimum(labels, 1), labels)
    assert np.isfinite(kernel_calibration_test(ragged, labels, n_bootstrap=20)[:5]).all()


@pytest.mark.parametrize("of_options", [False, True])
@pytest.mark.parametrize("rows", [4096, 60])
def test_calibrated_models_are_rejected_as_often_as_the_level_says(of_options, rows, monkeypatch):
    """200 tests at level .1 and .05; with `rows` below N, the simulated models are of a sample of the rows."""
    monkeypatch.setattr(kernel_test, "_NULL_ROWS", rows)
    rng, p_values = np.random.default_rng(2), []
    for seed in range(200):
        probabilities = rng.dirichlet([0.5, 0.5, 0.5], 120)
        labels = draw(probabilities, rng)
        if not of_options:
            probabilities, labels = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        weights = rng.uniform(0.5, 2, 120) if seed % 2 else None
        p_values.append(kernel_calibration_test(probabilities, labels, weights, n_bootstrap=99, seed=seed).p_value)
    for level in (0.05, 0.1):
        assert binom.ppf(0.001, 200, level) <= np.sum(np.array(p_values) <= level) <= binom.ppf(0.999, 200, level)


def test_power_and_interval():
    """An overconfident model is found, and the interval covers the error of many more questions."""
    truth = kernel_calibration_test(*make(20_000, seed=99)[:2], bandwidth=0.5, n_bootstrap=1).skce
    found = [
        kernel_calibration_test(*make(300, seed=seed)[:2], bandwidth=0.5, n_bootstrap=99, seed=1000)
        for seed in range(100)
    ]
    assert sum(test.p_value <= 0.05 for test in found) >= 90
    assert sum(test.low <= truth <= test.high for test in found) >= 88


def test_it_sees_what_the_confidence_in_the_prediction_hides():
    """The predicted option is calibrated; the two others are exchanged."""
    rng = np.random.default_rng(3)
    probabilities = np.tile([0.5, 0.4, 0.1], (2000, 1))
    labels = draw(np.tile([0.5, 0.1, 0.4], (2000, 1)), rng)
    assert kernel_calibration_test(probabilities, labels).p_value < 0.01
    assert kernel_calibration_test(probabilities[:, 0], labels == 0).p_value > 0.05


def test_equal_confidences_have_a_closed_form():
    """All in one point: (sum of the residuals)^2 less the sum of their squares."""
    found = kernel_calibration_test([0.5] * 10, [1] * 10, n_bootstrap=10)
    assert found.skce == pytest.approx(0.25) and found.bandwidth == 1
    assert found.low <= 0.25 <= found.high


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0.5], [1]), "at least two rows"),
        (([0.5, 0.5], [1, 1], [1, 0]), "at least two rows"),
        (([0.5, np.nan], [1, 1]), "row 1"),
        (([0.5, 0.5], [1]), "confidences"),
        (([[0.5, 0.5], [0.4, 0.6]], [0, 2]), "row 1"),
        (([0.5, 0.5], [1, 1], None, 0.0), "`bandwidth` must be at least 0.002"),
        (([], []), "empty"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel_calibration_test(*arguments)
