"""Losses over the options: against torch's own, against the papers' formulas written out, and in a trainer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer
from hf_calib.losses.option_losses import BATCH_CALIBRATION_LOSSES, mmce, option_cross_entropy, soft_binned_ece


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    option_logits = 2 * torch.randn(40, 5, generator=generator)
    return option_logits, torch.randint(0, 5, (40,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_torchs(batch, smoothing):
    ours = option_cross_entropy(*batch, label_smoothing=smoothing)
    torch.testing.assert_close(ours, F.cross_entropy(*batch, label_smoothing=smoothing, reduction="sum"))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_the_focal_loss_is_its_formula(batch, gamma):
    p = batch[0].softmax(-1)[torch.arange(40), batch[1]]
    expected = -((1 - p) ** gamma * p.log()).sum()
    torch.testing.assert_close(option_cross_entropy(*batch, focal_gamma=gamma), expected)


def test_padding_is_no_option(batch):
    option_logits, labels = batch
    padded = F.pad(option_logits, (0, 3), value=-torch.inf)
    for shape in ({"label_smoothing": 0.2}, {"focal_gamma": 2.0}, {"label_smoothing": 0.2, "focal_gamma": 2.0}):
        expected = option_cross_entropy(option_logits, labels, **shape)
        torch.testing.assert_close(option_cross_entropy(padded, labels, **shape), expected)
    for loss in BATCH_CALIBRATION_LOSSES.values():
        torch.testing.assert_close(loss(padded, labels), loss(option_logits, labels))


def test_mmce_is_its_double_sum(batch):
    confidence, prediction = (array.numpy() for array in batch[0].double().softmax(-1).max(-1))
    gap = (prediction == batch[1].numpy()) - confidence
    total = 0.0
    for i in range(40):
        for j in range(40):
            total += gap[i] * gap[j] * np.exp(-abs(confidence[i] - confidence[j]) / 0.4)
    assert mmce(*batch).item() == pytest.approx(np.sqrt(total / 40**2), rel=1e-5)


def test_soft_binned_ece_is_equation_11(batch):
    confidence, prediction = (array.numpy() for array in batch[0].double().softmax(-1).max(-1))
    correct = (prediction == batch[1].numpy()).astype(float)
    centres = np.arange(1 / 30, 1, 1 / 15)
    share = np.exp(-((confidence[:, None] - centres) ** 2) / 0.01)
    share /= share.sum(1, keepdims=True)
    total = 0.0
    for b in range(15):
        size = share[:, b].sum()
        gap = (share[:, b] * confidence).sum() / size - (share[:, b] * correct).sum() / size
        total += size / 40 * gap**2
    assert soft_binned_ece(*batch).item() == pytest.approx(np.sqrt(total), rel=1e-5)


@pytest.mark.parametrize("loss", [*BATCH_CALIBRATION_LOSSES.values(), option_cross_entropy])
def test_gradients_are_right_and_finite(batch, loss):
    option_logits, labels = batch[0][:6].double().requires_grad_(), batch[1][:6]
    # The losses compute in float32.
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), option_logits, eps=1e-3, atol=1e-2)
    certain = torch.tensor([[80.0, -80.0, -torch.inf]]).requires_grad_()
    for label in (0, 1):
        (gradient,) = torch.autograd.grad(loss(certain, torch.tensor([label])), certain)
        assert gradient.isfinite().all()
    assert loss(certain[:0], torch.zeros(0, dtype=torch.long)).isfinite()


@pytest.mark.parametrize("loss", BATCH_CALIBRATION_LOSSES.values())
def test_an_overconfident_batch_is_pulled_down(loss):
    option_logits = torch.tensor([[3.0, 0.0]]).repeat(50, 1).requires_grad_()
    labels = torch.arange(50) % 2  # confidence .95, accuracy .5
    value = loss(option_logits, labels)
    assert value.item() == pytest.approx(torch.sigmoid(torch.tensor(3.0)).item() - 0.5, rel=1e-3)
    (gradient,) = torch.autograd.grad(value, option_logits)
    assert (gradient[:, 0] > 0).all() and (gradient[:, 1] < 0).all()


def make_trainer(model, questions, output_dir, **settings):
    quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    args = CalibratedSFTConfig(
        str(output_dir), scoring="text", logging_steps=1, gradient_checkpointing=False, **{**quiet, **settings}
    )
    return CalibratedSFTTrainer(model, args, train_dataset=questions)


@pytest.mark.parametrize("name", BATCH_CALIBRATION_LOSSES)
def test_one_step_is_the_sum_of_its_parts(world_model, world, tmp_path, name):
    questions = world.questions(40, seed=0, split="train")
    settings = {
        "likelihood_weight": 0.5,
        "option_loss_weight": 0.7,
        "option_label_smoothing": 0.1,
        "option_focal_gamma": 2.0,
    }
    trainer = make_trainer(
        world_model,
        questions,
        tmp_path,
        calibration_loss=name,
        lambda_ece=3.0,
        per_device_train_batch_size=40,
        max_steps=1,
        **settings,
    )
    assert trainer.calibrator is None and len(trainer.train_dataset) == 40  # no E-step, nothing held out
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(40)])
    option_logits = trainer.model(**batch, options_only=True).logits.detach()
    likelihood = trainer.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item()
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if name in entry]
    taught = option_cross_entropy(option_logits, batch["option_label"], None, 0.1, 2.0).item() / 40
    calibration = BATCH_CALIBRATION_LOSSES[name](option_logits, batch["option_label"]).item()
    assert step[name] == pytest.approx(calibration, rel=1e-4)
    assert step["option_loss"] == pytest.approx(taught, rel=1e-4)
    assert step["loss"] == pytest.approx(0.5 * likelihood + 0.7 * taught + 3.0 * calibration, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"calibration_loss": "ece"}, "calibration_loss='ece'"),
        ({"likelihood_weight": 0}, "likelihood_weight=0"),
        ({"option_label_smoothing": 0.1}, "option_label_smoothing"),
        ({"option_focal_gamma": 2.0}, "option_focal_gamma"),
        ({"option_label_smoothing": 1.0, "option_loss_weight": 1.0}, "below 1"),
        ({"calibration_loss": "mmce", "warm_start": True}, "calibration_loss='em_ece'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        CalibratedSFTConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)
