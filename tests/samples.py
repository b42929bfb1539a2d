"""Predictions to measure, and the slowest possible ECE."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def make(n=2000, k=4, sharpness=1.8, seed=0):
    """An overconfident model: labels come from softer probabilities (the target) than the ones it states."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k))
    target = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    stated = np.exp(sharpness * logits) / np.exp(sharpness * logits).sum(axis=1, keepdims=True)
    labels = (target.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return stated, labels, target


def slow_ece(confidences, outcomes, n_bins=10):
    total = 0.0
    for b in range(n_bins):
        last = b == n_bins - 1
        held = [i for i, c in enumerate(confidences) if b / n_bins <= c and (c < (b + 1) / n_bins or last)]
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
