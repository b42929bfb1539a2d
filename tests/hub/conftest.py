"""Fixtures of the Hub's tests: the loopback Hub for the clients of this process, and a model with its evaluations."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import serve
from huggingface_hub import HfApi
from loopback import TOKENS, use_hub
from samples import save_world_model

from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World


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


@pytest.fixture
def api(hub):
    return HfApi()


@dataclass
class Example:
    """A model, and what it and another said to the same questions."""

    folder: Path

    def call(self, repo_id: str, *more: str) -> list[str]:
        call = ["push", "--model", str(self.folder / "model"), "--evaluation", str(self.folder / "after")]
        return [*call, "--evaluation_before", str(self.folder / "before"), "--repo_id", repo_id, *more]


@pytest.fixture(scope="session")
def example_source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    World().questions(N).to_parquet(folder / "test.parquet")
    for seed, name in enumerate(("start", "model")):
        save_world_model(folder / name, seed)
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
