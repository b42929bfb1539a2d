"""The closing step: targets, texts, arguments, and a run that is cut off."""

import json

import numpy as np
import pytest
import torch
from runs import SFT_RUN, StopAt, assert_same, logged, weights
from scipy.special import softmax
from transformers import EarlyStoppingCallback

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, OptionPredictions, predict_options
from hf_calib.inference.generic_texts import sample_texts
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predict import PredictionOptions
from hf_calib.trainers.callbacks import CollapseCallback
from hf_calib.trainers.closing_options import ClosingOptions, describe_closing
from hf_calib.trainers.text_anchor import anchor_texts, collate_anchors


# Such a learning rate makes the untrained model overconfident within a few epochs.
OPTIONS = {"steps": 1.0, "text_weight": 0.1, "learning_rate": 2e-3}
RUN = {"prompt_template": "{question}", "num_train_epochs": 6, "em_holdout": 0.25, "logging_steps": 4}


@pytest.fixture(scope="module")
def many(world):
    return world.questions(160, seed=0, split="train")


def make_trainer(model, questions, folder, **settings):
    data = {name: settings.pop(name) for name in ("unlabelled_dataset", "eval_dataset") if name in settings}
    args = CalibratedSFTConfig(str(folder), **{**SFT_RUN, **RUN, **settings})
    return CalibratedSFTTrainer(model, args=args, train_dataset=questions, **data)


@pytest.fixture(scope="module")
def run(world_model, many, tmp_path_factory):
    """A trained model before its closing step and after."""
    folder = tmp_path_factory.mktemp("closing")
    trained = make_trainer(world_model, many, folder / "trained", closing_step=False)
    trained.train()
    closed = make_trainer(world_model, many, folder / "closed", closing_step=OPTIONS)
    closed.train()
    return trained, closed


def test_the_held_out_likelihood_improves_and_is_reported(run):
    trained, closed = run
    report = json.loads((closed._closing_dir / "report.json").read_text())
    assert report == closed.closing_report and trained.closing_report is None
    assert report["no_harm_n"] == report["closing_untrained"] == 40 and report["closing_labels"] == 160
    assert report["no_harm_trained_nll"] < report["nll_before_closing"] - 0.05
    probabilities, labels = closed._score_dataset("options", closed.estep_dataset, "check")
    assert report["no_harm_trained_nll"] == pytest.approx(
        -probabilities[range(40), labels].log().mean().item(), abs=1e-5
    )
    targets = logged(closed, "closing_kl")
    assert targets[-1] < targets[0] / 2
    assert logged(closed, "closing_text_kl") and closed.state.global_step == trained.state.global_step
    assert not list(closed._closing_dir.glob("checkpoint-*"))


def test_the_training_itself_is_the_same(run):
    trained, closed = run
    assert logged(closed, "option_loss") == pytest.approx(logged(trained, "option_loss"), abs=1e-5)


def test_questions_and_texts_share_the_batches_of_a_training_that_groups_by_length(world_model, many, tmp_path):
    settings = {"train_sampling_strategy": "group_by_length", "num_train_epochs": 2, "logging_steps": 1}
    trainer = make_trainer(world_model, many, tmp_path, closing_step={"steps": 1.0}, **settings)
    trainer.train()
    steps, with_texts = len(logged(trainer, "closing_kl")), len(logged(trainer, "closing_text_kl"))
    assert steps == trainer.closing_report["closing_steps"] and with_texts > 0.6 * steps
    assert trainer.args.train_sampling_strategy == "group_by_length"


def test_the_sentence_names_the_better_model():
    report = {"no_harm_n": 40, "no_harm_method": "temperature", "no_harm_trained_nll": 1.0, "no_harm_better": True}
    report |= {"no_harm_posthoc_nll": 1.1, "no_harm_difference": -0.1, "no_harm_difference_se": 0.02}
    assert describe_closing(report).startswith(
        "On 40 held-out questions, the trained model is better than the aligned"
    )
    worse = describe_closing({**report, "no_harm_difference": 0.1})
    assert "is not better than the aligned model under temperature" in worse and "hf-calib calibrate" in worse


@pytest.mark.parametrize("save", ["training", "closing"])
def test_a_run_that_is_cut_off_resumes_to_the_same_model(world_model, many, tmp_path, save):
    settings = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2, "closing_step": {"steps": 0.5}}
    whole = make_trainer(world_model, many, tmp_path / "whole", **settings)
    whole.train()
    cut = make_trainer(world_model, many, tmp_path / "cut", **settings)
    step, kind = {"training": (17, False), "closing": (10, True)}[save]

    class Stop(StopAt):
        def on_step_end(self, args, state, control, **kwargs):
            if cut._closing == kind:
                super().on_step_end(args, state, control, **kwargs)

    cut.add_callback(Stop(step))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = make_trainer(world_model, many, tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed), rtol=1e-5, atol=1e-6)
    assert resumed.closing_report["no_harm_trained_nll"] == pytest.approx(
        whole.closing_report["no_harm_trained_nll"], abs=1e-5
    )


def test_without_the_files_of_its_beginning_a_run_does_not_resume(world_model, many, tmp_path):
    settings = {"save_strategy": "epoch", "num_train_epochs": 1, "closing_step": {"num_texts": 2}}
    make_trainer(world_model, many, tmp_path, **settings).train()
    (tmp_path / "closing_step" / "texts.json").unlink()
    with pytest.raises(FileNotFoundError, match="texts.json is missing: .* closing_step=False"):
        make_trainer(world_model, many, tmp_path, **settings).train(resume_from_checkpoint=True)


def test_callbacks_of_the_training_rest(world_model, many, world, tmp_path):
    """Early stopping needs evaluations; the measures of preference collapse would overwrite those of the first steps."""
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2, "closing_step": True}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "ece", "greater_is_better": False}
    trainer = make_trainer(world_model, many, tmp_path, **settings, **best, eval_dataset=world.questions(40, seed=1))
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    asked = world.questions(12, seed=2)
    options = PredictionOptions(prompt_format=trainer.args.prompt_format(), progress=False)
    trainer.add_callback(CollapseCallback(trainer, asked, every=100, prediction_options=options))
    trainer.train()
    files = sorted((tmp_path / "collapse").glob("step-*.npz"))
    before = predict_options(load_model(world_model)[0], trainer.processing_class, asked, options=options)
    np.testing.assert_allclose(OptionPredictions.load(files[0]).option_logits, before.option_logits, atol=1e-4)
    assert trainer.closing_report and len(files) == 2 and not (tmp_path / "closing_step" / "collapse").exists()


def test_cft_closes_where_it_is_wanted(world_model, many, world, tmp_path):
    unlabelled = world.questions(30, seed=3, split="test").remove_columns("answer")
    settings = {"objective": "cft", "num_train_epochs": 1, "unlabelled_dataset": unlabelled, "closing_step": True}
    trainer = make_trainer(world_model, many, tmp_path, **settings)
    assert len(trainer.train_dataset) == 120 and len(trainer.held_out_questions) == 40 and not trainer.calibrators
    trainer.train()
    assert trainer.closing_report["closing_untrained"] == 70


@pytest.mark.parametrize(
    ("settings", "closes"),
    [
        ({}, True),
        ({"em_preset": "paper", "closing_step": {"steps": 2}}, False),
        ({"objective": "cft"}, False),
        ({"closing_step": "false"}, False),
    ]
    + [({"closing_step": '{"steps": 2}'}, True), ({"lambda_ece": 0.0}, False), ({"em_holdout": 0}, False)],
)
def test_when_it_follows(settings, closes):
    assert (CalibratedSFTConfig("unused", **{**SFT_RUN, **settings}).closing_options is not None) == closes


@pytest.mark.parametrize(
    ("value", "named"),
    [({"step": 1}, "steps, learning_rate"), ("{", "neither true, false nor JSON"), ({"steps": 0}, "above 0")]
    + [
        ({"text_weight": float("nan")}, "text_weight=nan"),
        (3, "got 3"),
        ({"num_continuations": -1}, "num_continuations=-1"),
    ],
)
def test_wrong_options_are_named(value, named):
    with pytest.raises(ValueError, match=named):
        ClosingOptions.parse(value)


def test_too_few_questions(world_model, many, tmp_path):
    few = many.select(range(24))
    with pytest.raises(ValueError, match="needs 10 labelled .* there are 24 and 6"):
        make_trainer(world_model, few, tmp_path, closing_step=True)
    assert make_trainer(world_model, few, tmp_path)._closing_options is None  # by default it is left out


def test_texts_go_on_after_answers(world_model, many, tmp_path):
    settings = {"num_train_epochs": 1, "closing_step": {"num_texts": 0, "num_continuations": 60}}
    trainer = make_trainer(world_model, many, tmp_path, **settings)
    trainer.train()
    tokenizer, prefixes = trainer.processing_class, {}
    for row in many:
        for option in row["choices"]:
            prefixes[tuple(tokenizer(f"{row['question']} {option}")["input_ids"])] = (
                option == row["choices"][row["answer"]]
            )
    found = []
    for anchor in trainer._anchors:
        start = anchor["text_positions"][0] + 1  # of what follows the answer
        assert anchor["text_positions"] == list(range(start - 1, len(anchor["input_ids"]) - 1))
        found.append(prefixes[tuple(anchor["input_ids"][:start])])
    assert len(found) == 60 and 0.05 < np.mean(found) < 0.95  # answers of an untrained model: right and wrong


def test_anchors_are_the_most_probable_tokens(world_model, world):
    model, tokenizer = load_model(world_model)
    texts = sample_texts(model, tokenizer, num_texts=5, max_new_tokens=6)
    anchors = anchor_texts(model, texts, tokenizer.pad_token_id, model.device, batch_size=2)
    for text, row in zip(texts, anchors, strict=True):
        logits = model(torch.tensor([text.input_ids])).logits[0, text.start - 1 : -1].float()
        expected = logits.log_softmax(-1).topk(32)
        np.testing.assert_allclose(row["text_log_probabilities"], expected.values.detach(), rtol=1e-4)
        assert row["text_positions"] == list(range(text.start - 1, len(text.input_ids) - 1))
    batch = collate_anchors([*anchors, {"input_ids": [1]}])
    assert batch["text_tokens"].shape == batch["text_log_probabilities"].shape
    assert (batch["text_positions"][-1] == -1).all()
    assert softmax(batch["text_log_probabilities"][0, 0]).sum() == pytest.approx(1)
