"""Post-hoc calibrators: the optimum is reached, accuracy is kept, files come back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from hf_calib.calibration_error import expected_calibration_error, negative_log_likelihood
from hf_calib.posthoc import PostHocCalibrator, TemperatureIsotonic, TemperatureScaling, set_confidence, softmax


def make(n=2000, k=4, temperature=3.0, seed=0, padding=False):
    """Logits that are `temperature` times too large; with padding, every third row has one option less."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 1.5
    if padding:
        logits[::3, -1] = -np.inf
    labels = (softmax(logits).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return logits * temperature, labels


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 19.0])
def test_temperature_is_the_best_on_a_grid(temperature, padding):
    logits, labels = make(temperature=temperature, padding=padding)
    calibrator = TemperatureScaling().fit(logits, labels)
    assert calibrator.temperature[0] == pytest.approx(temperature, rel=0.1)
    reached = negative_log_likelihood(calibrator.transform(logits), labels)
    grid = [negative_log_likelihood(softmax(logits / t), labels) for t in np.geomspace(0.05, 50, 400)]
    assert reached <= min(grid) + 1e-12


def test_temperature_agrees_with_scipy():
    logits, labels = make(n=300)
    found = optimize.minimize_scalar(
        lambda log_t: negative_log_likelihood(softmax(logits / np.exp(log_t)), labels),
        bounds=(-3, 4),
        options={"xatol": 1e-10},
    )
    assert np.log(TemperatureScaling().fit(logits, labels).temperature[0]) == pytest.approx(found.x, abs=1e-4)


@pytest.mark.parametrize("kind", [TemperatureScaling, TemperatureIsotonic])
@pytest.mark.parametrize("padding", [False, True])
def test_calibrators_repair_and_keep_the_predictions(kind, padding):
    calibrator = kind().fit(*make(seed=1, padding=padding))
    logits, labels = make(n=5000, seed=2, padding=padding)
    before, after = softmax(logits), calibrator.transform(logits)
    assert expected_calibration_error(before, labels) > 0.15
    assert expected_calibration_error(after, labels) < 0.04
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
    assert (after[np.isneginf(logits)] == 0).all()


def test_isotonic_repairs_what_no_temperature_can():
    """Confidence that means nothing above a point: one temperature leaves an error, the isotonic step does not."""

    def uneven(seed):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(8000, 4)) * 3
        chance = np.where(softmax(logits).max(axis=1) > 0.8, 0.6, 0.55)
        labels = logits.argmax(axis=1)
        wrong = rng.random(8000) > chance
        labels[wrong] = (labels[wrong] + rng.integers(1, 4, wrong.sum())) % 4
        return logits, labels

    test, labels = uneven(2)
    errors = {
        kind: expected_calibration_error(kind().fit(*uneven(1)).transform(test), labels)
        for kind in (TemperatureScaling, TemperatureIsotonic)
    }
    assert errors[TemperatureIsotonic] < 0.03 < errors[TemperatureScaling]


@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.1, 300))
@settings(max_examples=60, deadline=None)
def test_set_confidence_keeps_the_ranking(seed, k, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(20, k)) * scale
    probabilities = set_confidence(logits, rng.random(20))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))
    for row, values in zip(logits, probabilities, strict=True):
        assert (np.diff(values[np.argsort(row)]) >= -1e-15).all()
    np.testing.assert_array_equal(probabilities.astype(np.float32).argmax(axis=1), logits.argmax(axis=1))


@pytest.mark.parametrize("kind", [TemperatureScaling, TemperatureIsotonic])
def test_saved_and_loaded(kind, tmp_path):
    logits, labels = make(n=200)
    calibrator = kind().fit(logits, labels)
    calibrator.save(tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new/folder/calibrator.json").read_text())["method"] == kind.method
    for loader in (kind, PostHocCalibrator):
        loaded = loader.load(tmp_path / "new" / "folder")
        assert type(loaded) is kind
        np.testing.assert_array_equal(loaded.transform(logits), calibrator.transform(logits))


def test_load_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="calibrator.json"):
        TemperatureScaling.load(tmp_path)
    TemperatureScaling().fit(*make(n=100)).save(tmp_path)
    with pytest.raises(ValueError, match="'temperature', which TemperatureIsotonic cannot load"):
        TemperatureIsotonic.load(tmp_path)


@pytest.mark.parametrize(
    ("labels", "limit", "message"), [([0, 1], "low", "never wrong"), ([1, 0], "high", "no better than uniform")]
)
def test_no_best_temperature_is_said(labels, limit, message):
    with pytest.warns(UserWarning, match=message):
        calibrator = TemperatureScaling().fit([[2.0, 0.0], [0.0, 2.0]], labels)
    assert (calibrator.temperature[0] < 0.01) == (limit == "low")
    assert np.isfinite(calibrator.transform([[1e4, -1e4]])).all()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, 1.0], [float("nan"), 0.0]], [0, 0], "row 1, option 0 is nan"),
        ([[0.0, float("inf")]], [0], "row 0, option 1 is inf"),
        ([[0.0, float("-inf")]], [0], "row 0 has fewer than two options"),
        ([[0.0, 1.0, float("-inf")]], [2], "`labels` row 0 is 2, an option whose logit is -inf"),
        ([[0.0, 1.0]], [2], r"outside \[0, 2\)"),
        ([[0.0, 1.0]], [0, 1], "2 entries for 1 rows"),
        ([], [], "empty"),
        ([0.0, 1.0], [0], r"shape \(N, K\)"),
    ],
)
def test_bad_input_is_named(logits, labels, message):
    for kind in (TemperatureScaling, TemperatureIsotonic):
        with pytest.raises(ValueError, match=message):
            kind().fit(logits, labels)


def test_transform_before_fit_is_an_error():
    with pytest.raises(RuntimeError, match="not fitted"):
        TemperatureScaling().transform([[0.0, 1.0]])
