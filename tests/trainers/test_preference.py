"""Margins of pairs as their losses mean them, and the two-option view of pairs."""

import numpy as np
import pytest

from hf_calib.trainers.preference import as_two_options, preference_scale


def test_every_second_pair_is_turned_round():
    columns = as_two_options(np.array([0.5, 0.5, 0.9, 0.2]))
    assert columns.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.9, pytest.approx(0.1)], [0.8, 0.2]]
    labels = np.arange(4) % 2
    # A tie is decided by the order, rightly in every second pair.
    assert (columns.argmax(1) == labels).tolist() == [True, False, True, False]


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
