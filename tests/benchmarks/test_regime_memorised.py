"""The regime of a model that has memorised some of the labels: below the critical accuracy, above what it may reach."""

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
    assert (report.regime, report.recommended_method) == ("calibratable", "rcft")
    allowed = np.average(target[np.arange(len(labels)), model.argmax(axis=1)], weights=weights)
    assert report.expected_accuracy == pytest.approx(allowed) and report.expected_accuracy_p_value < 1e-6
    assert "memorised" in report.explanation and f"{report.accuracy - allowed:.3f};" in report.explanation
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
    expected = paired_test((model.argmax(axis=1) == labels).astype(float), allowed, 0.05).p_above
    assert classify_regime(model, labels, target).expected_accuracy_p_value == expected


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
