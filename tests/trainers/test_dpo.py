"""Calibrated DPO with the real trainer on the synthetic world."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer

from hf_calib import CalibratedDPOConfig, CalibratedDPOTrainer, EMCalibrator, calibration_report, predict_options
from hf_calib.data.mcq import PromptFormat
from hf_calib.trainers.preference import MARGIN_LOSSES, as_two_options


QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "max_length": 32,
    "logging_steps": 1,
    "beta": 0.3,
}
QUESTIONS = {"scoring": "text", "prompt_template": "{question}"}
DATA = (
    "ref_model",
    "eval_dataset",
    "option_dataset",
    "eval_option_dataset",
    "estep_dataset",
    "callbacks",
    "peft_config",
)
# Adam blows rounding errors of small gradients up to whole steps; plain descent keeps them small.
DESCENT = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def rated(world):
    return world.preference_pairs(64)


@pytest.fixture(scope="module")
def pairs(rated):
    return rated.remove_columns("preference_probability")


@pytest.fixture(scope="module")
def questions(world):
    return world.questions(40, seed=0, split="train")


@pytest.fixture
def make_trainer(world_model, tmp_path):
    def make(dataset, model=world_model, output_dir=tmp_path, **settings):
        data = {name: settings.pop(name) for name in DATA if name in settings}
        args = CalibratedDPOConfig(str(output_dir), **{**QUIET, **QUESTIONS, **settings})
        return CalibratedDPOTrainer(model, args=args, train_dataset=dataset, **data)

    return make


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(left, right, **tolerance):
    for name in left | right:
        torch.testing.assert_close(left[name], right[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def batch_of(trainer, rows=16):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])


def test_without_weights_it_is_dpo(world_model, rated, make_trainer, tmp_path):
    """The loss, every other logged value, and the weights of TRL's own trainer, to the last digit."""
    ours = make_trainer(rated, lambda_pref=0)
    ours.train()
    theirs = DPOTrainer(world_model, args=DPOConfig(str(tmp_path), **QUIET), train_dataset=rated)
    theirs.train()
    timing = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    for a, b in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert {k: v for k, v in a.items() if k not in timing} == {k: v for k, v in b.items() if k not in timing}
    assert_same(weights(ours), weights(theirs), rtol=0, atol=0)


LOSS_OF_MARGIN = {
    "sigmoid": lambda x, beta: -F.logsigmoid(x),
    "sigmoid_norm": lambda x, beta: -F.logsigmoid(x),
    "hinge": lambda x, beta: torch.relu(1 - x),
    "ipo": lambda x, beta: (x / beta - 1 / (2 * beta)) ** 2,
}


@pytest.mark.parametrize(
    "settings",
    [
        *({"loss_type": [name]} for name in LOSS_OF_MARGIN),
        {"precompute_ref_log_probs": True},
        {"ld_alpha": 0.3},
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence", "loss_type": ["sigmoid_norm"]},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.4, "ld_alpha": 0.0},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
        {"peft_config": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)},
    ],
    ids=str,
)
def test_the_margin_is_that_of_the_loss(world_model, pairs, make_trainer, settings):
    """TRL's loss, rebuilt from the margins that were read in its own forward passes."""
    # Completions of different length.
    dataset = pairs.map(lambda row: {"chosen": row["chosen"] + " ."})
    reference = {} if "peft_config" in settings else {"ref_model": AutoModelForCausalLM.from_pretrained(world_model)}
    trainer = make_trainer(dataset, **reference, **settings)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.mul_(1.1)
    trainer.model.eval()
    batch = batch_of(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    logits = trainer._preference_logits
    assert logits.std() > 0.01
    (name,) = trainer.args.loss_type
    torch.testing.assert_close(loss, LOSS_OF_MARGIN[name](logits, trainer.beta).mean())


@pytest.mark.parametrize("loss_type", MARGIN_LOSSES)
def test_every_loss_with_a_margin_trains(pairs, make_trainer, loss_type):
    trainer = make_trainer(pairs, loss_type=[loss_type], label_smoothing=0.1, max_steps=3, em_refresh="1")
    trainer.train()
    assert np.isfinite(logged(trainer, "loss")).all() and len(logged(trainer, "pair_em_ece")) == 3


def test_no_forward_pass_is_added(pairs, make_trainer):
    passes = []
    trainer = make_trainer(pairs, max_steps=2, em_refresh="once")
    for model in (trainer.model, trainer.ref_model):
        model.base_model.register_forward_hook(lambda *_: passes.append(trainer.model.training))
    trainer.train()
    assert sum(passes) == 2 * 2  # policy and reference, in both steps; the E-step's are in evaluation mode


def test_the_loss_is_the_sum_of_its_parts(world_model, pairs, questions, make_trainer):
    settings = {"lambda_pref": 2.0, "lambda_options": 0.5, "option_loss_weight": 0.7, "option_likelihood_weight": 0.2}
    reference = AutoModelForCausalLM.from_pretrained(world_model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.5)
    trainer = make_trainer(
        pairs, ref_model=reference, option_dataset=questions, **settings, max_steps=1, em_holdout_fraction=0.5
    )
    kept = {}

    def keep(model, inputs, num_items_in_batch=None):
        kept.update(pairs={k: v for k, v in inputs.items() if k != "options"}, options=dict(inputs["options"]))
        kept["dpo"] = DPOTrainer._compute_loss(trainer, model, kept["pairs"], False).item()
        kept["logits"] = trainer._compute_loss(model, kept["pairs"], False) * 0 + trainer._preference_logits
        labels = kept["options"].pop("labels")
        kept["q"] = model(**kept["options"], options_only=True).logits.softmax(-1)
        kept["nll"] = model(input_ids=kept["options"]["input_ids"], labels=labels).loss * (labels != -100).sum() / 8
        return training_step(model, inputs, num_items_in_batch)

    training_step, trainer.training_step = trainer.training_step, keep
    trainer.train()
    z = kept["logits"].detach()
    q = torch.stack([z, torch.zeros_like(z)], -1).softmax(-1)
    t = trainer.calibrators["pairs"].targets(q)
    pair_em = (t * (t / q).log()).sum(-1).mean().item()
    q = kept["q"].detach()
    t = trainer.calibrators["options"].targets(q)
    option_em = (t * (t / q).log()).nansum(-1).mean().item()
    cross_entropy = -q[torch.arange(8), kept["options"]["option_label"]].log().mean().item()
    (step,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    expected = kept["dpo"] + 2 * pair_em + 0.5 * (option_em + 0.7 * cross_entropy + 0.2 * kept["nll"].item())
    assert step["loss"] == pytest.approx(expected, rel=1e-3) and pair_em > 1e-3 and option_em > 1e-3


@pytest.mark.parametrize("option_ratio", [1.0, 0.25])
def test_accumulation_does_not_change_the_run(pairs, questions, make_trainer, option_ratio):
    runs = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            pairs,
            option_dataset=questions,
            **DESCENT,
            lambda_options=1.0,
            option_ratio=option_ratio,
            option_likelihood_weight=1.0,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            em_refresh="2",
            em_holdout_fraction=0.25,
        )
        trainer.train()
        runs.append(weights(trainer))
    assert_same(*runs, rtol=1e-4, atol=1e-6)


def test_every_question_comes_once_an_epoch(pairs, questions, make_trainer):
    trainer = make_trainer(pairs, option_dataset=questions, lambda_options=1.0, option_ratio=0.75, em_max_rows=5)
    assert len(trainer.estep_datasets["pairs"]) == 5 and len(trainer.train_dataset) == 59
    assert len(trainer.option_dataset) == 36 and len(trainer.estep_datasets["options"]) == 4
    drawn = []
    for trainer.state.global_step in range(12):
        drawn.append(trainer._draw_questions())
        assert len(drawn[-1]) == 6
    drawn = np.concatenate(drawn).reshape(2, 36)
    assert (np.sort(drawn) == np.arange(36)).all() and (drawn[0] != drawn[1]).any()


def test_the_e_step_asks_held_out_pairs(pairs, make_trainer):
    trainer = make_trainer(pairs, em_holdout_fraction=0.25, em_refresh="3", learning_rate=1e-2)
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


def test_what_annotators_agree_on_is_the_truth(rated, pairs, make_trainer):
    """As target of training pairs, which then need no E-step, and in the E-step of pairs that lack it."""
    share = rated.rename_column("preference_probability", "agreement")
    trainer = make_trainer(share, preference_probability_column="agreement", lambda_pref=5.0, num_train_epochs=8)
    assert len(trainer.train_dataset) == 64 and not trainer.calibrators
    trainer.train()
    assert logged(trainer, "pair_em_ece")[-1] < logged(trainer, "pair_em_ece")[0] / 2

    agreed = pairs.select(range(40)).map(lambda row: {"preference_probability": 0.75})
    trainer = make_trainer(pairs, estep_dataset=agreed, max_steps=8, learning_rate=1e-2)
    trainer.train()
    trainer.e_step()
    q = trainer.predict(trainer.estep_datasets["pairs"]).predictions
    expected = EMCalibrator().fit(as_two_options(q), as_two_options(np.full(40, 0.75))).state_dict()
    assert trainer.calibrators["pairs"].state_dict()["ordinates"] == pytest.approx(expected["ordinates"], abs=1e-5)


@pytest.mark.parametrize("em_loss", ["kl", "brier"])
def test_the_regulariser_pulls_confidence_to_the_map(pairs, make_trainer, em_loss):
    """Memorised pairs: the policy is far surer than held-out pairs bear out."""
    runs = [
        make_trainer(pairs, lambda_pref=weight, num_train_epochs=12, em_refresh="4", em_holdout_fraction=0.4, beta=1)
        for weight in (0, 20)
    ]
    for trainer in runs:
        trainer.train()
    confidence = [trainer.evaluate(pairs)["eval_pair_confidence"] for trainer in runs]
    assert confidence[1] < confidence[0] - 0.1


def test_evaluation_is_over_all_rows_at_once(world_model, rated, world, make_trainer):
    questions = world.questions(30, seed=1)
    trainer = make_trainer(
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
        prompt_format=PromptFormat(scoring="text", chat_template=False),
        progress=False,
    )
    report = calibration_report(predictions.probabilities, predictions.labels)
    assert {k: metrics[f"eval_option_{k}"] for k in report} == pytest.approx(report, abs=1e-5)
    assert "eval_loss" in metrics and metrics["eval_option_n"] == 30


class StopAt(TrainerCallback):
    """Ends the process's work as a kill does: nothing is saved after it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            raise KeyboardInterrupt


def test_a_killed_run_resumes_to_the_same_weights(pairs, questions, make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2, "em_refresh": "3"}
    settings |= {"lambda_options": 1.0, "option_dataset": questions, "em_holdout_fraction": 0.2}
    whole = make_trainer(pairs, output_dir=tmp_path / "whole", **settings)
    whole.train()
    killed = make_trainer(pairs, output_dir=tmp_path / "killed", callbacks=[StopAt()], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    state = json.loads((tmp_path / "killed" / "checkpoint-8" / "em_state.json").read_text())
    assert state["last_estep"] == 6 and set(state["calibrators"]) == {"pairs", "options"}
    resumed = make_trainer(pairs, output_dir=tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed), rtol=1e-5, atol=1e-7)
    only_pairs = make_trainer(pairs, output_dir=tmp_path / "killed")
    with pytest.raises(FileNotFoundError, match="calibration maps of pairs"):
        only_pairs.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("precompute", [False, True])
def test_adapters_checkpointing_and_bf16(pairs, questions, make_trainer, precompute):
    trainer = make_trainer(
        pairs,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        option_dataset=questions,
        eval_dataset=pairs.select(range(8)),
        eval_option_dataset=questions,
        lambda_options=1.0,
        precompute_ref_log_probs=precompute,
        gradient_checkpointing=True,
        bf16=True,
        eval_strategy="epoch",
        em_refresh="2",
        catto_weight=0.1,
    )
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("lora" in name for name in moved)
    assert np.isfinite(logged(trainer, "eval_pair_ece") + logged(trainer, "eval_option_ece")).all()


def test_baselines(world_model, pairs, make_trainer):
    reference = AutoModelForCausalLM.from_pretrained(world_model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.5)

    def loss(**settings):
        trainer = make_trainer(pairs, ref_model=reference, lambda_pref=0, **settings)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        return trainer.compute_loss(trainer.model, batch_of(trainer)).item(), trainer

    plain, _ = loss()
    smoothed, trainer = loss(cdpo_smoothing=0.2)
    x = trainer._preference_logits
    assert smoothed == pytest.approx((-0.8 * F.logsigmoid(x) - 0.2 * F.logsigmoid(-x)).mean().item(), rel=1e-5)
    spread, trainer = loss(entropy_weight=0.3)
    batch = batch_of(trainer)
    logits = trainer.model(input_ids=batch["input_ids"][:16]).logits[:, :-1]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert spread == pytest.approx(
        plain - 0.3 * entropy[batch["completion_mask"][:16, 1:] == 1].mean().item(), rel=1e-4
    )
    assert loss(catto_weight=0.3)[0] > plain


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lambda_pref": -1}, "lambda_pref"),
        ({"lambda_options": float("nan")}, "lambda_options"),
        ({"option_ratio": 0.0}, "option_ratio"),
        ({"cdpo_smoothing": 0.5}, "cdpo_smoothing"),
        ({"cdpo_smoothing": 0.1, "loss_type": "ipo"}, "not ipo"),
        ({"loss_type": "sft"}, "loss_type=sft compares no"),
        ({"em_holdout_fraction": 1.0}, "em_holdout_fraction"),
        ({"em_max_rows": 0}, "em_max_rows"),
        ({"scoring": "word"}, "scoring='word'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        CalibratedDPOConfig(str(tmp_path), **{**QUIET, **settings})


def test_wrong_data_are_named(world_model, rated, pairs, questions, make_trainer):
    with pytest.raises(ValueError, match="of 3 pairs leaves 0 for the E-step"):
        make_trainer(pairs.select(range(3)))
    with pytest.raises(ValueError, match="give option_dataset"):
        make_trainer(pairs, lambda_options=1.0)
    with pytest.raises(ValueError, match="no column 'chosen', 'rejected'.*option_dataset"):
        make_trainer(questions)
    with pytest.raises(ValueError, match="Row 5 of the train pairs: 'chosen' and 'rejected' are the same"):
        make_trainer(pairs.map(lambda row, i: {"rejected": row["chosen"]} if i == 5 else {}, with_indices=True))
    with pytest.raises(ValueError, match="Row 0 of the eval pairs: the preference probability 1.5"):
        make_trainer(pairs, eval_dataset=rated.map(lambda row: {"preference_probability": 1.5}))
    model = AutoModelForCausalLM.from_pretrained(world_model)
    with pytest.raises(ValueError, match="cannot be the same object"):
        make_trainer(pairs, model=model, ref_model=model)
    with pytest.raises(TypeError, match="datasets.Dataset for lambda_pref > 0, got list"):
        make_trainer([1])
