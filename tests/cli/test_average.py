"""`hf-calib average` on real trainings of the synthetic world: every label is held out once, from the model that answers it."""

import json
import shutil

import numpy as np
import pytest
from samples import save_world_model

from hf_calib.cli.main import main
from hf_calib.data.prompts import PromptFormat
from hf_calib.data.questions import load_questions
from hf_calib.data.synthetic_world import World
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predict import predict_options
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.paths import recipe_path


ASKED = PromptFormat("text", "{question}", use_chat_template=False)


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Three adapters, each trained without another third of sixty questions."""
    folder = tmp_path_factory.mktemp("folds")
    save_world_model(folder / "before")
    World().questions(60, split="train").to_parquet(folder / "train.parquet")
    trained = []
    for fold in range(3):
        trained.append(folder / f"fold-{fold}")
        recipe = [
            "--config",
            str(recipe_path("quickstart/rcft.yaml")),
            "--em_holdout",
            "0.3334",
            "--em_fold",
            str(fold),
        ]
        where = ["--model_name_or_path", str(folder / "before"), "--dataset_name", str(folder / "train.parquet")]
        adapter = [
            "--use_peft",
            "true",
            "--lora_r",
            "2",
            "--max_steps",
            "3",
            "--learning_rate",
            "0.01",
            "--disable_tqdm",
            "true",
        ]
        assert main(["train", *recipe, *where, *adapter, "--output_dir", str(trained[-1])]) == 0
    return trained


def average(models, out):
    return main(["average", "--models", *map(str, models), "--output_dir", str(out)])


def test_every_label_is_answered_by_the_model_that_was_not_trained_on_it(folds, tmp_path, capsys):
    assert average(folds, tmp_path) == 0
    assert f"next: hf-calib calibrate --predictions {tmp_path / 'held_out'}" in capsys.readouterr().out
    questions = load_questions(str(folds[0].parent / "train.parquet"))
    held_out = OptionPredictions.load(tmp_path / "held_out" / "predictions.npz")
    assert sorted(held_out.ids) == sorted(questions["id"])
    parts = [OptionPredictions.load(fold / "held_out" / "predictions.npz") for fold in folds]
    assert [len(part) for part in parts] == [20, 20, 20]
    for fold, part in zip(folds, parts, strict=True):
        model, tokenizer = load_model(str(fold))
        asked = questions.select([questions["id"].index(name) for name in part.ids])
        says = predict_options(model, tokenizer, asked, prompt_format=ASKED, progress=False)
        np.testing.assert_allclose(held_out.select(part.ids).option_logits, says.option_logits, atol=1e-4)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["budget"] == [
        "60 labelled questions of train.parquet.",
        "Cross-fitted: the mean of 3 models, each trained without another part of the labelled questions; 60 were held out from one "
        "of them each.",
    ]
    assert record["settings"]["LoRA rank"] == record["settings"]["LoRA alpha"] == 6 and "recipe" not in record
    assert record["command"].count("hf-calib train") == 3 and "--em_fold 2" in record["command"]
    assert record["command"].endswith(f"hf-calib average --models {' '.join(fold.name for fold in folds)}")
    # The calibrator's labels are those of the training, and the model is one that the other commands take.
    out = tmp_path / "calibration"
    call = ["calibrate", "--predictions", str(tmp_path / "held_out"), "--method", "temperature", "--n_bootstrap", "20"]
    assert main([*call, "--output_dir", str(out)]) == 0 and (out / "calibrators" / "temperature").is_dir()
    model, _ = load_model(str(tmp_path))
    assert model.peft_config["default"].r == 6


def test_models_that_do_not_belong_together_are_named(folds, tmp_path, capsys):
    def refused(models):
        assert average(models, tmp_path / "out") == 2
        assert not (tmp_path / "out" / "adapter_config.json").exists()
        return capsys.readouterr().err

    assert "was predicted twice" in refused([folds[0], folds[1], folds[0]])
    assert "nowhere" in refused([folds[0], "nowhere"])
    assert "got 1" in refused(folds[:1])
    assert average(folds, folds[0]) == 2 and "is one of the models" in capsys.readouterr().err
    bare = shutil.copytree(folds[1], tmp_path / "bare", ignore=shutil.ignore_patterns("held_out"))
    assert f"{bare / 'held_out' / 'predictions.npz'} is missing" in refused([folds[0], bare])
    other = shutil.copytree(folds[1], tmp_path / "other")
    path = other / "held_out" / "predictions.npz"
    predictions = OptionPredictions.load(path)
    predictions.metadata["option_normalization"] = "mean"
    predictions.save(path)
    assert "other and" in refused([folds[0], other])


def test_models_without_held_out_questions_are_averaged_all_the_same(folds, tmp_path, capsys):
    ignored = shutil.ignore_patterns("held_out", "training.json")
    models = [shutil.copytree(fold, tmp_path / fold.name, ignore=ignored) for fold in folds[:2]]
    assert average(folds, tmp_path / "out") == 0  # what it leaves is gone with the next
    assert average(models, tmp_path / "out") == 0
    assert "no held-out predictions" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / "held_out").exists() and not (tmp_path / "out" / "training.json").exists()
