"""What may come in, and what the errors say of the rest."""

import numpy as np
import pytest

from hf_calib.measures.calibration_error import (
    brier_score,
    calibration_report,
    classwise_calibration_error,
    confidence_report,
    expected_calibration_error,
)
from hf_calib.measures.validation import best_option, options_present, unpad


def test_mixed_option_counts_as_ragged_lists():
    ragged, padded = [[0.6, 0.4], [0.2, 0.3, 0.5]], [[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]]
    assert calibration_report(ragged, [0, 1], ragged) == calibration_report(padded, [0, 1], padded)


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
        ([[0.5, 0.5], [1.0]], [0, 0], ValueError, r"row 1 has 1 option\(s\): a question needs at least two"),
        ([[0.5, 0.5], []], [0, 0], ValueError, r"row 1 has 0 option\(s\)"),
        ([[0.5, 0.5]] * 2, [0, 0.5], TypeError, "`labels` must be integers .* row 1 is 0.5"),
        ([0.5, 0.5], [0, 1], ValueError, r"shape \(N, K\)"),
        ([["a", "b"]], [0], TypeError, "must be numbers"),
    ],
)
def test_bad_input_is_named(probabilities, labels, error, message):
    for measure in (expected_calibration_error, calibration_report, brier_score, classwise_calibration_error):
        with pytest.raises(error, match=message):
            measure(probabilities, labels)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -1], "`sample_weight` row 1 is -1"),
        ([1, float("nan")], "`sample_weight` row 1 is nan"),
        ([float("inf"), 1], "`sample_weight` row 0 is inf"),
        ([0, 0], "`sample_weight` is 0 in every row"),
        ([1, "much"], "`sample_weight` row 1 is 'much', not one number"),
        ([1], r"shape \(1,\) for 2 rows"),
        ([[1, 1]], r"shape \(1, 2\) for 2 rows"),
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
        ([0.5, 1.2], [0, 1], "`confidences` row 1 is 1.2, outside"),
        ([0.5, float("nan")], [0, 1], "`confidences` row 1 is nan"),
        ([0.5, [0.5]], [0, 1], r"`confidences` row 1 is \[0.5\], not one number"),
        ([0.5], [0, 1], "`confidences` has 1 entries and `correct` has 2"),
        ([0.5, 0.5], [0, 0.5], "`correct` row 1 is 0.5.*zeros and ones"),
        ([[0.5, 0.5]], [[0, 1]], r"`confidences` must have shape \(N,\)"),
        ([], [], "empty"),
    ],
)
def test_bad_confidences_are_named(confidences, correct, message):
    with pytest.raises(ValueError, match=message):
        confidence_report(confidences, correct)


def test_a_label_needs_its_option():
    ragged = [[0.6, 0.4], [0.2, 0.3, 0.5]]
    with pytest.raises(ValueError, match=r"`labels` row 0 is 2, outside \[0, 2\) for 2 options"):
        calibration_report(ragged, [2, 0])
    # an array does not tell padding from an option without hope
    padded = calibration_report([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]], [2, 0], n_bootstrap=10)
    assert padded["accuracy"] == 0 and padded["nll"] > 13


def test_rows_of_a_data_frame():
    column = np.empty(2, dtype=object)
    column[:] = [[0.6, 0.4], [0.2, 0.3, 0.5]]
    assert calibration_report(column, [0, 1]) == calibration_report(list(column), [0, 1])


def test_probabilities_a_hair_above_one():
    probabilities = np.array([[1 + 2e-7, 0], [0.3, 0.7]], dtype=np.float32)
    report = calibration_report(probabilities, [0, 1], n_bootstrap=10)
    assert report["confidence"] <= 0.85 + 1e-7 and report["nll"] >= 0


@pytest.mark.parametrize(
    ("dtype", "near", "far"), [("float64", 5e-4, 2e-3), ("float32", 5e-4, 2e-3), ("float16", 5e-3, 2e-2)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_sum_to_one_up_to_rounding(dtype, near, far, sign):
    rows = np.array([[0.5, 0.5], [0.25 + sign * near, 0.75]], dtype)
    assert calibration_report(rows, [0, 1], n_bootstrap=10)["accuracy"] == 1
    rows[1, 0] = 0.25 + sign * far
    for measure in (expected_calibration_error, calibration_report, brier_score, classwise_calibration_error):
        with pytest.raises(ValueError, match="row 1 sums to"):
            measure(rows, [0, 1])


@pytest.mark.parametrize("k", [2, 5, 300])
def test_best_option_is_argmax(k):
    probabilities = np.random.default_rng(0).random((50, k)).round(1)
    best, index = best_option(np.ascontiguousarray(probabilities.T))
    assert np.array_equal(index, probabilities.argmax(axis=1))
    assert np.array_equal(best, probabilities.max(axis=1))


def test_rows_without_their_padding():
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
