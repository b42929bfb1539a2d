"""Proper scores and ranking measures against scikit-learn and their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from samples import make, predictions
from sklearn import metrics

from hf_calib.measures.calibration_error import (
    aurc,
    brier_decomposition,
    brier_score,
    confidence_auroc,
    negative_log_likelihood,
    top_label,
)


def test_agrees_with_scikit_learn():
    probabilities, labels, _ = make()
    probabilities = np.round(probabilities, 2)  # ties
    probabilities[:, 0] += 1 - probabilities.sum(axis=1)
    probabilities = np.clip(probabilities, 0.001, 1) / np.clip(probabilities, 0.001, 1).sum(axis=1, keepdims=True)
    confidences, correct = top_label(probabilities, labels)
    for weights in (None, np.random.default_rng(1).exponential(size=len(labels))):
        options = {"sample_weight": weights}
        auroc = metrics.roc_auc_score(correct, confidences, **options)
        assert confidence_auroc(confidences, correct, **options) == pytest.approx(auroc)
        loss = metrics.log_loss(labels, probabilities, **options)
        assert negative_log_likelihood(probabilities, labels, **options) == pytest.approx(loss)
        brier = metrics.brier_score_loss(labels, probabilities, labels=range(4), scale_by_half=False, **options)
        assert brier_score(probabilities, labels, **options) == pytest.approx(brier)


@given(predictions())
@settings(max_examples=60)
def test_scores_against_definitions(data):
    probabilities, labels = data
    onehot = np.eye(probabilities.shape[1])[labels]
    brier = brier_score(probabilities, labels)
    assert brier == pytest.approx(((probabilities - onehot) ** 2).sum(axis=1).mean())
    split = brier_decomposition(probabilities, labels)
    assert split.calibration >= 0 and split.refinement >= 0
    assert split.calibration + split.refinement == pytest.approx(brier)
    picked = probabilities[np.arange(len(labels)), labels]
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(-np.log(np.maximum(picked, 1e-12)).mean())


@given(predictions())
@settings(max_examples=60)
def test_ranking_measures_against_pairs(data):
    confidences, correct = top_label(*data)
    right, wrong = confidences[correct == 1], confidences[correct == 0]
    if len(right) and len(wrong):
        wins = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
        assert confidence_auroc(confidences, correct) == pytest.approx(wins)
    else:
        assert math.isnan(confidence_auroc(confidences, correct))
    softened = [1 - correct[confidences == c].mean() for c in confidences]
    ordered = [error for _, error in sorted(zip(-confidences, softened, strict=True), key=lambda pair: pair[0])]
    curve = [np.mean(ordered[:m]) for m in range(1, len(ordered) + 1)]
    assert aurc(confidences, correct) == pytest.approx(np.mean(curve))


def test_weighted_aurc_against_loops():
    rng = np.random.default_rng(2)
    confidences, correct, weights = rng.random(200).round(2), rng.random(200) < 0.7, rng.exponential(size=200)
    total, before, wrong_before = 0.0, 0.0, 0.0
    for confidence in np.unique(confidences)[::-1]:
        group = confidences == confidence
        weight, wrong, count = weights[group].sum(), weights[group & ~correct].sum(), group.sum()
        for j in range(1, count + 1):  # as many steps as rows, all of the mean weight and error
            total += weight / count * (wrong_before + wrong * j / count) / (before + weight * j / count)
        before, wrong_before = before + weight, wrong_before + wrong
    assert aurc(confidences, correct, weights) == pytest.approx(total / weights.sum())
    one_group = aurc(np.full(1000, 0.5), rng.random(1000) < 2, weights[:1].repeat(1000))
    assert one_group == 0


def test_ranking_needs_outcomes():
    with pytest.raises(ValueError, match="`correct` row 1"):
        aurc([0.5, 0.6], [1, 0.3])
    assert math.isnan(confidence_auroc([0.5, 0.6], [1, 0], sample_weight=[1, 0]))
    assert aurc([-0.0, 0.0], [1, 0]) == pytest.approx(0.5)
