"""Calibrated DPO with the real trainer on the synthetic world: its loss, and how it trains."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from runs import DPO_RUN, StopAt, assert_same, logged, weights
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from hf_calib.losses.preference_links import LINKED_LOSSES


# Adam blows rounding errors of small gradients up to whole steps; plain descent keeps them small.
DESCENT = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}


def batch_of(trainer, rows=16):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])


def test_without_weights_it_is_dpo(world_model, rated, make_dpo_trainer, tmp_path):
    """The loss, every other logged value, and the weights of TRL's own trainer, to the last digit."""
    ours = make_dpo_trainer(rated, lambda_pref=0, preference_probability_column=None)
    ours.train()
    theirs = DPOTrainer(world_model, args=DPOConfig(str(tmp_path), **DPO_RUN), train_dataset=rated)
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
def test_the_margin_is_that_of_the_loss(world_model, pairs, make_dpo_trainer, settings):
    """TRL's loss, rebuilt from the margins that were read in its own forward passes."""
    # Completions of different length.
    dataset = pairs.map(lambda row: {"chosen": row["chosen"] + " ."})
    reference = {} if "peft_config" in settings else {"ref_model": AutoModelForCausalLM.from_pretrained(world_model)}
    trainer = make_dpo_trainer(dataset, lambda_pref=0, **reference, **settings)
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


@pytest.mark.parametrize("loss_type", [name for name in LINKED_LOSSES if name != "cdpo"])
def test_every_loss_with_a_link_trains(pairs, make_dpo_trainer, loss_type):
    trainer = make_dpo_trainer(pairs, loss_type=[loss_type], label_smoothing=0.1, max_steps=3, em_refresh="1")
    trainer.train()
    assert np.isfinite(logged(trainer, "loss")).all() and len(logged(trainer, "pair_em_ece")) == 3


def test_no_forward_pass_is_added(pairs, make_dpo_trainer):
    passes = []
    trainer = make_dpo_trainer(pairs, max_steps=2, em_refresh="once")
    for model in (trainer.model, trainer.ref_model):
        model.base_model.register_forward_hook(lambda *_: passes.append(trainer.model.training))
    trainer.train()
    assert sum(passes) == 2 * 2  # policy and reference, in both steps; the E-step's are in evaluation mode


def test_the_loss_is_the_sum_of_its_parts(world_model, pairs, questions, make_dpo_trainer):
    settings = {"lambda_pref": 2.0, "lambda_options": 0.5, "option_loss_weight": 0.7, "option_likelihood_weight": 0.2}
    reference = AutoModelForCausalLM.from_pretrained(world_model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.5)
    trainer = make_dpo_trainer(
        pairs, ref_model=reference, option_dataset=questions, **settings, max_steps=1, em_holdout=0.5
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
    q = torch.stack([z, torch.zeros_like(z)], -1).softmax(-1)  # the link of DPO
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
def test_accumulation_does_not_change_the_run(pairs, questions, make_dpo_trainer, option_ratio):
    runs = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_dpo_trainer(
            pairs,
            option_dataset=questions,
            **DESCENT,
            lambda_options=1.0,
            option_ratio=option_ratio,
            option_likelihood_weight=1.0,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            em_refresh="2",
            em_holdout=0.25,
        )
        trainer.train()
        runs.append(weights(trainer))
    assert_same(*runs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("em_loss", ["kl", "brier"])
def test_the_regulariser_pulls_confidence_to_the_map(pairs, make_dpo_trainer, em_loss):
    """Memorised pairs: the policy is far surer than held-out pairs bear out."""
    runs = [
        make_dpo_trainer(pairs, lambda_pref=weight, num_train_epochs=12, em_refresh="4", em_holdout=0.4, beta=1)
        for weight in (0, 20)
    ]
    for trainer in runs:
        trainer.train()
    confidence = [trainer.evaluate(pairs)["eval_pair_confidence"] for trainer in runs]
    assert confidence[1] < confidence[0] - 0.1


def test_a_killed_run_resumes_to_the_same_weights(pairs, questions, make_dpo_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2, "em_refresh": "3"}
    settings |= {"lambda_options": 1.0, "option_dataset": questions, "em_holdout": 0.2}
    whole = make_dpo_trainer(pairs, output_dir=tmp_path / "whole", **settings)
    whole.train()
    killed = make_dpo_trainer(pairs, output_dir=tmp_path / "killed", callbacks=[StopAt(9)], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    state = json.loads((tmp_path / "killed" / "checkpoint-8" / "em_state.json").read_text())
    assert state["last_estep"] == 6 and set(state["calibrators"]) == {"pairs", "options"}
    resumed = make_dpo_trainer(pairs, output_dir=tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(resumed), rtol=1e-5, atol=1e-7)
    only_pairs = make_dpo_trainer(pairs, output_dir=tmp_path / "killed")
    with pytest.raises(FileNotFoundError, match="calibration maps of pairs"):
        only_pairs.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("precompute", [False, True])
def test_adapters_checkpointing_and_bf16(pairs, questions, make_dpo_trainer, precompute):
    trainer = make_dpo_trainer(
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
    )
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("lora" in name for name in moved)
    assert np.isfinite(logged(trainer, "eval_pair_ece") + logged(trainer, "eval_option_ece")).all()
