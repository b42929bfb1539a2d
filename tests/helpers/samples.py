"""Predictions to measure, questions to ask, models to load, and the slowest possible ECE."""

import numpy as np
import torch
from datasets import Dataset
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from hf_calib.data.synthetic_world import World


WORDS = "ice water steam air blue red green Mars Earth Jupiter oxygen carbon dioxide helium".split()


def make(n=2000, k=4, sharpness=1.8, seed=0):
    """An overconfident model: labels come from softer probabilities (the target) than the ones it states."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k))
    target = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    stated = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum(axis=1, keepdims=True)
    labels = (target.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return stated, labels, target


def make_logits(n=2000, k=4, temperature=3.0, seed=0, padding=False):
    """Logits that are `temperature` times too large; with padding, every third row has one option less."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 1.5
    if padding:
        logits[::3, -1] = -np.inf
    labels = (softmax(logits, axis=-1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return logits * temperature, labels


def slow_ece(confidences, outcomes, n_bins=10, tolerance=2.0**-21):
    total, places = 0.0, [c + tolerance for c in confidences]  # what rounding left below an edge is at the edge
    for b in range(n_bins):
        last = b == n_bins - 1
        held = [i for i, c in enumerate(places) if b / n_bins <= c and (c < (b + 1) / n_bins or last)]
        if held:
            total += abs(sum(confidences[i] for i in held) - sum(outcomes[i] for i in held))
    return total / len(confidences)


@st.composite
def predictions(draw, max_rows=60):
    n, k = draw(st.integers(1, max_rows)), draw(st.integers(2, 5))
    weights = draw(hnp.arrays(np.float64, (n, k), elements=st.floats(0, 1).map(lambda x: round(x, 3))))
    weights[weights.sum(axis=1) == 0] = 1.0
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    return weights / weights.sum(axis=1, keepdims=True), labels


def make_questions(n=13, seed=0, max_words=3):
    """Questions of 2 to 5 options of one to three words, of different lengths."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        k = int(generator.integers(2, 6))
        ends = "ABCDE"[:k]  # the tokenizers of the tests know letters
        choices = [f"{' '.join(generator.choice(WORDS, generator.integers(1, max_words + 1)))} {end}" for end in ends]
        question = f"Question {i}: what is {' '.join(generator.choice(WORDS, generator.integers(1, 12)))}?"
        rows.append({"id": f"q{i}", "question": question, "choices": choices, "answer": int(generator.integers(k))})
    return Dataset.from_list(rows)


def save_world_model(folder, seed=0, sharpness=1.0):
    """An untrained model of the synthetic world, so many times as sure, with its tokenizer."""
    world = World()
    model = world.model(seed)
    with torch.no_grad():
        model.model.norm.weight.mul_(sharpness)
    model.save_pretrained(folder)
    world.tokenizer().save_pretrained(folder)


def save_answerable_world(folder, **sizes):
    """A model of the synthetic world, and files of so many questions whose answers are drawn from softer probabilities."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_calib import predict_options

    save_world_model(folder / "model", sharpness=2.0)
    loaded = [auto.from_pretrained(folder / "model") for auto in (AutoModelForCausalLM, AutoTokenizer)]
    for seed, (name, n) in enumerate(sizes.items()):
        questions = World().questions(n, seed=seed)
        found = predict_options(*loaded, questions, scoring="text", batch_size=128, progress=False)
        truth = softmax(0.6 * found.option_logits.astype(np.float64), axis=1)
        answers = (truth.cumsum(axis=1) > np.random.default_rng(seed).random((n, 1))).argmax(axis=1)
        questions = questions.remove_columns(["target_probabilities", "answer"]).add_column("answer", answers.tolist())
        questions.add_column("target_probabilities", truth.tolist()).to_parquet(folder / f"{name}.parquet")


class Counter:
    """Counts the questions that pass through the backbone."""

    def __init__(self, model):
        self.questions = 0
        self.handle = model.base_model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        self.questions += len(kwargs["input_ids"])
