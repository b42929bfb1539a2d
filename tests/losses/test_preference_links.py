"""Links of preference losses: their values, and which losses have none. The oracle is in trainers/test_preference.py."""

import numpy as np
import pytest
import torch

from hf_calib.losses.preference_links import LINKED_LOSSES, linked_probabilities, loss_of_margin, preference_link


X = torch.linspace(-6, 6, 25)


def test_values_by_hand():
    x = 0.4
    s = 1 / (1 + np.exp(-x))
    expected = {
        "sigmoid": s,
        "sigmoid_norm": s,
        "nca_pair": s,
        "cdpo": (s - 0.1) / 0.8,
        "robust": 0.1 + 0.8 * s,
        "bco_pair": 1 / (1 + np.exp(-x / 2)),
        "ipo": 0.9,
        "sppo_hard": 0.7,
        "exo_pair": 0.5 + x / (2 * np.log(9)),
    }
    assert set(expected) == set(LINKED_LOSSES)
    for loss, value in expected.items():
        read = linked_probabilities(preference_link(loss, 0.1), np.array([x, -x]))
        assert read == pytest.approx([value, 1 - value]), loss


@pytest.mark.parametrize("loss", LINKED_LOSSES)
def test_a_link_is_increasing_and_its_log_odds_are_finite(loss):
    link = preference_link(loss, 0.2)
    p, log_odds = link.probabilities(X), link.log_odds(X)
    assert (p.diff() >= 0).all() and (p >= 0).all() and (p <= 1).all() and p[12] == 0.5
    assert log_odds.isfinite().all()
    inside = (p > 1e-3) & (p < 1 - 1e-3)
    torch.testing.assert_close(log_odds[inside].sigmoid(), p[inside])


def test_the_first_loss_with_a_margin_counts():
    assert loss_of_margin(["sft", "ipo", "sigmoid"]) == "ipo" and loss_of_margin("sft") is None
    assert preference_link(["sft", "bco_pair"]) == preference_link("bco_pair")


@pytest.mark.parametrize(
    ("loss", "smoothing", "named"),
    [
        ("hinge", 0.0, "loss_type=hinge: its margins imply no probability"),
        ("sft", 0.0, "loss_type=sft"),
        ("dpo", 0.0, "loss_type=dpo.*sigmoid"),
        ("robust", 0.5, "label_smoothing must lie in .0, 0.5. for loss_type=robust, got 0.5"),
        ("cdpo", -0.1, "label_smoothing"),
        ("exo_pair", 0.0, "label_smoothing"),
    ],
)
def test_losses_without_a_link_are_named(loss, smoothing, named):
    with pytest.raises(ValueError, match=named):
        preference_link(loss, smoothing)
