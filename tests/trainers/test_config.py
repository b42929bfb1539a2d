"""The configurations: number of own fields, the paper's preset, and the hooks of the trainers."""

from dataclasses import fields, replace

import pytest
import torch
from runs import SFT_RUN, logged
from trl import DPOConfig, SFTConfig

from hf_calib import CalibratedDPOConfig, CalibratedDPOTrainer, CalibratedSFTConfig, CalibratedSFTTrainer
from hf_calib.losses.released_code import ReleasedCodeLoss


@pytest.mark.parametrize(("ours", "base"), [(CalibratedSFTConfig, SFTConfig), (CalibratedDPOConfig, DPOConfig)])
def test_at_most_20_own_fields(ours, base):
    own = {field.name for field in fields(ours)} - {field.name for field in fields(base)}
    assert len(own) <= 20, sorted(own)


def test_the_preset_is_the_papers_setting():
    args = CalibratedSFTConfig("unused", **SFT_RUN, em_preset="paper", em_holdout=0.3, em_loss="kl")
    assert (args.em_estimator, args.em_pseudo_count, args.em_loss) == ("bins", 0.0, "brier")
    assert args.em_refresh == "once" and not args.holds_out and args.likelihood == "sequence"
    assert CalibratedSFTConfig("unused", **SFT_RUN, em_preset="paper", objective="cft").likelihood == "completion"
    assert CalibratedSFTConfig("unused", **SFT_RUN).likelihood == "completion"


def test_the_preset_of_the_released_code():
    args = CalibratedSFTConfig("unused", **SFT_RUN, em_preset="released_code", em_loss="kl")
    assert (args.em_estimator, args.em_pseudo_count, args.em_loss) == ("bins", 0.0, "brier")
    assert args.em_refresh == "once" and not args.holds_out and args.likelihood == "completion"
    assert (args.likelihood_factor, args.calibration_weight) == (0.0, 1e-3)  # a = 1
    assert args.closing_options is None and isinstance(args.new_map(), ReleasedCodeLoss)
    cft = CalibratedSFTConfig("unused", **SFT_RUN, em_preset="released_code", objective="cft")
    assert (cft.likelihood_factor, cft.calibration_weight) == (1.0, 0.0)  # a = 0
    assert replace(args).likelihood_factor == 0.0


@pytest.mark.parametrize(
    "settings",
    [
        {"lambda_ece": 2.0}, {"likelihood_weight": 0.5}, {"option_loss_weight": 1.0}, {"closing_step": True},
        {"closing_step": {"steps": 2}}, {"reference_model_name_or_path": "org/model"}, {"em_fold": 1},
    ],
)  # fmt: skip
def test_the_released_code_has_no_other_options(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CalibratedSFTConfig("unused", **SFT_RUN, em_preset="released_code", **settings)


def test_the_released_code_is_not_for_pairs():
    with pytest.raises(ValueError, match="em_preset='released_code' is none of paper"):
        CalibratedDPOConfig("unused", em_preset="released_code", report_to="none", use_cpu=True, bf16=False)


def test_a_loss_over_the_options_can_be_replaced(world_model, questions, tmp_path):
    """Overriding the method suffices, whatever the weights are."""
    seen = []

    class Trainer(CalibratedSFTTrainer):
        def compute_option_loss(self, option_logits, labels, mask):
            seen.append((option_logits.shape, len(labels)))
            return torch.full((), 3.0 * len(labels), device=option_logits.device)

    args = CalibratedSFTConfig(str(tmp_path), **{**SFT_RUN, "max_steps": 1}, objective="cft", likelihood_weight=0.5)
    trainer = Trainer(world_model, args, train_dataset=questions)
    trainer.train()
    assert seen and all(shape[0] == count for shape, count in seen)
    assert logged(trainer, "loss")[0] > 3.0


def test_a_loss_over_the_pairs_can_be_replaced(world_model, pairs, make_dpo_trainer, tmp_path):
    class Trainer(CalibratedDPOTrainer):
        def compute_pair_loss(self, preference_logits, preference_probability=None):
            assert preference_logits.shape == (8,) and preference_probability is None
            return super().compute_pair_loss(preference_logits) + 2.0

    args = make_dpo_trainer(pairs, lambda_pref=0, max_steps=1).args
    plain = CalibratedDPOTrainer(world_model, args=args, train_dataset=pairs)
    plain.train()
    changed = Trainer(world_model, args=args, train_dataset=pairs)
    changed.train()
    assert logged(changed, "loss")[0] == pytest.approx(logged(plain, "loss")[0] + 2.0, rel=1e-5)
