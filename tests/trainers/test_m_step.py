"""The M-step of RCFT: which questions EM-ECE acts on, and targets that are fixed between two E-steps."""

import numpy as np
import pytest
import torch
from runs import SFT_RUN
from transformers import TrainerCallback

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, predict_options
from hf_calib.data.questions import PromptFormat
from hf_calib.trainers.e_step import hold_out


class Recorder(TrainerCallback):
    """Copies of the targets after every step."""

    def __init__(self):
        self.targets = []

    def on_step_end(self, args, state, control, **kwargs):
        self.targets.append(self.trainer.fixed_targets["options"].clone())


@pytest.fixture
def make(world_model, questions, tmp_path):
    def make_trainer(unlabelled=None, config=CalibratedSFTConfig, callbacks=None, **settings):
        args = config(str(tmp_path), **{**SFT_RUN, **settings})
        return CalibratedSFTTrainer(
            world_model, args, train_dataset=questions, unlabelled_dataset=unlabelled, callbacks=callbacks
        )

    return make_trainer


def numbers(trainer):
    return list(trainer.train_dataset["question_index"])


class Unlabelled(CalibratedSFTConfig):
    calibrates_labelled = False


def test_questions_of_the_m_step_are_numbered(make, world):
    """32 labelled (8 are held out), then 5 without answers."""
    unlabelled = world.questions(5, seed=7)
    assert numbers(make(unlabelled)) == list(range(37))
    assert numbers(make(unlabelled, config=Unlabelled)) == [-1] * 32 + list(range(5))
    assert numbers(make(config=Unlabelled)) == list(range(32))
    assert numbers(make(em_holdout=0)) == list(range(40))
    paper = make(em_preset="paper")
    assert numbers(paper) == list(range(40))
    paper.e_step()
    assert not paper.fixed_targets


def test_questions_without_a_number_get_no_gradient_of_em_ece(make, world):
    trainer = make(world.questions(20, seed=7), config=Unlabelled, em_holdout=0.5)
    trainer.e_step()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(40)])
    index = batch.pop("question_index")
    z = trainer.model(**batch, options_only=True).logits.detach().requires_grad_()
    _, em_ece, _ = trainer._option_losses(
        z, batch["option_label"], batch["option_mask"], calibration_weight=3.0, question_index=index
    )
    (gradient,) = torch.autograd.grad(em_ece, z)
    assert (gradient[:20] == 0).all() and (gradient[20:].abs().sum(-1) > 0).all()
    # The gradient of KL is q - t, with the targets in the order of the rows.
    expected = 3.0 * (z.detach().softmax(-1)[20:] - trainer.fixed_targets["options"])
    torch.testing.assert_close(gradient[20:], expected, atol=1e-5, rtol=1e-4)


def test_targets_do_not_move_between_e_steps(make, world):
    recorder = Recorder()
    trainer = make(world.questions(24, seed=7), callbacks=[recorder], em_refresh="4", max_steps=12, lambda_ece=5.0)
    recorder.trainer = trainer
    trainer.train()
    blocks = [recorder.targets[i : i + 4] for i in (0, 4, 8)]
    for block in blocks:
        assert all(torch.equal(targets, block[0]) for targets in block)
    assert not torch.equal(blocks[0][0], blocks[1][0]) and not torch.equal(blocks[1][0], blocks[2][0])


def test_targets_are_those_of_the_frozen_model_row_by_row(make, questions, world):
    """Scored by length and in batches, they come back in the order of the rows."""
    unlabelled = world.questions(24, seed=7)
    trainer = make(unlabelled, per_device_eval_batch_size=3)
    trainer.e_step()
    kept, _ = hold_out(questions, questions["question"], trainer.args, "questions")
    settings = {"prompt_format": PromptFormat("text"), "progress": False}
    asked = [predict_options(trainer.model, trainer.processing_class, d, **settings) for d in (kept, unlabelled)]
    q = np.concatenate([predictions.probabilities for predictions in asked])
    expected = trainer.calibrator.targets(torch.tensor(q, dtype=torch.float32))
    torch.testing.assert_close(trainer.fixed_targets["options"], expected, atol=1e-4, rtol=1e-3)


def test_targets_may_move(make):
    """As in the paper, where they follow the current probabilities."""

    class Moving(CalibratedSFTConfig):
        fixes_targets = False

    trainer = make(config=Moving, em_holdout=0.5)
    trainer.train()
    assert not trainer.fixed_targets
    q = torch.tensor([[0.7, 0.2, 0.1]])
    targets = trainer._mstep_targets(q, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0]))
    torch.testing.assert_close(targets, trainer.calibrator.targets(q))


def test_the_loss_of_the_released_code_is_a_sum_over_the_step(make, questions, tmp_path):
    """The logged loss is 0.001 times the sum over the questions of a step, in one micro-batch or in two."""
    logs = []
    for batch, steps in ((8, 1), (4, 2)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 1}
        trainer = make(em_preset="released_code", lambda_ece=1.0, shuffle_dataset=False, **settings)
        trainer.e_step()
        rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
        batch = trainer.data_collator(rows)
        batch.pop("question_index")
        with torch.no_grad():
            z = trainer.model(**batch, options_only=True).logits
        trainer.train()
        logs.append(trainer.state.log_history[0]["loss"])
    each = torch.stack([trainer.calibrator(z[[i]], batch["option_mask"][[i]]) for i in range(len(z))])
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert 8e-3 * each.min() < logs[0] < 8e-3 * each.max()


def test_the_map_of_the_released_code_is_saved(make, tmp_path):
    trainer = make(em_preset="released_code", lambda_ece=1.0, max_steps=2, save_steps=1, save_strategy="steps")
    trainer.train()
    state = trainer.calibrator.state_dict()
    again = make(em_preset="released_code", lambda_ece=1.0, max_steps=3, save_steps=1, save_strategy="steps")
    again.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert again.calibrator.state_dict() == state and sum(state["counts"]) == len(trainer.train_dataset)


def test_the_released_code_takes_no_unlabelled_questions(make, world):
    with pytest.raises(ValueError, match="unlabelled_dataset"):
        make(world.questions(5, seed=7), em_preset="released_code", lambda_ece=1.0)


def test_a_wider_evaluation_set_does_not_widen_the_targets(make):
    trainer = make(em_holdout=0.5)
    trainer.e_step()
    narrow = trainer.fixed_targets["options"]
    mask = torch.ones(2, narrow.size(1) + 2, dtype=torch.bool)
    targets = trainer._mstep_targets(mask.float(), mask, torch.tensor([3, 0]))
    assert torch.equal(targets[:, :-2], narrow[[3, 0]]) and (targets[:, -2:] == 0).all()
