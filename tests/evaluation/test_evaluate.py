"""Evaluation: one validation, groups and their correction, precedence of options."""

from collections import Counter

import numpy as np
import pytest

from hf_calib.evaluation.evaluate import evaluate_confidences, evaluate_probabilities, group_results, groups_of, holm
from hf_calib.measures import checked, validation
from hf_calib.measures.paired import comparison_report
from hf_calib.measures.risk_coverage import selective_report


def calibrated(rng, n):
    confidences = rng.uniform(0.3, 1.0, n)
    return confidences, (rng.uniform(size=n) < confidences).astype(float)


@pytest.fixture
def validations(monkeypatch):
    """Number of calls of each check, and of rows that were checked."""
    counts = Counter()

    def count(module, name):
        original = getattr(module, name)

        def counted(*args, **kwargs):
            counts[name] += args[0].shape[1] if name == "_check_columns" else 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    for name in ("as_matrix", "as_labels", "as_weights", "as_outcomes"):
        for module in (validation, checked):
            count(module, name)
    count(validation, "_check_columns")
    return counts


@pytest.mark.parametrize("known", [None, "target_probabilities", "reference_probabilities"])
def test_inputs_are_validated_once(validations, known):
    rng = np.random.default_rng(0)
    probabilities, other = (rng.dirichlet([1.0] * 3, 300) for _ in range(2))
    given = {} if known is None else {known: other}
    weights, groups = rng.random(300), np.arange(300) % 2
    evaluate_probabilities(
        probabilities, rng.integers(3, size=300), **given, sample_weight=weights, groups=groups, n_bootstrap=20
    )
    arrays = 1 if known is None else 2
    assert validations == {"as_matrix": arrays, "_check_columns": 300 * arrays, "as_labels": 1, "as_weights": 1}


def test_confidences_are_validated_once(validations):
    evaluate_confidences([0.9, 0.8, 0.7], [1, 0, 1], num_options=4, groups=list("aab"), n_bootstrap=20)
    assert validations == {"as_outcomes": 1, "as_weights": 1}


def test_probabilities_are_not_copied():
    probabilities = np.random.default_rng(0).dirichlet([1.0] * 3, 300)
    predictions = checked.check_predictions(probabilities, np.zeros(300, dtype=int), other=probabilities)
    assert predictions.probabilities is probabilities and predictions.other.probabilities is probabilities


def test_holm():
    # .01 * 3, then .02 * 2, then .5, in ascending order
    assert holm({"a": 0.02, "b": 0.5, "c": 0.01}) == pytest.approx({"c": 0.03, "a": 0.04, "b": 0.5})
    assert holm({"a": 0.04, "b": 0.03}) == pytest.approx({"a": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0


def test_many_groups_of_a_calibrated_model():
    """Without the correction some of 57 groups have a small p-value, with it hardly ever one does."""
    rejected, uncorrected = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        confidences, correct = calibrated(rng, 57 * 40)
        results = group_results(confidences, correct, np.arange(57 * 40) % 57, n_bootstrap=200)
        rejected += results["n_groups_miscalibrated"] > 0
        uncorrected += sum(group["ece_p_value"] < 0.05 for group in groups_of(results).values())
    assert rejected <= 3  # of 10 with probability .05 each: more has a probability of 1 in 1,000
    assert 10 <= uncorrected <= 50  # 28 expected


def test_one_bad_group_among_many_is_found():
    rng = np.random.default_rng(0)
    confidences, correct = calibrated(rng, 57 * 100)
    groups = np.arange(57 * 100) % 57
    bad = groups == 5
    correct[bad] = rng.uniform(size=bad.sum()) < confidences[bad] - 0.3
    results = group_results(confidences, correct, groups, n_bootstrap=100)
    # 100 simulations cannot reject among 57 groups, so more are made
    assert results["group/5/ece_p_value_holm"] < 0.05
    assert results["n_groups_miscalibrated"] == 1
    assert sum(group["n"] for group in groups_of(results).values()) == 5700


def test_names_of_groups():
    confidences, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 0.0, 1.0, 1.0])
    results = group_results(confidences, correct, ["a/b", "a/b", "é", None], n_bootstrap=20)
    assert list(groups_of(results)) == ["None", "a/b", "é"]
    assert groups_of(results)["a/b"]["n"] == 2


@pytest.mark.parametrize("names", [("law", "law/other"), ("law/difference", "art"), ("a/n", "a"), ("", "other/b")])
def test_names_of_groups_like_measures(names):
    rng = np.random.default_rng(0)
    confidences, correct = rng.random(40), rng.integers(0, 2, 40)
    labels = np.repeat(names, 20)
    groups = groups_of(group_results(confidences, correct, labels, n_bootstrap=20))
    assert sorted(groups) == sorted(names)
    assert all(group["n"] == 20 and "ece" in group and len(group) == 11 for group in groups.values())


def test_names_of_groups_in_a_comparison():
    first, second, correct = [0.9, 0.8, 0.7, 0.6], [0.5, 0.6, 0.7, 0.8], [1, 0, 1, 1]
    labels = ["law/other", "law/other", "art", "art"]
    compared = comparison_report((first, correct), (second, correct), ["ece"], groups=labels, n_bootstrap=20)
    measured = group_results(first, correct, labels, n_bootstrap=20)
    for results in (compared, measured | compared):
        groups = groups_of(results)
        assert sorted(groups) == ["art", "law/other"]
        assert all({"other/ece", "difference/ece_low"} <= set(group) for group in groups.values())
    selective = groups_of(selective_report(first, correct, groups=np.array(labels), n_bootstrap=20))
    assert "coverage_at_risk/0.1_low" in selective["law/other"]


def test_groups_without_weight_are_left_out():
    confidences, correct = np.array([0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0])
    results = group_results(confidences, correct, ["a", "a", "b"], sample_weight=[1, 1, 0], n_bootstrap=20)
    assert list(groups_of(results)) == ["a"]


def test_wrong_length():
    with pytest.raises(ValueError, match="`groups`"):
        evaluate_confidences([0.9, 0.8], [1, 0], groups=["a"])


def test_given_critical_accuracy_takes_precedence():
    rng = np.random.default_rng(0)
    target = rng.dirichlet([1.0, 1.0], 100)
    labels = rng.integers(2, size=100)
    results = evaluate_probabilities(
        target, labels, target_probabilities=target, critical_accuracy=0.3, n_bootstrap=20
    )
    assert results["critical_accuracy"] == 0.3 and results["tce"] == pytest.approx(0.0, abs=1e-12)


def test_rows_of_different_lengths_keep_their_number_of_options():
    """The accuracy of guessing is 1/2 for two options, also beside questions with more."""
    rows = [[0.6, 0.4]] * 400 + [[0.4, 0.2, 0.2, 0.2]]
    labels = [0] * 150 + [1] * 250 + [0]  # .375 of questions with two options: worse than guessing
    assert evaluate_probabilities(rows, labels, n_bootstrap=20)["regime"] == "non-calibratable"
    padded = np.zeros((401, 4))
    padded[:400, :2], padded[400] = rows[0], rows[400]
    assert evaluate_probabilities(padded, labels, n_bootstrap=20)["regime"] != "non-calibratable"
