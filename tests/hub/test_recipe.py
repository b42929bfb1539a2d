"""The recipe and the command that are published: all arguments that were given, and no secret."""

import pytest
import yaml

from hf_calib.cli.train import _read_recipe, _recipe_parser
from hf_calib.evaluation.protocol import is_hub_id
from hf_calib.hub.recipe import Recipe, published_record, without_secrets


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


def test_a_token_inside_other_arguments_is_never_shown(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("objective: cft\nmodel_init_kwargs: {token: hf_x, dtype: float32}\n")
    kept = {"objective": "cft", "model_init_kwargs": {"dtype": "float32"}}
    assert yaml.safe_load(without_secrets(path)) == kept
    recipe = recipe_of(["--config", str(path)])
    assert yaml.safe_load(recipe.effective()) == kept
    recipe = recipe_of(["--config", str(path), "--model_init_kwargs", '{"token": "hf_y", "dtype": "float32"}'])
    assert "hf_" not in recipe.effective() + recipe.command() and "float32" in recipe.command()


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


def test_local_paths_become_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\nbase_model: a/parent\n---\n")
    recipe = {
        "model_name_or_path": str(tmp_path / "base"),
        "dataset_name": ["allenai/ai2_arc:ARC-Easy", "~/secret/questions.csv", "data/more.parquet", "./here"],
        "prompt_template": "{question}/{options}",
        "system_prompt": "/no_think Answer A/B.",
        "eval_dataset_name": "/mnt/alice/my questions/x.csv",
        "hub_model_id": "alice/model.v2",
        "model_init_kwargs": {"offload_folder": "/mnt/alice/offload"},
        "learning_rate": 1e-4,
    }
    command = (
        f"hf-calib train --config {tmp_path}/rcft.yaml --output_dir=/mnt/alice/out --dataset_name 'a/b' 'my data/x'"
    )
    record = {"base_model": str(tmp_path / "base"), "command": f"{command}\nhf-calib average --models ./one", "n": 1}
    published = published_record({**record, "recipe": yaml.safe_dump(recipe)})
    assert published["command"] == (
        "hf-calib train --config rcft.yaml --output_dir=out --dataset_name a/b 'my data/x'\nhf-calib average --models one"
    )
    assert yaml.safe_load(published["recipe"]) == {
        **recipe,
        "model_name_or_path": "base",
        "dataset_name": ["allenai/ai2_arc:ARC-Easy", "questions.csv", "more.parquet", "here"],
        "eval_dataset_name": "x.csv",
        "model_init_kwargs": {"offload_folder": "offload"},
    }
    assert published["base_model"] is None
    assert published["inherited"] == {"license": "mit", "base_model": "a/parent"}
    assert published_record(published) == published
    assert published_record({"base_model": "alice/model"}) == {"base_model": "alice/model"}
    (tmp_path / "own.yaml").write_text("# mine\ndataset_name: /mnt/alice/x.parquet\nhub_token: hf_x\n")
    assert without_secrets(tmp_path / "own.yaml") == "dataset_name: x.parquet\n"
    (tmp_path / "own.yaml").write_text("# mine\ndataset_name: a/b\n")
    assert without_secrets(tmp_path / "own.yaml").startswith("# mine")


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
