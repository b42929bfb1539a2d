"""A chat tokenizer and two small models of it."""

import pytest


@pytest.fixture
def tokenizer(tiny_tokenizers):
    return tiny_tokenizers["qwen"]


@pytest.fixture
def models(tokenizer, tiny_llama):
    return tiny_llama(tokenizer, seed=0), tiny_llama(tokenizer, seed=1)
