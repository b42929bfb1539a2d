"""ECE-sweep with ties and equal accuracies."""

import numpy as np
import pytest

from hf_calib.measures.calibration_error import sweep_calibration_error


def test_sweep_continues_while_the_accuracy_does_not_fall():
    """Two bins have the accuracy 1/2 and are accepted. With three bins the accuracy falls from 1 to 1/2."""
    confidences, labels = [0.3, 0.4, 0.9, 0.96], [1, 0, 1, 0]
    rows = [[c, *3 * [(1 - c) / 3]] for c in confidences]
    assert sweep_calibration_error(rows, labels) == pytest.approx((abs(0.35 - 0.5) + abs(0.93 - 0.5)) / 2)


def test_sweep_tolerates_rounded_weights():
    confidences, correct = np.linspace(0.3, 0.97, 12), np.arange(12) % 2
    rows = np.column_stack([confidences, *3 * [(1 - confidences) / 3]])
    plain = sweep_calibration_error(rows, 1 - correct)
    for weight in (0.1, 0.7):
        assert sweep_calibration_error(rows, 1 - correct, np.full(12, weight)) == pytest.approx(plain)
