"""The tail of the targets at a matched temperature."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from hf_calib import EMCalibrator
from hf_calib.losses.em_ece_loss import em_ece_loss
from hf_calib.losses.target_tails import temperature_tail


def ranked(z):
    return z.softmax(-1).sort(descending=True).values


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 20.0])
def test_it_is_softmax_at_a_temperature_and_has_the_top_asked_for(dtype, atol, scale):
    torch.manual_seed(0)
    q = ranked(scale * torch.randn(200, 5, dtype=dtype))
    top = 0.21 + 0.78 * torch.rand(200, dtype=dtype)
    t = temperature_tail(top, q, torch.full((200,), 5))
    torch.testing.assert_close(t[:, 0], top, atol=atol, rtol=0)
    torch.testing.assert_close(t.sum(-1), torch.ones(200, dtype=dtype))
    # The ratio of log-odds to those of q is 1 / T, the same for all options.
    usable = (q[:, -1] > 1e-30) & (t[:, -1] > 1e-4)
    inverse = (t[:, :1] / t[:, 1:]).log() / (q[:, :1] / q[:, 1:]).log()
    if scale >= 1 and dtype == torch.float64:
        torch.testing.assert_close(inverse[usable], inverse[usable][:, :1].expand(-1, 4), rtol=1e-4, atol=1e-6)


def test_it_agrees_with_a_root_finder():
    q = torch.tensor([[0.9, 0.09, 0.009, 0.001]], dtype=torch.float64)
    log_q = q[0].log().numpy()
    b = brentq(lambda b: 1 / np.exp(b * (log_q - log_q[0])).sum() - 0.6, 1e-6, 10)
    expected = np.exp(b * log_q) / np.exp(b * log_q).sum()
    t = temperature_tail(torch.tensor([0.6], dtype=torch.float64), q, torch.tensor([4]))
    np.testing.assert_allclose(t[0], expected, atol=1e-10)


def test_questions_of_different_numbers_of_options_in_one_batch():
    q = torch.tensor([[0.7, 0.2, 0.1], [0.8, 0.2, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    k = torch.tensor([3, 2, 1])
    t = temperature_tail(torch.tensor([0.5, 0.6, 1.0], dtype=torch.float64), q, k)
    np.testing.assert_allclose(t[1:], [[0.6, 0.4, 0], [1, 0, 0]], atol=1e-9)
    assert t[0, 0] == pytest.approx(0.5, abs=1e-9) and t[0, 1] > t[0, 2] > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extremes_stay_distributions_of_the_same_ranking(dtype):
    """Targets of 1/K and 1, certain predictions, ties at the top and everywhere, options far apart."""
    q = torch.tensor(
        [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [0.5001, 0.4999, 0, 0], [0.999, 1e-3, 1e-30, 1e-38]], dtype=dtype
    )
    for top in (0.25, 0.3, 0.6, 1.0):
        t = temperature_tail(torch.full((5,), top, dtype=dtype), q, torch.full((5,), 4))
        assert torch.isfinite(t).all() and (t >= 0).all()
        torch.testing.assert_close(t.sum(-1), torch.ones(5, dtype=dtype))
        assert (t.diff(dim=-1) <= 1e-7).all()
        expected = torch.tensor([top, min(top, 0.5), 0.25, top, top], dtype=dtype)
        torch.testing.assert_close(t[:, 0], expected, atol=2e-3, rtol=0)


def test_it_keeps_the_proportions_that_the_papers_tail_flattens():
    q = torch.tensor([[0.85, 0.14, 0.005, 0.005]], dtype=torch.float64)
    calibrators = [EMCalibrator("bins", pseudo_count=0, tail=tail) for tail in ("paper", "temperature")]
    tails = [c.fit(q.repeat(10, 1), np.repeat([0, 1], [6, 4])).targets(q)[0] for c in calibrators]
    assert tails[0][0] == pytest.approx(0.6) and tails[1][0] == pytest.approx(0.6, abs=1e-9)
    assert tails[0][1] / tails[0][3] <= 2 < tails[1][1] / tails[1][3]


def test_gradient_of_the_loss_with_these_targets():
    """No gradient flows through the targets, and that of KL is q - t."""
    torch.manual_seed(0)
    z = (3 * torch.randn(6, 4)).requires_grad_()
    calibrator = EMCalibrator(tail="temperature").fit(z.softmax(-1), torch.arange(6) % 4)
    targets = calibrator.targets(z.softmax(-1))
    loss = em_ece_loss(z, targets, loss_type="kl", reduction="sum")
    (gradient,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(gradient, z.detach().softmax(-1) - targets, atol=1e-6, rtol=1e-5)
    bump = torch.zeros_like(z)
    bump[2, 1] = 1e-2
    values = [em_ece_loss(z.detach() + sign * bump, targets, loss_type="kl", reduction="sum") for sign in (1, -1)]
    assert gradient[2, 1].item() == pytest.approx((values[0] - values[1]).item() / 2e-2, abs=2e-3)
