"""Measures that need the order of the confidences, where it is told by ties and equal accuracies."""

import pytest

from hf_calib.calibration_error import sweep_calibration_error


def test_sweep_goes_on_while_the_accuracy_does_not_fall():
    """Two bins of accuracy one half: as good as rising, so the two count. Three bins would fall from 1 to one half."""
    confidences, labels = [0.3, 0.4, 0.9, 0.96], [1, 0, 1, 0]
    rows = [[c, *3 * [(1 - c) / 3]] for c in confidences]
    assert sweep_calibration_error(rows, labels) == pytest.approx((abs(0.35 - 0.5) + abs(0.93 - 0.5)) / 2)
    for weight in (0.1, 0.7, 3.3):  # whose sums round
        assert sweep_calibration_error(rows, labels, [weight] * 4) == pytest.approx(0.29)
