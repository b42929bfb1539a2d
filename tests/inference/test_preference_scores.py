"""Scores of preference pairs, compared with TRL's DPOTrainer."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_calib.data.preference_pairs import load_pairs
from hf_calib.inference.preference_scores import (
    PairFormat,
    completion_lengths,
    preference_probabilities,
    score_pairs,
)
from hf_calib.inference.resumable import ResumableScores


TEXTS = {
    "prompt": ["What colour is the sky on a clear day?", "Ice is the solid form of", "The largest planet"],
    "chosen": [" blue", " water, and steam is the gas.", " of the solar system is Jupiter"],
    "rejected": [" green", " gas.", " is Mars"],
}
CHATS = {
    name: [[{"role": "user" if name == "prompt" else "assistant", "content": text.strip()}] for text in column]
    for name, column in TEXTS.items()
}


@pytest.mark.parametrize(("kind", "columns"), [("gpt2", TEXTS), ("llama", TEXTS), ("qwen", CHATS)])
def test_log_likelihoods_equal_those_of_trl(kind, columns, tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer = tiny_tokenizers[kind]
    policy, reference = tiny_llama(tokenizer, seed=0), tiny_llama(tokenizer, seed=1)
    Dataset.from_dict(columns).to_json(tmp_path / "pairs.jsonl")
    pairs = load_pairs(tmp_path / "pairs.jsonl")
    scores, base = (score_pairs(model, tokenizer, pairs) for model in (policy, reference))

    trl = pytest.importorskip("trl")
    config = trl.DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None, beta=0.3
    )
    trainer = trl.DPOTrainer(
        policy, reference, args=config, train_dataset=pairs, eval_dataset=pairs, processing_class=tokenizer
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        log_ratios = trainer.compute_ref_log_probs(reference, batch)
    np.testing.assert_allclose(base.T, torch.stack(log_ratios).numpy(), rtol=1e-4)
    margin = torch.tensor((scores - base) @ [1.0, -1.0])
    expected = torch.sigmoid(0.3 * margin).numpy()
    np.testing.assert_allclose(preference_probabilities(scores, base, beta=0.3), expected)
    # IPO: means over tokens, and a link of its own
    lengths = completion_lengths(tokenizer, pairs)
    assert (lengths.T == torch.stack(batch["completion_mask"].sum(1).chunk(2)).numpy()).all()
    margin = ((scores - base) / lengths) @ [1.0, -1.0]
    read = preference_probabilities(scores, base, beta=0.3, loss_type="ipo", lengths=lengths)
    np.testing.assert_allclose(read, np.clip(0.5 + 0.3 * margin, 0, 1))
    with pytest.raises(ValueError, match="loss_type=ipo takes means over tokens: give the lengths"):
        preference_probabilities(scores, base, loss_type="ipo")


QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ice is"}]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # contents as lists of parts: a text has none, and would be left out silently
        (
            "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}</s>{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}",
            ("[system]Be brief.</s>[user]Ice is</s>[assistant]", ["cold</s>", "hot</s>"]),
        ),
        # a thinking block that the template opens, and writes into answered turns
        (
            "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}<think>\n\n</think>\n{% endif %}"
            "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]<think>\n{% endif %}",
            ("[system]Be brief.</s>[user]Ice is</s>[assistant]<think>\n", ["\n</think>\ncold</s>", "\n</think>\nhot</s>"]),
        ),
        # a thinking block that answered turns do not have
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}",
            ("[system]Be brief.</s>[user]Ice is</s>[assistant]", ["cold</s>", "hot</s>"]),
        ),
    ],
)  # fmt: skip
def test_chat_templates(template, expected, tiny_tokenizers):
    tokenizer = copy.copy(tiny_tokenizers["qwen"])
    tokenizer.chat_template = template
    for wrap in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        question = [{**message, "content": wrap(message["content"])} for message in QUESTION]
        choices = [[{"role": "assistant", "content": wrap(text)}] for text in ("cold", "hot")]
        assert PairFormat(conversational=True).render(tokenizer, question, choices) == (*expected, "")


def test_a_thinking_block_that_is_opened_is_no_part_of_answers_that_begin_alike(tiny_tokenizers):
    tokenizer = copy.copy(tiny_tokenizers["qwen"])
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    choices = [[{"role": "assistant", "content": text}] for text in ("<table>", "<tr>")]
    rendered = PairFormat(conversational=True).render(tokenizer, QUESTION, choices)
    assert rendered == ("[system]Be brief.</s>[user]Ice is</s>[assistant]", ["<table></s>", "<tr></s>"], "")


def test_thoughts_in_earlier_turns_may_be_left_out(tiny_tokenizers):
    tokenizer = copy.copy(tiny_tokenizers["qwen"])
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    question = [*QUESTION, {"role": "assistant", "content": "<think>water freezes</think>What?"}, QUESTION[1]]
    choices = [[{"role": "assistant", "content": text}] for text in ("cold", "hot")]
    prompt, completions, _ = PairFormat(conversational=True).render(tokenizer, question, choices)
    assert prompt == "[system]Be brief.</s>[user]Ice is</s>[assistant]What?</s>[user]Ice is</s>[assistant]"
    assert completions == ["cold</s>", "hot</s>"]


def test_a_template_that_refuses_the_system_message(tiny_tokenizers):
    tokenizer = copy.copy(tiny_tokenizers["qwen"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    )
    choices = [[{"role": "assistant", "content": text}] for text in ("cold", "hot")]
    with pytest.raises(ValueError, match="refuses the messages of a pair .System role not supported.*system, user"):
        PairFormat(conversational=True).render(tokenizer, QUESTION, choices)


def test_long_pairs_are_left_out_and_the_rest_scored(tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer = tiny_tokenizers["gpt2"]
    Dataset.from_dict({**TEXTS, "chosen": [" blue", " water " * 40, " x"]}).to_json(tmp_path / "pairs.jsonl")
    model, pairs = tiny_llama(tokenizer), load_pairs(tmp_path / "pairs.jsonl")
    scores = score_pairs(model, tokenizer, pairs, max_length=60)
    assert np.isnan(scores[1]).all() and np.isfinite(scores[[0, 2]]).all()
    assert np.isnan(score_pairs(model, tokenizer, pairs, max_length=1)).all()


def test_interrupted_scoring_resumes(tiny_tokenizers, tiny_llama, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizers["gpt2"]
    Dataset.from_dict({**TEXTS, "chosen": [" blue", " water " * 40, " x"]}).to_json(tmp_path / "pairs.jsonl")
    model, pairs, path = tiny_llama(tokenizer), load_pairs(tmp_path / "pairs.jsonl"), tmp_path / "pairs.npz"
    expected = score_pairs(model, tokenizer, pairs, max_length=60)
    add, added = ResumableScores.add, []

    def interrupted(results, batch, rows):
        add(results, batch, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(ResumableScores, "add", interrupted)
    settings = {"batch_size": 1, "max_length": 60, "output_path": path}
    with pytest.raises(KeyboardInterrupt):
        score_pairs(model, tokenizer, pairs, **settings)
    monkeypatch.setattr(ResumableScores, "add", lambda *call: (added.extend(call[1]), add(*call)))
    for _ in range(2):  # what is left, then nothing
        np.testing.assert_allclose(score_pairs(model, tokenizer, pairs, **settings), expected, rtol=1e-5)
        assert len(added) == 1
    other = tiny_llama(tokenizer, seed=1)
    with pytest.raises(ValueError, match="pairs.npz holds predictions with other weights"):
        score_pairs(other, tokenizer, pairs, **settings)
    assert not np.allclose(score_pairs(other, tokenizer, pairs, **settings, resume=False)[0], expected[0])
    with torch.no_grad():
        other.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="pair 0 has log-likelihoods .nan.*NaN in the weights"):
        score_pairs(other, tokenizer, pairs.select([0]))
