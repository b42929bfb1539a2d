"""Preference collapse: measures against numpy, intervals against the other reports, errors."""

import numpy as np
import pytest
from samples import make

from hf_calib.measures.calibration_error import calibration_report
from hf_calib.measures.preference_collapse import MEANINGS, PAIR_MEANINGS, collapse_report, pair_report


def test_measures_against_numpy():
    stated, labels, target = make(700, sharpness=6)
    report = collapse_report(stated, labels, target, n_bootstrap=50)
    entropy = -(stated * np.log(np.maximum(stated, 1e-300))).sum(axis=1) / np.log(4)
    counts = [np.bincount(a, minlength=4) / 700 for a in (stated.argmax(1), labels)]
    expected = {
        "accuracy": (stated.argmax(1) == labels).mean(),
        "confidence": stated.max(1).mean(),
        "overconfidence": stated.max(1).mean() - (stated.argmax(1) == labels).mean(),
        "normalized_entropy": entropy.mean(),
        "saturation": (stated.max(1) > 0.99).mean(),
        "position_shift": np.abs(counts[0] - counts[1]).sum() / 2,
        "kl_to_reference": (stated * (np.log(np.maximum(stated, 1e-12)) - np.log(target))).sum(1).mean(),
        "prediction_change": 0.0,
    }
    assert {name: report[name] for name in expected} == pytest.approx(expected)
    for name in MEANINGS:
        assert report[f"{name}_low"] <= report[f"{name}_high"]
    for name in expected.keys() - {"kl_to_reference", "prediction_change"}:
        assert report[f"change/{name}"] == pytest.approx(report[name] - report[f"reference/{name}"])
        assert report[f"change/{name}_low"] <= report[f"change/{name}"] <= report[f"change/{name}_high"]


def test_ece_and_interval_agree_with_calibration_report():
    stated, labels, _ = make(500)
    report, other = collapse_report(stated, labels, seed=3), calibration_report(stated, labels, seed=3)
    for key in ("n", "accuracy", "confidence", "overconfidence", "ece", "ece_low", "ece_high", "ece_noise_floor"):
        assert report[key] == pytest.approx(other[key]), key


def test_collapsed_model_against_reference():
    stated, labels, target = make(2000, sharpness=2.5)
    report = collapse_report(stated, labels, target)
    for name in ("confidence", "overconfidence", "saturation", "ece", "kl_to_reference"):
        assert report.get(f"change/{name}_low", report[f"{name}_low"]) > 0, name
    assert report["change/normalized_entropy_high"] < 0
    assert report["reference/ece"] < 2 * report["reference/ece_noise_floor"]
    itself = collapse_report(target, labels, target)
    assert all(
        value == 0 for key, value in itself.items() if key.startswith("change/") and key[-3:] not in ("low", "igh")
    )
    assert itself["kl_to_reference"] == itself["prediction_change"] == 0


def test_position_shift():
    labels = np.arange(400) % 4
    always_a = np.tile([0.4, 0.2, 0.2, 0.2], (400, 1))
    report = collapse_report(always_a, labels)
    assert report["position_shift"] == pytest.approx(0.75) and report["position_shift_low"] > 0.6
    fair = collapse_report(np.eye(4)[np.roll(labels, 1)], labels)
    assert fair["position_shift"] == 0 and fair["position_shift_noise_floor"] > 0.01


def test_questions_of_different_lengths():
    rows = [[0.5, 0.5], [0.25, 0.25, 0.25, 0.25]]
    assert collapse_report(rows, [0, 0])["normalized_entropy"] == pytest.approx(1)
    padded = np.array([[0.5, 0.5, 0, 0], [0.25] * 4])
    assert collapse_report(padded, [0, 0], num_options=[2, 4])["normalized_entropy"] == pytest.approx(1)
    assert collapse_report(padded, [0, 0])["normalized_entropy"] == pytest.approx(0.75)


def test_pairs():
    rng = np.random.default_rng(0)
    chosen = rng.uniform(size=500)
    report = pair_report(chosen, np.full(500, 0.5))
    assert report["accuracy"] == (chosen > 0.5).mean()
    assert report["confidence"] == pytest.approx(np.maximum(chosen, 1 - chosen).mean())
    assert report["saturation"] == (np.maximum(chosen, 1 - chosen) > 0.99).mean()
    assert report["tce"] == pytest.approx(report["confidence"] - 0.5)
    assert PAIR_MEANINGS.keys() <= report.keys()
    assert pair_report([0.5, 0.5])["accuracy"] == 0  # a tie counts as wrong


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda p, y: collapse_report(p, y, p[:-1]), "reference_probabilities"),
        (lambda p, y: collapse_report(p, y, p * 2), "reference_probabilities"),
        (lambda p, y: collapse_report(p, y, num_options=np.full(len(p), 5)), "num_options"),
        (lambda p, y: collapse_report(p, y + 9), "labels"),
        (lambda p, y: pair_report([0.2, 1.3]), "1.3"),
        (lambda p, y: pair_report([0.2], [0.2, 0.3]), "target_probabilities"),
    ],
)
def test_bad_input_is_named(call, named):
    stated, labels, _ = make(20)
    with pytest.raises(ValueError, match=named):
        call(stated, labels)


def test_fresh_randomness():
    report = collapse_report([[0.9, 0.1], [0.2, 0.8]], [0, 1], seed=None)
    assert report["ece"] == pytest.approx(0.15)
