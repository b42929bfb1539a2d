"""Accepted inputs, and errors that name the row at fault."""

import numpy as np
import pytest

from hf_calib.measures.calibration_error import (
    brier_score,
    calibration_report,
    classwise_calibration_error,
    confidence_report,
    expected_calibration_error,
)
from hf_calib.measures.checked import check_predictions
from hf_calib.measures.chunks import best_option
from hf_calib.measures.validation import as_outcomes, options_present, unpad


def test_ragged_lists():
    ragged, padded = [[0.6, 0.4], [0.2, 0.3, 0.5]], [[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]]
    assert calibration_report(ragged, [0, 1], ragged) == calibration_report(padded, [0, 1], padded)


@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        ([[2.0, -1.0], [0.5, 0.5]], [0, 0], ValueError, "row 0, option 1 .*softmax"),
        ([[0.5, 0.5], [3.0, 1.0]], [0, 0], ValueError, "row 1 .*softmax"),
        ([[0.5, 0.5], [0.5, 0.4]], [0, 0], ValueError, "row 1 .*normalise"),
        ([[0.5, 0.5], [float("nan"), 0.5]], [0, 0], ValueError, "row 1, option 0"),
        ([[0.5, 0.5], [float("-inf"), 0.5]], [0, 0], ValueError, "row 1, option 0 .*softmax"),
        ([[0.5, 0.5]], [2], ValueError, "`labels` row 0"),
        ([[0.5, 0.5]], [-100], ValueError, "`labels` row 0"),
        ([[0.5, 0.5]], [0, 1], ValueError, "`labels`"),
        ([[0.5, 0.5]], [[1, 0]], ValueError, "`labels`.* shape"),
        ([[0.5, 0.5]], [0.5], TypeError, "`labels`"),
        ([], [], ValueError, "`probabilities`"),
        ([[1.0]], [0], ValueError, "two options"),
        ([[0.5, 0.5], [1.0]], [0, 0], ValueError, "row 1 .* two options"),
        ([[0.5, 0.5], []], [0, 0], ValueError, "row 1 .* two options"),
        ([[0.5, 0.5]] * 2, [0, 0.5], TypeError, "`labels` .*row 1"),
        ([0.5, 0.5], [0, 1], ValueError, "`probabilities`.* shape"),
        ([["a", "b"]], [0], TypeError, "`probabilities` row 0, option 0 is 'a'"),
        ([["0.5", "0.5"], ["0.5", "half"]], [0, 0], TypeError, "row 1, option 1 is 'half'"),
        ([[0.5, 0.5], [0.5, None]], [0, 0], TypeError, "row 1, option 1 is None"),
        ([[0.5, 0.5], [0.2, 0.3, None]], [0, 0], TypeError, "row 1, option 2 is None"),
        ([[0.5, 0.5], None], [0, 0], ValueError, "row 1 is None"),
        ([[0.5, 0.5]] * 2, [0, None], TypeError, "`labels` .*row 1 is None"),
        ([[0.5, 0.5]] * 2, ["0", "1"], TypeError, "`labels` .*row 0 is '0'"),
    ],
)
def test_bad_input_is_named(probabilities, labels, error, message):
    for measure in (expected_calibration_error, calibration_report, brier_score, classwise_calibration_error):
        with pytest.raises(error, match=message):
            measure(probabilities, labels)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -1], "`sample_weight` row 1"),
        ([1, float("nan")], "`sample_weight` row 1"),
        ([float("inf"), 1], "`sample_weight` row 0"),
        ([0, 0], "`sample_weight`"),
        ([1, "much"], "`sample_weight` row 1 .*'much'"),
        ([1], "`sample_weight`.* shape"),
        ([[1, 1]], "`sample_weight`.* shape"),
    ],
)
def test_bad_weights_are_named(weights, message):
    for measure in (expected_calibration_error, calibration_report, brier_score, classwise_calibration_error):
        with pytest.raises(ValueError, match=message):
            measure([[0.5, 0.5], [0.4, 0.6]], [0, 1], sample_weight=weights)
    with pytest.raises(ValueError, match=message):
        confidence_report([0.5, 0.6], [0, 1], sample_weight=weights)


@pytest.mark.parametrize(
    ("confidences", "correct", "message"),
    [
        ([0.5, 1.2], [0, 1], "`confidences` row 1"),
        ([0.5, 1.00001], [0, 1], "`confidences` row 1 is 1.00001,"),
        ([0.5, None], [0, 1], "`confidences` row 1 is None"),
        (["0.5", "high"], [0, 1], "`confidences` row 1 is 'high'"),
        ([0.5, 0.5], [0, None], "`correct` row 1 is None"),
        ([0.5, float("nan")], [0, 1], "`confidences` row 1"),
        ([0.5, [0.5]], [0, 1], "`confidences` row 1"),
        ([0.5], [0, 1], "`confidences` .*`correct`"),
        ([0.5, 0.5], [0, 0.5], "`correct` row 1"),
        ([[0.5, 0.5]], [[0, 1]], "`confidences`.* shape"),
        ([], [], "`confidences`"),
    ],
)
def test_bad_confidences_are_named(confidences, correct, message):
    with pytest.raises(ValueError, match=message):
        confidence_report(confidences, correct)


def test_rounding_and_numbers_in_strings():
    rounded = confidence_report([1.0000001, -1e-9, 0.5], [1, 0, 1])
    assert rounded == confidence_report([1.0, 0.0, 0.5], [1, 0, 1])
    assert confidence_report(["1.0", "0", "5e-1"], [1, 0, 1]) == rounded
    rows, labels = [[1.0000001, -1e-7], [0.3, 0.7]], [0, 0]
    assert calibration_report(rows, labels) == calibration_report([[1.0, 0.0], [0.3, 0.7]], labels)
    assert calibration_report([["1", "0"], ["0.3", "0.7"]], labels) == calibration_report(rows, labels)


def test_label_of_a_missing_option():
    ragged = [[0.6, 0.4], [0.2, 0.3, 0.5]]
    with pytest.raises(ValueError, match="`labels` row 0"):
        calibration_report(ragged, [2, 0])
    # in an array, padding and options of probability 0 are the same
    padded = calibration_report([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]], [2, 0], n_bootstrap=10)
    assert padded["accuracy"] == 0 and padded["nll"] > 13


def test_object_array_of_rows():
    column = np.empty(2, dtype=object)
    column[:] = [[0.6, 0.4], [0.2, 0.3, 0.5]]
    assert calibration_report(column, [0, 1]) == calibration_report(list(column), [0, 1])


def test_probabilities_rounded_above_one():
    probabilities = np.array([[1 + 2e-7, 0], [0.3, 0.7]], dtype=np.float32)
    report = calibration_report(probabilities, [0, 1], n_bootstrap=10)
    assert report["confidence"] <= 0.85 + 1e-7 and report["nll"] >= 0


def test_checked_probabilities_are_clipped_once():
    rounded = np.array([[1 + 2e-7, -2e-7], [0.3, 0.7]], dtype=np.float32)
    whole = np.array([[1.0, 0.0], [0.3, 0.7]], dtype=np.float32)
    found = check_predictions(rounded, [0, 1], other=rounded)
    for checked in (found, found.other):
        assert np.array_equal(checked.probabilities, whole) and checked.probabilities.dtype == np.float32
    assert rounded[0, 0] > 1  # the array given is not changed
    assert check_predictions(whole, [0, 1]).probabilities is whole


@pytest.mark.parametrize(
    ("dtype", "near", "far"), [("float64", 5e-4, 2e-3), ("float32", 5e-4, 2e-3), ("float16", 5e-3, 2e-2)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_sum_to_one_up_to_rounding(dtype, near, far, sign):
    rows = np.array([[0.5, 0.5], [0.25 + sign * near, 0.75]], dtype)
    assert calibration_report(rows, [0, 1], n_bootstrap=10)["accuracy"] == 1
    rows[1, 0] = 0.25 + sign * far
    for measure in (expected_calibration_error, calibration_report, brier_score, classwise_calibration_error):
        with pytest.raises(ValueError, match="row 1"):
            measure(rows, [0, 1])


@pytest.mark.parametrize("k", [2, 5, 300])
def test_best_option_is_argmax(k):
    probabilities = np.random.default_rng(0).random((50, k)).round(1)
    best, index = best_option(np.ascontiguousarray(probabilities.T))
    assert np.array_equal(index, probabilities.argmax(axis=1))
    assert np.array_equal(best, probabilities.max(axis=1))


def test_unpad():
    infinity = np.inf
    logits = np.array(
        [[0.0, 1.0, -infinity, -infinity], [0.0, -infinity, 2.0, -infinity], [-infinity, 0.0, -5.0, 1.0]]
    )
    assert options_present(logits).tolist() == [2, 3, 4]  # an option of probability 0 is one
    assert [row.tolist() for row in unpad(np.tile(np.arange(4), (3, 1)), np.array([2, 3, 4]))] == [
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
    ]
    assert unpad(np.eye(4), np.array([3] * 4)).shape == (4, 3)  # an array where all have as many
    assert unpad(np.empty((0, 4)), np.empty(0, int)).shape == (0, 0)


def test_masked_entries_are_refused():
    mask = [False, False, True]
    probabilities = np.ma.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], mask=np.repeat([mask], 2, axis=0).T)
    with pytest.raises(ValueError, match="`probabilities` row 2, option 0 is NaN"):
        expected_calibration_error(probabilities, [0, 1, 1])
    with pytest.raises(TypeError, match="`labels` must be integers.*row 2 is nan"):
        expected_calibration_error(probabilities.data, np.ma.array([0, 1, 1], mask=mask))
    with pytest.raises(ValueError, match="`confidences` row 2 is nan"):
        as_outcomes(np.ma.array([0.9, 0.2, 0.5], mask=mask), [1, 0, 1])
    unmasked = np.ma.array(probabilities.data)
    assert expected_calibration_error(unmasked, [0, 1, 1]) == expected_calibration_error(unmasked.data, [0, 1, 1])
