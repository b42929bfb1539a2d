"""The loopback Hub for the clients of a test, and what its tests read and check."""

import json
from pathlib import Path

import datasets
import huggingface_hub
from transformers.utils.hub import hf_api

from hf_calib.hub.card import METRICS


TOKENS = {"hf_alice": ["alice", "lab"], "hf_bob": ["bob"]}


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


def assert_card_states(card, results: dict) -> None:
    """The model-index parsed back is results.json, to the last digit."""
    stated = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert stated == {key: results[key] for key in METRICS if results.get(key) is not None}
    assert {"accuracy", "ece", "cw_ece", "nll", "brier"} <= stated.keys()


def read(path: Path) -> dict:
    return json.loads(path.read_text())
