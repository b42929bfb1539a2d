"""The E-step's map and targets, and the M-step's loss."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_calib.losses.em_calibrator import ESTIMATORS, EMCalibrator
from hf_calib.losses.em_ece_loss import em_ece_loss
from hf_calib.losses.target_tails import TAILS


def softmax(logits):
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


@st.composite
def predictions(draw, min_options=2):
    k = draw(st.integers(min_options, 7))
    n = draw(st.integers(1, 60))
    logits = draw(hnp.arrays(np.float64, (n, k), elements=st.floats(-30, 30)))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    return softmax(logits), labels


@settings(max_examples=60)
@given(predictions(), st.sampled_from(ESTIMATORS), st.sampled_from([0.0, 2.0, 50.0]), st.sampled_from([*TAILS]))
def test_targets_are_distributions_of_the_same_ranking(prediction, estimator, pseudo_count, tail):
    probabilities, labels = prediction
    calibrator = EMCalibrator(estimator, pseudo_count=pseudo_count, tail=tail).fit(probabilities, labels)
    targets = calibrator.targets(probabilities)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-9)
    assert (targets >= 0).all()
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(targets, order, -1), axis=-1) <= 1e-9).all()


@settings(max_examples=40)
@given(predictions(min_options=4), st.sampled_from(ESTIMATORS), st.sampled_from([*TAILS]))
def test_padding_gets_nothing_and_changes_nothing(prediction, estimator, tail):
    probabilities, labels = prediction
    calibrator = EMCalibrator(estimator, tail=tail).fit(probabilities, labels)
    padded = np.pad(probabilities, ((0, 0), (0, 2)))
    mask = np.pad(np.ones_like(probabilities, dtype=bool), ((0, 0), (0, 2)))
    targets = calibrator.targets(padded, mask)
    assert (targets[:, -2:] == 0).all()
    np.testing.assert_allclose(targets[:, :-2], calibrator.targets(probabilities), atol=1e-9)


def test_four_options_give_the_formula_of_the_paper():
    # Equation of section 5 for K = 4 and bins, written out by hand.
    probabilities = np.tile([0.05, 0.8, 0.1, 0.05], (20, 1))
    labels = np.array([1] * 12 + [0] * 8)
    calibrator = EMCalibrator("bins", n_bins=10, pseudo_count=0, tail="paper").fit(probabilities, labels)
    accuracy, q2, rest = 0.6, 0.1, [0.1, 0.05, 0.05]
    gamma = math.log(3) / (q2 * (1 - accuracy))
    saturations = [math.tanh(gamma * q) for q in rest]
    alpha = (1 - accuracy) / (sum(saturations) + 3)
    second, third, fourth = (alpha * s + alpha for s in saturations)
    np.testing.assert_allclose(calibrator.targets(probabilities[:1])[0], [third, accuracy, second, fourth], atol=1e-12)


def test_an_accuracy_of_one_gives_one_hot_targets():
    probabilities = np.tile([0.7, 0.2, 0.1], (5, 1))
    targets = (
        EMCalibrator("bins", pseudo_count=0, tail="paper")
        .fit(probabilities, np.zeros(5, int))
        .targets(probabilities[:1])
    )
    np.testing.assert_array_equal(targets, [[1, 0, 0]])


def test_a_map_too_low_for_the_ranking_is_raised_no_further_than_needed():
    # Never right: a(c) = 0, but the top option must stay on top; then it ties with the second.
    probabilities = np.tile([0.5, 0.3, 0.2], (50, 1))
    targets = (
        EMCalibrator("bins", pseudo_count=0, tail="paper")
        .fit(probabilities, np.full(50, 2))
        .targets(probabilities[:1])[0]
    )
    assert targets[0] >= targets[1] >= targets[2] > 0
    assert targets[0] - targets[1] < 1e-6


@pytest.mark.parametrize("estimator", ["bins", "equal_mass"])
def test_an_empty_bin_is_neutral(estimator):
    calibrator = EMCalibrator(estimator, pseudo_count=0).fit(np.tile([0.95, 0.05], (10, 1)), np.zeros(10, int))
    if estimator == "bins":
        assert calibrator.accuracy(np.array([0.63])) == 0.63
        np.testing.assert_allclose(calibrator.targets(np.array([[0.63, 0.37]])), [[0.63, 0.37]])


def test_bins_are_those_of_the_ece():
    confidences = np.array([0.5, 0.55, 0.6, 0.61, 1.0])
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    calibrator = EMCalibrator("bins", pseudo_count=0).fit(probabilities, np.array([0, 1, 1, 1, 0]))
    # [.5, .6) holds .5 and .55, [.6, .7) holds .6 and .61, and 1.0 is in the last.
    np.testing.assert_allclose(calibrator.accuracy(np.array([0.5, 0.59, 0.6, 0.61, 0.95])), [0.5, 0.5, 0, 0, 1])


def test_isotonic_map_agrees_with_scikit_learn():
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 400)
    correct = rng.random(400) < confidences**2
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    calibrator = EMCalibrator("isotonic", pseudo_count=0).fit(probabilities, np.where(correct, 0, 1))
    reference = IsotonicRegression().fit(confidences, correct)
    # The same blocks; ours is linear between their centres, where scikit-learn's has steps.
    for block in np.unique(reference.predict(confidences)):
        centre = confidences[reference.predict(confidences) == block].mean()
        assert calibrator.accuracy(np.array([centre]))[0] == pytest.approx(block)
    grid = calibrator.accuracy(np.linspace(0.5, 1, 200))
    assert (np.diff(grid) >= -1e-12).all()


def test_the_map_finds_the_truth():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 50_000)
    correct = rng.random(50_000) < 0.5 + (confidences - 0.5) / 2
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    grid = np.linspace(0.55, 0.95, 9)
    for estimator in ESTIMATORS:
        calibrator = EMCalibrator(estimator).fit(probabilities, np.where(correct, 0, 1))
        # Within half a bin's width for the binned ones.
        np.testing.assert_allclose(calibrator.accuracy(grid), 0.5 + (grid - 0.5) / 2, atol=0.035)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_state_survives_json(estimator):
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(size=(30, 4)) * 3)
    calibrator = EMCalibrator(estimator, n_bins=7, pseudo_count=1.5).fit(probabilities, rng.integers(4, size=30))
    restored = EMCalibrator.from_state_dict(json.loads(json.dumps(calibrator.state_dict())))
    np.testing.assert_array_equal(restored.targets(probabilities), calibrator.targets(probabilities))
    assert restored.state_dict() == calibrator.state_dict()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_torch_and_numpy_agree(estimator):
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(size=(30, 4)))
    calibrator = EMCalibrator(estimator).fit(torch.tensor(probabilities), torch.tensor(rng.integers(4, size=30)))
    targets = calibrator.targets(torch.tensor(probabilities, requires_grad=True))
    assert not targets.requires_grad
    np.testing.assert_allclose(targets.numpy(), calibrator.targets(probabilities))


@pytest.mark.parametrize("loss_type", ["brier", "kl"])
def test_loss_is_zero_on_a_calibrated_model(loss_type):
    # Every question at one confidence, right exactly as often: the target is the prediction at K = 2.
    probabilities = np.tile([0.75, 0.25], (8, 1))
    labels = np.array([0] * 6 + [1] * 2)
    for estimator in ESTIMATORS:
        targets = EMCalibrator(estimator).fit(probabilities, labels).targets(probabilities)
        loss = em_ece_loss(torch.tensor(np.log(probabilities)), torch.tensor(targets), loss_type=loss_type)
        assert abs(loss.item()) < 1e-6


@pytest.mark.parametrize("loss_type", ["brier", "kl"])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_gradient_is_numerically_right(loss_type, masked):
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64)
    mask = torch.ones(5, 4, dtype=torch.bool)
    targets = torch.rand(5, 4, dtype=torch.float64)
    if masked:
        mask[::2, -1] = False
        targets[~mask] = 0
    targets /= targets.sum(-1, keepdim=True)

    def loss_at(values):
        return em_ece_loss(values, targets, mask, loss_type).item()

    variable = logits.clone().requires_grad_()
    em_ece_loss(variable, targets, mask, loss_type).backward()
    # The loss is taken in float32, so a wide step.
    step = 1e-2
    for i in range(5):
        for j in range(4):
            bump = torch.zeros_like(logits)
            bump[i, j] = step
            numeric = (loss_at(logits + bump) - loss_at(logits - bump)) / (2 * step)
            assert variable.grad[i, j].item() == pytest.approx(numeric, abs=2e-4)


def test_loss_agrees_with_its_definition():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3), torch.rand(6, 3)
    targets /= targets.sum(-1, keepdim=True)
    q = torch.softmax(logits, -1)
    assert em_ece_loss(logits, targets).item() == pytest.approx(((q - targets) ** 2).sum(-1).mean().item(), abs=1e-6)
    kl = torch.nn.functional.kl_div(q.log(), targets, reduction="batchmean").item()
    assert em_ece_loss(logits, targets, loss_type="kl").item() == pytest.approx(kl, abs=1e-6)
    assert em_ece_loss(logits, targets, reduction="sum").item() == pytest.approx(
        6 * em_ece_loss(logits, targets).item()
    )


def test_loss_with_missing_options_and_one_hot_targets_stays_finite():
    logits = torch.tensor([[5.0, 1.0, -torch.inf], [80.0, -80.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for loss_type in ("brier", "kl"):
        loss = em_ece_loss(logits, targets, loss_type=loss_type)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        assert gradient[0, 2] == 0
    assert em_ece_loss(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"estimator": "platt"}, "platt"),
        ({"tail": "long"}, "'long'"),
        ({"n_bins": 0}, "n_bins"),
        ({"pseudo_count": -1}, "pseudo_count"),
    ],
)
def test_wrong_settings_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        EMCalibrator(**kwargs)


def test_wrong_input_is_named():
    with pytest.raises(RuntimeError, match="fit"):
        EMCalibrator().targets(np.ones((1, 2)) / 2)
    with pytest.raises(ValueError, match="no questions"):
        EMCalibrator().fit(np.ones((0, 4)), np.ones(0, int))
    with pytest.raises(ValueError, match="Row 1"):
        EMCalibrator().fit(np.array([[0.5, 0.5], [np.nan, 0.5]]), np.array([0, 1]))
    with pytest.raises(ValueError, match="shapes"):
        EMCalibrator().fit(np.ones((3, 2)) / 2, np.zeros(2, int))
    with pytest.raises(ValueError, match="loss_type"):
        em_ece_loss(torch.zeros(1, 2), torch.ones(1, 2) / 2, loss_type="mse")


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("label", [-1, 2, math.nan])
def test_labels_that_are_no_option_are_refused(estimator, label):
    with pytest.raises(ValueError, match="Row 1 of the E-step has no valid label"):
        EMCalibrator(estimator).fit(np.tile([0.8, 0.2], (2, 1)), np.array([0, label]))
    soft = np.array([[1.0, 0.0], [label, 0.0]])
    with pytest.raises(ValueError, match="Row 1 of the E-step has no valid label"):
        EMCalibrator(estimator).fit(np.tile([0.8, 0.2], (2, 1)), soft)


def test_points_of_the_map_that_are_one_in_float32():
    probabilities = np.array([[1 - 1e-10, 1e-10], [1 - 1e-10, 1e-10], [1 - 1e-12, 1e-12]])
    calibrator = EMCalibrator(pseudo_count=0).fit(probabilities, [1, 0, 0])
    found = calibrator.accuracy(torch.tensor(probabilities, dtype=torch.float32))[:, 0]
    assert ((found >= 0.5) & (found <= 1)).all()


def test_arrays_of_negative_strides():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    calibrator = EMCalibrator(pseudo_count=0).fit(probabilities, [0, 0, 1])
    np.testing.assert_array_equal(calibrator.targets(probabilities[::-1])[::-1], calibrator.targets(probabilities))
    assert calibrator.accuracy(0.9).shape == ()


def test_labels_may_be_probabilities():
    """Agreement .8 on every row is, to the map, what eight right answers in ten are."""
    probabilities = np.tile([0.9, 0.1], (10, 1))
    soft = EMCalibrator(pseudo_count=0).fit(probabilities, np.tile([0.8, 0.2], (10, 1)))
    hard = EMCalibrator(pseudo_count=0).fit(probabilities, np.repeat([0, 1], [8, 2]))
    np.testing.assert_allclose(soft.accuracy(np.array([0.9])), hard.accuracy(np.array([0.9])))
    with pytest.raises(ValueError, match=r"labels \(N,\) or \(N, K\)"):
        EMCalibrator().fit(probabilities, np.ones((10, 3)))
