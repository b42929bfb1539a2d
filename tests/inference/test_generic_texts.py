"""Texts that a model writes on generic prompts and on given ones."""

import types

import pytest
import torch
from adapters import with_lora
from torch.nn.functional import dropout

from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.inference import generic_texts
from hf_calib.inference.generic_texts import INSTRUCTIONS, continue_prompts, encode_prompts, sample_texts


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
        assert text.ended == any(ends) and len(text) == len(written)
    lengths = {len(text) for text in texts}
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
    assert torch.rand(1) == expected
    assert model.training and not model.model.norm.training
    assert (tokenizer.padding_side, model.generation_config) == kept
    assert sample_texts(model, tokenizer, num_texts=4) == texts
    assert sample_texts(model, tokenizer, num_texts=4, seed=2) != texts


def test_dropout_is_off(tokenizer, models):
    model = models[0]
    texts = sample_texts(model, tokenizer, num_texts=4)
    model.model.norm.register_forward_hook(lambda module, args, output: dropout(output, 0.5, module.training))
    model.train()
    assert sample_texts(model, tokenizer, num_texts=4) == texts


def test_peft_model_and_wrapped_model(tokenizer, models):
    adapted = with_lora(models[0], target_modules="all-linear")
    wrapped = torch.nn.DataParallel(adapted)  # its `.module` is unwrapped as that of DistributedDataParallel
    texts = sample_texts(adapted, tokenizer, num_texts=4)
    assert sample_texts(wrapped, tokenizer, num_texts=4) == texts
    with adapted.disable_adapter():
        assert sample_texts(adapted, tokenizer, num_texts=4) != texts


# Given prompts


def test_given_prompts(tokenizer, models, tiny_tokenizers):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ice is"}]
    prompts = encode_prompts(tokenizer, ["Ice is", chat])
    assert [tokenizer.decode(ids) for ids in prompts] == [
        "<|im_start|>user\nIce is<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIce is<|im_end|>\n<|im_start|>assistant\n",
    ]
    texts = continue_prompts(models[0], tokenizer, prompts, max_new_tokens=5)
    assert [text.input_ids[: text.start] for text in texts] == [tuple(ids) for ids in prompts]
    for name in ("gpt2_eos", "llama_eos", "llama"):  # continued as it is: no EOS token after the prompt
        (ids,) = encode_prompts(tiny_tokenizers[name], ["Ice is"])
        assert tiny_tokenizers[name].decode(ids, skip_special_tokens=True).strip() == "Ice is"
        assert ids[-1] != tiny_tokenizers[name].eos_token_id


# Errors


def test_errors(tokenizer, models, tiny_llama):
    model, _ = models
    with pytest.raises(ValueError, match="num_texts must be at least 1, got 0"):
        sample_texts(model, tokenizer, num_texts=0)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        sample_texts(model, tokenizer, max_new_tokens=0)
    with pytest.raises(ValueError, match="no space for a text"):
        sample_texts(tiny_llama(tokenizer, max_position_embeddings=4), tokenizer)
    with pytest.raises(ValueError, match="neither a BOS nor an EOS"):
        generic_texts.first_token(types.SimpleNamespace(bos_token_id=None, eos_token_id=None))
    model.lm_head.weight.ds_status = types.SimpleNamespace(name="NOT_AVAILABLE")
    with pytest.raises(ValueError, match="ZeRO-3 has partitioned"):
        sample_texts(model, tokenizer)


def test_a_template_that_wants_lists_of_parts_gets_the_prompts(tiny_tokenizers):
    qwen = tiny_tokenizers["qwen"]
    parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    tokenizer = type(qwen)(tokenizer_object=qwen.backend_tokenizer, eos_token="<|im_end|>", chat_template=parts)
    (ids,) = generic_texts.encode_prompts(tokenizer, ["Ice is cold"])
    assert tokenizer.decode(ids) == "Ice is cold"
