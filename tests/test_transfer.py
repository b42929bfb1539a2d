"""A temperature for other questions, from how far readings agree: it finds their accuracy, and keeps within bounds."""

import numpy as np
import pytest

from hf_calib.calibration_error import expected_calibration_error
from hf_calib.posthoc import PostHocCalibrator, TemperatureScaling, TransferredTemperature


def ask(n, known, seed, shared=0.0, options=4):
    """Three readings that agree on what is known, share some mistakes, and guess the rest each for itself; logits of the first."""
    rng = np.random.default_rng(seed)
    labels, draw = rng.integers(options, size=n), rng.random(n)
    votes = rng.integers(options, size=(n, 3))
    votes[draw < known + shared] = rng.integers(options, size=n)[draw < known + shared, None]
    votes[draw < known] = labels[draw < known, None]
    # As sure on every question: nothing but agreement tells the easy ones from the hard ones.
    return 12.0 * np.eye(options)[votes[:, 0]] + rng.normal(size=(n, options)), labels, votes


@pytest.mark.parametrize(("here", "there"), [(0.7, 0.15), (0.15, 0.7)])
def test_transferred_temperature_finds_the_accuracy_of_other_questions(here, there):
    for shared in (0.0, 0.4):  # of what is agreed on, part is wrong, here as there
        logits, labels, votes = ask(4000, here, 0, shared * here)
        target, answers, target_votes = ask(4000, there, 1, shared * there)
        errors = {}
        transferred = TransferredTemperature(pseudo_count=0).fit(logits, labels, votes, target, target_votes)
        for name, calibrator in {
            "transferred": transferred,
            "as here": TemperatureScaling().fit(logits, labels),
        }.items():
            errors[name] = expected_calibration_error(calibrator.transform(target), answers)
        assert errors["transferred"] < 0.06 < 0.3 < errors["as here"]


def test_transferred_temperature_at_the_extremes(tmp_path):
    logits, labels, votes = ask(60, 0.6, 0)
    # None is agreed on, all is: chance, and no surer than the labels vouch for.
    apart, alike = np.tile([0, 1, 2], (60, 1)), np.zeros((60, 3), int)
    low = TransferredTemperature().fit(logits, labels, votes, logits, apart)
    assert low.transform(logits).max(axis=1).mean() == pytest.approx(0.25, abs=0.01)
    high = TransferredTemperature().fit(logits, votes[:, 0], alike, logits, alike)
    assert 0.8 < high.transform(logits).max(axis=1).mean() < 1 - 1 / 64
    # Labels of which none is right: chance, whatever is agreed on.
    wrong = TransferredTemperature(pseudo_count=0).fit(logits, (votes[:, 0] + 1) % 4, votes, logits, alike)
    assert wrong.transform(logits).max(axis=1).mean() == pytest.approx(0.25, abs=0.01)
    high.save(tmp_path)
    np.testing.assert_array_equal(PostHocCalibrator.load(tmp_path).transform(logits), high.transform(logits))


@pytest.mark.parametrize(
    ("votes", "target_votes", "message"),
    [
        (None, np.zeros((20, 3)), "votes=True"),
        (np.zeros((20, 1)), np.zeros((20, 1)), "two readings or more"),
        (np.zeros((19, 3)), np.zeros((20, 3)), r"shape \(20, R\)"),
        (np.zeros((20, 3)), np.zeros((20, 2)), "of 3 readings and `target_votes` of 2"),
    ],
)
def test_votes_that_will_not_do(votes, target_votes, message):
    logits, labels, _ = ask(20, 0.5, 0)
    with pytest.raises(ValueError, match=message):
        TransferredTemperature().fit(logits, labels, votes, logits, target_votes)
