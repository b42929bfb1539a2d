"""The rivals' losses: against torch, against the papers' formulas, and in the trainers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from option_losses import BATCH_CALIBRATION_LOSSES, mmce, smoothed_focal_loss, soft_binned_ece
from peft import LoraConfig
from rival_trainers import RivalDPOConfig, RivalDPOTrainer, RivalSFTConfig, RivalSFTTrainer, register_rivals
from runs import DPO_RUN, SFT_RUN
from token_losses import catto_loss, entropy_bonus, token_statistics
from transformers import AutoModelForCausalLM

from hf_calib.cli.main import main
from hf_calib.paths import recipe_path


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    option_logits = 2 * torch.randn(40, 5, generator=generator)
    return option_logits, torch.randint(0, 5, (40,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_torchs(batch, smoothing):
    ours = smoothed_focal_loss(*batch, label_smoothing=smoothing)
    torch.testing.assert_close(ours, F.cross_entropy(*batch, label_smoothing=smoothing, reduction="sum"))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_the_focal_loss_is_its_formula(batch, gamma):
    p = batch[0].softmax(-1)[torch.arange(40), batch[1]]
    expected = -((1 - p) ** gamma * p.log()).sum()
    torch.testing.assert_close(smoothed_focal_loss(*batch, focal_gamma=gamma), expected)


def test_padding_is_no_option(batch):
    option_logits, labels = batch
    padded = F.pad(option_logits, (0, 3), value=-torch.inf)
    for shape in ({"label_smoothing": 0.2}, {"focal_gamma": 2.0}, {"label_smoothing": 0.2, "focal_gamma": 2.0}):
        expected = smoothed_focal_loss(option_logits, labels, **shape)
        torch.testing.assert_close(smoothed_focal_loss(padded, labels, **shape), expected)
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


@pytest.mark.parametrize("loss", [*BATCH_CALIBRATION_LOSSES.values(), smoothed_focal_loss])
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
    args = RivalSFTConfig(str(output_dir), **{**SFT_RUN, **settings})
    return RivalSFTTrainer(model, args, train_dataset=questions)


@pytest.mark.parametrize("name", BATCH_CALIBRATION_LOSSES)
def test_one_step_is_the_sum_of_its_parts(world_model, world, tmp_path, name):
    questions = world.questions(40, seed=0, split="train")
    weights = {"likelihood_weight": 0.5, "option_loss_weight": 0.7, "lambda_ece": 3.0}
    shape = {"option_label_smoothing": 0.1, "option_focal_gamma": 2.0}
    run = {"objective": "cft", "batch_loss": name, "per_device_train_batch_size": 40, "max_steps": 1}
    trainer = make_trainer(world_model, questions, tmp_path, **run, **weights, **shape)
    assert trainer.calibrator is None and len(trainer.train_dataset) == 40  # no E-step, nothing held out
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(40)])
    option_logits = trainer.model(**batch, options_only=True).logits.detach()
    likelihood = trainer.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item()
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if name in entry]
    taught = smoothed_focal_loss(option_logits, batch["option_label"], None, 0.1, 2.0).item() / 40
    calibration = BATCH_CALIBRATION_LOSSES[name](option_logits, batch["option_label"]).item()
    assert step[name] == pytest.approx(calibration, rel=1e-4)
    assert step["loss"] == pytest.approx(0.5 * likelihood + 0.7 * taught + 3.0 * calibration, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_loss": "ece"}, "batch_loss='ece'"),
        ({"batch_loss": "mmce", "objective": "rcft"}, "objective='cft'"),
        ({"option_label_smoothing": 0.1}, "option_label_smoothing"),
        ({"option_focal_gamma": 2.0}, "option_focal_gamma"),
        ({"option_label_smoothing": 1.0, "option_loss_weight": 1.0}, "below 1"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        RivalSFTConfig(str(tmp_path), **{**SFT_RUN, "objective": "cft", **settings})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cdpo_smoothing": 0.5}, "cdpo_smoothing"),
        ({"cdpo_smoothing": 0.1, "loss_type": "ipo"}, "not ipo"),
        ({"catto_weight": -1.0}, "catto_weight"),
    ],
)
def test_wrong_dpo_settings_are_named(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        RivalDPOConfig(str(tmp_path), **{**DPO_RUN, **settings})


def test_token_statistics_are_those_of_the_softmax():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(4, 7), torch.randn(600, 4, requires_grad=True)
    tokens = torch.randint(7, (600,))
    statistics = token_statistics(head, hidden, tokens, lambda logits: 2 * logits)
    probs = (2 * head(hidden)).softmax(-1)
    ranked = probs.sort(-1, descending=True).values
    given = probs[torch.arange(600), tokens]
    margin = given - torch.where(given == ranked[:, 0], ranked[:, 1], ranked[:, 0])
    entropy = torch.distributions.Categorical(probs=probs).entropy()
    torch.testing.assert_close(statistics, torch.stack([ranked[:, 0], margin, entropy], -1))
    for loss in (catto_loss, entropy_bonus):
        (gradient,) = torch.autograd.grad(loss(statistics), hidden, retain_graph=True)
        assert gradient.abs().sum() > 0
    # The surrogate is a target: along the gradient of CATTO's term the confidence of wrong tokens falls.
    (slope,) = torch.autograd.grad(catto_loss(statistics), statistics)
    assert (slope[margin < -0.4, 0] > 0).all() and not slope[:, 1:].any()


@pytest.mark.parametrize("adapter", [False, True])
def test_terms_of_dpo(world_model, pairs, tmp_path, adapter):
    reference = AutoModelForCausalLM.from_pretrained(world_model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.5)
    model = {"peft_config": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)} if adapter else {}
    model = model or {"ref_model": reference}

    def loss(**settings):
        torch.manual_seed(0)
        args = RivalDPOConfig(str(tmp_path), **{**DPO_RUN, **settings})
        trainer = RivalDPOTrainer(world_model, args=args, train_dataset=pairs, **model)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(16)])
        return trainer.compute_loss(trainer.model, batch).item(), trainer, batch

    plain, _, _ = loss()
    smoothed, trainer, _ = loss(cdpo_smoothing=0.2)
    x = trainer._preference_logits
    assert smoothed == pytest.approx((-0.8 * F.logsigmoid(x) - 0.2 * F.logsigmoid(-x)).mean().item(), rel=1e-5)
    spread, trainer, batch = loss(entropy_weight=0.3)
    logits = trainer.model(input_ids=batch["input_ids"][:16]).logits[:, :-1]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    chosen = batch["completion_mask"][:16, 1:] == 1
    assert spread == pytest.approx(plain - 0.3 * entropy[chosen].mean().item(), rel=1e-4)
    assert loss(catto_weight=0.3)[0] > plain


def test_recipes_may_name_the_rivals(world_model, world, pairs, tmp_path):
    register_rivals()
    world.questions(24, seed=0, split="train").to_parquet(tmp_path / "questions.parquet")
    pairs.to_parquet(tmp_path / "pairs.parquet")
    for recipe, data, change in (
        ("cft", "questions", ["--trainer", "rival_sft", "--batch_loss", "mmce"]),
        ("dpo", "pairs", ["--trainer", "rival_dpo", "--catto_weight", "0.1", "--gradient_checkpointing", "true"]),
    ):
        call = ["train", "--config", str(recipe_path(f"quickstart/{recipe}.yaml")), *change, "--max_steps", "2"]
        call += ["--model_name_or_path", world_model, "--dataset_name", str(tmp_path / f"{data}.parquet")]
        assert main([*call, "--output_dir", str(tmp_path / recipe), "--disable_tqdm", "true"]) == 0
        assert (tmp_path / recipe / "model.safetensors").exists()
