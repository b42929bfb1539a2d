"""Calibrated DPO: which rows the E-step and the evaluation ask, and what is no configuration or no data."""

import numpy as np
import pytest
import torch
from runs import DPO_RUN, logged
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_calib import CalibratedDPOConfig, EMCalibrator, calibration_report, predict_options
from hf_calib.data.questions import PromptFormat
from hf_calib.trainers.preference import as_two_options


def test_every_question_comes_once_an_epoch(pairs, questions, make_dpo_trainer):
    trainer = make_dpo_trainer(pairs, option_dataset=questions, lambda_options=1.0, option_ratio=0.75, em_holdout=5)
    assert len(trainer.estep_datasets["pairs"]) == 5 and len(trainer.train_dataset) == 59
    assert len(trainer.option_dataset) == 35 and len(trainer.estep_datasets["options"]) == 5
    drawn = []
    for trainer.state.global_step in range(12):
        drawn.append(trainer._draw_questions())
        assert len(drawn[-1]) == 6
    drawn = np.concatenate(drawn)[:70].reshape(2, 35)
    assert (np.sort(drawn) == np.arange(35)).all() and (drawn[0] != drawn[1]).any()


def test_the_e_step_asks_held_out_pairs(pairs, make_dpo_trainer):
    trainer = make_dpo_trainer(pairs, em_holdout=0.25, em_refresh="3", learning_rate=1e-2)
    assert len(trainer.train_dataset) == 48 and len(trainer.estep_datasets["pairs"]) == 16
    trainer.e_step()
    assert not trainer.calibrators["pairs"].fitted  # the policy is its own reference, and every pair a tie
    trainer.train()
    metrics = dict(trainer._metrics)
    trainer.e_step()
    assert trainer._metrics == metrics
    q = trainer.predict(trainer.estep_datasets["pairs"]).predictions
    expected = EMCalibrator().fit(as_two_options(q), as_two_options(np.ones(16))).state_dict()
    assert trainer.calibrators["pairs"].state_dict()["ordinates"] == pytest.approx(expected["ordinates"], abs=1e-5)


def test_a_map_taken_once_is_taken_when_there_are_no_longer_ties_alone(pairs, questions, make_dpo_trainer):
    trainer = make_dpo_trainer(
        pairs, option_dataset=questions, lambda_options=1.0, em_refresh="once", num_train_epochs=2
    )
    taken, e_step = [], trainer.e_step
    trainer.e_step = lambda kinds: (taken.append((trainer.state.global_step, list(kinds))), e_step(kinds))
    trainer.train()
    first, *tries = taken
    assert first == (0, ["pairs", "options"])
    assert tries == [(2**k, ["pairs"]) for k in range(len(tries))] and 0 < len(tries) < 4
    assert trainer.calibrators["pairs"].fitted and logged(trainer, "pair_em_ece")[-1] > 0


def test_what_annotators_agree_on_is_the_truth(rated, pairs, make_dpo_trainer):
    """As label of training pairs, which then need no E-step, and in the E-step of pairs that lack it."""
    share = rated.rename_column("preference_probability", "agreement")
    settings = {"preference_probability_column": "agreement", "num_train_epochs": 30, "learning_rate": 1e-2, "beta": 1}
    trainer = make_dpo_trainer(share, lambda_pref=5.0, **settings)
    assert len(trainer.train_dataset) == 64 and not trainer.calibrators
    trainer.train()
    assert not logged(trainer, "pair_em_ece")
    read, truth = trainer.predict(trainer.train_dataset).predictions, np.array(rated["preference_probability"])
    votes = make_dpo_trainer(rated, lambda_pref=0, **{**settings, "preference_probability_column": None})
    assert "preference_probability" not in votes.train_dataset.column_names
    votes.train()
    assert np.abs(read - truth).mean() < 0.5 * np.abs(votes.predict(votes.train_dataset).predictions - truth).mean()

    agreed = pairs.select(range(40)).map(lambda row: {"preference_probability": 0.75})
    trainer = make_dpo_trainer(pairs, estep_dataset=agreed, max_steps=8, learning_rate=1e-2)
    trainer.train()
    trainer.e_step()
    q = trainer.predict(trainer.estep_datasets["pairs"]).predictions
    expected = EMCalibrator().fit(as_two_options(q), as_two_options(np.full(40, 0.75))).state_dict()
    assert trainer.calibrators["pairs"].state_dict()["ordinates"] == pytest.approx(expected["ordinates"], abs=1e-5)


def test_pairs_of_a_stream_have_soft_labels(rated, make_dpo_trainer):
    settings = {"preference_probability_column": "agreement", "lambda_pref": 0, "max_steps": 1}
    rated = rated.rename_column("preference_probability", "agreement")
    losses = []
    for pairs in (rated, rated.to_iterable_dataset(), rated.to_iterable_dataset().map(lambda row: row)):
        trainer = make_dpo_trainer(pairs, **settings)
        trainer.model.train()
        batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset.take(8))))
        torch.manual_seed(0)
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] == losses[1] == losses[2]
    trainer.train()
    percent = rated.map(lambda row: {"agreement": 100 * row["agreement"]}).to_iterable_dataset()
    with pytest.raises(ValueError, match="not in"):
        make_dpo_trainer(percent, **settings).train()


def test_targets_of_option_questions_are_kept_between_e_steps(pairs, questions, make_dpo_trainer):
    seen = []

    class Recorder(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(trainer.fixed_targets["options"].clone())

    settings = {"lambda_options": 1.0, "option_dataset": questions, "em_holdout": 8, "learning_rate": 1e-2}
    trainer = make_dpo_trainer(pairs, em_refresh="3", max_steps=6, callbacks=[Recorder()], **settings)
    trainer.train()
    assert set(trainer.fixed_targets) == {"options"} and seen[0].shape == (32, 4)
    assert all(torch.equal(seen[step], seen[3 * (step // 3)]) for step in range(6)) and not torch.equal(*seen[2:4])
    trainer.e_step()
    probabilities, _ = trainer._score_dataset("options", trainer.option_dataset, "again")
    expected = trainer.calibrators["options"].targets(probabilities)
    torch.testing.assert_close(trainer.fixed_targets["options"], expected)


def test_evaluation_is_over_all_rows_at_once(world_model, rated, world, make_dpo_trainer):
    questions = world.questions(30, seed=1)
    trainer = make_dpo_trainer(
        rated, eval_dataset=rated, eval_option_dataset=questions, lambda_pref=0, per_device_eval_batch_size=10
    )
    trainer.train()
    metrics = trainer.evaluate()
    margins = logged(trainer, "eval_rewards/margins")[-1]
    q = trainer.predict(trainer.eval_dataset).predictions
    assert np.log(q / (1 - q)).mean() == pytest.approx(margins, rel=0.2)  # TRL's mean over batches of unequal size
    truth = np.array(rated["preference_probability"])
    report = calibration_report(as_two_options(q), np.arange(64) % 2, as_two_options(truth))
    assert {k: metrics[f"eval_pair_{k}"] for k in report} == pytest.approx(report, abs=1e-6)
    predictions = predict_options(
        trainer.model,
        trainer.processing_class,
        questions,
        prompt_format=PromptFormat(scoring="text", use_chat_template=False),
        progress=False,
    )
    report = calibration_report(predictions.probabilities, predictions.labels)
    assert {k: metrics[f"eval_option_{k}"] for k in report} == pytest.approx(report, abs=1e-5)
    assert "eval_loss" in metrics and metrics["eval_option_n"] == 30


def test_a_loss_without_a_link_has_no_measures_of_pairs(pairs, questions, make_dpo_trainer):
    settings = {"lambda_pref": 0, "eval_dataset": pairs, "eval_option_dataset": questions}
    metrics = make_dpo_trainer(pairs, loss_type=["hinge"], **settings).evaluate()
    assert "eval_loss" in metrics and "eval_option_ece" in metrics and "eval_pair_ece" not in metrics
    metrics = make_dpo_trainer(pairs, loss_type=["robust"], label_smoothing=0.2, **settings).evaluate()
    assert metrics["eval_pair_confidence"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lambda_pref": -1}, "lambda_pref"),
        ({"lambda_options": float("nan")}, "lambda_options"),
        ({"option_ratio": 0.0}, "option_ratio"),
        ({"loss_type": "sft"}, "loss_type=sft implies no"),
        ({"loss_type": "hinge"}, "loss_type=hinge implies no .* set lambda_pref=0"),
        ({"em_holdout": 1.5}, "em_holdout"),
        ({"em_holdout": -0.1}, "em_holdout"),
        ({"scoring": "word"}, "scoring='word'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        CalibratedDPOConfig(str(tmp_path), **{**DPO_RUN, **settings})


def test_wrong_data_are_named(world_model, rated, pairs, questions, make_dpo_trainer):
    for settings in ({"loss_type": "hinge"}, {"loss_type": ["sigmoid", "ipo"]}, {"use_weighting": True}):
        with pytest.raises(ValueError, match="preference_probability_column=None"):
            make_dpo_trainer(rated, lambda_pref=0, **settings)
    with pytest.raises(ValueError, match="of 3 pairs leaves 0 for the E-step"):
        make_dpo_trainer(pairs.select(range(3)))
    with pytest.raises(ValueError, match="estep_dataset has no rows"):
        make_dpo_trainer(pairs, estep_dataset=pairs.select([]))
    with pytest.raises(ValueError, match="give option_dataset"):
        make_dpo_trainer(pairs, lambda_options=1.0)
    with pytest.raises(ValueError, match="no column 'chosen', 'rejected'.*option_dataset"):
        make_dpo_trainer(questions)
    with pytest.raises(ValueError, match="train pairs, row 5: 'chosen' and 'rejected' are the same"):
        make_dpo_trainer(pairs.map(lambda row, i: {"rejected": row["chosen"]} if i == 5 else {}, with_indices=True))
    with pytest.raises(ValueError, match="eval pairs, row 0: the preference probability 1.5"):
        make_dpo_trainer(pairs, eval_dataset=rated.map(lambda row: {"preference_probability": 1.5}))
    model = AutoModelForCausalLM.from_pretrained(world_model)
    with pytest.raises(ValueError, match="cannot be the same object"):
        make_dpo_trainer(pairs, model=model, ref_model=model)
    with pytest.raises(TypeError, match="is a list: give a datasets.Dataset, or set lambda_pref=0"):
        make_dpo_trainer([1])


def test_a_model_that_diverged_is_said_so(world_model, rated, pairs, make_dpo_trainer):
    model = AutoModelForCausalLM.from_pretrained(world_model)
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="pair_confidence is NaN at step 1: .* lower learning_rate"):
        make_dpo_trainer(rated, model=model).train()
    with pytest.raises(FloatingPointError, match="E-step's probabilities of pairs contain NaN"):
        make_dpo_trainer(pairs, model=model).train()
