"""The one-vs-rest error against a plain computation, its bias, and its noise floor."""

import numpy as np
import pytest
from scipy.special import softmax

from hf_calib import classwise_calibration_error
from hf_calib.measures.one_vs_rest import one_vs_rest_error


def sample(n, seed, temperature=1.0, num_options=4):
    """Probabilities that are calibrated at temperature 1, and labels."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((n, num_options))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return softmax(logits / temperature, axis=1), labels


def plain_error(probabilities, labels, n_bins=10):
    pairs = [(q, k == label) for row, label in zip(probabilities, labels, strict=True) for k, q in enumerate(row)]
    pairs = [(q, right) for q, right in pairs if q > 0]
    total = 0.0
    for b in range(n_bins):
        chosen = [(q, right) for q, right in pairs if min(int(q * n_bins), n_bins - 1) == b]
        if chosen:
            q, right = np.array(chosen, dtype=float).T
            total += len(q) / len(pairs) * abs(q.mean() - right.mean())
    return total


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_error_is_that_of_a_plain_computation(temperature):
    probabilities, labels = sample(300, 0, temperature)
    assert one_vs_rest_error(probabilities, labels).error == pytest.approx(plain_error(probabilities, labels))
    padded = np.pad(probabilities, ((0, 0), (0, 2)))
    assert one_vs_rest_error(padded, labels).error == pytest.approx(plain_error(probabilities, labels))


def test_order_of_options_does_not_matter_and_the_classwise_error_is_larger():
    probabilities, labels = sample(400, 1, 0.6)
    order = np.random.default_rng(2).permuted(np.tile(np.arange(4), (400, 1)), axis=1)
    shuffled = np.take_along_axis(probabilities, order, axis=1)
    moved = (order == labels[:, None]).argmax(axis=1)
    found = one_vs_rest_error(probabilities, labels).error
    assert one_vs_rest_error(shuffled, moved).error == pytest.approx(found)
    for rows in ((probabilities, labels), (shuffled, moved)):
        assert found <= classwise_calibration_error(*rows) + 1e-12


def test_noise_floor_is_the_error_of_calibrated_models():
    found = [one_vs_rest_error(*sample(400, seed)) for seed in range(200)]
    errors = np.array([each.error for each in found])
    floor = np.mean([each.floor.mean for each in found])
    assert errors.mean() == pytest.approx(floor, rel=0.05)
    assert 0.01 <= np.mean([each.floor.p_value <= 0.05 for each in found]) <= 0.1
    assert (errors > np.mean([each.floor.p95 for each in found])).mean() == pytest.approx(0.05, abs=0.04)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.6])
def test_debiased_error_is_nearer_to_that_of_many_questions(temperature):
    truth = one_vs_rest_error(*sample(400_000, 0, temperature), n_simulations=1).error
    found = [one_vs_rest_error(*sample(300, seed, temperature), n_simulations=1) for seed in range(1, 200)]
    measured, debiased = np.mean([each.error for each in found]), np.mean([each.debiased for each in found])
    assert measured > truth and abs(debiased - truth) < 0.5 * (measured - truth) + 0.0005


def test_certain_models_and_wrong_calls():
    certain = one_vs_rest_error([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert certain.error == certain.debiased == certain.floor.mean == 0.0
    with pytest.raises(ValueError, match="n_simulations"):
        one_vs_rest_error([[0.5, 0.5]], [0], n_simulations=0)
    with pytest.raises(ValueError, match="row 0"):
        one_vs_rest_error([[2.0, 0.5]], [0])


def test_probabilities_rounded_below_zero():
    assert one_vs_rest_error(np.tile([-6e-7, 1 + 6e-7], (5, 1)), [1] * 5, n_simulations=2).error == 0
