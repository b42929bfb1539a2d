"""Targets of the closing step."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from hf_calib import expected_calibration_error
from hf_calib.posthoc.scaling import best_log_temperature
from hf_calib.posthoc.teacher import AlignedMap, blend


@pytest.fixture
def drawn():
    """True log-odds, an aligned model with three times these, and a trained one with noise and a scale of 5."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4000, 4)) * 1.5
    labels = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1)
    known = truth + rng.normal(size=truth.shape) * 0.7  # what the aligned model knows of the truth
    learnt = truth + rng.normal(size=truth.shape) * 0.7
    return labels, 3 * known, 5 * learnt


def nll(probabilities, labels):
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


def test_the_blend_is_calibrated_and_knows_more_than_either_model(drawn):
    labels, aligned, trained = drawn
    few = slice(0, 200)  # the only labels
    calibrated = AlignedMap.fit(aligned[few], labels[few], None, seed=0).transform(aligned, None)
    targets = blend(calibrated, trained, np.arange(4000) >= 200)
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
    targets = blend(calibrated, trained / factor, np.arange(4000) >= 400, subjects)
    one = blend(calibrated, trained / factor, np.arange(4000) >= 400)
    assert nll(targets, labels) < nll(one, labels)


def test_questions_that_were_trained_on_have_no_say(drawn):
    labels, aligned, trained = drawn
    calibrated, untrained = softmax(aligned / 3, axis=1), np.arange(4000) >= 2000
    memorised = trained.copy()
    memorised[~untrained] = 50 * np.eye(4)[labels[~untrained]]
    np.testing.assert_allclose(
        blend(calibrated, memorised, untrained)[untrained], blend(calibrated, trained, untrained)[untrained]
    )


def test_padding_stays_padding(drawn):
    _, aligned, trained = drawn
    aligned, trained = aligned[:50].copy(), trained[:50].copy()
    aligned[:20, 3] = trained[:20, 3] = -np.inf
    targets = blend(softmax(aligned, axis=1), log_softmax(trained, axis=1), np.ones(50, dtype=bool))
    np.testing.assert_allclose(targets.sum(axis=1), 1)
    assert (targets[:20, 3] == 0).all() and (targets[20:] > 0).all()


def test_weights_are_repetitions():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(30, 3)), softmax(rng.normal(size=(30, 3)), axis=1)
    counts = rng.integers(0, 4, size=30)
    repeated = best_log_temperature(np.repeat(logits, counts, 0), np.repeat(targets, counts, 0))
    assert best_log_temperature(logits, targets, counts) == pytest.approx(repeated)
