"""Anchoring to a reference model."""

import math

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from runs import SFT_RUN, logged
from scipy.special import softmax

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, predict_options
from hf_calib.data.questions import PromptFormat, load_questions
from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.inference.model_loading import load_model
from hf_calib.trainers.reference import calibrate_reference


SETTINGS = {**SFT_RUN, "objective": "cft", "reference_pseudo_count": math.inf}


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory) -> str:
    """The world's model with other random weights."""
    folder = tmp_path_factory.mktemp("reference") / "model"
    world.model(seed=7).save_pretrained(folder)
    world.tokenizer().save_pretrained(folder)
    return str(folder)


def make_trainer(model, dataset, output_dir, **settings):
    args = CalibratedSFTConfig(str(output_dir), **{**SETTINGS, **settings})
    return CalibratedSFTTrainer(model, args, train_dataset=dataset)


def test_rows_carry_what_the_reference_says(world_model, reference, world, questions, tmp_path):
    rows = concatenate_datasets([questions, world.pretraining_statements(5)])
    trainer = make_trainer(world_model, rows, tmp_path, reference_model_name_or_path=reference, shuffle_dataset=False)
    settings = {"prompt_format": PromptFormat("text"), "progress": False}
    expected = predict_options(*load_model(reference), questions, **settings).option_logits
    scored = [row["reference_logits"] for row in trainer.train_dataset if row["num_options"]]
    np.testing.assert_allclose(scored, expected, rtol=1e-4, atol=1e-4)
    assert [row["reference_logits"] for row in trainer.train_dataset if not row["num_options"]] == [[]] * 5


def test_one_step_adds_the_divergence(world_model, reference, questions, tmp_path):
    settings = {"per_device_train_batch_size": 40, "max_steps": 1, "reference_weight": 3.0}
    trainer = make_trainer(world_model, questions, tmp_path, reference_model_name_or_path=reference, **settings)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(40)])
    p = batch.pop("reference_logits").softmax(-1)
    log_q = trainer.model(**batch, options_only=True).logits.detach().log_softmax(-1)
    likelihood = trainer.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item()
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if "reference_kl" in entry]
    divergence = torch.nn.functional.kl_div(log_q, p, reduction="batchmean").item()
    assert step["reference_kl"] == pytest.approx(divergence, rel=1e-4)
    assert step["loss"] == pytest.approx(likelihood + 3.0 * divergence, rel=1e-3)


def test_the_model_comes_near_its_reference(world_model, reference, questions, tmp_path):
    """With rows of text among the questions, and no label in the objective."""
    trainer = make_trainer(
        world_model,
        questions,
        tmp_path,
        reference_model_name_or_path=reference,
        likelihood_weight=0.0,
        num_train_epochs=10,
    )
    trainer.train()
    divergences = logged(trainer, "reference_kl")
    assert divergences[-1] < divergences[0] / 4
    relabelled = questions.map(lambda row: {"answer": (row["answer"] + 1) % len(row["choices"])})
    # Labels decide which option stands first in the sequence, no more.
    again = make_trainer(
        world_model,
        relabelled,
        tmp_path,
        reference_model_name_or_path=reference,
        likelihood_weight=0.0,
        num_train_epochs=10,
    )
    again.train()
    np.testing.assert_allclose(logged(again, "reference_kl"), divergences, rtol=1e-2)


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_the_reference_is_calibrated_on_all_labels(world_model, reference, questions, tmp_path, objective):
    """Those held out for the E-step included, and none of the questions without an answer."""
    before = predict_options(*load_model(reference), questions, prompt_format=PromptFormat("text"), progress=False)
    favourites = before.probabilities.argmax(axis=1)
    answers = [
        int(favourite + (row % 3 == 0)) % 4 for row, favourite in enumerate(favourites)
    ]  # right two times in three
    questions = questions.remove_columns("answer").add_column("answer", answers)
    settings = {**SETTINGS, "objective": objective, "reference_pseudo_count": 0.0, "max_steps": 1}
    args = CalibratedSFTConfig(str(tmp_path), **settings, reference_model_name_or_path=reference)
    labelled, others = questions.select(range(30)), questions.select(range(30, 40))
    trainer = CalibratedSFTTrainer(world_model, args, train_dataset=labelled, unlabelled_dataset=others)
    found = np.array(trainer.train_dataset["reference_logits"])
    assert len(found) == (40 if objective == "cft" else 34)
    # All that has changed is the odds of the prediction, alike for all.
    odds, moved = (
        softmax(logits, axis=-1).max(axis=1) / (1 - softmax(logits, axis=-1).max(axis=1))
        for logits in (before.option_logits, found)
    )
    factor = moved[-1] / odds[-1]
    assert factor < 0.8 or factor > 1.25
    np.testing.assert_allclose(moved[-10:], factor * odds[30:], rtol=1e-3)
    expected = calibrate_reference(list(before.option_logits), np.array([*answers[:30], *[-100] * 10]), 0.0)
    assert (
        np.abs(softmax(found, axis=-1)[:, None] - softmax(np.array(expected), axis=-1)).max(-1).min(-1).max() < 1e-4
    )  # each is one of them
    assert softmax(np.array(expected), axis=-1)[:30].max(axis=1).mean() == pytest.approx(20 / 30, abs=1e-6)


def test_its_confidence_goes_to_its_accuracy_by_the_number_of_labels():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((1000, 4))
    labels = (softmax(logits / 4, axis=-1).cumsum(axis=1) > rng.random((1000, 1))).argmax(axis=1)
    accuracy, confidence = (logits.argmax(axis=1) == labels).mean(), softmax(logits, axis=-1).max(axis=1).mean()
    rows = list(logits)

    def moved(labels, pseudo_count):
        result = np.array(calibrate_reference(rows, labels, pseudo_count))
        np.testing.assert_array_equal(result.argmax(axis=1), logits.argmax(axis=1))
        return softmax(result, axis=-1).max(axis=1).mean()

    assert confidence - accuracy > 0.2
    assert moved(labels, 0.0) == pytest.approx(accuracy, abs=1e-6)
    assert moved(labels, 1000.0) == pytest.approx((accuracy + confidence) / 2, abs=1e-6)
    assert moved(labels, 1e9) == pytest.approx(confidence, abs=1e-6)
    assert calibrate_reference(rows, labels, math.inf) is rows
    assert calibrate_reference(rows, np.full(1000, -100), 0.0) is rows
    # Always right is never certain, and always wrong leaves the prediction what it is.
    assert 0.999 < moved(logits.argmax(axis=1), 0.0) <= 1
    assert moved(logits.argmin(axis=1), 0.0) < 0.5
    # Labels that are not known count for nothing, and questions may have different numbers of options.
    mixed = calibrate_reference([*rows, np.array([5.0, 0.0])], np.append(labels, -100), 0.0)
    assert len(mixed[-1]) == 2 and softmax(np.array(mixed[:-1]), axis=-1).max(axis=1).mean() == pytest.approx(
        accuracy, abs=1e-6
    )


def test_without_weight_there_is_no_reference(world_model, questions, tmp_path):
    settings = {"reference_model_name_or_path": str(tmp_path / "nowhere"), "reference_weight": 0.0}
    trainer = make_trainer(world_model, questions, tmp_path, **settings)
    assert "reference_logits" not in trainer.train_dataset.column_names


def test_options_of_several_tokens_under_an_adapter(tiny_tokenizers, tiny_llama, shared_data, tmp_path):
    from peft import LoraConfig

    tokenizer = tiny_tokenizers["qwen"]
    for seed, name in enumerate(("model", "reference")):
        tiny_llama(tokenizer, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    questions = load_questions(shared_data / "arc_easy_train.parquet", limit=16, seed=0)
    args = CalibratedSFTConfig(
        str(tmp_path / "out"), **SETTINGS, reference_model_name_or_path=str(tmp_path / "reference"), lambda_ece=0.0
    )
    trainer = CalibratedSFTTrainer(
        str(tmp_path / "model"), args, train_dataset=questions, peft_config=LoraConfig(target_modules="all-linear")
    )
    trainer.train()
    assert np.isfinite(logged(trainer, "reference_kl")).all()


def test_a_reference_of_another_vocabulary_is_refused(world_model, questions, tmp_path):
    other = World(WorldConfig(num_entities=10))
    other.model().save_pretrained(tmp_path / "other")
    other.tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="another vocabulary"):
        make_trainer(world_model, questions, tmp_path, reference_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(OSError, match="reference_model_name_or_path=.* cannot be loaded"):
        make_trainer(world_model, questions, tmp_path, reference_model_name_or_path=str(tmp_path / "nowhere"))
    for name in ("reference_weight", "reference_pseudo_count"):
        with pytest.raises(ValueError, match=name):
            CalibratedSFTConfig(str(tmp_path), **{**SETTINGS, name: -1})


def test_unlabelled_questions_have_no_label_and_teach(world_model, reference, questions, tmp_path):
    """Answers that lie are not read; the divergence falls on questions that no label is known of, steps without any among them."""
    lying = questions.map(lambda row: {"answer": (row["answer"] + 1) % len(row["choices"])})
    args = CalibratedSFTConfig(
        str(tmp_path), **{**SETTINGS, "num_train_epochs": 6}, reference_model_name_or_path=reference
    )
    labelled = questions.select(range(4))  # most batches of 8 among 40 hold none
    losses = []
    for rows in (questions, lying, questions.remove_columns("answer")):
        trainer = CalibratedSFTTrainer(world_model, args, train_dataset=labelled, unlabelled_dataset=rows)
        assert len(trainer.train_dataset) == 44
        assert trainer.train_dataset["option_label"][4:] == [-100] * 40
        assert {label for row in trainer.train_dataset["labels"][4:] for label in row} == {-100}
        trainer.train()
        divergences = logged(trainer, "reference_kl")
        assert divergences[-1] < divergences[0] / 2
        losses.append(logged(trainer, "loss"))
    assert np.isfinite(losses).all() and losses[0] == losses[1] == losses[2]


def test_unlabelled_questions_count_apart_from_the_answered(world_model, reference, questions, tmp_path):
    """The divergence is a mean over all questions of the step, the cross-entropy over those with an answer."""
    settings = {"per_device_train_batch_size": 40, "max_steps": 1, "likelihood_weight": 0.0, "option_loss_weight": 2.0}
    args = CalibratedSFTConfig(
        str(tmp_path), **{**SETTINGS, **settings}, reference_model_name_or_path=reference, reference_weight=3.0
    )
    labelled, others = questions.select(range(10)), questions.select(range(10, 40))
    trainer = CalibratedSFTTrainer(world_model, args, train_dataset=labelled, unlabelled_dataset=others)
    batch = trainer.data_collator(list(trainer.train_dataset))
    p = batch.pop("reference_logits").softmax(-1)
    del batch["labels"]
    log_q = trainer.model(**batch, options_only=True).logits.detach().log_softmax(-1)
    divergence = torch.nn.functional.kl_div(log_q, p, reduction="batchmean").item()
    cross_entropy = torch.nn.functional.nll_loss(log_q[:10], batch["option_label"][:10]).item()
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if "reference_kl" in entry]
    assert step["reference_kl"] == pytest.approx(divergence, rel=1e-4)
    assert step["option_loss"] == pytest.approx(cross_entropy, rel=1e-4)
    assert step["loss"] == pytest.approx(2.0 * cross_entropy + 3.0 * divergence, rel=1e-3)


def test_unlabelled_questions_take_the_m_step(world_model, questions, tmp_path):
    """EM-ECE's targets come from the confidence alone: no label is needed, and no reference."""
    args = CalibratedSFTConfig(str(tmp_path), **{**SFT_RUN, "max_steps": 2}, lambda_ece=1.0)
    trainer = CalibratedSFTTrainer(
        world_model, args, train_dataset=questions, unlabelled_dataset=questions.remove_columns("answer")
    )
    trainer.train()
    assert len(trainer.train_dataset) == 32 + 40 and len(trainer.estep_dataset) == 8
    assert np.isfinite(logged(trainer, "em_ece")).all()


def test_unlabelled_questions_want_a_loss_without_labels(world_model, questions, tmp_path):
    for settings in ({"objective": "cft"}, {"objective": "rcft", "lambda_ece": 0.0}):
        args = CalibratedSFTConfig(str(tmp_path), **{**SFT_RUN, **settings})
        with pytest.raises(ValueError, match="Nothing in this objective learns from unlabelled questions"):
            CalibratedSFTTrainer(world_model, args, train_dataset=questions, unlabelled_dataset=questions)
