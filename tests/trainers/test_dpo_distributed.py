"""Calibrated DPO in two processes, plain and under ZeRO: the losses, weights and measures of one process."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_calib.cli import main
from hf_calib.paths import recipe_path


RECIPE = {
    "trainer": "calibrated_dpo",
    "scoring": "text",
    "lambda_pref": 2.0,
    "lambda_options": 1.0,
    "option_likelihood_weight": 0.5,
    "em_refresh": "2",
    "em_holdout_fraction": 0.25,
    "beta": 0.3,
    "max_length": 32,
    # Adam blows rounding errors of small gradients up to whole steps; plain descent keeps them small.
    "optim": "sgd",
    "learning_rate": 0.05,
    "max_grad_norm": 0.0,
    "num_train_epochs": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def folder(world, world_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    pairs = world.preference_pairs(83).remove_columns("preference_probability")
    data = {
        "dataset_name": pairs.select(range(64)),
        # Neither divides by two processes: each row is counted once all the same.
        "eval_dataset_name": pairs.select(range(64, 83)),
        "option_dataset_name": world.questions(40, split="train"),
        "eval_option_dataset_name": world.questions(21),
    }
    recipe = {"model_name_or_path": world_model, **RECIPE}
    for name, dataset in data.items():
        recipe[name] = str(folder / f"{name}.parquet")
        dataset.to_parquet(recipe[name])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def results(output_dir):
    """What was logged at the steps, the final weights, and the evaluation."""
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    metrics = json.loads((output_dir / "eval_results.json").read_text())
    return log, load_file(output_dir / "model.safetensors"), metrics


@pytest.fixture(scope="module")
def one_process(folder):
    call = ["train", "--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "one")]
    assert main([*call, "--per_device_train_batch_size", "8"]) == 0
    return results(folder / "one")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="compares processes on CPUs")
@pytest.mark.parametrize("config", ["ddp", "deepspeed_zero2", "deepspeed_zero3"])
def test_two_processes_train_as_one(folder, world_model, one_process, config):
    """The same pairs and questions in every step, and the same E-steps, whoever computes them."""
    if config != "ddp":
        pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    command += [str(recipe_path(f"accelerate_configs/{config}.yaml")), str(recipe_path("train.py"))]
    command += ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / config)]
    command += ["--per_device_train_batch_size", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    (log, weights, metrics), (expected_log, expected_weights, expected) = results(folder / config), one_process
    for name in ("loss", "pair_em_ece", "em_ece", "option_loss", "rewards/margins", "rewards/accuracies"):
        ours, theirs = ([entry[name] for entry in entries if name in entry] for entries in (log, expected_log))
        assert len(theirs) == 6 and any(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5, err_msg=name)
    before = load_file(f"{world_model}/model.safetensors")
    assert max((before[name] - weight).abs().max() for name, weight in expected_weights.items()) > 0.01
    for name, weight in expected_weights.items():
        torch.testing.assert_close(
            weights[name].float(), weight, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    measures = [name for name in expected if name.startswith(("eval_pair_", "eval_option_"))]
    assert metrics["eval_pair_n"] == 19 and metrics["eval_option_n"] == 21 and len(measures) > 30
    for name in measures:
        assert metrics[name] == pytest.approx(expected[name], abs=1e-4), name
