"""Importance weights: what they mean, for every measure of a report."""

import numpy as np
import pytest
from samples import make

from hf_calib.measures import chunks, selective, validation
from hf_calib.measures.calibration_error import (
    StreamingCalibration,
    aurc,
    brier_score,
    calibration_report,
    classwise_calibration_error,
    confidence_report,
    debiased_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    negative_log_likelihood,
    smooth_calibration_error,
    sweep_calibration_error,
    top_label,
)


MEASURES = {
    expected_calibration_error: "ece",
    maximum_calibration_error: "mce",
    classwise_calibration_error: "cw_ece",
    debiased_calibration_error: "debiased_ece",
    sweep_calibration_error: "ece_sweep",
    smooth_calibration_error: "smooth_ece",
    brier_score: "brier",
    negative_log_likelihood: "nll",
}


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_weights_of_zero_and_one_choose_rows(binning):
    probabilities, labels, target = make(n=900)
    probabilities = np.round(probabilities, 2)  # ties
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    kept = np.random.default_rng(3).random(900) < 0.6
    options = {"binning": binning, "n_bootstrap": 50}
    report = calibration_report(probabilities, labels, target, sample_weight=kept, **options)
    chosen = calibration_report(probabilities[kept], labels[kept], target[kept], **options)
    assert report == pytest.approx(chosen, abs=1e-12)
    confidences, correct = top_label(probabilities, labels)
    report = confidence_report(confidences, correct, sample_weight=kept, **options)
    assert report == pytest.approx({key: chosen[key] for key in report}, abs=1e-12)
    if binning == "equal_width":
        assert aurc(confidences, correct, kept) == pytest.approx(chosen["aurc"])
        for measure, key in MEASURES.items():
            assert measure(probabilities, labels, sample_weight=kept) == pytest.approx(chosen[key], abs=1e-12)


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_only_ratios_of_weights_matter(binning):
    probabilities, labels, target = make(n=900)
    options = {"binning": binning, "n_bootstrap": 50}
    weights = np.random.default_rng(4).exponential(size=900)
    report = calibration_report(probabilities, labels, target, sample_weight=weights, **options)
    scaled = calibration_report(probabilities, labels, target, sample_weight=weights * 3e-7, **options)
    assert scaled == pytest.approx(report, abs=1e-9)
    plain = calibration_report(probabilities, labels, target, **options)
    equal = calibration_report(probabilities, labels, target, sample_weight=np.full(900, 0.1), **options)
    assert equal == pytest.approx(plain, abs=1e-9)
    assert report["ece"] != pytest.approx(plain["ece"], abs=1e-4)


@pytest.mark.parametrize("scale", [1e-170, 1e-308])
@pytest.mark.filterwarnings("error")
def test_weights_whose_squares_are_zero(scale):
    probabilities, labels, target = make(n=300)
    weights = np.random.default_rng(4).uniform(0.5, 1.5, 300)
    report = calibration_report(probabilities, labels, target, n_bootstrap=50, sample_weight=weights)
    tiny = calibration_report(probabilities, labels, target, n_bootstrap=50, sample_weight=weights * scale)
    assert tiny == pytest.approx(report, abs=1e-9)
    one_of_all = [*weights[1:], scale]  # next to nothing beside the others
    without = calibration_report(probabilities[:-1], labels[:-1], target[:-1], sample_weight=weights[1:])
    assert calibration_report(probabilities, labels, target, sample_weight=one_of_all) == pytest.approx(without)
    # of batches nobody knows the largest weight yet
    with pytest.raises(ValueError, match=r"`sample_weight` row 299 is 1e-\d+: .*at least 1e-100"):
        StreamingCalibration().update(probabilities, labels, sample_weight=one_of_all)


@pytest.mark.filterwarnings("error")
def test_any_span_of_weights_gives_a_report():
    probabilities, labels, target = make(n=400)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weights = 10.0 ** rng.uniform(*np.sort(rng.uniform(-300, 100, 2)), 400)
        report = calibration_report(probabilities, labels, target, n_bootstrap=5, sample_weight=weights)
        values = np.array([report[key] for key in report if key != "auroc"])
        assert np.isfinite(values).all() and (values[values != report["overconfidence"]] >= 0).all()
        StreamingCalibration().update(probabilities, labels, np.maximum(weights, 1e-100)).report(n_bootstrap=5)


def test_whole_weights_repeat_rows():
    probabilities, labels, target = make(n=500)
    weights = np.random.default_rng(5).integers(0, 4, 500)
    options = {"n_bootstrap": 20}
    report = calibration_report(probabilities, labels, target, sample_weight=weights, **options)
    repeated = calibration_report(*(np.repeat(x, weights, axis=0) for x in (probabilities, labels, target)), **options)
    means = set(report) - {"n", "ece_noise_floor", "ece_noise_floor_p95", "ece_p_value"}
    means = {key for key in means if not key.endswith(("_low", "_high"))}
    # what knows how many examples there are differs: three rows tell more than one of weight 3
    for key in means - {"n_effective", "debiased_ece", "ece_sweep", "aurc", "e_aurc"}:
        assert report[key] == pytest.approx(repeated[key], abs=1e-9), key
    assert report["aurc"] == pytest.approx(repeated["aurc"], abs=2e-3)


def test_weights_move_the_sample_to_another_population():
    """Questions of two kinds in equal shares, weighted to nine in ten of the one: the ECE of that mixture."""
    (easy, easy_labels, _), (hard, hard_labels, _) = (
        make(n=20_000, sharpness=0.8),
        make(n=20_000, sharpness=2.5, seed=1),
    )
    both, labels = np.concatenate([easy, hard]), np.concatenate([easy_labels, hard_labels])
    weights = np.repeat([9.0, 1.0], 20_000)
    weighted = expected_calibration_error(both, labels, sample_weight=weights)
    drawn = np.concatenate([np.arange(20_000), 20_000 + np.arange(2222)])
    assert weighted == pytest.approx(expected_calibration_error(both[drawn], labels[drawn]), abs=0.01)
    assert abs(weighted - expected_calibration_error(both, labels)) > 0.02


def test_chunks_leave_no_trace(monkeypatch):
    probabilities, labels, _ = make(n=300, k=3)
    weights = np.random.default_rng(6).integers(0, 3, 300)
    weights[40:80] = 0  # whole chunks of nothing
    whole = calibration_report(probabilities, labels, n_bootstrap=20, sample_weight=weights)
    for module in (chunks, validation):
        monkeypatch.setattr(module, "CHUNK_ROWS", (7, 7))
    monkeypatch.setattr(selective, "_BLOCK", 7)
    assert calibration_report(probabilities, labels, n_bootstrap=20, sample_weight=weights) == pytest.approx(whole)
