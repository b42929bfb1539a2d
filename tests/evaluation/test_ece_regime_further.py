"""The metric `ece_regime`: comparison with other predictions, further measures, and decisions."""

import json

import numpy as np
import pytest

from hf_calib import (
    accuracy_threshold,
    comparison_report,
    corp_decomposition,
    kernel_calibration_test,
    recalibration_gain,
    selective_report,
)
from hf_calib.evaluation.evaluate import groups_of


pytestmark = pytest.mark.usefixtures("evaluate_cache")


def test_other_predictions(metric, data):
    probabilities, labels, truth = data
    groups, weights = np.repeat(["a", "b"], 300), np.linspace(0, 2, 600)
    options = {"sample_weight": weights, "groups": groups, "n_bootstrap": 50, "n_bins": 7}
    results = metric.compute(predictions=truth, references=labels, other_predictions=probabilities, **options)
    expected = comparison_report((probabilities, labels), (truth, labels), **options)
    assert {key: results[key] for key in expected} == pytest.approx(expected)
    assert results["difference/nll"] == pytest.approx(results["nll"] - results["other/nll"])
    assert "difference/ece" in groups_of(results)["a"] and groups_of(results)["b"]["n"] == 300
    as_rows = metric.compute(
        predictions=truth.tolist(), references=labels, other_predictions=probabilities.tolist(), **options
    )
    assert as_rows == pytest.approx(results)


def test_other_confidences(metric, data):
    probabilities, labels, truth = data
    sides = [(p.max(axis=1), p.argmax(axis=1) == labels) for p in (probabilities, np.roll(truth, 1, axis=1))]
    results = metric.compute(
        predictions=sides[1][0], correct=sides[1][1], other_predictions=sides[0][0], other_correct=sides[0][1]
    )
    expected = comparison_report(*sides)
    assert {key: results[key] for key in expected} == pytest.approx(expected)


def test_details(metric, data):
    probabilities, labels, truth = data
    weights = np.linspace(0, 2, 600)
    given = {"references": labels, "sample_weight": weights, "n_bootstrap": 100}
    plain = metric.compute(predictions=probabilities, **given)
    results = metric.compute(predictions=probabilities, details=True, **given)
    assert {key: results[key] for key in plain} == plain
    test = kernel_calibration_test(probabilities, labels, weights, n_bootstrap=100)
    assert (results["option_skce"], results["option_skce_p_value"]) == (test.skce, test.p_value)
    confidences, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    parts = corp_decomposition(confidences, correct, "nll", weights)
    assert results["corp_nll_miscalibration"] == parts.miscalibration
    gain = recalibration_gain(np.log(probabilities), labels, sample_weight=weights)
    assert results["recalibration_gain"] == pytest.approx(gain.gain) and gain.low > 0
    calibrated = metric.compute(predictions=truth, details=True, **given)
    assert min(calibrated["skce_p_value"], calibrated["option_skce_p_value"], calibrated["corp_p_value"]) > 0.01
    alone = metric.compute(predictions=confidences, correct=correct, details=True, n_bootstrap=100)
    assert "skce" in alone and "option_skce" not in alone and "recalibration_gain" not in alone


def test_details_of_rows_with_other_numbers_of_options_and_of_few_questions(metric):
    rows = [[0.9, 0.1], [0.6, 0.3, 0.1], [1.0, 0.0, 0.0], [0.0, 1.0]] * 10
    results = metric.compute(predictions=rows, references=[0, 1, 1, 0] * 10, details=True, n_bootstrap=20)
    assert results["recalibration_gain"] > 1
    few = metric.compute(predictions=[[0.9, 0.1]], references=[0], details=True)
    assert "recalibration_gain" not in few and "skce" not in few and "corp_brier" in few


def test_points_of_the_risk_coverage_curve_and_threshold(metric):
    """They are those of the measures, for option probabilities and for confidences."""
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 800)
    correct = rng.random(800) < confidences**0.3
    options = {"risks": [0.05, 0.1], "coverages": (0.5,), "target_accuracy": 0.9, "n_bootstrap": 100}
    results = metric.compute(predictions=confidences, correct=correct, **options)
    report = selective_report(confidences, correct, risks=[0.05, 0.1], coverages=[0.5], n_bootstrap=100)
    points = {key: value for key, value in report.items() if "_at_" in key}
    assert len(points) == 9 and {key: results[key] for key in points} == points
    found = accuracy_threshold(confidences, correct, 0.9)
    assert results["threshold"] == found.threshold and results["threshold_coverage_low"] == found.coverage_low
    assert results["threshold_n_answered"] == found.n_answered and "threshold_questions_needed" not in results
    rows, references = np.column_stack([confidences, 1 - confidences]), 1 - correct.astype(int)
    of_options = metric.compute(predictions=rows, references=references, **options)
    assert of_options["threshold"] == found.threshold
    assert of_options["coverage_at_risk/0.1_low"] == results["coverage_at_risk/0.1_low"]
    json.dumps(results, allow_nan=False)
    missing = metric.compute(predictions=confidences, correct=correct, target_accuracy=0.995)
    assert not [key for key in missing if key.startswith("threshold") and key != "threshold_questions_needed"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_accuracy": 0.9}, "there are 20 questions; .* needs at least 29"),
        ({"target_accuracy": 1.5}, r"`target_accuracy` must lie in \(0, 1\)"),
        ({"target_accuracy": 0.8, "sample_weight": [1] * 20}, "does not go with `sample_weight`"),
        ({"risks": [2]}, r"`risk` must lie in \[0, 1\]"),
        ({"coverages": 0}, r"`coverage` must lie in \(0, 1\]"),
    ],
)
def test_wrong_decisions(metric, options, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[0.9] * 20, correct=[True] * 20, **options)
