"""The transferred temperature: its estimate of accuracy, and extreme inputs."""

import numpy as np
import pytest

from hf_calib.measures.calibration_error import expected_calibration_error
from hf_calib.posthoc import PostHocCalibrator, TemperatureScaling, TransferredTemperature


def ask(n, known, seed, shared=0.0, options=4):
    """Votes of two scores that agree on known questions and some errors and else guess; logits of the first."""
    rng = np.random.default_rng(seed)
    labels, draw = rng.integers(options, size=n), rng.random(n)
    votes = rng.integers(options, size=(n, 2))
    votes[draw < known + shared] = rng.integers(options, size=n)[draw < known + shared, None]
    votes[draw < known] = labels[draw < known, None]
    # As sure on every question: nothing but agreement tells the easy ones from the hard ones.
    return 12.0 * np.eye(options)[votes[:, 0]] + rng.normal(size=(n, options)), labels, votes


def confidence(calibrator, logits):
    return calibrator.transform(logits).max(axis=1).mean()


@pytest.mark.parametrize(("here", "there"), [(0.7, 0.15), (0.15, 0.7)])
def test_transferred_temperature_finds_the_accuracy_of_other_questions(here, there):
    for shared in (0.0, 0.4):  # of what is agreed on, part is wrong, here as there
        logits, labels, votes = ask(4000, here, 0, shared * here)
        target, answers, target_votes = ask(4000, there, 1, shared * there)
        errors = {}
        transferred = TransferredTemperature().fit(logits, labels, votes, target, target_votes)
        for name, calibrator in {
            "transferred": transferred,
            "as here": TemperatureScaling().fit(logits, labels),
        }.items():
            errors[name] = expected_calibration_error(calibrator.transform(target), answers)
        assert errors["transferred"] < 0.1 < 0.3 < errors["as here"]


def test_few_labels_keep_the_ratio_near_its_prior():
    # Ten labels, of which none is right, against as much as is agreed on; then a thousand.
    target, _, target_votes = ask(4000, 0.5, 1)
    found = []
    for n in (10, 1000):
        logits, _, votes = ask(n, 0.5, 0)
        labels = (votes[:, 0] + 1) % 4
        found.append(confidence(TransferredTemperature().fit(logits, labels, votes, target, target_votes), target))
    assert found[0] > 0.3 > 0.26 > found[1]
    # Nothing is agreed on where the labels are: they say little of the ratio, and it stays near the guess, 1.
    apart = np.tile([0, 1], (1000, 1))
    guess = TransferredTemperature().fit(logits, labels, apart, target, target_votes)
    assert confidence(guess, target) == pytest.approx(0.25 + 0.75 * 0.5, abs=0.08)


def test_votes_may_be_of_more_questions_than_there_are_labels():
    logits, labels, votes = ask(2000, 0.6, 0)
    target, _, target_votes = ask(2000, 0.3, 1)
    few = TransferredTemperature().fit(logits[:50], labels[:50], votes, target, target_votes)
    all_of_them = TransferredTemperature().fit(logits, labels, votes, target, target_votes)
    assert confidence(few, target) == pytest.approx(confidence(all_of_them, target), abs=0.08)


def test_transferred_temperature_at_the_extremes(tmp_path):
    logits, labels, votes = ask(60, 0.6, 0)
    # None is agreed on, all is: chance, and no surer than the labels vouch for.
    apart, alike = np.tile([0, 1], (60, 1)), np.zeros((60, 2), int)
    low = TransferredTemperature().fit(logits, labels, votes, logits, apart)
    assert 0.25 < confidence(low, logits) < 0.3
    high = TransferredTemperature().fit(logits, votes[:, 0], alike, logits, alike)
    assert 0.95 < confidence(high, logits) < 1 - 0.7 / 62
    # Labels of which none is right: chance, whatever is agreed on.
    wrong = TransferredTemperature(pseudo_count=0).fit(logits, (votes[:, 0] + 1) % 4, votes, logits, alike)
    assert confidence(wrong, logits) == pytest.approx(0.25, abs=0.01)
    high.save(tmp_path)
    np.testing.assert_array_equal(PostHocCalibrator.load(tmp_path).transform(logits), high.transform(logits))


@pytest.mark.parametrize(
    ("votes", "message"),
    [(None, "votes=True"), (np.zeros((20, 3)), r"shape \(N, 2\)"), (np.zeros(20), r"shape \(N, 2\)")],
)
def test_invalid_votes_raise(votes, message):
    logits, labels, good = ask(20, 0.5, 0)
    for given in ((votes, good), (good, votes)):
        with pytest.raises(ValueError, match=message):
            TransferredTemperature().fit(logits, labels, given[0], logits, given[1])


def test_label_on_padding_raises():
    logits, labels, votes = ask(20, 0.5, 0)
    logits[7, labels[7]] = -np.inf
    with pytest.raises(ValueError, match="`labels` row 7 is .*padding"):
        TransferredTemperature().fit(logits, labels, votes, logits, votes)


def test_pseudo_count_is_not_negative():
    with pytest.raises(ValueError, match="pseudo_count"):
        TransferredTemperature(-1.0)
