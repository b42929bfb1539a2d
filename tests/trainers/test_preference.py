"""Preference probabilities and soft labels, compared with TRL's own losses; the two-option view of pairs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import expit

from hf_calib.losses.preference_links import LINKED_LOSSES, UNLINKED_LOSSES, preference_link
from hf_calib.trainers.preference import SOFT_LOSSES, as_two_options


BETA, SMOOTHING = 0.7, 0.1
LENGTHS = (2, 4)  # tokens of the two completions


def test_every_second_pair_is_turned_round():
    columns = as_two_options(np.array([0.5, 0.5, 0.9, 0.2]))
    assert columns.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.9, pytest.approx(0.1)], [0.8, 0.2]]
    labels = np.arange(4) % 2
    # A tie is decided by the order, rightly in every second pair.
    assert (columns.argmax(1) == labels).tolist() == [True, False, True, False]


class OnePair:
    """TRL's loss of one pair of completions as a function of their log-ratios, for either vote."""

    def __init__(self, trainer):
        self.trainer = trainer
        trainer.model.eval()
        trainer.precompute_ref_logps = True
        tokens = torch.arange(2 * 6).reshape(2, 6) + 5
        self.masks = torch.tensor([[0] * (6 - length) + [1] * length for length in LENGTHS])
        self.inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        self.inputs |= {"ref_chosen_logps": torch.zeros(1), "ref_rejected_logps": torch.zeros(1)}
        labels = tokens.masked_fill(self.masks == 0, -100)
        with torch.no_grad():
            self.outputs = trainer.model(**self.inputs_of_model(), labels=labels, fused_lm_head=True)

    def inputs_of_model(self):
        return {name: self.inputs[name] for name in ("input_ids", "attention_mask")}

    def loss(self, log_ratios: torch.Tensor, vote: int) -> torch.Tensor:
        """Loss if completion `vote` is the chosen one."""
        order = [vote, 1 - vote]
        masks = self.masks[order]
        share = masks[:, 1:] / masks[:, 1:].sum(1, keepdim=True)
        self.outputs.log_probs = log_ratios[order][:, None] * share
        return self.trainer._compute_loss(lambda **_: self.outputs, {**self.inputs, "completion_mask": masks}, False)

    def minimum(self, p: float) -> float:
        """`beta * margin` of the least expected loss, where completion 0 wins with probability p."""

        def expected(values):
            log_ratios = torch.tensor(values, dtype=torch.float64, requires_grad=True)
            loss = p * self.loss(log_ratios, 0) + (1 - p) * self.loss(log_ratios, 1)
            (slope,) = torch.autograd.grad(loss, log_ratios)
            return loss.item(), slope.numpy()

        best = minimize(expected, [0.05, -0.02], jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
        self.loss(torch.tensor(best.x), 0)
        return self.trainer._preference_logits.item()


@pytest.fixture
def make_pair(pairs, make_dpo_trainer):
    def make(loss_type):
        return OnePair(
            make_dpo_trainer(pairs, loss_type=[loss_type], label_smoothing=SMOOTHING, beta=BETA, lambda_pref=0)
        )

    return make


@pytest.mark.parametrize("p", [0.2, 0.55, 0.85])
@pytest.mark.parametrize("loss_type", [name for name in LINKED_LOSSES if name != "cdpo"])
def test_the_link_reads_the_minimum_of_trls_loss_as_the_probability_of_winning(make_pair, loss_type, p):
    pair = make_pair(loss_type)
    x = pair.minimum(p)
    assert preference_link(loss_type, SMOOTHING).probabilities(torch.tensor(x)).item() == pytest.approx(p, abs=2e-3)
    if loss_type == "robust":  # the sigmoid is the probability of the votes before some were turned round
        assert expit(x) == pytest.approx((p - SMOOTHING) / (1 - 2 * SMOOTHING), abs=2e-3)
    assert pair.trainer.preference_link == preference_link(loss_type, SMOOTHING)


def test_conservative_dpo_is_dpo_on_votes_some_of_which_are_turned_round(make_pair):
    pair = make_pair("sigmoid")
    x = pair.minimum((1 - 0.2) * 0.7 + 0.2 * 0.3)
    assert preference_link("cdpo", 0.2).probabilities(torch.tensor(x)).item() == pytest.approx(0.7, abs=2e-3)
    # by its own formula, -(1 - e) log s(x) - e log s(-x) of a vote
    x = torch.tensor(x, requires_grad=True)
    expected = sum(
        weight * (-0.8 * F.logsigmoid(sign * x) - 0.2 * F.logsigmoid(-sign * x))
        for weight, sign in ((0.7, 1), (0.3, -1))
    )
    assert torch.autograd.grad(expected, x)[0].item() == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("loss_type", [name for name in UNLINKED_LOSSES if name != "aot"])
def test_losses_without_a_link_have_one_minimum_for_different_probabilities(make_pair, loss_type):
    """Their least expected loss is at the end of the range, or elsewhere than any probability would say."""
    pair = make_pair(loss_type)
    assert pair.trainer.preference_link is None
    if loss_type != "discopop":  # its minimum moves with p, by no formula
        near, far = (np.clip(pair.minimum(p), -0.99, 0.99) for p in (0.7, 0.8))
        assert near == far > 0.5


@pytest.mark.parametrize("loss_type", SOFT_LOSSES)
def test_a_soft_label_is_the_mean_over_votes(rated, make_dpo_trainer, loss_type):
    """The loss and its gradient: TRL's own with either completion chosen, weighted by the agreement."""
    trainer = make_dpo_trainer(rated, loss_type=[loss_type], label_smoothing=SMOOTHING, beta=BETA, lambda_pref=0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    p = batch["preference_probability"]
    assert p.tolist() == pytest.approx(rated[:8]["preference_probability"]) and p.std() > 0.01

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trainer.model.parameters()))])

    trainer.model.train()
    soft = trainer._compute_loss(trainer.model, batch, False)
    votes = []
    for row in range(8):
        one = {k: v[[row, row + 8]] for k, v in batch.items() if k not in ("preference_probability",)}
        for order, weight in (([0, 1], p[row]), ([1, 0], 1 - p[row])):
            turned = {k: v[order] for k, v in one.items()}
            votes.append(weight * trainer._compute_loss(trainer.model, turned, False))
    expected = sum(votes) / 8
    torch.testing.assert_close(soft, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(soft), gradient(expected), rtol=1e-3, atol=1e-5)
    if loss_type == "sigmoid":
        x = trainer.beta * _margins(trainer, batch)
        torch.testing.assert_close(soft, (-p * F.logsigmoid(x) - (1 - p) * F.logsigmoid(-x)).mean())


def _margins(trainer, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    scores = []
    with torch.no_grad():
        for model in (trainer.model, trainer.ref_model):
            log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)
            of_tokens = log_probs.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
            scores.append((of_tokens * batch["completion_mask"][:, 1:]).sum(1))
    chosen, rejected = (scores[0] - scores[1]).chunk(2)
    return chosen - rejected
