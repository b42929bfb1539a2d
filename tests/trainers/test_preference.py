"""Margins of pairs as their losses mean them, the two-option view of pairs, and the baselines' token statistics."""

import numpy as np
import pytest
import torch

from hf_calib.trainers.baselines import catto_loss, entropy_bonus, token_statistics
from hf_calib.trainers.preference import as_two_options, preference_scale


def test_every_second_pair_is_turned_round():
    columns = as_two_options(np.array([0.5, 0.5, 0.9, 0.2]))
    assert columns.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.9, pytest.approx(0.1)], [0.8, 0.2]]
    labels = np.arange(4) % 2
    # A tie is decided by the order, rightly in every second pair.
    assert (columns.argmax(1) == labels).tolist() == [True, False, True, False]


def test_token_statistics_are_those_of_the_softmax():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(4, 7), torch.randn(600, 4, requires_grad=True)
    tokens = torch.randint(7, (600,))
    statistics = token_statistics(head, hidden, tokens, lambda logits: 2 * logits)
    probs = (2 * head(hidden)).softmax(-1)
    ranked = probs.sort(-1, descending=True).values
    came = probs[torch.arange(600), tokens]
    margin = came - torch.where(came == ranked[:, 0], ranked[:, 1], ranked[:, 0])
    entropy = torch.distributions.Categorical(probs=probs).entropy()
    torch.testing.assert_close(statistics, torch.stack([ranked[:, 0], margin, entropy], -1))
    for loss in (catto_loss, entropy_bonus):
        (gradient,) = torch.autograd.grad(loss(statistics), hidden, retain_graph=True)
        assert gradient.abs().sum() > 0
    # The surrogate is a target: along the gradient of CATTO's term the confidence of tokens that did not come falls.
    (slope,) = torch.autograd.grad(catto_loss(statistics), statistics)
    assert (slope[margin < -0.4, 0] > 0).all() and not slope[:, 1:].any()


@pytest.mark.parametrize(
    ("loss_type", "loss"),
    [
        ("sigmoid", lambda margin, beta: np.log1p(np.exp(-beta * margin))),
        ("ipo", lambda margin, beta: (margin - 1 / (2 * beta)) ** 2),
        # both completions, as far from the reference
        ("sppo_hard", lambda margin, beta: 2 * (margin / 2 - 1 / (2 * beta)) ** 2),
    ],
)
def test_the_best_margin_implies_the_probability_of_winning(loss_type, loss):
    """Where the chosen one wins with probability .55, the margin of the least expected loss is read as .55."""
    beta, margins = 0.2, np.linspace(-5, 5, 20_001)
    best = margins[np.argmin(0.55 * loss(margins, beta) + 0.45 * loss(-margins, beta))]
    assert 1 / (1 + np.exp(-preference_scale([loss_type]) * beta * best)) == pytest.approx(0.55, abs=1e-3)
