"""Targets of the closing step."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from hf_calib import expected_calibration_error
from hf_calib.posthoc import cross_validate, fit_calibrator
from hf_calib.posthoc.scaling import best_log_temperature
from hf_calib.posthoc.teacher import TEACHER_METHODS, AlignedMap, blend


MANY = 2000  # answers trained on


@pytest.fixture
def drawn():
    """True log-odds, an aligned model with three times these, and a trained one with noise and a scale of 5."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4000, 4)) * 1.5
    labels = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1)
    known = truth + rng.normal(size=truth.shape) * 0.7  # what the aligned model knows of the truth
    learnt = truth + rng.normal(size=truth.shape) * 0.7
    return labels, 3 * known, 5 * learnt


def unknown(labels):
    return np.full(len(labels), -100)


def nll(probabilities, labels):
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


def test_the_blend_is_calibrated_and_knows_more_than_either_model(drawn):
    labels, aligned, trained = drawn
    few = slice(0, 200)  # the only labels
    calibrated = AlignedMap.fit(aligned[few], labels[few], None, seed=0).transform(aligned, None)
    targets = blend(calibrated, trained, np.arange(4000) >= 200, unknown(labels), MANY)
    assert expected_calibration_error(targets, labels) < 0.05 < expected_calibration_error(softmax(aligned, 1), labels)
    temperature = np.exp(best_log_temperature(trained, np.eye(4)[labels]))  # the best one, from all labels
    assert nll(targets, labels) < min(nll(calibrated, labels), nll(softmax(trained / temperature, axis=1), labels))
    assert (targets.argmax(1) == labels).mean() > (aligned.argmax(1) == labels).mean()


def test_subjects_get_temperatures_of_their_own(drawn):
    labels, aligned, trained = drawn
    subjects = np.array(["law", "maths"])[np.arange(4000) % 2]
    factor = np.where(subjects == "law", 1.0, 6.0)[:, None]
    fitted = AlignedMap.fit(aligned[:400] * factor[:400], labels[:400], subjects[:400], seed=0)
    assert fitted.method == "subject_temperature" and fitted.outcomes.shape == (400, 4)
    calibrated = fitted.transform(aligned * factor, subjects)
    targets = blend(calibrated, trained / factor, np.arange(4000) >= 400, unknown(labels), MANY, subjects)
    one = blend(calibrated, trained / factor, np.arange(4000) >= 400, unknown(labels), MANY)
    assert nll(targets, labels) < nll(one, labels)


def test_methods_are_averaged_by_their_cross_validated_likelihood(drawn):
    labels, aligned, _ = drawn
    few = slice(0, 60)
    fitted = AlignedMap.fit(aligned[few], labels[few], None, seed=0)
    assert sum(fitted.weights.values()) == pytest.approx(1) and max(fitted.weights.values()) < 0.9
    outcomes = cross_validate(TEACHER_METHODS[:-1], aligned[few], labels[few], seed=0)
    odds = {name: np.exp(-60 * nll(outcome, labels[few])) for name, outcome in outcomes.items()}
    for name, weight in fitted.weights.items():
        assert weight == pytest.approx(odds[name] / sum(odds.values()))
    by_hand = sum(
        fitted.weights[name] * fit_calibrator(name, aligned[few], labels[few]).transform(aligned)
        for name in TEACHER_METHODS[:-1]
    )
    np.testing.assert_allclose(
        fitted.transform(aligned, None), by_hand + fitted.weights["as is"] * softmax(aligned, axis=1)
    )
    assert "%) and " in fitted.describe()


def test_subjects_are_more_probable_than_their_cross_validation(drawn):
    labels, aligned, _ = drawn
    subjects = np.array(list("abcdefgh"))[np.arange(4000) % 8]
    few = slice(0, 60)
    fitted = AlignedMap.fit(aligned[few], labels[few], subjects[few], seed=0)
    outcomes = cross_validate(TEACHER_METHODS, aligned[few], labels[few], seed=0, groups=subjects[few])
    gain = 60 * (nll(outcomes["beta"], labels[few]) - nll(outcomes["subject_temperature"], labels[few]))
    ratio = fitted.weights["subject_temperature"] / fitted.weights["beta"]
    assert np.log(ratio) == pytest.approx(gain + 4)


def test_held_out_labels_sharpen_a_blend_that_is_right_more_often(drawn):
    labels, aligned, trained = drawn
    calibrated, untrained = softmax(aligned / 4.2, axis=1), np.ones(4000, dtype=bool)
    known = np.where(np.arange(4000) < 1000, labels, -100)
    softly, corrected = (blend(calibrated, trained, untrained, given, MANY) for given in (unknown(labels), known))
    accuracy = (softly.argmax(1) == labels).mean()
    np.testing.assert_array_equal(softly.argmax(1), corrected.argmax(1))
    assert abs(corrected.max(1).mean() - accuracy) < abs(softly.max(1).mean() - accuracy)
    assert nll(corrected, labels) < nll(softly, labels)


def test_a_handful_of_labels_hardly_moves_the_blend(drawn):
    _, aligned, trained = drawn
    calibrated, untrained = softmax(aligned / 4.2, axis=1), np.ones(4000, dtype=bool)
    wrong = np.where(np.arange(4000) < 10, calibrated.argmin(axis=1), -100)  # every held-out answer is unlikely
    softly, moved = (blend(calibrated, trained, untrained, given, MANY) for given in (np.full(4000, -100), wrong))
    assert 0 < softly.max(1).mean() - moved.max(1).mean() < 0.05


def test_questions_that_were_trained_on_have_no_say(drawn):
    labels, aligned, trained = drawn
    calibrated, untrained = softmax(aligned / 3, axis=1), np.arange(4000) >= 2000
    memorised = trained.copy()
    memorised[~untrained] = 50 * np.eye(4)[labels[~untrained]]
    found, wanted = (blend(calibrated, logits, untrained, labels, MANY) for logits in (memorised, trained))
    np.testing.assert_allclose(found[untrained], wanted[untrained])


def test_padding_stays_padding(drawn):
    labels, aligned, trained = drawn
    labels[:20] = 0
    aligned, trained = aligned[:50].copy(), trained[:50].copy()
    aligned[:20, 3] = trained[:20, 3] = -np.inf
    targets = blend(softmax(aligned, axis=1), log_softmax(trained, axis=1), np.ones(50, dtype=bool), labels[:50], MANY)
    np.testing.assert_allclose(targets.sum(axis=1), 1)
    assert (targets[:20, 3] == 0).all() and (targets[20:] > 0).all()


def test_few_answers_leave_the_aligned_model_nearly_alone(drawn):
    labels, aligned, trained = drawn
    calibrated, untrained = softmax(aligned / 4.2, axis=1), np.ones(4000, dtype=bool)
    targets = [blend(calibrated, trained, untrained, unknown(labels), n) for n in (0, 10, 200, 2000)]
    np.testing.assert_allclose(targets[0], calibrated, atol=1e-6)
    apart = [np.abs(each - calibrated).mean() for each in targets]
    assert apart == sorted(apart) and apart[1] < 0.1 * apart[3]


def test_a_slope_moves_the_optimum_as_other_targets_would():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(40, 3))
    targets, others = (softmax(rng.normal(size=(40, 3)) + logits, axis=1) for _ in range(2))
    slope = ((others - targets) * logits).sum(axis=1).mean()
    assert best_log_temperature(logits, targets, slope=slope) == pytest.approx(best_log_temperature(logits, others))


def test_weights_are_repetitions():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(30, 3)), softmax(rng.normal(size=(30, 3)), axis=1)
    counts = rng.integers(0, 4, size=30)
    repeated = best_log_temperature(np.repeat(logits, counts, 0), np.repeat(targets, counts, 0))
    assert best_log_temperature(logits, targets, counts) == pytest.approx(repeated)
