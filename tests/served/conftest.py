"""A tiny model, behind a server and here."""

from importlib.util import find_spec

import pytest
from openai_server import OpenAIServer
from samples import make_questions


collect_ignore_glob = [] if find_spec("openai") else ["test_*.py"]  # the extra `served`


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizers):
    return tiny_tokenizers["qwen"]


@pytest.fixture(scope="session")
def tiny_model(tokenizer, tiny_llama):
    return tiny_llama(tokenizer)


@pytest.fixture
def server(tiny_model, tokenizer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("HF_TOKEN", "")
    running = OpenAIServer(tiny_model, tokenizer)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def questions():
    return make_questions(24)
