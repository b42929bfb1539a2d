"""The recipe and the command that are published: what was run, in names that a recipe takes, and no secret."""

import pytest
import yaml

from hf_calib.evaluation.protocol import is_hub_id
from hf_calib.hub.recipe import effective_recipe, shown_command


@pytest.mark.parametrize("token", [["--hub_token", "hf_x"], ["--hub-token", "hf_x"], ["--hub-token=hf_x"]])
def test_a_token_is_not_shown_however_it_is_spelt(token, tmp_path):
    (tmp_path / "recipe.yaml").write_text("objective: cft\nhub_token: hf_x\n")
    argv = ["--config", str(tmp_path / "recipe.yaml"), *token, "--learning-rate", "1e-4", "--save_strategy", "no"]
    assert "hf_x" not in shown_command(argv) and "--learning-rate 1e-4 --save_strategy no" in shown_command(argv)
    recipe = yaml.safe_load(effective_recipe(argv))
    assert recipe == {"objective": "cft", "learning_rate": "1e-4", "save_strategy": "no"}


def test_truth_values_and_lists_are_read(tmp_path):
    argv = ["--bf16", "False", "--use_peft", "--dataset_name", "a/b", "c/d:e", "--lora_r=8"]
    assert yaml.safe_load(effective_recipe(argv)) == {
        "bf16": False,
        "use_peft": True,
        "dataset_name": ["a/b", "c/d:e"],
        "lora_r": 8,
    }


def test_a_recipes_configuration_goes_with_its_data(tmp_path):
    (tmp_path / "recipe.yaml").write_text("dataset_name: a/b\ndataset_config: c\n")
    argv = ["--config", str(tmp_path / "recipe.yaml")]
    assert yaml.safe_load(effective_recipe(argv)) == {"dataset_name": "a/b", "dataset_config": "c"}
    assert yaml.safe_load(effective_recipe([*argv, "--dataset_name", "a/b"]))["dataset_config"] == "c"
    argv.append("--dataset_name=d/e")
    assert yaml.safe_load(effective_recipe(argv)) == {"dataset_name": "d/e"}
    argv += ["--dataset_config", "f"]
    assert yaml.safe_load(effective_recipe(argv)) == {"dataset_name": "d/e", "dataset_config": "f"}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("allenai/ai2_arc:ARC-Easy", True),
        ("cais/mmlu:all:validation", True),
        ("cais/mmlu:all + allenai/openbookqa:main", False),
        ("test.parquet", False),
        (None, False),
    ],
)
def test_what_may_be_a_name_on_the_hub(name, known):
    assert is_hub_id(name) is known
