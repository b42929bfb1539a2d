"""Rivals that see the model before alignment, unlabelled questions or features: on samples whose truth is known."""

import numpy as np
import pytest
import torch
from adaptive_temperature import AdaptiveTemperature, confidence_features
from averages import SHARES, ProbabilityAverage, average_weights, choose_share, negative_log_likelihood
from batch_calibration import BatchCalibration, option_priors
from scipy.special import log_softmax, softmax

from hf_calib import expected_calibration_error
from hf_calib.data.synthetic_world import World


def sample(n, seed, num_options=4):
    """Calibrated logits, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = log_softmax(1.5 * rng.standard_normal((n, num_options)), axis=1)
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def test_an_average_of_weights_lies_between_its_ends():
    world = World()
    aligned, parent = world.model(0), world.model(1)
    ends = [model.lm_head.weight.detach().clone() for model in (aligned, parent)]
    mixed = average_weights(aligned, parent, 0.25)
    torch.testing.assert_close(mixed.lm_head.weight, 0.75 * ends[0] + 0.25 * ends[1])
    assert mixed.lm_head.weight is mixed.model.embed_tokens.weight


def test_the_share_is_that_of_the_calibrated_model():
    logits, labels = sample(600, 0)
    by_share = {share: logits * (1 + 3 * abs(share - 0.3)) for share in SHARES}
    share, calibrator = choose_share(by_share, labels)
    outcome = by_share[share] if calibrator is None else np.log(calibrator.transform(by_share[share]))
    assert negative_log_likelihood(softmax(outcome, axis=1), labels) < 1.01 * negative_log_likelihood(
        np.exp(logits), labels
    )
    wrong = {share: -logits if share else 2 * logits for share in SHARES}
    share, calibrator = choose_share(wrong, labels)
    assert share == 0 and calibrator.temperature.item() == pytest.approx(2, rel=0.2)
    assert choose_share(wrong, labels, [1.0])[0] == 1.0


def test_an_average_of_probabilities_prefers_the_better_model():
    parent, labels = sample(1000, 1)
    aligned = 4 * np.random.default_rng(2).standard_normal(parent.shape)
    average = ProbabilityAverage().fit(aligned, parent, labels)
    assert average.share >= 0.9
    np.testing.assert_allclose(average.transform(aligned, parent).sum(axis=1), 1)
    average.share = 0.25
    expected = np.log(0.75 * np.exp(-1.0) + 0.25 * np.exp(-2.0))
    assert average.scores(np.array([-1.0]), np.array([-2.0])) == pytest.approx(expected)
    average.share = 1.0
    assert average.scores(np.array([-1.0]), np.array([-2.0])) == pytest.approx(-2.0)


def test_adaptive_temperature_finds_the_feature_that_decides():
    logits, labels = sample(3000, 3)
    kind = np.arange(3000) % 2
    features = np.column_stack([kind, np.random.default_rng(4).standard_normal((3000, 3))])
    distorted = logits * np.where(kind, 4.0, 0.5)[:, None]
    fitted = AdaptiveTemperature().fit(distorted[:2000], features[:2000], labels[:2000])
    q = fitted.transform(distorted[2000:], features[2000:])
    assert (
        negative_log_likelihood(q, labels[2000:])
        < negative_log_likelihood(np.exp(logits[2000:]), labels[2000:]) + 0.01
    )
    assert np.array_equal(q.argmax(axis=1), distorted[2000:].argmax(axis=1))
    assert confidence_features(logits).shape == (3000, 5)


def test_selective_smoothing_is_less_confident_for_a_smaller_alpha():
    logits, labels = sample(500, 5)
    features = confidence_features(logits)
    confidences = [
        AdaptiveTemperature(alpha).fit(logits, features, labels).transform(logits, features).max(axis=1).mean()
        for alpha in (0.3, 0.6, 0.9)
    ]
    assert confidences[0] < confidences[1] < confidences[2]


def test_batch_calibration_removes_a_preference_for_words():
    rng = np.random.default_rng(6)
    words = np.array(list("abcdefgh"))
    logits, labels = sample(4000, 7)
    chosen = rng.permuted(np.tile(np.arange(8), (4000, 1)), axis=1)[:, :4]
    bias = 1.5 * rng.standard_normal(8)
    biased, choices, subjects = logits + bias[chosen], words[chosen].tolist(), ["s"] * 4000
    priors = option_priors(biased, choices, subjects)
    values = np.array([priors["s", word] for word in words])
    assert np.corrcoef(values, bias)[0, 1] > 0.98
    fitted = BatchCalibration(priors).fit(biased[:1000], labels[:1000], choices[:1000], subjects[:1000])
    q = fitted.transform(biased[1000:], choices[1000:], subjects[1000:])
    assert fitted.strength > 0.5 and (q.argmax(1) == labels[1000:]).mean() > (biased.argmax(1) == labels).mean() + 0.05
    assert expected_calibration_error(q, labels[1000:]) < 0.05
