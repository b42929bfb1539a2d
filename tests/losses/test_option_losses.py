"""Cross-entropy over the options."""

import torch
import torch.nn.functional as F

from hf_calib.losses.option_losses import option_cross_entropy


def batch():
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(40, 5, generator=generator), torch.randint(0, 5, (40,), generator=generator)


def test_cross_entropy_is_torchs_and_padding_is_no_option():
    option_logits, labels = batch()
    expected = F.cross_entropy(option_logits, labels, reduction="sum")
    padded = F.pad(option_logits, (0, 3), value=-torch.inf)
    torch.testing.assert_close(option_cross_entropy(option_logits, labels), expected)
    torch.testing.assert_close(option_cross_entropy(padded, labels), expected)
    torch.testing.assert_close(option_cross_entropy(padded, labels, padded != -torch.inf), expected)


def test_gradients_are_right_and_finite():
    option_logits, labels = batch()[0][:6].double().requires_grad_(), batch()[1][:6]
    # The loss computes in float32.
    assert torch.autograd.gradcheck(lambda z: option_cross_entropy(z, labels), option_logits, eps=1e-3, atol=1e-2)
    certain = torch.tensor([[80.0, -80.0, -torch.inf]]).requires_grad_()
    for label in (0, 1):
        (gradient,) = torch.autograd.grad(option_cross_entropy(certain, torch.tensor([label])), certain)
        assert gradient.isfinite().all()
    assert option_cross_entropy(certain[:0], torch.zeros(0, dtype=torch.long)) == 0
