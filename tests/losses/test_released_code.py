"""The calibration loss of the authors' code: worked examples, and the gradient, for each difference from the paper."""

import json
import math

import numpy as np
import pytest
import torch

from hf_calib import EMCalibrator, em_ece_loss
from hf_calib.losses.released_code import ReleasedCodeLoss


def fitted(counts, accuracies):
    """A loss with given bins."""
    return ReleasedCodeLoss.from_state_dict({"counts": counts, "accuracies": accuracies})


def one_bin(index, count, accuracy):
    counts, accuracies = np.zeros(10), np.zeros(10)
    counts[index], accuracies[index] = count, accuracy
    return fitted(counts.tolist(), accuracies.tolist())


def tail(others, accuracy):
    """Targets of the options after the first, in plain Python."""
    scale = math.log(len(others)) / (max(others) * (1 - accuracy))
    bent = [math.tanh(scale * q) for q in others]
    share = (1 - accuracy) / (sum(bent) + len(others))
    return [share * value + share for value in bent]


def by_hand(q, count, accuracy):
    """Loss of one question, in plain Python."""
    q = sorted(q, reverse=True)
    targets = [accuracy, *tail(q[1:], accuracy)]
    return sum((a - b) ** 2 for a, b in zip(q, targets, strict=True)) / count


def logits(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


Q = [0.62, 0.2, 0.1, 0.08]


def test_e_step_counts_questions_and_right_answers():
    probabilities = torch.tensor([[0.55, 0.45], [0.4, 0.6], [0.45, 0.55], [0.05, 0.95]])
    state = ReleasedCodeLoss().fit(probabilities, torch.tensor([0, 0, 1, 1])).state_dict()
    assert state["counts"] == [0, 0, 0, 0, 0, 2, 1, 0, 0, 1]
    assert state["accuracies"] == [0, 0, 0, 0, 0, 1.0, 0.0, 0, 0, 1.0]  # .6 is the lower edge of its bin
    again = ReleasedCodeLoss.from_state_dict(json.loads(json.dumps(state)))
    assert again.state_dict() == state and again.fitted and not ReleasedCodeLoss().fitted
    with pytest.raises(RuntimeError, match="E-step"):
        ReleasedCodeLoss()(logits(Q))


def test_loss_and_count_agree_on_a_confidence_rounded_below_an_edge():
    q = torch.tensor([[0.69999990, 0.2, 0.10000010]]).expand(4, 3)
    loss = ReleasedCodeLoss().fit(q, torch.tensor([0, 0, 0, 1]))
    assert loss.state_dict()["counts"][7] == 4
    assert float(loss(q[:1].log())) == pytest.approx(by_hand(q[0].tolist(), 4, 0.75), rel=1e-5)


def test_each_question_is_divided_by_the_number_of_questions_of_its_bin():
    few, many = one_bin(6, 5, 0.5), one_bin(6, 500, 0.5)
    assert float(few(logits(Q))) == pytest.approx(by_hand(Q, 5, 0.5), rel=1e-5)
    assert float(few(logits(Q))) == pytest.approx(100 * float(many(logits(Q))), rel=1e-5)
    # a sum over the questions, whatever the order of the options
    second = [0.1, 0.2, 0.66, 0.04]
    both = few(logits(Q, second))
    assert float(both) == pytest.approx(by_hand(Q, 5, 0.5) + by_hand(second, 5, 0.5), rel=1e-5)


def test_the_last_bin_has_no_loss_and_no_gradient():
    loss = fitted([10.0] * 10, [0.5] * 10)
    z = logits([0.93, 0.03, 0.02, 0.02], [0.88, 0.06, 0.03, 0.03]).requires_grad_()
    total = loss(z)
    assert total.item() == pytest.approx(by_hand([0.88, 0.06, 0.03, 0.03], 10, 0.5), rel=1e-5)
    (gradient,) = torch.autograd.grad(total, z)
    assert (gradient[0] == 0).all() and gradient[1].abs().sum() > 0.01


def test_an_empty_bin_has_accuracy_zero():
    loss = one_bin(3, 10, 0.4)  # nothing in [.6, .7)
    assert float(loss(logits(Q))) == pytest.approx(by_hand(Q, 1, 0.0), rel=1e-5)
    # ours keeps the confidence of an empty bin as its target
    calibrator = EMCalibrator("bins", pseudo_count=0).fit(np.array([[0.35, 0.33, 0.32]]), np.array([0]))
    assert calibrator.targets(np.array([Q]))[0, 0] == pytest.approx(0.62)


def test_the_top_target_may_be_below_chance():
    loss = one_bin(3, 10, 0.1)
    even = [0.31, 0.25, 0.23, 0.21]
    assert float(loss(logits(even))) == pytest.approx(by_hand(even, 10, 0.1), rel=1e-5)


def test_gradient_flows_through_the_targets_of_the_tail():
    loss, count, accuracy = one_bin(6, 5, 0.5), 5, 0.5
    z = logits(Q).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z), z)

    def value(point):
        exponentials = [math.exp(v) for v in point]
        return by_hand([e / sum(exponentials) for e in exponentials], count, accuracy)

    start, step = z.detach()[0].tolist(), 1e-6
    numeric = []
    for index in range(4):
        up, down = list(start), list(start)
        up[index] += step
        down[index] -= step
        numeric.append((value(up) - value(down)) / (2 * step))
    np.testing.assert_allclose(gradient[0], numeric, rtol=1e-4, atol=1e-6)
    # with fixed targets the gradient differs
    targets = torch.tensor([[accuracy, *tail(Q[1:], accuracy)]])
    (fixed,) = torch.autograd.grad(em_ece_loss(z, targets, loss_type="brier", reduction="sum") / count, z)
    assert (gradient - fixed).abs().max() > 0.05 * fixed.abs().max()


def test_certain_and_impossible_targets_are_finite():
    for accuracy, q in (
        (1.0, Q),
        (0.0, Q),
        (0.5, [0.65, 0.35, 0.0, 0.0]),
        (0.999999, [0.6, 0.4 - 2e-30, 1e-30, 1e-30]),
    ):
        z = logits(q).clamp(min=-200).requires_grad_()
        total = one_bin(6, 2, accuracy)(z)
        (gradient,) = torch.autograd.grad(total, z)
        assert torch.isfinite(total) and torch.isfinite(gradient).all()
    certain = one_bin(6, 2, 1.0)(logits(Q))
    assert float(certain) == pytest.approx((0.38**2 + 0.2**2 + 0.1**2 + 0.08**2) / 2, rel=1e-5)


@pytest.mark.parametrize("padding", [-torch.inf, 7.0])
def test_padding_changes_nothing(padding):
    loss = one_bin(6, 5, 0.5)
    three = [0.62, 0.28, 0.1]
    z = torch.cat([logits(three), torch.full((1, 2), padding, dtype=torch.float64)], dim=1)
    mask = torch.tensor([[True, True, True, False, False]])
    assert float(loss(z, mask)) == pytest.approx(by_hand(three, 5, 0.5), rel=1e-5)
    assert float(loss(torch.zeros(0, 4))) == 0
