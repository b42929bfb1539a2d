"""Measures that need the order of the confidences, where it is told by ties and equal accuracies."""

import numpy as np
import pytest

from hf_calib.measures.calibration_error import sweep_calibration_error


def test_sweep_goes_on_while_the_accuracy_does_not_fall():
    """Two bins of accuracy one half: as good as rising, so the two count. Three bins would fall from 1 to one half."""
    confidences, labels = [0.3, 0.4, 0.9, 0.96], [1, 0, 1, 0]
    rows = [[c, *3 * [(1 - c) / 3]] for c in confidences]
    assert sweep_calibration_error(rows, labels) == pytest.approx((abs(0.35 - 0.5) + abs(0.93 - 0.5)) / 2)


def test_sweep_is_not_stopped_by_weights_whose_sums_round():
    confidences, correct = np.linspace(0.3, 0.97, 12), np.arange(12) % 2
    rows = np.column_stack([confidences, *3 * [(1 - confidences) / 3]])
    plain = sweep_calibration_error(rows, 1 - correct)
    for weight in (0.1, 0.7):
        assert sweep_calibration_error(rows, 1 - correct, np.full(12, weight)) == pytest.approx(plain)
