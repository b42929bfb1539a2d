"""Folding a temperature into the weights."""

import pytest
import torch
from adapters import with_lora
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from hf_calib.posthoc.fold_temperature import fold_temperature, save_folded


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


SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("temperature", [0.4, 3.0])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_soft_cap_and_norms_stored_minus_one(temperature, tied, tmp_path):
    torch.manual_seed(0)
    config = Gemma2Config(num_key_value_heads=2, head_dim=8, initializer_range=0.5, tie_word_embeddings=tied, **SIZES)
    model = Gemma2ForCausalLM(config).eval()
    model.model.norm.weight.normal_()
    tokens = torch.arange(20)[None]
    before = model(tokens).logits
    assert before.abs().max() > 5  # the cap of 30 is felt
    fold_temperature(model, temperature)
    torch.testing.assert_close(model(tokens).logits * temperature, before, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)


@torch.no_grad()
def test_model_is_restored_where_folding_fails():
    """An architecture that normalises once more after its last norm."""
    torch.manual_seed(0)
    model = GraniteForCausalLM(GraniteConfig(num_key_value_heads=2, tie_word_embeddings=True, **SIZES)).eval()
    model.model.norm.register_forward_hook(lambda module, inputs, output: output / output.norm(dim=-1, keepdim=True))
    tokens = torch.arange(20)[None]
    before = model(tokens).logits
    with pytest.raises(ValueError, match="GraniteForCausalLM does not divide"):
        fold_temperature(model, 3.0)
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)


@torch.no_grad()
def test_a_checkpoint_and_an_adapter(tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer = tiny_tokenizers["gpt2"]
    model = tiny_llama(tokenizer, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = with_lora(AutoModelForCausalLM.from_pretrained(tmp_path / "base")).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(20)[None]
    for name, original in (("base", model), ("adapter", adapted)):
        save_folded(str(tmp_path / name), 2.0, tmp_path / "folded")
        folded = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
        torch.testing.assert_close(folded(tokens).logits * 2, original(tokens).logits, rtol=1e-4, atol=1e-4)
        assert folded.config.calibration_temperature == 2.0
        assert AutoTokenizer.from_pretrained(tmp_path / "folded").get_vocab() == tokenizer.get_vocab()
    save_folded(str(tmp_path / "folded"), 1.5, tmp_path / "again")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").config.calibration_temperature == 3.0


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_invalid_temperature_raises(tiny_tokenizers, tiny_llama, temperature):
    with pytest.raises(ValueError, match="positive and finite"):
        fold_temperature(tiny_llama(tiny_tokenizers["gpt2"]), temperature)


@torch.no_grad()
def test_a_model_that_samples_by_default_writes_as_before(tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer = tiny_tokenizers["gpt2"]
    model = tiny_llama(tokenizer)
    model.generation_config.update(do_sample=True, temperature=0.8, max_new_tokens=20, pad_token_id=0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert save_folded(str(tmp_path / "model"), 4.0, tmp_path / "folded")
    written = []
    for name in ("model", "folded"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        torch.manual_seed(0)
        written.append(loaded.generate(torch.arange(4)[None]))
    assert loaded.generation_config.temperature == pytest.approx(0.2)
    torch.testing.assert_close(*written)
