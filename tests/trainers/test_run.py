"""From a recipe to calibrated DPO."""

import json

import pytest
from datasets import concatenate_datasets

from hf_calib.cli import main
from hf_calib.paths import recipe_path


@pytest.fixture
def call(world, world_model, tmp_path):
    pairs = world.preference_pairs(40)
    broken = pairs.select([0]).map(lambda row: {"rejected": row["chosen"]})
    concatenate_datasets([pairs, broken]).to_parquet(tmp_path / "pairs.parquet")
    world.questions(30, split="train").to_parquet(tmp_path / "questions.parquet")
    pair_file, question_file = str(tmp_path / "pairs.parquet"), str(tmp_path / "questions.parquet")
    arguments = ["train", "--config", str(recipe_path("quickstart/dpo_calibrated.yaml"))]
    arguments += ["--model_name_or_path", world_model, "--output_dir", str(tmp_path / "out"), "--max_steps", "2"]
    arguments += ["--dataset_name", pair_file, "--option_dataset_name", question_file]
    arguments += ["--eval_dataset_name", pair_file, "--eval_option_dataset_name", question_file]
    return arguments


def test_a_recipe_trains_and_evaluates_pairs_and_options(call, tmp_path, capsys):
    assert main(call) == 2
    assert "Row 40 of the train pairs" in capsys.readouterr().err
    assert main([*call, "--drop_invalid", "true", "--num_eval_option_examples", "20"]) == 0
    measured = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert measured["eval_pair_n"] == 40 and measured["eval_option_n"] == 20
    assert {"eval_pair_ece", "eval_pair_tce", "eval_option_ece"} <= measured.keys()


def test_options_are_for_calibrated_dpo(call, capsys):
    recipe = str(recipe_path("quickstart/dpo.yaml"))
    assert main([*call[:1], "--config", recipe, *call[3:11], "--option_dataset_name", call[12]]) == 2
    assert "option_dataset_name is for trainer: calibrated_dpo, not dpo" in capsys.readouterr().err
