"""Options are packed into one sequence only where that gives the scores of options alone."""

import numpy as np
import pytest
import torch
from samples import make_questions
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from hf_calib.data.questions import PromptFormat
from hf_calib.inference import option_scorer
from hf_calib.inference.encoding import IGNORE_INDEX, OptionEncoder, collate_options
from hf_calib.inference.option_head import OptionHead
from hf_calib.inference.option_scorer import OptionScorer
from hf_calib.inference.packing import architecture_obstacle, single_options


PACKED = ["llama", "gemma2 with a long window"]
ALONE = ["mpt", "falcon with alibi", "gemma2", "mistral", "gpt neo"]
FOUND_BY_SCORES = ["mpt", "gemma2", "mistral"]


def make_model(kind, tokenizer, tiny_llama, dtype=torch.float32):
    """A random model of two layers, with a window of 16 tokens where it has one."""
    size = {"vocab_size": len(tokenizer), "initializer_range": 0.3}
    llama = {**size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama |= {"num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "head_dim": 8}
    bloom = {**size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}
    neo = {**size, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 16}
    torch.manual_seed(0)
    model = {
        "llama": lambda: tiny_llama(tokenizer),
        "gemma2 with a long window": lambda: Gemma2ForCausalLM(Gemma2Config(**llama, sliding_window=400)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**llama, sliding_window=16)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**llama, sliding_window=16)),
        "mpt": lambda: MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=512, **size)),
        "falcon with alibi": lambda: FalconForCausalLM(FalconConfig(**bloom)),
        "gpt neo": lambda: GPTNeoForCausalLM(GPTNeoConfig(**neo, attention_types=[[["global", "local"], 1]])),
    }[kind]()
    return model.eval().to(dtype)


@pytest.fixture
def features(tiny_tokenizers):
    """Seven short questions and a long one, with options of several words."""
    encoder = OptionEncoder(tiny_tokenizers["gpt2"], PromptFormat("text"))
    rows = [*make_questions(7, max_words=6), {**make_questions(1)[0], "question": "Ice and water and air " * 6}]
    return [encoder.encode(row) for row in rows]


def scores_alone(model, features):
    """Log-likelihood of each option, from the vocabulary logits of one plain sequence each."""
    rows = []
    for feature in features:
        row = []
        for single in single_options(feature):
            tokens = single["option_tokens"]
            with torch.no_grad():
                logits = model(torch.tensor([single["input_ids"]])).logits[0, -len(tokens) :].float()
            row.append(logits.log_softmax(-1)[range(len(tokens)), tokens].sum().item())
        rows.append(np.array(row))
    return rows


def probabilities(scores):
    return torch.tensor(scores).double().softmax(-1).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", PACKED + ALONE)
def test_scores_equal_those_of_options_alone(tiny_tokenizers, tiny_llama, features, kind, dtype, caplog):
    model = make_model(kind, tiny_tokenizers["gpt2"], tiny_llama, dtype)
    scorer = OptionScorer(model, tiny_tokenizers["gpt2"])
    scorer.check_branches(features)
    assert scorer.branches == (kind in PACKED)
    assert caplog.text.count("scored one by one") == (kind in ALONE)
    expected = scores_alone(model, features)
    for ours, theirs in zip(scorer(features), expected, strict=True):
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        np.testing.assert_allclose(probabilities(ours.tolist()), probabilities(theirs), atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", PACKED + FOUND_BY_SCORES)
def test_the_scores_alone_find_it(tiny_tokenizers, tiny_llama, features, kind, dtype, monkeypatch):
    """For an architecture that the rules do not know, as with code from the Hub."""
    monkeypatch.setattr(option_scorer, "architecture_obstacle", lambda *_: None)
    scorer = OptionScorer(make_model(kind, tiny_tokenizers["gpt2"], tiny_llama, dtype), tiny_tokenizers["gpt2"])
    scorer.check_branches(features)
    assert scorer.branches == (kind in PACKED)
    assert kind in PACKED or "nats" in scorer.obstacle


def test_the_window_counts_for_the_longest_question(tiny_tokenizers, tiny_llama, features, monkeypatch):
    model = make_model("gemma2", tiny_tokenizers["gpt2"], tiny_llama)
    longest = max(len(single["input_ids"]) for feature in features for single in single_options(feature))
    model.config.sliding_window = longest - 1
    assert "shorter than a question" in architecture_obstacle(model, features)
    model.config.sliding_window = longest
    assert architecture_obstacle(model, features) is None
    model.config.sliding_window, model.config.layer_types = 4, ["full_attention"] * 2
    assert architecture_obstacle(model, features) is None


def test_only_the_longest_question_exceeds_the_window(tiny_tokenizers, tiny_llama, features, monkeypatch):
    monkeypatch.setattr(option_scorer, "architecture_obstacle", lambda *_: None)
    model = make_model("gemma2", tiny_tokenizers["gpt2"], tiny_llama, torch.bfloat16)
    lengths = [max(len(single["input_ids"]) for single in single_options(feature)) for feature in features]
    for layer in model.model.layers:
        layer.self_attn.sliding_window = sorted(lengths)[-2]
    model.config.sliding_window = sorted(lengths)[-2]
    scorer = OptionScorer(model, tiny_tokenizers["gpt2"])
    scorer.check_branches(features)
    assert not scorer.branches


@pytest.mark.parametrize("kind", ["llama", "mpt", "gemma2"])
@pytest.mark.parametrize("option_normalization", ["sum", "mean"])
def test_training_rows_in_sequences_of_their_own(tiny_tokenizers, tiny_llama, kind, option_normalization):
    """The option head without packing: the likelihood of the answer, the option logits and their gradients."""
    tokenizer = tiny_tokenizers["gpt2"]
    encoder = OptionEncoder(tokenizer, PromptFormat("text"))
    questions = list(make_questions(3, max_words=4))
    text = {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "option_tokens": None, "num_options": None}
    batch = collate_options([*(encoder.encode(row, likelihood="completion") for row in questions), text], 0)
    plain = [encoder.encode(row, branches=False, likelihood="completion") for row in questions]
    plain = collate_options([*plain, {name: text[name] for name in ("input_ids", "labels")}], 0)
    model, untouched = (make_model(kind, tokenizer, tiny_llama) for _ in range(2))
    head = OptionHead(model, option_normalization)
    head.packed = False
    loss, option_logits = model(**batch).loss, head.pop()
    torch.testing.assert_close(loss, untouched(**plain).loss)
    features = [encoder.encode(row) for row in questions]
    expected = scores_alone(untouched, features)
    for row, scores, feature in zip(option_logits, expected, features, strict=False):
        counts = np.bincount(feature["option_index"]) if option_normalization == "mean" else 1
        np.testing.assert_allclose(row[: len(scores)].detach(), scores / counts, rtol=1e-4)
        assert (row[len(scores) :] == -torch.inf).all()
    assert (option_logits[-1] == -torch.inf).all() and len(option_logits) == 4
    only = model(**{name: value for name, value in batch.items() if name != "labels"}, options_only=True).logits
    torch.testing.assert_close(only, option_logits)
    if kind == "llama":
        gradients = []
        for packed in (True, False):
            model.zero_grad()
            head.packed = packed
            logits = model(**batch, options_only=True).logits[:3]
            torch.nn.functional.cross_entropy(logits, batch["option_label"][:3]).backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_batch_of_texts_runs_without_packing(tiny_tokenizers, tiny_llama):
    model = tiny_llama(tiny_tokenizers["gpt2"])
    head = OptionHead(model)
    head.packed = False
    text = {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "option_tokens": None, "num_options": None}
    batch = collate_options([text], 0, max_options=4, branched=True)
    model(**batch).loss.backward()
    assert head.pop().tolist() == [[-np.inf] * 4] and batch["option_label"].tolist() == [IGNORE_INDEX]


def test_anchors_of_texts_are_the_same_without_packing(tiny_tokenizers, tiny_llama):
    """The closing step: option logits of questions and the divergence of texts, from one call."""
    tokenizer = tiny_tokenizers["gpt2"]
    encoder = OptionEncoder(tokenizer, PromptFormat("text"))
    text = {"input_ids": [5, 6, 7, 8], "option_tokens": None, "num_options": None}
    batch = collate_options([*(encoder.encode(row) for row in make_questions(2)), text], 0)
    anchors = {
        "text_positions": torch.tensor([[-1, -1], [-1, -1], [1, 2]]),
        "text_tokens": torch.tensor([[[0, 0]] * 2, [[0, 0]] * 2, [[7, 9], [8, 3]]]),
        "text_log_probabilities": torch.tensor([[[-1.0, -1.0]] * 2] * 3),
    }
    model = tiny_llama(tokenizer)
    head, found = OptionHead(model), []
    for packed in (True, False):
        head.packed = packed
        outputs = model(**batch, **anchors, options_only=True)
        found.append((outputs.logits, outputs.loss))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
