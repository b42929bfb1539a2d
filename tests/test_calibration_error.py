"""The calibration measures against torchmetrics, netcal, scikit-learn and ten-line references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from netcal.metrics import confidence as netcal
from sklearn import metrics
from torchmetrics import classification

from hf_calib.calibration_error import (
    aurc,
    bootstrap_interval,
    brier_decomposition,
    brier_score,
    calibration_report,
    classwise_calibration_error,
    confidence_auroc,
    debiased_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    negative_log_likelihood,
    noise_floor,
    reliability_bins,
    smooth_calibration_error,
    sweep_calibration_error,
    target_calibration_error,
    top_label,
)


REPORT_KEYS = (
    "n accuracy confidence overconfidence ece ece_low ece_high ece_noise_floor ece_noise_floor_p95 ece_p_value "
    "ece_equal_mass ece_sweep debiased_ece smooth_ece mce auroc aurc cw_ece nll brier brier_calibration "
    "brier_refinement"
).split()


def make(n=2000, k=4, sharpness=1.8, seed=0):
    """An overconfident model: labels come from softer probabilities (the target) than the ones it states."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k))
    target = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    stated = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum(axis=1, keepdims=True)
    labels = (target.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return stated, labels, target


def slow_ece(confidences, outcomes, n_bins=10):
    total = 0.0
    for b in range(n_bins):
        last = b == n_bins - 1
        held = [i for i, c in enumerate(confidences) if b / n_bins <= c and (c < (b + 1) / n_bins or last)]
        if held:
            total += abs(sum(confidences[i] for i in held) - sum(outcomes[i] for i in held))
    return total / len(confidences)


@st.composite
def predictions(draw, max_rows=60):
    n, k = draw(st.integers(1, max_rows)), draw(st.integers(2, 5))
    weights = draw(hnp.arrays(np.float64, (n, k), elements=st.floats(0, 1).map(lambda x: round(x, 3))))
    weights[weights.sum(axis=1) == 0] = 1.0
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    return weights / weights.sum(axis=1, keepdims=True), labels


# --- against other libraries ----------------------------------------------------------------------


@pytest.mark.parametrize("n_bins", [5, 10, 15])
@pytest.mark.parametrize("k", [2, 4, 10])
def test_agrees_with_torchmetrics(n_bins, k):
    probabilities, labels, _ = make(k=k, seed=n_bins)
    for norm, ours in (("l1", expected_calibration_error), ("max", maximum_calibration_error)):
        peer = classification.MulticlassCalibrationError(num_classes=k, n_bins=n_bins, norm=norm)
        expected = float(peer(torch.tensor(probabilities), torch.tensor(labels)))
        assert ours(probabilities, labels, n_bins=n_bins) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n_bins", [5, 10, 15])
def test_agrees_with_netcal(n_bins):
    probabilities, labels, _ = make(seed=n_bins)
    assert expected_calibration_error(probabilities, labels, n_bins) == pytest.approx(
        netcal.ECE(n_bins).measure(probabilities, labels), abs=1e-6
    )
    assert maximum_calibration_error(probabilities, labels, n_bins) == pytest.approx(
        netcal.MCE(n_bins).measure(probabilities, labels), abs=1e-6
    )


def test_agrees_with_scikit_learn():
    probabilities, labels, _ = make()
    probabilities = np.round(probabilities, 2)  # ties
    probabilities[:, 0] += 1 - probabilities.sum(axis=1)
    probabilities = np.clip(probabilities, 0.001, 1) / np.clip(probabilities, 0.001, 1).sum(axis=1, keepdims=True)
    confidences, correct = top_label(probabilities, labels)
    assert confidence_auroc(confidences, correct) == pytest.approx(metrics.roc_auc_score(correct, confidences))
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(metrics.log_loss(labels, probabilities))
    assert brier_score(probabilities, labels) == pytest.approx(
        metrics.brier_score_loss(labels, probabilities, labels=range(4), scale_by_half=False)
    )


def test_torchmetrics_puts_confidence_one_elsewhere():
    """Ours: a confidence of 1.0 shares the last bin. torchmetrics gives it a bin of its own (torchmetrics#3510)."""
    probabilities, labels = np.array([[1.0, 0.0], [0.95, 0.05]]), np.array([1, 0])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(abs(1.95 - 1) / 2)


# --- against slow references ----------------------------------------------------------------------


@given(predictions(), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_binned_errors_against_loops(data, n_bins):
    probabilities, labels = data
    confidences, correct = top_label(probabilities, labels)
    ece = expected_calibration_error(probabilities, labels, n_bins)
    assert ece == pytest.approx(slow_ece(confidences, correct, n_bins), abs=1e-9)
    mean_gap = abs(confidences.mean() - correct.mean())
    assert mean_gap - 1e-9 <= ece <= np.abs(confidences - correct).mean() + 1e-9
    assert ece <= maximum_calibration_error(probabilities, labels, n_bins) + 1e-9
    used = [k for k in range(probabilities.shape[1]) if probabilities[:, k].any() or (labels == k).any()]
    classwise = np.mean([slow_ece(probabilities[:, k], labels == k, n_bins) for k in used])
    assert classwise_calibration_error(probabilities, labels, n_bins) == pytest.approx(classwise, abs=1e-9)


def test_equal_mass_against_sorting():
    probabilities, labels, _ = make(n=1003)
    confidences, correct = top_label(probabilities, labels)
    order = np.argsort(confidences)
    parts = np.split(order, [b * 1003 // 7 for b in range(1, 7)])
    expected = sum(abs((confidences[part] - correct[part]).sum()) for part in parts) / 1003
    assert expected_calibration_error(probabilities, labels, 7, "equal_mass") == pytest.approx(expected)
    counts = reliability_bins(confidences, correct, 7, "equal_mass").counts
    assert counts.min() >= 143 and counts.sum() == 1003


def test_target_error_replaces_the_outcome():
    probabilities, labels, target = make()
    picked = target[np.arange(len(labels)), probabilities.argmax(axis=1)]
    expected = slow_ece(probabilities.max(axis=1), picked)
    assert target_calibration_error(probabilities, target) == pytest.approx(expected)
    assert target_calibration_error(target, target) == pytest.approx(0, abs=1e-12)


def test_sweep_against_loops():
    for seed in range(5):
        probabilities, labels, _ = make(n=300, seed=seed)
        confidences, correct = top_label(probabilities, labels)
        order = np.argsort(confidences)
        expected = None
        for n_bins in range(1, 301):
            parts = np.split(order, [b * 300 // n_bins for b in range(1, n_bins)])
            accuracy = [correct[part].mean() for part in parts]
            if accuracy != sorted(accuracy):
                break
            expected = sum(abs((confidences[part] - correct[part]).sum()) for part in parts) / 300
        assert sweep_calibration_error(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.2, 3.0])
def test_smooth_error_against_quadrature(sharpness):
    probabilities, labels, _ = make(n=400, sharpness=sharpness)
    confidences, correct = top_label(probabilities, labels)
    points = (np.arange(2000) + 0.5) / 2000

    def error(bandwidth):
        images = [confidences + 2 * m for m in range(-3, 4)] + [2 * m - confidences for m in range(-3, 4)]
        kernel = sum(np.exp(-(((points[:, None] - image) / bandwidth) ** 2) / 2) for image in images)
        kernel /= bandwidth * math.sqrt(2 * math.pi)
        return np.abs(kernel @ (correct - confidences) / len(correct)).mean()

    measured = smooth_calibration_error(probabilities, labels)
    assert error(measured) == pytest.approx(measured, abs=2e-5)  # the definition: bandwidth = its own error


def test_debiased_errors_against_references():
    probabilities, labels, _ = make(n=500, sharpness=1.1)
    bins = reliability_bins(*top_label(probabilities, labels))
    squared, noisy, rng = 0.0, 0.0, np.random.default_rng(0)
    for count, confidence, accuracy in zip(bins.counts, bins.confidence, bins.accuracy, strict=True):
        if count > 1:
            variance = accuracy * (1 - accuracy)
            squared += count / 500 * ((confidence - accuracy) ** 2 - variance / (count - 1))
        if count:
            draws = rng.normal(accuracy, math.sqrt(accuracy * (1 - accuracy) / count), size=400_000)
            noisy += count / 500 * np.abs(confidence - draws).mean()
    expected = math.sqrt(max(0, squared))
    assert debiased_calibration_error(probabilities, labels, norm="l2") == pytest.approx(expected)
    assert debiased_calibration_error(probabilities, labels) == pytest.approx(2 * bins.error - noisy, abs=3e-4)


def test_debiasing_takes_most_of_the_bias_out():
    runs = [make(n=500, sharpness=1.4, seed=seed)[:2] for seed in range(60)]
    truth = expected_calibration_error(*make(n=400_000, sharpness=1.4, seed=99)[:2])
    plain, debiased = (
        np.mean([measure(*run) for run in runs]) - truth
        for measure in (expected_calibration_error, debiased_calibration_error)
    )
    assert abs(debiased) < abs(plain)


@given(predictions())
@settings(max_examples=60, deadline=None)
def test_scores_against_definitions(data):
    probabilities, labels = data
    onehot = np.eye(probabilities.shape[1])[labels]
    brier = brier_score(probabilities, labels)
    assert brier == pytest.approx(((probabilities - onehot) ** 2).sum(axis=1).mean())
    split = brier_decomposition(probabilities, labels)
    assert split.calibration >= 0 and split.refinement >= 0
    assert split.calibration + split.refinement == pytest.approx(brier)
    picked = probabilities[np.arange(len(labels)), labels]
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(-np.log(np.maximum(picked, 1e-12)).mean())


@given(predictions())
@settings(max_examples=60, deadline=None)
def test_ranking_measures_against_pairs(data):
    confidences, correct = top_label(*data)
    right, wrong = confidences[correct == 1], confidences[correct == 0]
    if len(right) and len(wrong):
        wins = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
        assert confidence_auroc(confidences, correct) == pytest.approx(wins)
    else:
        assert math.isnan(confidence_auroc(confidences, correct))
    softened = [1 - correct[confidences == c].mean() for c in confidences]
    ordered = [error for _, error in sorted(zip(-confidences, softened, strict=True), key=lambda pair: pair[0])]
    curve = [np.mean(ordered[:m]) for m in range(1, len(ordered) + 1)]
    assert aurc(confidences, correct) == pytest.approx(np.mean(curve))


# --- properties -----------------------------------------------------------------------------------


@given(predictions(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_rows_may_come_in_any_order_and_padding_is_free(data, random):
    probabilities, labels = data
    order = list(range(len(labels)))
    random.shuffle(order)
    report = calibration_report(probabilities, labels, n_bootstrap=20)
    padded = np.hstack([probabilities[order], np.zeros((len(labels), 2))])
    other = calibration_report(padded, labels[order], n_bootstrap=20)
    assert list(report) == REPORT_KEYS
    for key in REPORT_KEYS:
        assert other[key] == pytest.approx(report[key], abs=1e-6, nan_ok=True), key
    assert report["ece_low"] <= report["ece"] <= report["ece_high"]
    assert 0 <= report["debiased_ece"] <= report["ece"] + 1e-12
    assert 0 <= report["smooth_ece"] <= 1


def test_mixed_option_counts_as_ragged_lists():
    ragged, padded = [[0.6, 0.4], [0.2, 0.3, 0.5]], [[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]]
    assert calibration_report(ragged, [0, 1], ragged) == calibration_report(padded, [0, 1], padded)


def test_report_with_a_target_and_in_single_precision():
    probabilities, labels, target = make()
    report = calibration_report(probabilities, labels, target, n_bootstrap=50)
    assert report["tce"] == target_calibration_error(probabilities, target)
    assert report["critical_accuracy"] == pytest.approx(target.max(axis=1).mean())
    single = calibration_report(probabilities.astype(np.float32), labels, target, n_bootstrap=50)
    assert all(single[key] == pytest.approx(report[key], abs=1e-4) for key in report)


# --- uncertainty ----------------------------------------------------------------------------------


def test_noise_floor_against_row_by_row_simulation():
    probabilities, labels, _ = make(n=400)
    confidences, correct = top_label(probabilities, labels)
    rng = np.random.default_rng(1)
    slow = [reliability_bins(confidences, (rng.random(400) < confidences).astype(float)).error for _ in range(2000)]
    floor = noise_floor(confidences, correct, n_simulations=4000)
    assert floor.mean == pytest.approx(np.mean(slow), rel=0.03)
    assert floor.p95 == pytest.approx(np.quantile(slow, 0.95), rel=0.04)
    assert floor.p_value < 0.001  # overconfident


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_noise_floor_p_value_is_uniform_for_a_calibrated_model(binning):
    p_values = []
    for seed in range(200):
        probabilities, labels, _ = make(n=300, sharpness=1.0, seed=seed)
        p_values.append(noise_floor(*top_label(probabilities, labels), binning=binning, n_simulations=199).p_value)
    assert np.mean(np.array(p_values) <= 0.05) < 0.11
    assert 0.4 < np.mean(p_values) < 0.6


def test_bootstrap_against_resampled_rows():
    """The interval from multinomial counts on cells is as wide as that from resampling rows."""
    probabilities, labels, _ = make(n=600)
    confidences, correct = top_label(probabilities, labels)
    rng = np.random.default_rng(2)
    draws = []
    for _ in range(2000):
        rows = rng.integers(0, 600, 600)
        draws.append(reliability_bins(confidences[rows], correct[rows]).error)
    centre, margin = debiased_calibration_error(probabilities, labels), 1.96 * np.std(draws)
    measured = bootstrap_interval(confidences, correct, n_bootstrap=4000)
    assert measured == pytest.approx((centre - margin, centre + margin), abs=0.002)


@pytest.mark.parametrize("sharpness", [1.0, 1.3, 2.0])
def test_interval_covers_the_true_error(sharpness):
    truth = 0.0 if sharpness == 1.0 else expected_calibration_error(*make(n=400_000, sharpness=sharpness, seed=9)[:2])
    covered = 0
    for seed in range(150):
        probabilities, labels, _ = make(n=500, sharpness=sharpness, seed=seed)
        low, high = bootstrap_interval(*top_label(probabilities, labels), n_bootstrap=200)
        covered += low <= truth <= high
    assert covered / 150 >= 0.86  # documented: 0.88 and more


def test_ten_million_rows_would_do():
    """A million here: the cost of 1,000 resamples does not depend on N, so the report stays within seconds."""
    rng = np.random.default_rng(0)
    confidences = 0.5 + rng.random(1_000_000) / 2
    correct = rng.random(1_000_000) < confidences
    low, high = bootstrap_interval(confidences, correct)
    assert low == 0 and high < 0.003


# --- edges ----------------------------------------------------------------------------------------


def test_confidence_one_and_zero_have_a_bin():
    bins = reliability_bins([0.0, 1.0, 1.0], [0, 1, 0])
    assert bins.counts[0] == 1 and bins.counts[-1] == 2 and bins.counts.sum() == 3
    assert math.isnan(bins.accuracy[5]) and bins.error == pytest.approx(1 / 3)


def test_borders_are_the_numbers_they_read_as():
    for b in range(1, 10):
        assert reliability_bins([b / 10], [1]).counts[b] == 1


def test_constant_confidence_and_one_outcome_only():
    report = calibration_report(np.full((50, 4), 0.25), np.zeros(50, dtype=int), n_bootstrap=50)
    assert report["ece"] == pytest.approx(0.75) == report["ece_equal_mass"] == report["ece_sweep"]
    assert math.isnan(report["auroc"]) and report["aurc"] == 0 and report["accuracy"] == 1
    certain = calibration_report([[1.0, 0.0]] * 20, [0] * 20, n_bootstrap=50)
    assert certain["ece"] == certain["ece_high"] == certain["nll"] == 0 and certain["ece_p_value"] == 1


def test_single_row():
    report = calibration_report([[0.7, 0.3]], [1], n_bootstrap=10)
    assert report["ece"] == pytest.approx(0.7) and report["n"] == 1


@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        ([[2.0, -1.0], [0.5, 0.5]], [0, 0], ValueError, r"row 0, option 1 is negative .*logits.*softmax"),
        ([[0.5, 0.5], [3.0, 1.0]], [0, 0], ValueError, r"row 1 sums to 4.*looks like logits"),
        ([[0.5, 0.5], [0.5, 0.4]], [0, 0], ValueError, r"row 1 sums to 0.9.*normalise"),
        ([[0.5, 0.5], [float("nan"), 0.5]], [0, 0], ValueError, "row 1, option 0 is NaN"),
        ([[0.5, 0.5], [float("-inf"), 0.5]], [0, 0], ValueError, "row 1, option 0 is infinite.*logits"),
        ([[0.5, 0.5]], [2], ValueError, r"`labels` row 0 is 2, outside \[0, 2\)"),
        ([[0.5, 0.5]], [-100], ValueError, "`labels` row 0 is -100"),
        ([[0.5, 0.5]], [0, 1], ValueError, "2 entries for 1 rows"),
        ([[0.5, 0.5]], [[1, 0]], ValueError, r"`labels` must have shape \(N,\)"),
        ([[0.5, 0.5]], [0.5], TypeError, "`labels` must be integers"),
        ([], [], ValueError, "empty"),
        ([[1.0]], [0], ValueError, "at least two options"),
        ([0.5, 0.5], [0, 1], ValueError, r"shape \(N, K\)"),
        ([["a", "b"]], [0], TypeError, "must be numbers"),
    ],
)
def test_bad_input_is_named(probabilities, labels, error, message):
    for measure in (expected_calibration_error, calibration_report, brier_score, classwise_calibration_error):
        with pytest.raises(error, match=message):
            measure(probabilities, labels)


def test_bad_options_are_named():
    good = [[0.5, 0.5]], [0]
    with pytest.raises(ValueError, match="`n_bins`"):
        expected_calibration_error(*good, n_bins=0)
    with pytest.raises(ValueError, match="`binning` must be one of"):
        expected_calibration_error(*good, binning="equal")
    with pytest.raises(ValueError, match="`norm`"):
        debiased_calibration_error(*good, norm="l3")
    with pytest.raises(ValueError, match="`n_bootstrap`|at least one"):
        calibration_report(*good, n_bootstrap=0)
    with pytest.raises(ValueError, match=r"`target_probabilities` has shape \(1, 3\)"):
        target_calibration_error([[0.5, 0.5]], [[0.5, 0.5, 0.0]])
    with pytest.raises(ValueError, match="`target_probabilities` row 0 sums"):
        target_calibration_error([[0.5, 0.5]], [[0.5, 0.4]])
    with pytest.raises(ValueError, match="`confidences` row 1"):
        confidence_auroc([0.5, 1.5], [0, 1])
    with pytest.raises(ValueError, match="zeros and ones"):
        noise_floor([0.5], [0.3])
