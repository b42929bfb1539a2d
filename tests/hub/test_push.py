"""`hf-calib push` against the loopback Hub: what lies there afterwards, what anyone loads, and pushing again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from adapters import with_lora
from huggingface_hub import ModelCard, hf_hub_download
from loopback import assert_card_states, read
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_calib import PostHocCalibrator, SubjectTemperature, load_calibrator
from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.inference.predictions import OptionPredictions


def test_everything_in_one_commit_and_loads_as_it_is(hub, api, example, capsys):
    calibrator = example.folder / "calibration" / "calibrators" / "temperature"
    more = ["--calibrator", str(calibrator), "--include_predictions", "true"]
    assert main(example.call("alice/whole", *more)) == 0
    assert "alice/whole/commit/" in capsys.readouterr().out
    assert len(api.list_repo_commits("alice/whole")) == 2  # the first made the repository
    held = set(api.list_repo_files("alice/whole"))
    wanted = {
        "README.md",
        "config.json",
        "model.safetensors",
        "results.json",
        "reliability.png",
        "regime.png",
        "groups.png",
    }
    assert wanted | {"calibrator/calibrator.json", "calibrator/calibrator.safetensors", "predictions.npz"} <= held

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained("alice/whole"),
        AutoTokenizer.from_pretrained("alice/whole"),
    )
    assert pipeline("text-generation", model=model, tokenizer=tokenizer)("the", max_new_tokens=2)
    card = ModelCard.load("alice/whole")
    results = read(example.folder / "model" / "results.json")
    assert_card_states(card, results)
    assert results["before"]["n"] == results["n"] == results["with_calibrator"]["n"] == 60
    # What is measured on this machine is told by name, not by its paths.
    assert results["model"] == "alice/whole" and results["dataset"] == results["before"]["dataset"] == "test.parquet"
    assert str(example.folder) not in card.content and str(example.folder) not in str(results)

    fitted, fetched = PostHocCalibrator.load(calibrator), load_calibrator("alice/whole")
    logits = OptionPredictions.load(hf_hub_download("alice/whole", "predictions.npz")).option_logits
    np.testing.assert_array_equal(fitted.transform(logits), fetched.transform(logits))
    assert type(load_calibrator(example.folder / "model")) is type(load_calibrator(calibrator)) is type(fitted)


def test_again_changes_nothing_and_what_was_written_around_stays(hub, api, example, capsys):
    assert main(example.call("alice/again")) == 0
    commits = len(api.list_repo_commits("alice/again"))
    assert main(example.call("alice/again")) == 0
    assert len(api.list_repo_commits("alice/again")) == commits
    # Somebody writes on the website; a push from a folder without that card keeps it.
    card = ModelCard.load("alice/again")
    api.upload_file(
        path_or_fileobj=card.content.replace("# alice", "Written by hand.\n\n# alice").encode(),
        path_in_repo="README.md",
        repo_id="alice/again",
    )
    (example.folder / "model" / "README.md").unlink()
    assert (
        main(example.call("alice/again", "--calibrator", str(example.folder / "calibration/calibrators/temperature")))
        == 0
    )
    again = ModelCard.load("alice/again")
    assert again.text.count("Written by hand.") == again.text.count("## Calibration") == 1
    assert "+ temperature" in again.text.lower()


def test_what_an_earlier_model_left_goes(hub, api, example):
    assert main(example.call("alice/earlier", "--include_predictions", "true")) == 0
    for name in ("model-00001-of-00002.safetensors", "training_args.bin", "notes/model.bin"):
        api.upload_file(path_or_fileobj=b"earlier", path_in_repo=name, repo_id="alice/earlier")
    (example.folder / "model" / "predictions.npz").unlink()
    assert main(example.call("alice/earlier")) == 0
    held = api.list_repo_files("alice/earlier")
    assert not {"model-00001-of-00002.safetensors", "training_args.bin", "predictions.npz"} & set(held)
    assert "notes/model.bin" in held  # not ours


def test_private_branch_and_organisation(hub, api, example, monkeypatch, capsys):
    assert main(example.call("lab/hidden", "--private", "true", "--revision", "v2")) == 0
    assert api.repo_info("lab/hidden").private
    assert "model.safetensors" not in api.list_repo_files("lab/hidden")
    assert "model.safetensors" in api.list_repo_files("lab/hidden", revision="v2")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert main(["verify", "lab/hidden", "--revision", "v2"]) == 2
    assert "lab/hidden: no such repository with this token" in capsys.readouterr().err


def test_a_pull_request(hub, api, example, capsys, monkeypatch):
    assert main(example.call("alice/asked")) == 0
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    (example.folder / "model" / "README.md").unlink()
    calibrator = str(example.folder / "calibration/calibrators/temperature")
    assert main(example.call("alice/asked", "--create_pr", "true", "--calibrator", calibrator)) == 0
    assert "alice/asked/discussions/1" in capsys.readouterr().out
    assert "calibrator/calibrator.json" not in api.list_repo_files("alice/asked")
    assert "calibrator/calibrator.json" in api.list_repo_files("alice/asked", revision="refs/pr/1")


def test_code_that_the_configuration_names(hub, api, example, caplog):
    folder = example.folder / "model"
    config = read(folder / "config.json")
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModel": "bob/elsewhere--modeling_other.Other",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(
        "from .layers_own import Layer\nfrom .configuration_own import OwnConfig\n"
    )
    (folder / "layers_own.py").write_text("import torch\n")
    (folder / "train.py").write_text("")
    assert main(example.call("alice/code")) == 0
    sent = {name for name in api.list_repo_files("alice/code") if name.endswith(".py")}
    assert sent == {"modeling_own.py", "layers_own.py"}
    assert caplog.text.count("lacks configuration_own.py") == 1


@pytest.fixture
def adapter(example):
    """A LoRA adapter on the example's start model, evaluated."""
    folder = example.folder / "adapter"
    base = str(example.folder / "start")
    model = AutoModelForCausalLM.from_pretrained(base)
    with_lora(model, target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM").save_pretrained(folder)
    World().tokenizer().save_pretrained(folder)
    call = ["evaluate", "--model", str(folder), "--dataset", str(example.folder / "test.parquet"), "--scoring", "text"]
    assert main([*call, "--output_dir", str(folder / "evaluation"), "--n_bootstrap", "20"]) == 0
    return folder


def test_an_adapter_and_its_merger(hub, api, example, adapter, capsys):
    peft = pytest.importorskip("peft")
    call = ["push", "--model", str(adapter), "--repo_id"]
    assert main([*call, "alice/adapter"]) == 2
    assert "publish that model and name it with --base_model" in capsys.readouterr().err
    config = (adapter / "adapter_config.json").read_text()
    other = ["--evaluation", str(example.folder / "after"), "--base_model", "alice/base-of-adapter"]
    assert main([*call, "alice/adapter", *other]) == 2  # the evaluation of another model
    assert (adapter / "adapter_config.json").read_text() == config
    api.create_repo("alice/base-of-adapter")
    api.upload_folder(repo_id="alice/base-of-adapter", folder_path=example.folder / "start")
    renamed = [*call, "alice/adapter", "--base_model", "alice/base-of-adapter"]
    assert main([*renamed, "--output_dir", str(adapter)]) == 2
    assert "the published adapter" in capsys.readouterr().err
    before = set(adapter.iterdir())
    assert main([*renamed, "--dry_run", "true"]) == 0 == main(renamed)
    assert (adapter / "adapter_config.json").read_text() == config and set(adapter.iterdir()) == before
    published = example.folder / "adapter-published"
    held = set(api.list_repo_files("alice/adapter"))
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= held and "config.json" not in held
    sent = read(Path(hf_hub_download("alice/adapter", "adapter_config.json")))
    assert sent["base_model_name_or_path"] == "alice/base-of-adapter"
    peft.AutoPeftModelForCausalLM.from_pretrained("alice/adapter")
    data = ModelCard.load("alice/adapter").data
    assert data.base_model == "alice/base-of-adapter" and data.library_name == "peft"
    questions = ["--dataset", str(example.folder / "test.parquet")]
    assert main(["verify", "alice/adapter", *questions]) == 0

    assert main([*call, "alice/merged", "--merge", "true", *questions, "--output_dir", str(adapter)]) == 2
    assert "the merged model needs another" in capsys.readouterr().err
    merge = ["--merge", "true", *questions, *renamed[-2:], "--output_dir", str(example.folder / "merged")]
    assert main([*call, "alice/merged", *merge]) == 0
    results, earlier = read(example.folder / "merged" / "results.json"), read(published / "results.json")
    assert results["weights"] != earlier["weights"] and results["nll"] == pytest.approx(earlier["nll"], abs=1e-4)
    assert not results["adapter"] and not {"adapter_config.json"} & set(api.list_repo_files("alice/merged"))
    assert ModelCard.load("alice/merged").data.base_model == "alice/base-of-adapter"
    assert main(["verify", "alice/merged", *questions]) == 0


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda folder: (folder / "model" / "model.safetensors").unlink(), "no weights as safetensors"),
        (lambda folder: (folder / "model" / "tokenizer_config.json").unlink(), "no tokenizer"),
        (lambda folder: shutil.rmtree(folder / "after"), "name the evaluation of the model with --evaluation"),
        (
            lambda folder: shutil.copytree(folder / "before", folder / "after", dirs_exist_ok=True),
            "other weights",
        ),
        (lambda folder: shutil.copy(folder / "calibration" / "predictions.npz", folder / "after"), None),
        (lambda folder: (folder / "after" / "results.json").write_text("{"), "results.json"),
    ],
)
def test_wrong_calls_are_named_before_the_hub_is_asked(hub, example, break_it, named, capsys):
    break_it(example.folder)
    asked = len(hub.requests)
    status = main(example.call("alice/never"))
    error = capsys.readouterr().err
    if named is not None:
        assert status == 2 and named in error and "Traceback" not in error
        assert len(hub.requests) == asked


def test_no_token_is_published(hub, example, capsys):
    secret = "hf_" + "aB3" * 12
    (example.folder / "model" / "README.md").write_text(f"---\nlicense: mit\n---\n\nLog in with {secret}.\n")
    assert main(example.call("alice/secret")) == 1
    error = capsys.readouterr().err
    assert "README.md holds what looks like a token" in error and secret not in error
    (example.folder / "recipe.yaml").write_text(f"objective: rcft\nhub_token: {secret}\n")
    (example.folder / "model" / "README.md").unlink()
    assert main(example.call("alice/secret", "--recipe", str(example.folder / "recipe.yaml"))) == 0
    published = (example.folder / "model" / "recipe.yaml").read_text()
    assert "objective: rcft" in published and secret not in published


def test_calibrator_by_subject_is_published_and_verified(hub, example, capsys):
    predictions = OptionPredictions.load(example.folder / "after" / "predictions.npz")
    labels = np.where(np.arange(60) % 2, predictions.labels, predictions.option_logits.argmax(axis=1))
    fitted = SubjectTemperature().fit(predictions.option_logits, labels, groups=predictions.subjects)
    fitted.save(example.folder / "by-subject")
    assert main(example.call("alice/subjects", "--calibrator", str(example.folder / "by-subject"))) == 0
    assert load_calibrator("alice/subjects").subjects == fitted.subjects
    assert main(["verify", "alice/subjects", "--dataset", str(example.folder / "test.parquet")]) == 0
    assert "All 34 figures hold." in capsys.readouterr().out
