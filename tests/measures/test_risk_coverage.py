"""Risk-coverage curve and its areas, against slow versions and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hf_calib.measures.calibration_error import confidence_report
from hf_calib.measures.risk_coverage import risk_coverage, selective_report


def slow_curve(confidences, correct, weights):
    """(threshold, coverage, risk) of every confidence, straight from the definition."""
    rows = []
    for threshold in sorted(set(confidences), reverse=True):
        answered = confidences >= threshold
        share = weights[answered].sum() / weights.sum()
        rows.append((threshold, share, (weights * (1 - correct))[answered].sum() / weights[answered].sum()))
    return np.array(rows).T


examples = st.lists(
    st.tuples(st.integers(0, 8), st.booleans(), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=30
)


@given(examples)
def test_curve_is_the_definition(rows):
    confidences, correct, weights = np.array(rows, float).T
    confidences /= 8
    curve = risk_coverage(confidences, correct, weights)
    np.testing.assert_allclose(
        [curve.thresholds, curve.coverage, curve.risk], slow_curve(confidences, correct, weights)
    )
    for level in (0.0, 0.2, 0.5, 1.0):
        point = curve.coverage_at_risk(level)
        within = curve.risk <= level + 1e-12
        assert point.coverage == (curve.coverage[within].max() if within.any() else 0)
        if level > 0:
            point = curve.risk_at_coverage(level)
            assert point.coverage == pytest.approx(min(c for c in curve.coverage if c >= level - 1e-12))


@given(examples)
def test_areas_are_means_over_random_orders_of_ties(rows):
    """Each row on its own, with the mean error of its ties, is one step of the curve."""
    confidences, correct, _ = np.array(rows, float).T
    order = np.argsort(-confidences, kind="stable")
    mean_error = {c: 1 - correct[confidences == c].mean() for c in confidences}
    errors = np.array([mean_error[c] for c in confidences[order]])
    n = np.arange(1, len(errors) + 1)
    aurc = (np.cumsum(errors) / n).mean()
    best = (np.cumsum(np.sort(1 - correct)) / n).mean()
    curve = risk_coverage(confidences / 8, correct)
    assert curve.aurc == pytest.approx(aurc) and curve.e_aurc == pytest.approx(aurc - best)
    assert curve.augrc == pytest.approx(((np.cumsum(errors) - errors / 2) / len(n)).mean())


@pytest.mark.parametrize("weighted", [False, True])
def test_augrc_follows_from_auroc_and_accuracy(weighted):
    """Traub et al. (2024), eq. 7: AUGRC = (1 - AUROC) acc (1 - acc) + (1 - acc)^2 / 2."""
    rng = np.random.default_rng(0)
    confidences = rng.integers(20, size=500) / 20
    correct = rng.random(500) < confidences
    weights = rng.random(500) if weighted else None
    accuracy = np.average(correct, weights=weights)
    auroc = roc_auc_score(correct, confidences, sample_weight=weights)
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert risk_coverage(confidences, correct, weights).augrc == pytest.approx(expected)


def test_equal_weights_change_nothing():
    rng = np.random.default_rng(1)
    confidences, correct = rng.integers(9, size=200) / 10, rng.random(200) < 0.7
    plain, weighted = risk_coverage(confidences, correct), risk_coverage(confidences, correct, np.full(200, 0.3))
    for name in ("aurc", "e_aurc", "augrc"):
        assert getattr(weighted, name) == pytest.approx(getattr(plain, name))


def test_perfect_order_has_no_excess():
    assert risk_coverage([0.9, 0.8, 0.3, 0.2], [1, 1, 0, 0]).e_aurc == pytest.approx(0)
    assert risk_coverage([0.9, 0.8], [1, 1]).e_aurc == 0 and risk_coverage([0.9, 0.8], [0, 0]).e_aurc == 0


def test_no_threshold_within_the_risk():
    point = risk_coverage([0.9, 0.8], [0, 1]).coverage_at_risk(0.1)
    assert point.coverage == 0 and point.threshold == np.inf and np.isnan(point.risk)


def test_intervals_hold_the_truth():
    """300 samples of 200 from a known population: the 95% intervals miss in at most 10%."""
    rng = np.random.default_rng(2)
    population = rng.beta(4, 2, 200_000).round(2)
    right = rng.random(len(population)) < population**1.5
    keys = {"aurc", "e_aurc", "augrc", "coverage_at_risk/0.1", "risk_at_coverage/0.5"}
    truth = selective_report(population, right, risks=[0.1], coverages=[0.5], n_bootstrap=1)
    misses = dict.fromkeys(keys, 0)
    for seed in range(300):
        rows = rng.integers(len(population), size=200)
        report = selective_report(
            population[rows], right[rows], risks=[0.1], coverages=[0.5], n_bootstrap=200, seed=seed
        )
        for key in keys:
            misses[key] += not report[f"{key}_low"] <= truth[key] <= report[f"{key}_high"]
    assert max(misses.values()) <= 30, misses


def test_aurc_has_the_interval_of_the_calibration_report():
    rng = np.random.default_rng(4)
    confidences, weights = rng.random(100).round(1), rng.uniform(0.5, 2, 100)
    correct = rng.random(100) < confidences
    selective, report = (
        selective_report(confidences, correct, weights),
        confidence_report(confidences, correct, weights),
    )
    assert [selective[f"aurc{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [report[f"aurc{end}"] for end in ("", "_low", "_high")]
    )


def test_groups_and_zero_weights():
    rng = np.random.default_rng(3)
    confidences, correct = rng.random(60), rng.random(60) < 0.5
    groups, weights = np.array(["a", "b", "c"] * 20), np.tile([1.0, 1.0, 0.0], 20)
    report = selective_report(confidences, correct, weights, groups, n_bootstrap=10)
    alone = selective_report(confidences[groups == "b"], correct[groups == "b"], n_bootstrap=10)
    assert report["n"] == 40 and not any(key.startswith("group/c") for key in report)
    assert {key: report[f"group/b/{key}"] for key in alone} == pytest.approx(alone)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: risk_coverage([0.5], [1]).coverage_at_risk(1.5), "`risk` must lie in"),
        (lambda: risk_coverage([0.5], [1]).risk_at_coverage(0), "`coverage` must lie in"),
        (lambda: risk_coverage([0.5], [2]), "`correct` row 0"),
        (lambda: selective_report([0.5], [1], groups=["a", "b"]), "one group per row"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
