"""Encoding and scoring of all options in one sequence, compared with scoring one by one."""

import string

import pytest
import torch
from adapters import with_lora
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from hf_calib.data.questions import PromptFormat
from hf_calib.inference.encoding import IGNORE_INDEX, OptionEncoder, QuestionTooLongError, collate_options
from hf_calib.inference.option_head import OptionHead, logit_transform
from hf_calib.inference.packing import branch_attention_mask


QUESTIONS = [
    {"id": "a", "question": "What colour is the sky?", "choices": ["green", "blue", "red", "black sky"], "answer": 1},
    {"id": "b", "question": "Ice is", "choices": ["the gas", "the solid form of water"], "answer": 1},
    {"id": "c", "question": "The largest planet is", "choices": ["Mars", "Earth", "Jupiter"], "answer": 2},
]
NAMES = ["llama", "llama_eos", "gpt2", "gpt2_eos", "qwen"]


def log_likelihoods(model, tokenizer, prompt_format, row):
    """Reference implementation: one forward pass per option, no padding, the whole vocabulary."""
    prompt, candidates, _ = prompt_format.render(tokenizer, row["question"], row["choices"])
    special = prompt_format.add_special_tokens(tokenizer)

    def tokenize(text):
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids[:-1] if special and ids[-1] == tokenizer.eos_token_id else ids

    context, scores = tokenize(prompt), []
    for candidate in candidates:
        ids = tokenize(prompt + candidate)
        assert ids[: len(context)] == context
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(log_probs[i - 1, ids[i]] for i in range(len(context), len(ids))))
    return torch.stack(scores)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scoring", ["letter", "text"])
@pytest.mark.parametrize("padding_side", ["right", "left"])
@torch.no_grad()
def test_one_pass_equals_scoring_one_by_one(tiny_tokenizers, tiny_llama, name, scoring, padding_side):
    tokenizer = tiny_tokenizers[name]
    model = tiny_llama(tokenizer)
    prompt_format = PromptFormat(scoring=scoring)
    expected = [log_likelihoods(model, tokenizer, prompt_format, row) for row in QUESTIONS]
    encoder = OptionEncoder(tokenizer, prompt_format)
    OptionHead(model)
    batch = collate_options([encoder.encode(row) for row in QUESTIONS], tokenizer.pad_token_id, padding_side)
    option_logits = model(**batch, options_only=True, over_vocabulary=True).logits
    assert option_logits.shape == (3, 4)
    for row, scores in zip(option_logits, expected, strict=True):
        torch.testing.assert_close(row[: len(scores)], scores, atol=2e-4, rtol=1e-4)
        assert (row[len(scores) :] == -torch.inf).all()


@pytest.mark.parametrize("scoring", ["letter", "text"])
@pytest.mark.parametrize("likelihood", ["completion", "sequence"])
def test_training_rows_keep_the_likelihood_and_add_the_options(tiny_tokenizers, tiny_llama, scoring, likelihood):
    """Loss and option logits of the branched sequence are those of the plain sequence and of scoring alone."""
    tokenizer = tiny_tokenizers["qwen"]
    model = tiny_llama(tokenizer)
    head = OptionHead(model)
    encoder = OptionEncoder(tokenizer, PromptFormat(scoring=scoring))
    for row in QUESTIONS:
        plain = collate_options([encoder.encode(row, branches=False, likelihood=likelihood)], 0)
        both = collate_options([encoder.encode(row, likelihood=likelihood)], 0)
        alone = collate_options([encoder.encode(row)], 0)
        assert "option_positions" not in plain
        expected_loss = model(**plain).loss
        assert head.pop() is None
        loss = model(**both).loss
        option_logits = head.pop()
        assert head.pop() is None
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(option_logits, model(**alone, options_only=True).logits)
        answer = plain["input_ids"][0][plain["labels"][0] != IGNORE_INDEX] if likelihood == "completion" else None
        if answer is not None:
            text = "B" if scoring == "letter" and row["answer"] == 1 else row["choices"][row["answer"]]
            text = text if scoring == "text" else string.ascii_uppercase[row["answer"]]
            assert tokenizer.decode(answer).strip() == text + "<|im_end|>"


def test_max_length_includes_the_end_of_the_answer(tiny_tokenizers):
    """In training, the end of the answer takes a position of its own."""
    prompt_format = PromptFormat(scoring="text")
    whole = len(
        OptionEncoder(tiny_tokenizers["gpt2"], prompt_format).encode(QUESTIONS[0], False, "completion")["input_ids"]
    )
    row = {**QUESTIONS[0], "choices": [QUESTIONS[0]["choices"][QUESTIONS[0]["answer"]], "?"], "answer": 0}
    encoder = OptionEncoder(tiny_tokenizers["gpt2"], prompt_format, max_length=whole - 1)
    encoder.encode(row)
    with pytest.raises(QuestionTooLongError, match=f"needs {whole} tokens"):
        encoder.encode(row, likelihood="completion")


def test_adapter_on_the_head_raises(tiny_tokenizers, tiny_llama):
    model = with_lora(tiny_llama(tiny_tokenizers["gpt2"]), target_modules=["q_proj", "lm_head"])
    with pytest.raises(TypeError, match="merge_and_unload"):
        OptionHead(model)
    OptionHead(with_lora(tiny_llama(tiny_tokenizers["gpt2"]), modules_to_save=["lm_head"]))


def test_gradients_equal_those_of_one_by_one(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["gpt2"]
    prompt_format = PromptFormat(scoring="text")
    gradients = []
    for packed in (True, False):
        model = tiny_llama(tokenizer)
        if packed:
            OptionHead(model)
            batch = collate_options([OptionEncoder(tokenizer, prompt_format).encode(QUESTIONS[0])], 0)
            scores = model(**batch, options_only=True).logits[0]
        else:
            scores = log_likelihoods(model, tokenizer, prompt_format, QUESTIONS[0])
        scores.log_softmax(-1)[1].backward()
        gradients.append([p.grad for p in model.parameters()])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_mean_and_eager_attention(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["qwen"]
    prompt_format = PromptFormat(scoring="text")
    encoder = OptionEncoder(tokenizer, prompt_format)
    features = [encoder.encode(row) for row in QUESTIONS]
    batch = collate_options(features, 0)
    summed, mean, eager = (
        tiny_llama(tokenizer),
        tiny_llama(tokenizer),
        tiny_llama(tokenizer, attn_implementation="eager"),
    )
    OptionHead(summed), OptionHead(mean, option_normalization="mean"), OptionHead(eager)
    reference = summed(**batch, options_only=True).logits
    torch.testing.assert_close(eager(**batch, options_only=True).logits, reference, atol=1e-4, rtol=1e-4)
    lengths = torch.tensor([[f["option_index"].count(k) or 1 for k in range(4)] for f in features])
    torch.testing.assert_close(mean(**batch, options_only=True).logits, reference / lengths)


@torch.no_grad()
def test_long_option_lists_and_many_tokens(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["gpt2"]
    model = tiny_llama(tokenizer)
    row = {
        "question": "Which letter?",
        "choices": [f"{c} and {c} is a gas" for c in string.ascii_lowercase],
        "answer": 25,
    }
    for scoring in ("letter", "text"):
        prompt_format = PromptFormat(scoring=scoring)
        expected = log_likelihoods(model, tokenizer, prompt_format, row)
        scored = tiny_llama(tokenizer)
        OptionHead(scored)
        # More than 256 option tokens in text mode: the vocabulary is seen chunk by chunk.
        features = [OptionEncoder(tokenizer, prompt_format).encode(row)]
        logits = scored(**collate_options(features * 2, 0), options_only=True, over_vocabulary=True).logits
        torch.testing.assert_close(logits[1], expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_soft_caps_and_scales_are_applied(tiny_tokenizers):
    tokenizer = tiny_tokenizers["gpt2"]
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5, "pad_token_id": 0}
    torch.manual_seed(0)
    for model in (
        Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=3.0)),
        CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.25)),
    ):
        model.eval()
        prompt_format = PromptFormat(scoring="text")
        expected = log_likelihoods(model, tokenizer, prompt_format, QUESTIONS[0])
        OptionHead(model)
        features = [OptionEncoder(tokenizer, prompt_format).encode(QUESTIONS[0])]
        torch.testing.assert_close(
            model(**collate_options(features, 0), options_only=True).logits[0], expected, atol=2e-4, rtol=1e-4
        )
        assert logit_transform(model.config)(torch.tensor(2.0)) != 2.0


@torch.no_grad()
def test_adapters_are_unwrapped(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["gpt2"]
    model = with_lora(tiny_llama(tokenizer))
    prompt_format = PromptFormat(scoring="text")
    expected = log_likelihoods(model, tokenizer, prompt_format, QUESTIONS[0])
    OptionHead(model)
    batch = collate_options([OptionEncoder(tokenizer, prompt_format).encode(QUESTIONS[0])], 0)
    torch.testing.assert_close(model(**batch, options_only=True).logits[0], expected, atol=2e-4, rtol=1e-4)


def test_generation_is_unchanged(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["gpt2"]
    inputs = tokenizer("The answer is", return_tensors="pt")
    plain, patched = tiny_llama(tokenizer), tiny_llama(tokenizer)
    OptionHead(patched)
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert plain.generate(**inputs, **settings).tolist() == patched.generate(**inputs, **settings).tolist()


def test_rows_without_options(tiny_tokenizers):
    tokenizer = tiny_tokenizers["gpt2"]
    question = OptionEncoder(tokenizer, PromptFormat(scoring="text")).encode(QUESTIONS[1], likelihood="completion")
    text = {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "option_tokens": None, "num_options": None}
    batch = collate_options([question, text], 0, max_options=4)
    assert batch["option_mask"].sum(-1).tolist() == [2, 0]
    assert batch["option_label"].tolist() == [1, IGNORE_INDEX]
    assert batch["labels"][1].tolist()[:4] == [5, 6, 7, IGNORE_INDEX]
    # With the shape of the data set given, a batch of texts has the same columns as any other.
    assert collate_options([text], 0, max_options=4, branched=True).keys() == batch.keys()
    assert "option_mask" not in collate_options([text], 0)


def test_letters_of_several_tokens_raise():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "Is": 1, "it": 2, "A": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    row = {"question": "Is it", "choices": ["hot", "cold", "warm"], "answer": 0}
    with pytest.raises(ValueError, match="' B' -> .*<unk>.*' C' -> .*<unk>"):
        OptionEncoder(tokenizer, PromptFormat(scoring="letter")).encode(row)


def test_options_of_unknown_words_raise(tiny_tokenizers):
    tokenizer = tiny_tokenizers["word_level"]
    encoder = OptionEncoder(tokenizer, PromptFormat("text"))
    for choices in (["zebra", "yak"], ["the zebra", "the yak"]):
        with pytest.raises(ValueError, match="'.*zebra' and '.*yak' are the same tokens, .*<unk>"):
            encoder.encode({"question": "Ice", "choices": choices, "answer": 0})
    encoder.encode({"question": "Ice", "choices": ["zebra", "hot."], "answer": 0})
    words = Tokenizer(models.WordLevel({"<unk>": 0, "A": 1, "C": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(ValueError, match="' B' -> .*<unk>"):  # alone it differs from the other letters
        OptionEncoder(tokenizer, PromptFormat()).encode({"question": "?", "choices": ["x", "y", "z"], "answer": 0})


def test_long_questions_raise(tiny_tokenizers):
    tokenizer = tiny_tokenizers["gpt2"]
    with pytest.raises(QuestionTooLongError, match="'b'.*max_length is 10"):
        OptionEncoder(tokenizer, PromptFormat(scoring="text"), max_length=10).encode(QUESTIONS[1])


def test_unsupported_branch_masks_raise(tiny_tokenizers, tiny_llama):
    ones = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="flash_attention_2.*sdpa"):
        branch_attention_mask(ones, ones, "flash_attention_2", torch.float32)
    mask = branch_attention_mask(ones, torch.tensor([[0, 0, 1, 2]]), "sdpa", torch.float32)
    assert mask[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, False, True],
    ]
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    tuned = peft.get_peft_model(tiny_llama(tiny_tokenizers["gpt2"]), config)
    with pytest.raises(TypeError, match="Prompt-learning"):
        OptionHead(tuned)
