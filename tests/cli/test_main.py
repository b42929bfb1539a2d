"""The command line as a user calls it: through `accelerate launch` on several processes, and when called wrongly."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from adapters import with_lora
from samples import save_world_model

from hf_calib.cli.main import main
from hf_calib.data.questions import load_questions
from hf_calib.data.synthetic_world import World
from hf_calib.evaluation.evaluate import groups_of
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.paths import recipe_path


RECIPE = {
    "objective": "rcft",
    "scoring": "text",
    "lambda_ece": 5.0,
    "em_refresh": "4",
    "learning_rate": 2e-3,
    "num_train_epochs": 2,
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def world_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    world = World()
    save_world_model(folder / "model")
    world.questions(80, split="train").to_parquet(folder / "train.parquet")
    world.questions(101).to_parquet(folder / "test.parquet")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(folder / "model"), **RECIPE}))
    return folder


def test_zero3_with_options_of_every_length(launch, tmp_path, tiny_tokenizers, tiny_llama, shared_data):
    """Each process reads its options at another number of positions; they still call the sharded head equally often."""
    pytest.importorskip("deepspeed")
    tiny_llama(tiny_tokenizers["qwen"]).save_pretrained(tmp_path / "model")
    tiny_tokenizers["qwen"].save_pretrained(tmp_path / "model")
    load_questions(shared_data / "arc_easy_train.parquet", limit=16, seed=0).to_parquet(tmp_path / "train.parquet")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom unittest import mock\nfrom hf_calib.cli.main import main\n"
        "with mock.patch('hf_calib.inference.option_head._CHUNK_SIZE', 4):\n"
        "    sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    call = ["--scoring", "text", "--model_name_or_path", tmp_path / "model"]
    call += ["--dataset_name", tmp_path / "train.parquet", "--output_dir", tmp_path / "out"]
    call += ["--per_device_train_batch_size", "2", "--max_steps", "2", "--report_to", "none", "--save_strategy", "no"]
    done = launch("deepspeed_zero3", script, *call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_two_processes_evaluate_together(launch, world_dir, tmp_path):
    call = ["evaluate", "--model", str(world_dir / "model"), "--dataset", str(world_dir / "test.parquet")]
    call += ["--scoring", "text", "--output_dir", str(tmp_path), "--n_bootstrap", "50"]
    done = launch("ddp", "hf_calib.cli", *call, module=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("recommended:") == 1 and json.loads((tmp_path / "results.json").read_text())["n"] == 101


def test_train_resumes_and_mixes_in_texts(world_dir, tmp_path):
    """As a person would type it; the texts have an `id` of another type than the questions'."""
    texts = World().pretraining_statements(20)
    texts.add_column("id", list(range(20))).to_parquet(tmp_path / "texts.parquet")
    call = ["train", "--config", str(world_dir / "recipe.yaml"), "--dataset_name", str(world_dir / "train.parquet")]
    call += ["--text_dataset_name", str(tmp_path / "texts.parquet"), "--output_dir", str(tmp_path / "out")]
    call += ["--save_strategy", "steps", "--save_steps", "2"]
    assert main([*call, "--max_steps", "2"]) == 0
    assert main([*call, "--max_steps", "3", "--resume_from_checkpoint", "true"]) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    losses = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4, 5]
    assert ["closing_kl" in entry for entry in losses] == [False] * 3 + [True] * 2


def test_a_model_that_holds_nan_is_said_so(world_dir, tmp_path, capsys):
    save_world_model(tmp_path / "nan", sharpness=float("nan"))
    call = ["train", "--config", str(world_dir / "recipe.yaml"), "--model_name_or_path", str(tmp_path / "nan")]
    call += ["--dataset_name", str(world_dir / "train.parquet"), "--output_dir", str(tmp_path / "out")]
    assert main(call) == 1
    error = capsys.readouterr().err
    assert "NaN" in error and "Traceback" not in error


def test_evaluate_writes_what_it_says(world_dir, capsys):
    call = ["evaluate", "--model", str(world_dir / "model"), "--dataset", str(world_dir / "test.parquet")]
    call += ["--scoring", "text", "--output_dir", str(world_dir / "evaluation"), "--n_bootstrap", "50"]
    assert main(call) == 0
    out = capsys.readouterr().out
    results = json.loads((world_dir / "evaluation" / "results.json").read_text())
    assert results["n"] == 101 and f"{results['accuracy']:.3f}" in out and "conf-ECE" in out
    assert results["regime"] in ("calibratable", "non-calibratable", "target-contradicted", "undetermined")
    predictions = OptionPredictions.load(world_dir / "evaluation" / "predictions.npz")
    with np.load(world_dir / "evaluation" / "predictions.npz") as arrays:
        assert {"option_logits", "probabilities", "labels", "ids"} <= set(arrays)
    assert results["accuracy"] == pytest.approx((predictions.probabilities.argmax(1) == predictions.labels).mean())
    for suffix in ("png", "svg"):
        assert (world_dir / "evaluation" / f"reliability.{suffix}").stat().st_size > 1000
        assert (world_dir / "evaluation" / f"groups.{suffix}").stat().st_size > 1000
    assert results["n_groups"] == len(set(predictions.subjects.tolist())) > 1
    assert sum(group["n"] for group in groups_of(results).values()) == 101
    assert f"{results['n_groups']} groups" in out and results["test"] == "target"  # the world knows its truth


def test_paths_at_home(world_dir, tmp_path, monkeypatch):
    """Where the shell leaves `~` as it is: behind `=`, and in a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(world_dir))
    call = ["evaluate", "--model=~/model", "--dataset=~/test.parquet", "--scoring", "text", "--n_bootstrap", "20"]
    assert main([*call, "--limit", "20", "--output_dir=~/at-home"]) == 0
    recipe = {**RECIPE, "model_name_or_path": "~/model", "dataset_name": ["~/train.parquet"], "max_steps": 1}
    recipe |= {"dataset_config": "ARC-Easy", "output_dir": "~/at-home"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert {"results.json", "model.safetensors"} <= {file.name for file in (world_dir / "at-home").iterdir()}
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_evaluate_by_a_reference(world_dir, tmp_path, capsys):
    """Judged by the predictions of another model, matched by question whatever their order."""
    call = ["evaluate", "--model", str(world_dir / "model"), "--dataset", str(world_dir / "test.parquet")]
    call += ["--scoring", "text", "--n_bootstrap", "20", "--output_dir"]
    assert main([*call, str(tmp_path / "base")]) == 0
    base = OptionPredictions.load(tmp_path / "base" / "predictions.npz")
    base.select(base.ids[::-1]).save(tmp_path / "reversed.npz")
    assert main([*call, str(tmp_path / "aligned"), "--reference_predictions", str(tmp_path / "reversed.npz")]) == 0
    results = json.loads((tmp_path / "aligned" / "results.json").read_text())
    assert results["test"] == "reference" and results["reference_accuracy"] == pytest.approx(results["accuracy"])
    base.select(base.ids[:50]).save(tmp_path / "fewer.npz")
    capsys.readouterr()
    assert main([*call, str(tmp_path / "aligned"), "--reference_predictions", str(tmp_path / "fewer.npz")]) == 2
    assert "51 of 101 questions" in capsys.readouterr().err
    assert main([*call, str(tmp_path / "given"), "--critical_accuracy", "0.01"]) == 0
    assert json.loads((tmp_path / "given" / "results.json").read_text())["critical_accuracy"] == 0.01


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (["train", "--config", "{typo}"], "lamda_ece"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--trainer", "ppo"], "ppo"),
        (["train", "--config", "{recipe}", "--dataset_name", "nowhere.parquet", "--output_dir", "{tmp}"], "nowhere.parquet"),
        (["train", "--config", "{recipe}", "--output_dir", "{tmp}"], "dataset_name is missing"),
        (["train", "--config", "{recipe}", "--lambda_ece", "-1", "--output_dir", "{tmp}"], "lambda_ece"),
        (["train", "--config", "{recipe}", "--dataset_name", "{train}", "--output_dir", "/proc/out"], "/proc/out"),
        (["train", "--config", "{recipe}", "--dataset_name", "{train}", "--output_dir", "{tmp}", "--packing", "true"], "packing"),
        (["train", "--config", "{recipe}", "--dataset_name", "{train}", "--output_dir", "{tmp}", "--eval_strategy", "epoch"], "eval_dataset_name"),
        (["train", "--config", "{recipe}", "--dataset_name", "{train}", "--output_dir", "{tmp}", "--model_name_or_path", "{adapter}"], "merge_and_unload"),
        (["evaluate", "--model", "{adapter}", "--dataset", "{train}", "--output_dir", "{tmp}/out"], "merge_and_unload"),
        (["evaluate", "--model", "{recipe}", "--dataset", "{train}", "--output_dir", "{tmp}/out", "--n_bins", "0"], "n_bins"),
        (["evaluate", "--model", "{tmp}", "--dataset", "{train}", "--critical_accuracy", "1.2"], "critical_accuracy"),
        (["evaluate", "--model", "{tmp}", "--dataset", "{train}", "--output_dir", "{tmp}/out", "--reference_predictions", "{tmp}/no.npz"], "no.npz"),
        (["evaluate", "--model", "{tmp}", "--dataset", "{train}", "--output_dir", "{tmp}/out"], "config.json"),
        (["evaluate", "--model", "./nowhere", "--dataset", "{train}", "--output_dir", "{tmp}/out"], "no folder ./nowhere"),
        (["train", "--config", "{recipe}", "--dataset_name", "{train}", "--output_dir", "{tmp}", "--model_name_or_path", "{tmp}/no/where"], "there is no folder"),
        (["verify", "./nowhere/model"], "no folder ./nowhere/model"),
        (["evaluate", "--dataset", "{train}"], "--model"),
        (["evaluate", "--model", "{tmp}", "--dataset", "{columns}", "--output_dir", "{tmp}/out"], "stem"),
        (["calibrat"], "calibrat"),
        ([], "command"),
    ],
)  # fmt: skip
def test_wrong_calls_are_named_and_leave_with_two(world_dir, tmp_path, capsys, call, named):
    places = {"recipe": world_dir / "recipe.yaml", "train": world_dir / "train.parquet", "tmp": tmp_path}
    places |= {"typo": tmp_path / "typo.yaml", "columns": tmp_path / "columns.csv"}
    places["adapter"] = tmp_path / "adapter"
    if "{adapter}" in call:
        model = World().model()
        with_lora(model, target_modules=["q_proj", "lm_head"]).save_pretrained(places["adapter"])
        config = json.loads((places["adapter"] / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(world_dir / "model")
        (places["adapter"] / "adapter_config.json").write_text(json.dumps(config))
        World().tokenizer().save_pretrained(places["adapter"])
    places["typo"].write_text(yaml.safe_dump({"output_dir": "x", "lamda_ece": 1.0}))
    places["columns"].write_text("stem,answer\nIs it?,0\n")
    assert main([part.format(**places) for part in call]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error


def test_a_recipes_configuration_is_not_asked_of_a_folder(world_dir, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(world_dir / "train.parquet", tmp_path / "data" / "train.parquet")
    call = ["train", "--config", str(world_dir / "recipe.yaml"), "--dataset_name", str(tmp_path / "data")]
    call += ["--dataset_config", "ARC-Easy", "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    assert main(call) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["evaluate"],
        ["quickstart"],
        ["push"],
        ["verify"],
        ["transfer"],
        ["average"],
    ],
)
def test_help_teaches_by_example(capsys, command):
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "example" in out and re.search(r"hf-calib|accelerate launch", out)


def recipes() -> list[Path]:
    return sorted(path for path in recipe_path().rglob("*.yaml") if path.parent.name != "accelerate_configs")


@pytest.mark.parametrize("recipe", recipes(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_is_parsed_strictly(recipe, tmp_path, monkeypatch):
    trl = pytest.importorskip("trl")

    from hf_calib.training.arguments import TRAINERS, TrainArguments

    monkeypatch.chdir(tmp_path)
    name = yaml.safe_load(recipe.read_text()).get("trainer", "calibrated_sft")
    parser = trl.TrlParser((TrainArguments, TRAINERS[name][0], trl.ModelConfig))
    script_args, training_args, model_args = parser.parse_args_and_config(
        ["--config", str(recipe), "--use_cpu", "true"]
    )
    assert script_args.dataset_name and model_args.model_name_or_path and training_args.output_dir
