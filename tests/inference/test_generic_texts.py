"""Texts that a model writes, and the comparison of two models on them."""

import types

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import dropout

from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.inference import generic_texts
from hf_calib.inference.generic_texts import INSTRUCTIONS, GenericText, sample_texts, text_report


KEYS = ["kl_per_token", "top1_agreement", "perplexity", "reference_perplexity", "perplexity_ratio", "n_texts"]


@pytest.fixture
def tokenizer(tiny_tokenizers):
    return tiny_tokenizers["qwen"]


@pytest.fixture
def models(tokenizer, tiny_llama):
    return tiny_llama(tokenizer, seed=0), tiny_llama(tokenizer, seed=1)


def prompts(texts):
    return [text.input_ids[: text.start] for text in texts]


def instructions_in(texts, tokenizer):
    return {line for text in prompts(texts) for line in INSTRUCTIONS if line in tokenizer.decode(text)}


# Prompts


def test_prompts_with_a_chat_template(tokenizer, models):
    texts = sample_texts(models[0], tokenizer, num_texts=16, max_new_tokens=3)
    decoded = [tokenizer.decode(ids) for ids in prompts(texts)]
    assert decoded[3::4] == ["<|im_start|>user\n"] * 4
    answered = [text for i, text in enumerate(decoded) if i % 4 != 3]
    assert len(set(answered)) == 12
    for text in answered:
        instruction = next(line for line in INSTRUCTIONS if line in text)
        assert text == f"<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("kind", "first"), [("llama_eos", "<s>"), ("gpt2_eos", "<|endoftext|>")])
def test_prompts_without_a_chat_template(kind, first, tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers[kind]
    texts = sample_texts(tiny_llama(tokenizer), tokenizer, num_texts=6, max_new_tokens=3)
    assert prompts(texts)[1::2] == [(tokenizer.convert_tokens_to_ids(first),)] * 3
    for ids in prompts(texts)[::2]:
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() in INSTRUCTIONS
        assert ids[-1] != tokenizer.eos_token_id


def test_instructions_with_unknown_words_are_left_out():
    world = World(WorldConfig(seed=0))
    tokenizer, model = world.tokenizer(), world.model()
    texts = sample_texts(model, tokenizer, num_texts=6)
    assert prompts(texts) == [(tokenizer.bos_token_id,)] * 6
    # the context has 64 tokens
    assert max(len(text.input_ids) for text in texts) <= 64


def test_text_begins_with_eos_where_there_is_no_bos(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["word_level"]
    texts = sample_texts(tiny_llama(tokenizer), tokenizer, num_texts=4, max_new_tokens=2)
    assert prompts(texts) == [(tokenizer.eos_token_id,)] * 4


def test_even_and_odd_seeds_share_no_instruction(tokenizer, models):
    def of(seed, num_texts=100):
        return instructions_in(sample_texts(models[0], tokenizer, num_texts, 1, seed, batch_size=100), tokenizer)

    even, odd = of(0), of(1)
    assert not even & odd and even | odd == set(INSTRUCTIONS)
    assert not of(0, 12) & of(2, 12)


# Sampling


def test_tokens_follow_the_distribution_of_the_model(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["word_level"]
    # `generate` must use none of these
    model = tiny_llama(tokenizer, initializer_range=0.1)
    model.generation_config.update(top_k=1, repetition_penalty=5.0, temperature=0.1, do_sample=False, num_beams=2)
    texts = sample_texts(model, tokenizer, num_texts=4000, max_new_tokens=1, batch_size=1000)
    counts = torch.bincount(torch.tensor([text.input_ids[1] for text in texts]), minlength=len(tokenizer))
    with torch.no_grad():
        expected = model(torch.tensor([[tokenizer.eos_token_id]])).logits[0, -1].softmax(-1)
    assert (counts / len(texts) - expected).abs().sum() < 0.2  # 0.12 from the sampling alone
    assert model.generation_config.top_k == 1


def test_texts_end_with_eos(tokenizer, tiny_llama):
    model = tiny_llama(tokenizer)
    other_end = 100
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, other_end]
    # the last hidden state decides nothing but how often the text ends
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    model.lm_head.bias.data[torch.tensor([tokenizer.eos_token_id, other_end])] = 4.0
    texts = sample_texts(model, tokenizer, num_texts=20, max_new_tokens=30)
    for text in texts:
        written = text.input_ids[text.start :]
        ends = [token in (tokenizer.eos_token_id, other_end) for token in written]
        assert ends == [False] * (len(written) - 1) + [True] or (not any(ends) and len(written) == 30)
    lengths = {len(text.input_ids) - text.start for text in texts}
    assert len(lengths) > 2 and min(lengths) < 10


def test_padding_does_not_change_a_text(tokenizer, models, monkeypatch):
    # greedy: the same tokens whatever is beside a prompt
    monkeypatch.setattr(torch, "multinomial", lambda p, num_samples, **_: p.argmax(-1, keepdim=True))
    together = sample_texts(models[0], tokenizer, num_texts=8, max_new_tokens=8)
    alone = sample_texts(models[0], tokenizer, num_texts=8, max_new_tokens=8, batch_size=1)
    assert together == alone


def test_seed_decides_and_nothing_else_changes(tokenizer, models):
    model = models[0].train()
    model.model.norm.eval()
    kept = tokenizer.padding_side, model.generation_config
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    texts = sample_texts(model, tokenizer, num_texts=4)
    text_report(model, model, texts)
    assert torch.rand(1) == expected
    assert model.training and not model.model.norm.training
    assert (tokenizer.padding_side, model.generation_config) == kept
    assert sample_texts(model, tokenizer, num_texts=4) == texts
    assert sample_texts(model, tokenizer, num_texts=4, seed=2) != texts


def test_dropout_is_off(tokenizer, models):
    model = models[0]
    texts = sample_texts(model, tokenizer, num_texts=4)
    report = text_report(model, model, texts)
    model.model.norm.register_forward_hook(lambda module, args, output: dropout(output, 0.5, module.training))
    model.train()
    assert sample_texts(model, tokenizer, num_texts=4) == texts
    assert text_report(model, model, texts) == report


# Comparison


def test_report_of_a_model_with_itself(tokenizer, models):
    texts = sample_texts(models[0], tokenizer, num_texts=6)
    report = text_report(models[0], models[0], texts)
    assert report["kl_per_token"] == 0 and report["top1_agreement"] == report["perplexity_ratio"] == 1
    assert report["perplexity"] == report["reference_perplexity"] > 1
    assert report["n_texts"] == 6
    assert report["n_tokens"] == sum(len(text.input_ids) - text.start for text in texts)


@pytest.mark.parametrize("settings", [{}, {"chunk": 7}, {"model_type": "soft cap"}])
def test_report_equals_one_text_at_a_time(settings, tokenizer, models, monkeypatch):
    if "chunk" in settings:
        monkeypatch.setattr("hf_calib.inference.option_head._CHUNK_SIZE", settings["chunk"])
    if "model_type" in settings:
        from transformers import Gemma2Config, Gemma2ForCausalLM

        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Gemma2Config(
            vocab_size=len(tokenizer),
            **sizes,
            num_key_value_heads=1,
            final_logit_softcapping=2.0,
            initializer_range=0.5,
        )
        models = [Gemma2ForCausalLM(config).eval() for _ in range(2)]
    model, reference = models
    texts = sample_texts(reference, tokenizer, num_texts=7, max_new_tokens=9)
    kl, agree, nll, reference_nll = [], [], [], []
    for text in texts:
        ids = torch.tensor([text.input_ids])
        with torch.no_grad():
            q, p = (m(ids).logits[0, text.start - 1 : -1].log_softmax(-1) for m in (model, reference))
        kl += (p.exp() * (p - q)).sum(-1).tolist()
        agree += (p.argmax(-1) == q.argmax(-1)).tolist()
        rows = torch.arange(len(q))
        nll += (-q[rows, ids[0, text.start :]]).tolist()
        reference_nll += (-p[rows, ids[0, text.start :]]).tolist()
    kl, agree, nll, reference_nll = (np.mean(x) for x in (kl, agree, nll, reference_nll))
    ratio = np.exp(nll - reference_nll)
    expected = dict(zip(KEYS, [kl, agree, np.exp(nll), np.exp(reference_nll), ratio, 7], strict=True))
    report = text_report(model, reference, texts, batch_size=3)
    assert {key: report[key] for key in KEYS} == pytest.approx(expected, rel=1e-4)


def test_perplexity_of_a_uniform_model(tokenizer, models):
    model, reference = models
    with torch.no_grad():
        model.lm_head.weight.zero_()
    report = text_report(model, reference, sample_texts(reference, tokenizer, num_texts=4))
    assert report["perplexity"] == pytest.approx(len(tokenizer), rel=1e-5)
    assert report["perplexity_ratio"] == pytest.approx(len(tokenizer) / report["reference_perplexity"], rel=1e-5)


def test_peft_model_and_wrapped_model(tokenizer, models):
    adapted = get_peft_model(models[0], LoraConfig(target_modules="all-linear", init_lora_weights=False))
    wrapped = torch.nn.DataParallel(adapted)  # its `.module` is unwrapped as that of DistributedDataParallel
    texts = sample_texts(adapted, tokenizer, num_texts=4)
    assert sample_texts(wrapped, tokenizer, num_texts=4) == texts
    report = text_report(wrapped, models[1], texts)
    assert report == text_report(adapted, models[1], texts)
    with adapted.disable_adapter():
        assert sample_texts(adapted, tokenizer, num_texts=4) != texts
        assert text_report(adapted, models[1], texts) != report


# Errors


def test_errors(tokenizer, models, tiny_tokenizers, tiny_llama, monkeypatch):
    model, _ = models
    text = GenericText((5, 6, 7), 1)
    with pytest.raises(ValueError, match="no texts"):
        text_report(model, model, [])
    with pytest.raises(ValueError, match="vocabularies differ"):
        text_report(model, tiny_llama(tiny_tokenizers["word_level"]), [text])
    with pytest.raises(ValueError, match="num_texts=0"):
        sample_texts(model, tokenizer, num_texts=0)
    with pytest.raises(ValueError, match="no space for a text"):
        sample_texts(tiny_llama(tokenizer, max_position_embeddings=4), tokenizer)
    with pytest.raises(ValueError, match="neither a BOS nor an EOS"):
        generic_texts._first_token(types.SimpleNamespace(bos_token_id=None, eos_token_id=None))
    model.lm_head.weight.ds_status = types.SimpleNamespace(name="NOT_AVAILABLE")
    for call in (lambda: sample_texts(model, tokenizer), lambda: text_report(model, model, [text])):
        with pytest.raises(ValueError, match="ZeRO-3 has partitioned"):
            call()
