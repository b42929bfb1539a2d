"""Calibration measures against torchmetrics, netcal, uncertainty-calibration, relplot and short references."""

import math

import numpy as np
import pytest
import torch
from calibration import utils as uncertainty_calibration
from hypothesis import given, settings
from hypothesis import strategies as st
from netcal.metrics import confidence as netcal
from relplot import metrics as relplot
from relplot.kernels import ReflectedGaussianKernel
from samples import make, predictions, slow_ece
from torchmetrics import classification

from hf_calib.measures.calibration_error import (
    bootstrap_interval,
    calibration_report,
    classwise_calibration_error,
    confidence_auroc,
    debiased_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    noise_floor,
    reliability_bins,
    smooth_calibration_error,
    sweep_calibration_error,
    target_calibration_error,
    top_label,
)


REPORT_KEYS = (
    "n n_effective accuracy confidence overconfidence ece ece_low ece_high ece_noise_floor "
    "ece_noise_floor_p95 ece_p_value ece_equal_mass ece_sweep debiased_ece smooth_ece mce auroc auroc_low auroc_high "
    "aurc aurc_low aurc_high e_aurc augrc cw_ece nll nll_low nll_high brier brier_low brier_high brier_calibration "
    "brier_refinement"
).split()


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


@pytest.mark.parametrize(
    ("binning", "scheme"),
    [
        ("equal_width", uncertainty_calibration.get_equal_prob_bins),
        ("equal_mass", uncertainty_calibration.get_equal_bins),
    ],
)
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.8])
def test_agrees_with_uncertainty_calibration(binning, scheme, sharpness):
    probabilities, labels, _ = make(sharpness=sharpness)

    def peer(p, debias):
        return uncertainty_calibration.lower_bound_scaling_ce(
            probabilities, labels, p, debias, num_bins=10, binning_scheme=scheme, mode="top-label"
        )

    options = {"n_bins": 10, "binning": binning}
    assert expected_calibration_error(probabilities, labels, **options) == pytest.approx(peer(1, False), abs=1e-6)
    debiased = debiased_calibration_error(probabilities, labels, norm="l2", **options)
    assert debiased == pytest.approx(peer(2, True), abs=1e-6)
    if binning == "equal_mass":  # the peer raises for an empty bin, simulates the bias and permits negative results
        np.random.seed(0)
        debiased = debiased_calibration_error(probabilities, labels, **options)
        assert debiased == pytest.approx(max(0, np.mean([peer(1, True) for _ in range(10)])), abs=1e-3)


@pytest.mark.parametrize("sharpness", [0.7, 1.0, 1.2, 1.4])
def test_agrees_with_relplot(sharpness):
    probabilities, labels, _ = make(sharpness=sharpness)
    confidences, correct = top_label(probabilities, labels)
    measured = smooth_calibration_error(probabilities, labels)
    # by default the peer finds the bandwidth to 2^-10 and sums over 200 points, or 10 per bandwidth
    assert measured == pytest.approx(relplot.smECE(confidences, correct), abs=1e-3)
    # its kernel on a fine mesh, at our bandwidth: the error there is the bandwidth, which is the definition
    kernel, mesh = ReflectedGaussianKernel(measured), np.linspace(0, 1, 20_001)
    gap, mass = (
        kernel.apply(confidences, y, mesh, eval_points=16_384) for y in (confidences - correct, np.ones(len(correct)))
    )
    assert np.trapezoid(np.abs(gap)) / np.trapezoid(mass) == pytest.approx(measured, abs=1e-6)


def test_confidence_one_is_in_the_last_bin_unlike_torchmetrics():
    """torchmetrics puts a confidence of 1.0 into a bin of its own (torchmetrics#3510)."""
    probabilities, labels = np.array([[1.0, 0.0], [0.95, 0.05]]), np.array([1, 0])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(abs(1.95 - 1) / 2)
    peer = classification.MulticlassCalibrationError(num_classes=2, n_bins=10)
    assert float(peer(torch.tensor(probabilities), torch.tensor(labels))) == pytest.approx((1 + 0.05) / 2)


# --- against slow references ----------------------------------------------------------------------


@given(predictions(), st.integers(1, 20))
@settings(max_examples=100)
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


def test_target_error():
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


def test_debiasing_removes_most_of_the_bias():
    runs = [make(n=500, sharpness=1.4, seed=seed)[:2] for seed in range(60)]
    truth = expected_calibration_error(*make(n=400_000, sharpness=1.4, seed=99)[:2])
    plain, debiased = (
        np.mean([measure(*run) for run in runs]) - truth
        for measure in (expected_calibration_error, debiased_calibration_error)
    )
    assert abs(debiased) < abs(plain)


# --- properties -----------------------------------------------------------------------------------


@given(predictions(), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_order_of_rows_and_padding_do_not_matter(data, random):
    probabilities, labels = data
    order = list(range(len(labels)))
    random.shuffle(order)
    report = calibration_report(probabilities, labels, n_bootstrap=20)
    padded = np.hstack([probabilities[order], np.zeros((len(labels), 2))])
    other = calibration_report(padded, labels[order], n_bootstrap=20)
    assert list(report) == REPORT_KEYS
    for key in REPORT_KEYS:
        assert other[key] == pytest.approx(report[key], abs=1e-6, nan_ok=True), key
    assert report["ece_low"] - 1e-12 <= report["debiased_ece"] <= report["ece_high"] + 1e-12
    assert 0 <= report["debiased_ece"] <= report["ece"] + 1e-12
    assert 0 <= report["smooth_ece"] <= 1


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


def test_cost_of_draws_does_not_depend_on_n():
    """The draws cost the same for any N, so a report on a million rows takes seconds."""
    rng = np.random.default_rng(0)
    confidences = 0.5 + rng.random(1_000_000) / 2
    correct = rng.random(1_000_000) < confidences
    low, high = bootstrap_interval(confidences, correct)
    assert low == 0 and high < 0.003


# --- edges ----------------------------------------------------------------------------------------


def test_confidences_zero_and_one():
    bins = reliability_bins([0.0, 1.0, 1.0], [0, 1, 0])
    assert bins.counts[0] == 1 and bins.counts[-1] == 2 and bins.counts.sum() == 3
    assert math.isnan(bins.accuracy[5]) and bins.error == pytest.approx(1 / 3)


def test_bin_edges_are_exact():
    for b in range(1, 10):
        assert reliability_bins([b / 10], [1]).counts[b] == 1


def test_constant_confidence_and_outcome():
    report = calibration_report(np.full((50, 4), 0.25), np.zeros(50, dtype=int), n_bootstrap=50)
    assert report["ece"] == pytest.approx(0.75) == report["ece_equal_mass"] == report["ece_sweep"]
    assert math.isnan(report["auroc"]) and report["aurc"] == 0 and report["accuracy"] == 1
    certain = calibration_report([[1.0, 0.0]] * 20, [0] * 20, n_bootstrap=50)
    assert certain["ece"] == certain["ece_low"] == certain["nll"] == 0 and certain["ece_p_value"] == 1


def test_single_row():
    report = calibration_report([[0.7, 0.3]], [1], n_bootstrap=10)
    assert report["ece"] == pytest.approx(0.7) and report["n"] == 1


def test_bad_options_are_named():
    good = [[0.5, 0.5]], [0]
    with pytest.raises(ValueError, match="`n_bins`"):
        expected_calibration_error(*good, n_bins=0)
    with pytest.raises(ValueError, match="`binning`"):
        expected_calibration_error(*good, binning="equal")
    with pytest.raises(ValueError, match="`norm`"):
        debiased_calibration_error(*good, norm="l3")
    with pytest.raises(ValueError, match="`n_bootstrap`"):
        calibration_report(*good, n_bootstrap=0)
    with pytest.raises(ValueError, match="`target_probabilities`.* shape"):
        target_calibration_error([[0.5, 0.5]], [[0.5, 0.5, 0.0]])
    with pytest.raises(ValueError, match="`target_probabilities` row 0"):
        target_calibration_error([[0.5, 0.5]], [[0.5, 0.4]])
    with pytest.raises(ValueError, match="`confidences` row 1"):
        confidence_auroc([0.5, 1.5], [0, 1])
    with pytest.raises(ValueError, match="`correct` row 0"):
        noise_floor([0.5], [0.3])
