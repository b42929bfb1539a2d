"""Comparison of two models on texts, and log-likelihoods of texts, against one text at a time."""

import types

import numpy as np
import pytest
import torch
from adapters import with_lora
from torch.nn.functional import dropout

from hf_calib.inference.generic_texts import GenericText, sample_texts
from hf_calib.inference.text_scores import TextStates, compare_texts, encode_texts, text_losses


def log_probabilities(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("settings", [{}, {"chunk": 7}, {"model_type": "soft cap"}])
def test_sums_equal_those_of_one_text_at_a_time(settings, tokenizer, models, monkeypatch):
    if "chunk" in settings:
        monkeypatch.setattr("hf_calib.inference.option_head._CHUNK_SIZE", settings["chunk"])
    if "model_type" in settings:
        from transformers import Gemma2Config, Gemma2ForCausalLM

        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 1, "final_logit_softcapping": 2.0, "initializer_range": 0.5}
        models = [Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **sizes)).eval() for _ in range(2)]
    model, reference = models
    texts = sample_texts(reference, tokenizer, num_texts=7, max_new_tokens=9)
    expected = []
    for text in texts:
        ids, rows = list(text.input_ids), range(text.start - 1, len(text.input_ids) - 1)
        q, p = (log_probabilities(m, ids)[list(rows)] for m in (model, reference))
        divergence = (p.exp() * (p - q)).sum().item()
        agreement = (p.argmax(-1) == q.argmax(-1)).sum().item()
        loss = -sum(q[i, token].item() for i, token in enumerate(ids[text.start :]))
        expected.append((len(rows), divergence, agreement, loss))
    found = compare_texts(model, TextStates.of(reference, texts, batch_size=3), batch_size=4)
    np.testing.assert_allclose(found.rows(), expected, rtol=1e-4)
    np.testing.assert_allclose(text_losses(model, texts, batch_size=3), found.losses, rtol=1e-6)


def test_a_model_with_itself_and_a_uniform_one(tokenizer, models):
    model, other = models
    texts = sample_texts(model, tokenizer, num_texts=6)
    same = compare_texts(model, TextStates.of(model, texts))
    assert not same.divergence.any() and (same.agreement == same.tokens).all()
    states = TextStates.of(other, texts)
    expected = compare_texts(model, states)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    np.testing.assert_array_equal(compare_texts(model, states).rows(), expected.rows())  # the states are a copy
    np.testing.assert_allclose(text_losses(other, texts) / same.tokens, np.log(len(tokenizer)), rtol=1e-6)


def test_wrapped_models_and_dropout(tokenizer, models):
    adapted = with_lora(models[0], target_modules="all-linear")
    texts = sample_texts(adapted, tokenizer, num_texts=4)
    states = TextStates.of(models[1], texts)
    expected = compare_texts(adapted, states).rows()
    assert compare_texts(torch.nn.DataParallel(adapted), states).rows() == expected
    with adapted.disable_adapter():
        assert compare_texts(adapted, states).rows() != expected
    norm = adapted.get_base_model().model.norm
    norm.register_forward_hook(lambda module, args, output: dropout(output, 0.5, module.training))
    adapted.train()
    assert compare_texts(adapted, states).rows() == expected and adapted.training


def test_every_token_of_a_long_text_is_predicted_once(tokenizer, models):
    texts = ["Ice is the solid form of water, and steam is the gas. " * 3, "Ice", "", "sky blue"]
    windows = encode_texts(tokenizer, texts, max_length=10)
    ids = tokenizer(texts)["input_ids"]
    for row, tokens in zip(windows, ids, strict=True):
        assert [token for window in row for token in window.input_ids[1:]] == tokens[1:]
        assert all(2 <= len(window.input_ids) <= 10 for window in row)
    assert len(windows[0]) > 5 and not windows[2]
    whole = log_probabilities(models[0], ids[0][:10])
    expected = -sum(whole[i, token].item() for i, token in enumerate(ids[0][1:10]))
    assert text_losses(models[0], windows[0])[0] == pytest.approx(expected, rel=1e-5)


def test_errors(tokenizer, models, tiny_tokenizers, tiny_llama):
    model, _ = models
    text = GenericText((5, 6, 7), 1)
    states = TextStates.of(model, [text])
    with pytest.raises(ValueError, match="no texts"):
        compare_texts(model, TextStates.of(model, []))
    with pytest.raises(ValueError, match="vocabularies differ"):
        compare_texts(tiny_llama(tiny_tokenizers["word_level"]), states)
    model.lm_head.weight.ds_status = types.SimpleNamespace(name="NOT_AVAILABLE")
    with pytest.raises(ValueError, match="ZeRO-3 has partitioned"):
        text_losses(model, [text])
