"""The examples in the docstrings run, and give what they say."""

import doctest
import importlib

import pytest
from test_package import MODULES

import hf_calib
from hf_calib.data.prompts import PromptFormat


# the examples of the trainers begin with a model from the Hub
LOCAL = [name for name in MODULES if not name.startswith("hf_calib.trainers")]


@pytest.mark.parametrize("name", LOCAL)
def test_examples(name, tiny_tokenizers, evaluate_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    if name == "hf_calib.evaluation.ece_regime":
        hf_calib.register()  # the first line of the metric card
    given = {"tokenizer": tiny_tokenizers["gpt2"], "PromptFormat": PromptFormat}
    assert doctest.testmod(module, extraglobs=given).failed == 0
