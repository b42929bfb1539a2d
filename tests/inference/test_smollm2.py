"""Evaluate, repair and evaluate again, on real questions with the first layers of a real model."""

import json

import pytest

from hf_calib.cli.main import main
from hf_calib.paths import recipe_path


@pytest.mark.parametrize(("scoring", "recipe"), [("text", "rcft.yaml"), ("letter", "letter_rcft.yaml")])
def test_smollm2_from_end_to_end(shallow_smollm2, shared_data, tmp_path, capsys, scoring, recipe):
    def evaluate(model, name):
        call = ["evaluate", "--model", str(model), "--dataset", str(shared_data / "arc_easy_test.parquet")]
        call += ["--limit", "12", "--n_bootstrap", "50", "--scoring", scoring, "--use_chat_template", "false"]
        assert main([*call, "--output_dir", str(tmp_path / name)]) == 0
        return json.loads((tmp_path / name / "results.json").read_text())

    before = evaluate(shallow_smollm2, "before")
    # The recipe for the Hub's names, with each of them replaced by what is here.
    call = ["--config", str(recipe_path(f"smollm2-135m/{recipe}")), "--model_name_or_path", str(shallow_smollm2)]
    call += ["--dataset_name", str(shared_data / "arc_easy_train.parquet"), "--limit", "12"]
    call += ["--max_steps", "2", "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "rcft")]
    assert main(["train", *call]) == 0
    assert (tmp_path / "rcft" / "adapter_model.safetensors").exists()
    capsys.readouterr()
    after = evaluate(tmp_path / "rcft", "after")
    assert before["n"] == after["n"] == 12
    # Two steps move the model, and the adapter that was saved is the one that is evaluated.
    assert before["nll"] != after["nll"]
    assert "conf-ECE" in capsys.readouterr().out and (tmp_path / "after" / "reliability.png").exists()


def test_calibrated_dpo_on_real_questions_from_end_to_end(shallow_smollm2, shared_data, tmp_path):
    """The recipe for the Hub's names: pairs made of two question sets, collapse measured before and after."""
    names = [str(shared_data / f"{name}_train.parquet") for name in ("arc_challenge", "openbookqa")]
    call = ["train", "--config", str(recipe_path("smollm2-135m/dpo_calibrated.yaml"))]
    call += ["--model_name_or_path", str(shallow_smollm2), "--dataset_name", *names, "--option_dataset_name", *names]
    call += ["--limit", "8", "--option_limit", "8"]
    call += ["--per_device_train_batch_size", "2", "--max_steps", "2"]
    call += ["--warmup_steps", "0", "--em_refresh", "1", "--output_dir", str(tmp_path / "out")]
    collapse = ["--collapse_dataset_name", str(shared_data / "arc_easy_test.parquet"), "--collapse_limit", "6"]
    assert main([*call, *collapse]) == 0
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    measured = [entry for entry in log if "collapse/ece" in entry]
    assert [entry["step"] for entry in measured] == [0, 2]
    assert measured[0]["collapse/kl_to_reference"] == 0 < measured[1]["collapse/kl_to_reference"]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
