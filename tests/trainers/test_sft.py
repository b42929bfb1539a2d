"""CFT and RCFT with the real trainer on the synthetic world."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from runs import SFT_RUN, StopAt, assert_same, logged, weights
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
)
from trl import SFTConfig, SFTTrainer

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, calibration_report, predict_options
from hf_calib.data.questions import PromptFormat, load_questions
from hf_calib.losses.em_calibrator import EMCalibrator
from hf_calib.trainers.e_step import hold_out


@pytest.fixture(scope="module")
def questions(world):
    return world.questions(80, seed=0, split="train")


def make_trainer(model, dataset, output_dir, eval_dataset=None, callbacks=None, peft_config=None, **settings):
    args = CalibratedSFTConfig(str(output_dir), **{**SFT_RUN, **settings})
    return CalibratedSFTTrainer(
        model, args, train_dataset=dataset, eval_dataset=eval_dataset, callbacks=callbacks, peft_config=peft_config
    )


def test_cft_is_sft_on_the_answers(world_model, questions, tmp_path):
    """Step by step the loss and the weights of TRL's own trainer on the same prompts and completions."""
    ours = make_trainer(world_model, questions, tmp_path, objective="cft")
    ours.train()
    rows = [{"prompt": q["question"], "completion": f" {q['choices'][q['answer']]} <eos>"} for q in questions]
    settings = {k: v for k, v in SFT_RUN.items() if k != "scoring"}
    theirs = SFTTrainer(world_model, SFTConfig(str(tmp_path), **settings), train_dataset=Dataset.from_list(rows))
    theirs.train()
    np.testing.assert_allclose(logged(ours, "loss"), logged(theirs, "loss"), rtol=1e-5)
    assert_same(weights(ours), weights(theirs), rtol=1e-4, atol=1e-6)


def test_without_weight_rcft_is_cft(world_model, questions, tmp_path):
    runs = []
    for settings in ({"objective": "cft"}, {"objective": "rcft", "lambda_ece": 0}):
        trainer = make_trainer(world_model, questions, tmp_path, **settings)
        trainer.train()
        runs.append(weights(trainer))
    assert_same(*runs, rtol=0, atol=0)


def test_the_loss_is_the_sum_of_its_parts(world_model, questions, tmp_path):
    """One step on one batch against the terms computed by hand from scored options."""
    settings = {"lambda_ece": 3.0, "option_loss_weight": 0.7, "per_device_train_batch_size": 40, "max_steps": 1}
    trainer = make_trainer(world_model, questions.select(range(50)), tmp_path, **settings)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(40)])
    assert batch.pop("question_index").tolist() == list(range(40))
    q = trainer.model(**batch, options_only=True).logits.detach().softmax(-1)
    nll = trainer.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item()
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if "em_ece" in entry]
    targets = trainer.calibrator.targets(q)
    kl = (targets * (targets / q).log()).sum(-1).mean().item()
    cross_entropy = -q[torch.arange(40), batch["option_label"]].log().mean().item()
    assert step["em_ece"] == pytest.approx(kl, rel=1e-3)
    assert step["option_loss"] == pytest.approx(cross_entropy, rel=1e-4)
    assert step["loss"] == pytest.approx(nll + 3.0 * kl + 0.7 * cross_entropy, rel=1e-3)


@pytest.mark.parametrize("em_loss", ["kl", "brier"])
def test_the_regulariser_pulls_confidence_to_the_map(world_model, questions, tmp_path, em_loss):
    trainer = make_trainer(
        world_model, questions, tmp_path, num_train_epochs=12, lambda_ece=30, em_loss=em_loss, em_holdout=0.3
    )
    _, held_out = hold_out(questions, questions["question"], trainer.args, "questions")
    before = trainer.evaluate(held_out)["eval_ece"]
    trainer.train()
    # A random model is confident and wrong; the term must show in the loss and bring the confidence down.
    assert logged(trainer, "em_ece")[-1] < logged(trainer, "em_ece")[0] / 2
    assert trainer.evaluate(held_out)["eval_ece"] < before


def test_accumulation_does_not_change_the_run(world_model, questions, tmp_path):
    runs = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            world_model,
            questions,
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            lambda_ece=5.0,
            # Adam blows rounding errors of small gradients up to whole steps; plain descent keeps them small.
            optim="sgd",
            learning_rate=0.05,
            max_grad_norm=0.0,
        )
        trainer.train()
        runs.append(weights(trainer))
    assert_same(*runs, rtol=1e-4, atol=1e-6)


def test_evaluation_is_that_of_predict_options(world_model, world, questions, tmp_path):
    test = world.questions(70, seed=1)
    trainer = make_trainer(world_model, questions, tmp_path, eval_dataset=test, per_device_eval_batch_size=16)
    metrics = trainer.evaluate()
    predictions = predict_options(
        trainer.model,
        trainer.processing_class,
        test,
        prompt_format=PromptFormat(scoring="text", use_chat_template=False),
        progress=False,
    )
    report = calibration_report(predictions.probabilities, predictions.labels)
    for name, value in report.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-5), name
    assert metrics["eval_n"] == 70


def test_a_killed_run_resumes_to_the_same_weights(world_model, questions, tmp_path):
    settings = {
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "em_refresh": "epoch",
        "lambda_ece": 5,
    }
    whole = make_trainer(world_model, questions, tmp_path / "whole", **settings)
    whole.train()
    assert whole.state.global_step == 24
    killed = make_trainer(world_model, questions, tmp_path / "killed", callbacks=[StopAt(14)], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    (tmp_path / "killed" / "checkpoint-15").mkdir()  # writing it was interrupted
    resumed = make_trainer(world_model, questions, tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed), rtol=1e-5, atol=1e-7)
    assert resumed.calibrator.state_dict() == whole.calibrator.state_dict()
    torch.testing.assert_close(resumed.fixed_targets["options"], whole.fixed_targets["options"])
    # The map in the middle of the second epoch is the one of its beginning, not a new one.
    folder = tmp_path / "killed" / "checkpoint-12"
    assert json.loads((folder / "em_state.json").read_text())["last_estep"] == 1
    for given, changes in ((questions.select(range(60)), {}), (questions, {"em_fold": 1})):
        other = make_trainer(world_model, given, tmp_path / "killed", **settings, **changes)
        with pytest.raises(ValueError, match="targets of other questions than those that EM-ECE acts on"):
            other.train(resume_from_checkpoint=str(folder))
    (folder / "em_targets.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="em_targets.safetensors"):
        make_trainer(world_model, questions, tmp_path / "killed", **settings).train(resume_from_checkpoint=str(folder))


def test_a_checkpoint_of_another_kind_is_refused(world_model, questions, tmp_path):
    trainer = make_trainer(world_model, questions, tmp_path, objective="cft", save_strategy="steps", save_steps=5)
    trainer.train()
    with pytest.raises(FileNotFoundError, match="em_state.json"):
        make_trainer(world_model, questions, tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="no checkpoint"):
        make_trainer(world_model, questions, tmp_path / "nowhere").train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"em_refresh": "once"}, [0]), ({"em_refresh": "epoch"}, [0, 8, 16]), ({"em_refresh": "5"}, [0, 5, 10, 15, 20])],
)
def test_the_e_step_is_taken_when_due(world_model, questions, tmp_path, settings, steps):
    trainer = make_trainer(world_model, questions, tmp_path, num_train_epochs=3, **settings)
    taken, e_step = [], trainer.e_step
    trainer.e_step = lambda kinds: (taken.append(trainer.state.global_step), e_step(kinds))
    trainer.train()
    assert taken == steps


def test_the_e_step_sees_the_held_out_questions_and_no_gradient_does(world_model, questions, tmp_path):
    trainer = make_trainer(world_model, questions, tmp_path, em_holdout=0.25)
    assert len(trainer.estep_dataset) == 20 and len(trainer.train_dataset) == 60
    asked = {tuple(row["input_ids"]) + tuple(row["option_tokens"]) for row in trainer.estep_dataset}
    trained = {tuple(row["input_ids"][:-2]) + tuple(row["option_tokens"]) for row in trainer.train_dataset}
    assert len(asked) == 20 and not asked & trained
    trainer.e_step()
    _, held_out = hold_out(questions, questions["question"], trainer.args, "questions")
    predictions = predict_options(
        trainer.model, trainer.processing_class, held_out, prompt_format=PromptFormat("text"), progress=False
    )
    expected = EMCalibrator("temperature").fit(predictions.probabilities, predictions.labels).state_dict()
    np.testing.assert_allclose(trainer.calibrator.state_dict()["ordinates"], expected["ordinates"], atol=1e-5)
    on_train = make_trainer(world_model, questions, tmp_path, em_preset="paper")
    assert len(on_train.estep_dataset) == len(on_train.train_dataset) == 80
    assert on_train.args.likelihood == "sequence" and on_train.args.em_loss == "brier"


def test_texts_may_be_mixed_in(world_model, world, questions, tmp_path):
    texts = world.pretraining_statements(24)
    trainer = make_trainer(
        world_model, concatenate_datasets([questions, texts]), tmp_path, per_device_train_batch_size=4
    )
    assert len(trainer.train_dataset) == 64 + 24
    text_rows = [row for row in trainer.train_dataset if row["num_options"] is None]
    assert len(text_rows) == 24 and all(row["labels"] == row["input_ids"] for row in text_rows)
    trainer.train()
    assert np.isfinite(logged(trainer, "loss")).all()
    alone = make_trainer(world_model, texts, tmp_path, objective="cft")
    alone.train()
    with pytest.raises(ValueError, match="needs option questions"):
        make_trainer(world_model, texts, tmp_path)


@pytest.mark.parametrize("scoring", ["letter", "text"])
def test_adapters_checkpointing_and_bf16_on_real_tokens(tiny_tokenizers, tiny_llama, shared_data, tmp_path, scoring):
    """Options of several tokens in branches, through LoRA, gradient checkpointing and autocast."""
    tokenizer = tiny_tokenizers["qwen"]
    tiny_llama(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    dataset = load_questions(shared_data / "arc_easy_train.parquet", limit=24, seed=0)
    trainer = make_trainer(
        str(tmp_path / "model"),
        dataset,
        tmp_path / "out",
        eval_dataset=dataset.select(range(6)),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        scoring=scoring,
        gradient_checkpointing=True,
        bf16=True,
        save_strategy="epoch",
        eval_strategy="epoch",
    )
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("lora" in name for name in moved)
    assert np.isfinite(logged(trainer, "eval_ece")).all()
    saved = load_file(tmp_path / "out" / "checkpoint-3" / "adapter_model.safetensors")
    assert saved and all("lora" in name for name in saved)


def test_the_best_checkpoint_by_ece_is_kept(world_model, world, questions, tmp_path):
    trainer = make_trainer(
        world_model,
        questions,
        tmp_path,
        eval_dataset=world.questions(100, seed=1),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        num_train_epochs=8,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="ece",
        greater_is_better=False,
        closing_step=False,
    )
    trainer.train()
    history = logged(trainer, "eval_ece")
    assert trainer.state.best_metric == min(history)
    assert trainer.evaluate()["eval_ece"] == pytest.approx(min(history), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lambda_ece": -1}, "lambda_ece"),
        ({"option_loss_weight": float("nan")}, "option_loss_weight"),
        ({"likelihood_weight": 0}, "likelihood_weight=0"),
        ({"objective": "dpo"}, "objective='dpo'"),
        ({"em_holdout": 7.5}, "em_holdout"),
        ({"em_refresh": "sometimes"}, "em_refresh"),
        ({"em_preset": "ours"}, "em_preset='ours'"),
        ({"packing": True}, "packing=True"),
        ({"padding_free": True}, "padding_free=True"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        CalibratedSFTConfig(str(tmp_path), **{**SFT_RUN, **settings})


def test_wrong_data_are_named(world_model, questions, tmp_path):
    with pytest.raises(ValueError, match="leaves 0 for the E-step"):
        make_trainer(world_model, questions.select(range(3)), tmp_path, em_holdout=0.01)
    with pytest.raises(ValueError, match="max_length=3"):
        make_trainer(world_model, questions, tmp_path, max_length=3)
    with pytest.raises(TypeError, match="datasets.Dataset, got list"):
        make_trainer(world_model, [1], tmp_path)
    with pytest.raises(ValueError, match="data_collator"):
        CalibratedSFTTrainer(world_model, train_dataset=questions, data_collator=lambda rows: rows)


def test_a_tokenizer_that_is_larger_than_the_embeddings(tiny_tokenizers, tiny_llama, questions, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizers["qwen"])
    tiny_llama(tokenizer).save_pretrained(tmp_path / "model")
    rows = Dataset.from_list([{"question": f"{i} is", "choices": ["zebra", "ice"], "answer": 0} for i in range(12)])
    for added, message in (
        ({"tokens": ["zebra"]}, "of the training set, 'zebra'"),
        ({"pad": "[PAD]"}, "of the padding"),
    ):
        larger = copy.deepcopy(tokenizer)
        larger.add_tokens(added.get("tokens", []))
        if "pad" in added:
            larger.add_special_tokens({"pad_token": added["pad"]})
        larger.save_pretrained(tmp_path / "model")
        with pytest.raises(ValueError, match=f"{message}.*has no embedding.*resize_token_embeddings"):
            make_trainer(str(tmp_path / "model"), rows, tmp_path / "out", objective="cft")


def test_a_model_that_diverged_is_said_so(world_model, questions, tmp_path):
    trainer = make_trainer(world_model, questions, tmp_path)
    with torch.no_grad():
        trainer.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged"):
        trainer.e_step()


@pytest.mark.parametrize("kind", ["mamba", "mpt", "gemma2"])
def test_options_get_sequences_of_their_own_where_packing_fails(tiny_tokenizers, shared_data, tmp_path, kind, caplog):
    tokenizer = tiny_tokenizers["qwen"]
    size = {"vocab_size": len(tokenizer), "initializer_range": 0.3}
    llama = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = {
        "mamba": lambda: MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, **size)),
        "mpt": lambda: MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=2, **size)),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**llama, num_key_value_heads=2, head_dim=16, sliding_window=16, pad_token_id=0, **size)
        ),
    }[kind]()
    model.save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    dataset = load_questions(shared_data / "arc_easy_train.parquet", limit=24, seed=0)
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "eval_dataset": dataset.select(range(12))}
    trainer = make_trainer(str(tmp_path / kind), dataset, tmp_path / "out", em_holdout=8, **settings)
    assert not trainer.option_head.packed
    assert caplog.text.count("takes a sequence of its own") == 1
    trainer.train()
    assert any("em_ece" in entry for entry in trainer.state.log_history)
    found = trainer.evaluate()
    asked = {"prompt_format": trainer.args.prompt_format(), "progress": False}
    scored = predict_options(trainer.model, tokenizer, dataset.select(range(12)), **asked)
    expected = calibration_report(scored.probabilities, scored.labels)
    assert found["eval_ece"] == pytest.approx(expected["ece"], abs=1e-4)
    assert found["eval_nll"] == pytest.approx(expected["nll"], abs=1e-3)
