"""Scores of preference pairs, compared with TRL's DPOTrainer."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_calib.data.preference_pairs import load_pairs
from hf_calib.inference.preference_scores import completion_lengths, preference_probabilities, score_pairs
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
