"""The whole circle: data on the Hub, trained, pushed, downloaded, loaded by anyone, evaluated, verified; claims that do not hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, hf_hub_download
from loopback import assert_card_states, read, use_hub
from safetensors.torch import load_file
from samples import make, save_world_model
from transformers import AutoModelForCausalLM, pipeline

from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.evaluation.protocol import EvaluationProtocol
from hf_calib.hub.verify import Published, compare, fetch
from hf_calib.inference.predictions import OptionPredictions


TEST = 150


@pytest.fixture(scope="module")
def trained(hub_url, tmp_path_factory):
    """A recipe with `push_to_hub: true`, run once for the module, with the token where a careless user puts it."""
    folder, world = tmp_path_factory.mktemp("circle"), World()
    with pytest.MonkeyPatch.context() as patch:
        use_hub(patch, hub_url.url, folder / "cache")
        from huggingface_hub import HfApi

        api = HfApi()
        world.questions(60, split="train").to_parquet(folder / "data" / "train.parquet")
        world.questions(TEST).to_parquet(folder / "data" / "test.parquet")
        api.create_repo("alice/questions", repo_type="dataset")
        api.upload_folder(repo_id="alice/questions", repo_type="dataset", folder_path=folder / "data")
        save_world_model(folder / "start")
        (folder / "start" / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n\n# start\n")
        api.create_repo("alice/start")
        api.upload_folder(repo_id="alice/start", folder_path=folder / "start")
        recipe = {
            "objective": "rcft", "scoring": "text", "learning_rate": 2e-3, "num_train_epochs": 1, "bf16": False,
            "gradient_checkpointing": False, "report_to": "none", "save_strategy": "epoch", "disable_tqdm": True,
            "model_name_or_path": "alice/start", "dataset_name": "alice/questions", "eval_dataset_name": "alice/questions",
            "per_device_eval_batch_size": 64, "push_to_hub": True, "hub_model_id": "alice/circle", "hub_private_repo": True,
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        before = len(hub_url.requests)
        call = ["train", "--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "out")]
        assert main([*call, "--hub_token", "hf_alice"]) == 0
    return folder, hub_url.requests[before:]


def test_other_data_than_the_recipes_are_not_asked_for_its_configuration(trained, hub, tmp_path, capsys):
    recipe = yaml.safe_load((trained[0] / "recipe.yaml").read_text())
    other = {"dataset_name": "alice/elsewhere", "dataset_config": "ARC-Easy"}
    recipe |= other | {"push_to_hub": False, "max_steps": 1, "output_dir": str(tmp_path / "out")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    call = ["train", "--config", str(tmp_path / "recipe.yaml")]
    assert main(call) == 2 and "alice/elsewhere" in capsys.readouterr().err
    assert main([*call, "--dataset_name", "alice/questions"]) == 0


def test_it_is_pushed_once_with_all_that_belongs_to_it(trained, hub, api):
    folder, requests = trained
    assert len([1 for method, path, status in requests if "/commit/" in path and status == 200]) == 1
    held = set(api.list_repo_files("alice/circle"))
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "results.json", "recipe.yaml"}
    assert wanted | {"reliability.png", "regime.png", "groups.png"} <= held
    assert (
        not {"training_args.bin", "training.json", "trainer_state.json"} & held
        and api.repo_info("alice/circle").private
    )

    card, results = ModelCard.load("alice/circle"), read(folder / "out" / "results.json")
    assert_card_states(card, results)
    assert results["n"] == results["before"]["n"] == TEST and results["before"]["weights"] != results["weights"]
    data = card.data.to_dict()
    assert data["base_model"] == "alice/start" and data["datasets"] == ["alice/questions"]
    assert data["license"] == "apache-2.0" and data["language"] == ["en"] and {"trl", "rcft"} <= set(data["tags"])
    for said in (
        "| before |",
        "reliability.png",
        "### Regime",
        "12 of the labelled questions were held out",
        "save_strategy: epoch",
    ):
        assert said in card.text, said
    assert "hf-calib verify alice/circle\n" in card.text
    recipe = yaml.safe_load(open(hf_hub_download("alice/circle", "recipe.yaml")))
    assert recipe["learning_rate"] == 2e-3 and not {"push_to_hub", "hub_model_id", "hub_token"} & recipe.keys()
    for path in (folder / "out").rglob("*"):
        assert path.is_dir() or b"hf_alice" not in path.read_bytes(), f"a token in {path}"


def test_anyone_loads_it_and_verifies_it(trained, hub, tmp_path, capsys):
    folder, _ = trained
    model = AutoModelForCausalLM.from_pretrained("alice/circle")
    for name, weight in load_file(folder / "out" / "model.safetensors").items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), weight.numpy())
    assert pipeline("text-generation", model="alice/circle")("the", max_new_tokens=2)
    call = ["evaluate", "--model", "alice/circle", "--dataset", "alice/questions", "--scoring", "text"]
    assert main([*call, "--output_dir", str(tmp_path / "evaluation"), "--n_bootstrap", "20", "--seed", "42"]) == 0
    again, stated = read(tmp_path / "evaluation" / "results.json"), read(folder / "out" / "results.json")
    assert again["questions"] == stated["questions"] and again["weights"] == stated["weights"]
    assert again["ece"] == pytest.approx(stated["ece"], abs=1e-5)
    capsys.readouterr()
    assert main(["verify", "alice/circle", "--batch_size", "64"]) == 0
    out = capsys.readouterr().out
    assert f"{TEST} of its {TEST} questions" in out and "figures hold" in out and "weights differ" not in out
    assert main(["verify", "alice/circle", "--limit", "50"]) == 0
    assert f"50 of its {TEST} questions" in capsys.readouterr().out


def test_other_questions_are_recognised(trained, hub, tmp_path, capsys):
    World().questions(120, seed=1).to_parquet(tmp_path / "others.parquet")
    assert main(["verify", "alice/circle", "--dataset", str(tmp_path / "others.parquet"), "--batch_size", "64"]) == 0
    assert "120 other questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sample", "key", "value"), [(None, "ece", 0.01), ("100", "ece", 0.9), ("100", "accuracy", 0.9)]
)
def test_a_claim_that_does_not_hold(trained, hub, api, tmp_path, sample, key, value, capsys):
    folder, _ = trained
    claimed = {**read(folder / "out" / "results.json"), key: value}
    if key == "ece":
        claimed |= {"ece_low": value, "ece_high": value}
    api.upload_file(path_or_fileobj=json.dumps(claimed).encode(), path_in_repo="results.json", repo_id="alice/circle",
                    revision=_branch(api))  # fmt: skip
    call = ["verify", "alice/circle", "--revision", "claims", "--batch_size", "64"]
    assert main([*call, *(["--limit", sample] if sample else [])]) == 1
    printed = capsys.readouterr()
    assert "do not hold" in printed.err and key in printed.err and "NO" in printed.out
    assert fetch("alice/circle").results[key] != value


def _branch(api) -> str:
    api.create_branch("alice/circle", branch="claims", exist_ok=True)
    return "claims"


def test_results_json_alone_makes_the_card_again(trained, hub, tmp_path):
    hf_hub_download("alice/circle", "results.json", local_dir=tmp_path)
    hf_hub_download("alice/circle", "README.md", local_dir=tmp_path)
    published = (tmp_path / "README.md").read_text()
    assert main(["push", "--dry_run", "true", "--evaluation", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == published
    (tmp_path / "README.md").unlink()
    assert main(["push", "--dry_run", "true", "--evaluation", str(tmp_path)]) == 0
    section = (tmp_path / "README.md").read_text().partition("<!-- hf_calib")[2]
    assert section.strip() in published


@pytest.mark.parametrize("same", [False, True])
def test_chance_seldom_refutes_a_true_claim(same):
    """A model that has not changed, stated on 500 questions, asked 300 others or 150 of the same: wrong in 5% at most."""
    probabilities, labels, _ = make(n=20_000, seed=1)
    logits, rng = np.log(probabilities).astype(np.float32), np.random.default_rng(0)
    protocol = EvaluationProtocol(dataset="questions.parquet", n_bootstrap=20)

    def answers(rows):
        return OptionPredictions(logits[rows], labels[rows], np.array([str(row) for row in rows]))

    refuted = 0
    for _ in range(30):
        stated = rng.choice(len(labels), 500, replace=False)
        asked = rng.choice(stated, 150, replace=False) if same else rng.choice(len(labels), 300, replace=False)
        card = Published("org/model", Path(), {**protocol.measure(answers(stated)), "n_bootstrap": 20})
        refuted += not all(check.holds for check in compare(card, answers(asked), same))
    assert refuted <= 4
