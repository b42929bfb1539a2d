"""A temperature in the weights."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from hf_calib.folding import fold_temperature


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_are_divided(tiny_tokenizers, tiny_llama, tied):
    model = tiny_llama(tiny_tokenizers["gpt2"], tie_word_embeddings=tied)
    tokens = torch.arange(20)[None]
    before = model(tokens).logits
    embeddings = model.get_input_embeddings().weight.clone()
    fold_temperature(model, 2.5)
    torch.testing.assert_close(model(tokens).logits, before / 2.5)
    torch.testing.assert_close(model.get_input_embeddings().weight, embeddings)


@torch.no_grad()
def test_a_norm_with_a_bias():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).eval()
    model.transformer.ln_f.bias.normal_()
    tokens = torch.arange(20)[None]
    before = model(tokens).logits
    fold_temperature(model, 0.5)
    torch.testing.assert_close(model(tokens).logits, before * 2)


@torch.no_grad()
def test_where_it_does_not_fold_the_model_is_left_as_it_was():
    # A soft cap after the head, and norm weights that are stored as 1 + w.
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(vocab_size=50, num_key_value_heads=2, initializer_range=0.5, **sizes)
    ).eval()
    tokens = torch.arange(20)[None]
    before = model(tokens).logits
    with pytest.raises(ValueError, match="Gemma2ForCausalLM does not divide"):
        fold_temperature(model, 3.0)
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_no_temperature_is_refused(tiny_tokenizers, tiny_llama, temperature):
    with pytest.raises(ValueError, match="positive and finite"):
        fold_temperature(tiny_llama(tiny_tokenizers["gpt2"]), temperature)
