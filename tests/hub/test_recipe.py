"""The recipe and the command that are published: all arguments that were given, and no secret."""

import pytest
import yaml

from hf_calib.cli.train import _read_recipe, _recipe_parser
from hf_calib.evaluation.protocol import is_hub_id
from hf_calib.hub.recipe import Recipe, without_secrets


def recipe_of(argv):
    trl = pytest.importorskip("trl")

    from hf_calib import CalibratedSFTConfig
    from hf_calib.training.arguments import TrainArguments

    parser = _recipe_parser((TrainArguments, CalibratedSFTConfig, trl.ModelConfig))
    parser.parse([*argv, "--output_dir", "out", "--use_cpu", "true"])
    path, content, _ = _read_recipe(argv)
    return Recipe(path, content, parser.given(argv))


@pytest.mark.parametrize("token", [["--hub_token", "hf_x"], ["--hub-token", "hf_x"], ["--hub-token=hf_x"]])
def test_a_token_is_never_shown(token, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("objective: cft\nhub_token: hf_x\n")
    recipe = recipe_of(["--config", str(path), *token, "--learning-rate", "1e-4", "--save_strategy", "no"])
    assert yaml.safe_load(recipe.effective()) == {"objective": "cft", "learning_rate": 1e-4, "save_strategy": "no"}
    assert recipe.command() == f"hf-calib train --config {path} --learning_rate 0.0001 --save_strategy no"
    assert without_secrets(path) == "objective: cft\n"


def test_truth_values_and_lists_are_read():
    argv = ["--bf16", "False", "--use_peft", "--dataset_name", "a/b", "c/d:e", "--lora_r=8"]
    given = {"bf16": False, "use_peft": True, "dataset_name": ["a/b", "c/d:e"], "lora_r": 8}
    assert yaml.safe_load(recipe_of(argv).effective()) == given
    again = recipe_of(recipe_of(argv).command().split()[2:])
    assert yaml.safe_load(again.effective()) == given


def test_a_recipes_configuration_goes_with_its_data(tmp_path):
    (tmp_path / "recipe.yaml").write_text("dataset_name: a/b\ndataset_config: c\n")
    argv = ["--config", str(tmp_path / "recipe.yaml")]
    for given in ([], ["--dataset_name", "a/b"]):
        effective = yaml.safe_load(recipe_of([*argv, *given]).effective())
        assert effective["dataset_config"] == "c" and effective["dataset_name"] in ("a/b", ["a/b"])
    argv.append("--dataset_name=d/e")
    assert yaml.safe_load(recipe_of(argv).effective()) == {"dataset_name": ["d/e"]}
    argv += ["--dataset_config", "f"]
    assert yaml.safe_load(recipe_of(argv).effective()) == {"dataset_name": ["d/e"], "dataset_config": "f"}


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
