"""Example predictions, drawn from a known distribution."""

from __future__ import annotations

import json

import numpy as np
from scipy.special import softmax


def _questions(seed: int, n: int = 1000, options: int = 4) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Draw logits of the true option probabilities and the right options of synthetic questions."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.6, size=(n, options))
    truth = softmax(logits, axis=1)
    return logits, (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1), rng


def _csv(probabilities: np.ndarray, labels: np.ndarray) -> str:
    header = ",".join([*(f"p_{k}" for k in range(probabilities.shape[1])), "label"])
    rows = (
        ",".join([*(f"{p:.4f}" for p in row), str(label)]) for row, label in zip(probabilities, labels, strict=True)
    )
    return "\n".join([header, *rows])


def _aligned() -> str:
    logits, labels, rng = _questions(4)
    return _csv(softmax(2.5 * (logits + rng.normal(scale=0.4, size=logits.shape)), axis=1), labels)


def _calibrated() -> str:
    logits, labels, _ = _questions(1)
    return _csv(softmax(logits, axis=1), labels)


def _memorised() -> str:
    """A model trained on the answers, with the true option probabilities."""
    logits, labels, rng = _questions(2, n=300)
    model = softmax(logits + 2.2 * np.eye(4)[labels] + rng.normal(scale=0.7, size=logits.shape), axis=1)
    rows = zip(model.round(4).tolist(), labels.tolist(), softmax(logits, axis=1).round(4).tolist(), strict=True)
    records = (json.dumps({"probabilities": p, "label": y, "target_probabilities": t}) for p, y, t in rows)
    return "\n".join(records)


def _confidences() -> str:
    rng = np.random.default_rng(3)
    confidences = rng.beta(4, 2, size=400).round(3)
    correct = rng.random(400) < 0.2 + 0.6 * confidences**2
    subjects = np.where(rng.random(400) < 0.5, "law", "medicine")
    rows = (f"{c},{int(y)},{s}" for c, y, s in zip(confidences, correct, subjects, strict=True))
    return "\n".join(["confidence,correct,subject", *rows])


EXAMPLES = {
    "After alignment: overconfident": _aligned(),
    "Calibrated": _calibrated(),
    "Memorised questions, with the truth": _memorised(),
    "Confidences by subject": _confidences(),
}
