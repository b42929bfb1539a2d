"""Divergence from the most probable tokens of another model."""

import torch

from hf_calib.losses.text_divergence import anchor_divergence


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def test_with_all_tokens_it_is_the_divergence():
    torch.manual_seed(0)
    p, q = torch.randn(2, 6, 9).log_softmax(-1)
    top = p.topk(8)  # the rest is one token
    torch.testing.assert_close(anchor_divergence(q, top.indices, top.values), kl(p, q), rtol=1e-4, atol=1e-5)


def test_with_few_tokens_it_is_a_lower_bound_that_is_0_for_the_same_model():
    torch.manual_seed(0)
    p, q = torch.randn(2, 50, 200).log_softmax(-1)
    top = p.topk(16)
    bound = anchor_divergence(q, top.indices, top.values)
    assert (bound > 0).all() and (bound <= kl(p, q)).all()
    assert anchor_divergence(p, top.indices, top.values).abs().max() < 1e-5


def test_gradient():
    torch.manual_seed(0)
    p = torch.randn(3, 12, dtype=torch.double).log_softmax(-1)
    logits = torch.randn(3, 12, dtype=torch.double, requires_grad=True)
    top = p.topk(4)
    assert torch.autograd.gradcheck(
        lambda z: anchor_divergence(z.log_softmax(-1), top.indices, top.values).sum(), logits
    )
