"""Paired comparison of two sets of predictions, against scipy and the functions of the measures."""

import numpy as np
import pytest
from samples import make
from scipy.stats import ttest_rel

from hf_calib.measures.calibration_error import calibration_report, expected_calibration_error
from hf_calib.measures.paired import OF_CONFIDENCES, OF_PROBABILITIES, compare_predictions
from hf_calib.measures.risk_coverage import risk_coverage


@pytest.fixture(scope="module")
def models():
    stated, labels, target = make(n=400, seed=5)
    return (stated, labels), (target, labels)


@pytest.mark.parametrize("measure", [*OF_CONFIDENCES, *OF_PROBABILITIES])
def test_values_are_those_of_the_report(models, measure):
    found = compare_predictions(*models, measure, n_bootstrap=20)
    for value, (probabilities, labels) in zip(found[:2], models, strict=True):
        report = calibration_report(probabilities, labels, n_bootstrap=1)
        curve = risk_coverage(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
        expected = report | {"e_aurc": curve.e_aurc, "augrc": curve.augrc}
        assert value == pytest.approx(expected[measure])
    assert found.low <= found.difference <= found.high


def test_interval_and_p_value_of_a_mean_are_those_of_the_paired_t_test(models):
    (stated, labels), (target, _) = models
    rows = np.arange(400)
    losses = [-np.log(p[rows, labels]) for p in (stated, target)]
    expected = ttest_rel(losses[1], losses[0])
    interval = expected.confidence_interval()
    found = compare_predictions(*models, "nll", n_bootstrap=2000)
    assert (found.low, found.high) == pytest.approx(
        (interval.low, interval.high), abs=0.15 * (interval.high - interval.low)
    )
    weak = compare_predictions(
        models[0], (np.roll(stated, 1, axis=0)[:400] * 0 + stated, labels), "nll", n_bootstrap=50
    )
    assert weak.difference == 0 and weak.p_value == 1


@pytest.mark.parametrize("measure", ["brier", "ece", "auroc"])
def test_p_values_are_uniform_where_nothing_differs(measure):
    """Two noisy copies of one model: at most 10% of 150 tests reject at level .05."""
    rng, rejected = np.random.default_rng(6), 0
    for seed in range(150):
        logits = rng.normal(0, 1.5, (150, 4))
        cumulative = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).cumsum(axis=1)
        labels = (cumulative > rng.random((150, 1))).argmax(axis=1)
        pair = []
        for _ in range(2):
            noisy = np.exp(logits + rng.normal(0, 0.5, logits.shape))
            pair.append((noisy / noisy.sum(axis=1, keepdims=True), labels))
        rejected += compare_predictions(*pair, measure, n_bootstrap=100, seed=seed).p_value <= 0.05
    assert rejected <= 15


def test_function_as_measure_and_weights(models):
    weights = np.random.default_rng(0).random(400)
    found = compare_predictions(
        *models, lambda p, y, w: expected_calibration_error(p, y, 5, sample_weight=w), weights, n_bootstrap=10
    )
    assert found.first == expected_calibration_error(*models[0], 5, sample_weight=weights)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((([0.5], [1]), ([0.5], [1]), "nll"), "needs probabilities"),
        ((([0.5], [1]), ([0.5, 0.5], [1, 1]), "ece"), "of 1 questions, the second of 2"),
        ((([0.5], [1]), ([0.5], [1]), "f1"), "not known; use one of"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare_predictions(*arguments)
