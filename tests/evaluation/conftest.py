"""The metric, and overconfident predictions with their labels and true probabilities."""

import evaluate
import numpy as np
import pytest

import hf_calib


@pytest.fixture
def metric():
    return evaluate.load(hf_calib.metric_path())


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet([1.0, 1.0, 1.0, 1.0], 600)
    labels = np.array([rng.choice(4, p=row) for row in truth])
    sharpened = truth**2 / (truth**2).sum(axis=1, keepdims=True)  # overconfident
    return sharpened, labels, truth
