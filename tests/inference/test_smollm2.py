"""The main job on a real aligned model and real questions, small: evaluate, repair by recipe, evaluate again."""

import json
import os
import subprocess
import sys

import pytest

from hf_calib.paths import recipe_path


def run(*command):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(("scoring", "recipe"), [("text", "rcft.yaml"), ("letter", "letter_rcft.yaml")])
def test_smollm2_from_end_to_end(smollm2, shared_data, tmp_path, scoring, recipe):
    questions = ["--dataset", str(shared_data / "arc_easy_test.parquet"), "--limit", "12", "--n_bootstrap", "50"]
    settings = ["--scoring", scoring, "--use_chat_template", "false"]
    run(
        "hf_calib.cli",
        "evaluate",
        "--model",
        str(smollm2),
        *questions,
        *settings,
        "--output_dir",
        str(tmp_path / "before"),
    )
    # The recipe for the Hub's names, with each of them replaced by what is here.
    command = ["--config_file", str(recipe_path("accelerate_configs/cpu.yaml")), str(recipe_path("train.py"))]
    command += ["--config", str(recipe_path(f"smollm2-135m/{recipe}")), "--model_name_or_path", str(smollm2)]
    command += ["--dataset_name", str(shared_data / "arc_easy_train.parquet"), "--limit", "12"]
    command += ["--max_steps", "2", "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "rcft")]
    run("accelerate.commands.launch", "--main_process_port", "0", *command)
    assert (tmp_path / "rcft" / "adapter_model.safetensors").exists()
    after = ["--model", str(tmp_path / "rcft"), *questions, *settings, "--output_dir", str(tmp_path / "after")]
    out = run("hf_calib.cli", "evaluate", *after)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("before", "after")]
    assert [r["n"] for r in results] == [12, 12]
    # Two steps move the model, and the adapter that was saved is the one that is evaluated.
    assert results[0]["nll"] != results[1]["nll"]
    assert "conf-ECE" in out and (tmp_path / "after" / "reliability.png").exists()


def test_calibrated_dpo_on_real_questions_from_end_to_end(smollm2, shared_data, tmp_path):
    """The recipe for the Hub's names: pairs made of two question sets, collapse measured before and after."""
    names = [str(shared_data / f"{name}_train.parquet") for name in ("arc_challenge", "openbookqa")]
    command = ["hf_calib.cli", "train", "--config", str(recipe_path("smollm2-135m/dpo_calibrated.yaml"))]
    command += ["--model_name_or_path", str(smollm2), "--dataset_name", *names, "--option_dataset_name", *names]
    command += ["--limit", "8", "--option_limit", "8"]
    command += ["--per_device_train_batch_size", "2", "--max_steps", "2"]
    command += ["--warmup_steps", "0", "--em_refresh", "1", "--output_dir", str(tmp_path / "out")]
    collapse = ["--collapse_dataset_name", str(shared_data / "arc_easy_test.parquet"), "--collapse_limit", "6"]
    run(*command, *collapse)
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    measured = [entry for entry in log if "collapse/ece" in entry]
    assert [entry["step"] for entry in measured] == [0, 2]
    assert measured[0]["collapse/kl_to_reference"] == 0 < measured[1]["collapse/kl_to_reference"]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
