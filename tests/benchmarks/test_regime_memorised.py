"""The regime of models whose labels do not follow the target: below the critical accuracy, and off what it allows."""

import numpy as np
import pytest
from scipy import stats

from hf_calib.regime.accuracy_tests import paired_test
from hf_calib.regime.classify import classify_regime


def guessing_but_for(share, n=5000, seed=0):
    """Knows a share of the labels and guesses the others: below the critical accuracy, above what the target allows."""
    rng = np.random.default_rng(seed)
    target = rng.dirichlet(np.full(4, 0.5), n)
    labels = (target.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    prediction = np.where(rng.random(n) < share, labels, rng.integers(0, 4, n))
    return 0.05 + 0.8 * np.eye(4)[prediction], labels, target


def powered(probabilities, power):
    return probabilities**power / (probabilities**power).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("known", ["target_probabilities", "reference_probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
def test_partly_memorised(known, weighted):
    model, labels, target = guessing_but_for(0.3)
    weights = np.random.default_rng(1).gamma(2.0, size=len(labels)) if weighted else None
    report = classify_regime(model, labels, **{known: target}, sample_weight=weights)
    assert (report.regime, report.recommended_method) == ("target-contradicted", "rcft")
    allowed = np.average(target[np.arange(len(labels)), model.argmax(axis=1)], weights=weights)
    assert report.expected_accuracy == pytest.approx(allowed) and report.expected_accuracy_p_value < 1e-6
    assert "memorised" in report.explanation and f"{report.accuracy - allowed:.3f};" in report.explanation
    assert ("with the reference as the target" in report.explanation) == (known == "reference_probabilities")
    if known == "target_probabilities":
        assert report.sum_lower_bound == pytest.approx(report.accuracy - allowed)
        assert report.ece + report.tce >= report.sum_lower_bound > 0.1
    honest = guessing_but_for(0.0)
    report = classify_regime(honest[0], honest[1], **{known: honest[2]}, sample_weight=weights)
    assert (report.regime, report.recommended_method) == ("calibratable", "cft")
    assert report.expected_accuracy_p_value > 0.05 and "memorised" not in report.explanation


def test_partly_memorised_by_the_paired_test():
    model, labels, target = guessing_but_for(0.05, n=400)
    allowed = target[np.arange(400), model.argmax(axis=1)]
    test = paired_test((model.argmax(axis=1) == labels).astype(float), allowed, 0.025)
    report = classify_regime(model, labels, target)
    assert report.expected_accuracy_p_value == pytest.approx(2 * min(test.p_above, test.p_below))
    assert report.expected_accuracy_detectable == test.detectable


@pytest.mark.parametrize("weighted", [False, True])
def test_a_target_that_the_labels_contradict(weighted):
    """Half of the answers are right where the target says nine in ten: T = ACC* = .9."""
    n = 1000
    target = np.tile([0.9, 0.1], (n, 1))
    labels = (np.arange(n) % 2 == 0).astype(int)
    labels[:6] = 0
    weights = np.random.default_rng(0).uniform(0.5, 1.5, n) if weighted else None
    report = classify_regime(target, labels, target, sample_weight=weights)
    assert report.expected_accuracy == pytest.approx(0.9) and report.critical_accuracy == pytest.approx(0.9)
    assert abs(report.accuracy - 0.503) < (0.03 if weighted else 1e-9)
    assert (report.regime, report.recommended_method) == ("target-contradicted", "rcft")
    assert report.expected_accuracy_p_value < 1e-6
    assert "target is wrong" in report.explanation and "CFT is the method" not in report.explanation
    # a given critical accuracy decides about ACC*, and the target still about T
    both = classify_regime(target, labels, target, critical_accuracy=0.95, sample_weight=weights)
    assert (both.regime, both.test) == ("target-contradicted", "critical_accuracy")


def test_contradiction_by_a_reference():
    """A reference is contradicted where the models differ, and not where it is only too confident."""
    rng = np.random.default_rng(3)
    n = 2000
    reference = np.where(np.arange(n)[:, None] % 2, [0.6, 0.4], [0.45, 0.55])
    swapped = reference[:, ::-1]
    labels = np.where(rng.random(n) < 0.95, reference.argmax(axis=1), 1 - reference.argmax(axis=1))
    wrong = classify_regime(swapped, labels, reference_probabilities=reference)
    assert wrong.regime == "target-contradicted" and "reference is wrong" in wrong.explanation
    sure = np.where(reference > 0.5, 0.99, 0.01)
    same = classify_regime(sure, labels, reference_probabilities=sure)
    assert same.regime != "target-contradicted"


@pytest.mark.parametrize("known", ["target_probabilities", "reference_probabilities"])
def test_honest_models_are_rarely_said_to_have_memorised(known):
    rng = np.random.default_rng(5)
    runs, accused = 200, 0
    for seed in range(runs):
        _, labels, target = guessing_but_for(0.0, n=200, seed=seed)
        model = powered(np.maximum(target, 1e-9) * rng.gamma(1.0, size=target.shape), 2.0)
        accused += classify_regime(model, labels, **{known: target}).expected_accuracy_p_value < 0.05
    assert accused <= stats.binom.ppf(0.999, runs, 0.06)


def test_an_underconfident_reference_accuses_nobody():
    """It gives too little to its own predictions, which the model shares, and too much to those that it does not."""
    _, labels, target = guessing_but_for(0.0, n=4000, seed=11)
    flat = powered(target, 0.5)
    model = np.where(np.arange(4000)[:, None] % 3, np.roll(target, 1, axis=1), target)
    report = classify_regime(model, labels, reference_probabilities=flat)
    assert report.expected_accuracy_p_value > 0.05 and "memorised" not in report.explanation
