"""Group by group: what looking at many subjects costs, and that it is counted."""

import numpy as np
import pytest

from hf_calib.evaluation.evaluate import evaluate_confidences, evaluate_probabilities, group_results, groups_of, holm


def calibrated(rng, n):
    confidences = rng.uniform(0.3, 1.0, n)
    return confidences, (rng.uniform(size=n) < confidences).astype(float)


def test_holm():
    # by hand: .01 * 3, then .02 * 2, then .5, never falling
    assert holm({"a": 0.02, "b": 0.5, "c": 0.01}) == pytest.approx({"c": 0.03, "a": 0.04, "b": 0.5})
    assert holm({"a": 0.04, "b": 0.03}) == pytest.approx({"a": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0


def test_many_groups_of_a_calibrated_model():
    """Uncorrected, some of 57 subjects always look miscalibrated; corrected, hardly ever does one."""
    accused, uncorrected = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        confidences, correct = calibrated(rng, 57 * 40)
        results = group_results(confidences, correct, np.arange(57 * 40) % 57, n_bootstrap=200)
        accused += results["n_groups_miscalibrated"] > 0
        uncorrected += sum(group["ece_p_value"] < 0.05 for group in groups_of(results).values())
    assert accused <= 4  # of 20 with at most .05 each: more has a chance of 1 in 400
    assert 20 <= uncorrected <= 100  # 57 expected


def test_one_bad_group_among_many_is_found():
    rng = np.random.default_rng(0)
    confidences, correct = calibrated(rng, 57 * 100)
    groups = np.arange(57 * 100) % 57
    bad = groups == 5
    correct[bad] = rng.uniform(size=bad.sum()) < confidences[bad] - 0.3
    results = group_results(confidences, correct, groups, n_bootstrap=100)
    # as few as 100 simulations could never reject among 57 groups; they are repeated
    assert results["group/5/ece_p_value_holm"] < 0.05
    assert results["n_groups_miscalibrated"] == 1
    assert sum(group["n"] for group in groups_of(results).values()) == 5700


def test_names_of_groups():
    confidences, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 0.0, 1.0, 1.0])
    results = group_results(confidences, correct, ["a/b", "a/b", "é", None], n_bootstrap=20)
    assert list(groups_of(results)) == ["None", "a/b", "é"]
    assert groups_of(results)["a/b"]["n"] == 2


def test_groups_without_weight_are_left_out():
    confidences, correct = np.array([0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0])
    results = group_results(confidences, correct, ["a", "a", "b"], sample_weight=[1, 1, 0], n_bootstrap=20)
    assert list(groups_of(results)) == ["a"]


def test_wrong_length():
    with pytest.raises(ValueError, match="one name per row"):
        evaluate_confidences([0.9, 0.8], [1, 0], groups=["a"])


def test_a_given_critical_accuracy_goes_before_the_target():
    rng = np.random.default_rng(0)
    target = rng.dirichlet([1.0, 1.0], 100)
    labels = rng.integers(2, size=100)
    results = evaluate_probabilities(
        target, labels, target_probabilities=target, critical_accuracy=0.3, n_bootstrap=20
    )
    assert results["critical_accuracy"] == 0.3 and results["tce"] == pytest.approx(0.0, abs=1e-12)


def test_rows_know_their_number_of_options():
    """Chance is one in two where there are two options, whatever other questions have."""
    rows = [[0.6, 0.4]] * 400 + [[0.4, 0.2, 0.2, 0.2]]
    labels = [0] * 150 + [1] * 250 + [0]  # .375 of questions with two options: worse than guessing
    assert evaluate_probabilities(rows, labels, n_bootstrap=20)["regime"] == "non-calibratable"
    padded = np.zeros((401, 4))
    padded[:400, :2], padded[400] = rows[0], rows[400]
    assert evaluate_probabilities(padded, labels, n_bootstrap=20)["regime"] != "non-calibratable"
