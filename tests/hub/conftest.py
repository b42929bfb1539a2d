"""Fixtures of the Hub's tests: the loopback Hub for the clients of this process, and a model with its evaluations."""

import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from hub_server import serve
from huggingface_hub import HfApi
from transformers.utils.hub import hf_api

from hf_calib.cli import main
from hf_calib.data.world import World
from hf_calib.hub.card import METRICS


TOKENS = {"hf_alice": ["alice", "lab"], "hf_bob": ["bob"]}
N = 60


@pytest.fixture(scope="session")
def hub_url(tmp_path_factory):
    """One Hub for the session: every test has repositories of its own name."""
    with serve(tmp_path_factory.mktemp("hub"), TOKENS) as server:
        yield server


@pytest.fixture
def hub(hub_url, tmp_path, monkeypatch):
    """The clients of this process speak to the loopback Hub, as alice, with an empty cache."""
    use_hub(monkeypatch, hub_url.url, tmp_path / "cache")
    return hub_url


def use_hub(monkeypatch, url: str, cache: Path, token: str = "hf_alice") -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # loopback only
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    monkeypatch.setattr(hf_api(), "endpoint", url)  # that of transformers, kept once made
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setenv("HF_TOKEN", token)


@pytest.fixture
def api(hub):
    return HfApi()


@dataclass
class Example:
    """A model, and what it and another said to the same questions."""

    folder: Path

    def call(self, repo_id: str, *more: str) -> list[str]:
        call = ["push", "--model", str(self.folder / "model"), "--evaluation", str(self.folder / "after")]
        return [*call, "--before", str(self.folder / "before"), "--repo_id", repo_id, *more]


@pytest.fixture(scope="session")
def example_source(tmp_path_factory):
    folder, world = tmp_path_factory.mktemp("example"), World()
    world.questions(N).to_parquet(folder / "test.parquet")
    for seed, name in enumerate(("start", "model")):
        world.model(seed).save_pretrained(folder / name)
        world.tokenizer().save_pretrained(folder / name)
    for model, output in (("start", "before"), ("model", "after")):
        call = ["evaluate", "--model", str(folder / model), "--dataset", str(folder / "test.parquet")]
        assert main([*call, "--scoring", "text", "--output_dir", str(folder / output), "--n_bootstrap", "20"]) == 0
    call = ["calibrate", "--predictions", str(folder / "after"), "--method", "temperature", "--n_bootstrap", "20"]
    assert main([*call, "--output_dir", str(folder / "calibration")]) == 0
    return folder


@pytest.fixture
def example(example_source, tmp_path):
    """A copy that a test may write to."""
    import shutil

    return Example(Path(shutil.copytree(example_source, tmp_path / "example")))


def assert_card_states(card, results: dict) -> None:
    """The model-index parsed back is results.json, to the last digit."""
    stated = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert stated == {key: results[key] for key in METRICS if results.get(key) is not None}
    assert {"accuracy", "ece", "cw_ece", "nll", "brier"} <= stated.keys()


def read(path: Path) -> dict:
    return json.loads(path.read_text())
