"""Conformal prediction sets against MAPIE, on questions with different numbers of options, and their coverage."""

import json
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier

from hf_calib import OptionPredictions, PredictionSets
from hf_calib.evaluation.prediction_sets import METHODS, _normalised, _Ready, check_sets, least_questions_of_sets


def draw(n, seed, options=4, mixed=False, scale=2.0):
    """Predictions of an overconfident model; with `mixed`, of two options and more."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, options))
    if mixed:
        logits[np.arange(options) >= rng.integers(2, options + 1, n)[:, None]] = -np.inf
    truth = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    labels = (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return OptionPredictions((scale * logits).astype(np.float32), labels, np.arange(n).astype(str))


def sets_of_mapie(old, new, level, method):
    classifier = SplitConformalClassifier(_Ready(old.option_logits.shape[1]), level, method, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.conformalize(_normalised(old), old.labels)
        return classifier.predict_set(_normalised(new))[1][:, :, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options, mixed", [(3, False), (4, True), (10, True)])
def test_sets_are_those_of_mapie(options, mixed, method):
    old, new = draw(300, 1, options, mixed), draw(500, 2, options, mixed)
    present = np.arange(options) < new.num_options[:, None]
    for level in (0.7, 0.9):
        rule = PredictionSets.fit(old, level, method)
        sets = rule.apply(new)
        np.testing.assert_array_equal(sets, sets_of_mapie(old, new, level, method) & present)
        assert not sets[~present].any()
        assert sum(int(size) * share for size, share in rule.sizes.items()) == pytest.approx(
            rule.apply(old).sum(axis=1).mean()
        )


@pytest.mark.parametrize("method", METHODS)
def test_coverage(method):
    """Over samples of 60 questions, the mean coverage is at least the level, and seldom below `coverage_least`."""
    covered, below = [], 0
    for seed in range(80):
        new = draw(500, 1000 + seed, mixed=True)
        rule = PredictionSets.fit(draw(60, seed, mixed=True), 0.8, method)
        covered.append(rule.apply(new)[np.arange(500), new.labels].mean())
        below += covered[-1] < rule.coverage_least
    assert np.mean(covered) >= 0.8 - 0.015 and below <= 0.12 * 80
    if method == "lac":
        assert np.mean(covered) <= 0.8 + 1 / 61 + 0.015


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [10, 40])
def test_coverage_of_a_very_sure_model(method, scale):
    """Right options have probabilities far below 1e-8, which MAPIE's own sets leave out."""
    old, new = draw(1000, 20, scale=scale), draw(3000, 21, scale=scale)
    sets = PredictionSets.fit(old, 0.9, method, folds=0).apply(new)
    assert sets[np.arange(3000), new.labels].mean() > 0.88
    if (method, scale) == ("aps", 40):
        assert sets_of_mapie(old, new, 0.9, method)[np.arange(3000), new.labels].mean() < 0.8


def test_measured_coverage_is_that_of_other_questions():
    rule = PredictionSets.fit(draw(2000, 3), 0.9)
    assert rule.coverage == pytest.approx(0.9, abs=0.02)
    assert rule.coverage_least < 0.9 and rule.coverage_low < rule.coverage < rule.coverage_high
    few = PredictionSets.fit(draw(11, 3), 0.9)
    assert few.coverage is None and "measured" not in few.sentence


@pytest.mark.parametrize("method", METHODS)
def test_two_options(method):
    new = draw(2000, 5, options=2)
    sets = PredictionSets.fit(draw(400, 4, options=2), 0.9, method).apply(new)
    covered = sets[np.arange(2000), new.labels].mean()
    assert covered == pytest.approx(0.9, abs=0.03) if method == "lac" else 0.88 < covered < 1
    assert sets.shape == (2000, 2)


def test_ties_and_a_certain_model():
    """Equal probabilities are in a set together, and probabilities of 0 and 1 break nothing."""
    logits = np.zeros((100, 4), np.float32)
    tied = OptionPredictions(logits, np.arange(100) % 4, np.arange(100).astype(str))
    logits = np.where(np.arange(4) == (np.arange(100) % 4)[:, None], 0, -1000).astype(np.float32)
    certain = OptionPredictions(logits, np.arange(100) % 4, np.arange(100).astype(str))
    for method in METHODS:
        assert PredictionSets.fit(tied, 0.9, method).apply(tied).all()
        assert PredictionSets.fit(certain, 0.9, method).apply(certain).sum(axis=1).tolist() == [1] * 100


def test_saved_and_loaded(tmp_path):
    rule = PredictionSets.fit(draw(100, 6), 0.9, "aps")
    rule.save(tmp_path / "sets.json")
    assert PredictionSets.load(tmp_path) == rule
    (tmp_path / "sets.json").write_text('{"method": "lac"}')
    with pytest.raises(ValueError, match="holds no prediction sets .*it lacks 'level'"):
        PredictionSets.load(tmp_path)
    for change in ({"method": "naive"}, {"quantile": "a"}, {"quantile": None}, {"coverage_least": 2}):
        (tmp_path / "sets.json").write_text(json.dumps(asdict(rule) | change))
        with pytest.raises(ValueError, match="holds no prediction sets"):
            PredictionSets.load(tmp_path)


def test_check():
    rule, new = PredictionSets.fit(draw(500, 7), 0.9), draw(400, 8)
    sets = rule.apply(new)
    assert check_sets(rule, sets, new.labels).holds
    wrong = check_sets(rule, sets, (new.labels + 1) % 4)
    assert not wrong.holds and wrong.sentences[-1] == "The guarantee is refuted."
    unknown = check_sets(rule, sets, np.full(400, -100))
    assert unknown.holds and "was not tested" in unknown.sentences[-1]
    assert "coverage" not in unknown.results and unknown.results["mean_size"] == sets.sum(axis=1).mean()


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"labels": np.r_[-100, np.zeros(49, int)]}, {}, "1 of 50 questions have no right option"),
        ({}, {"level": 1.0}, r"`level` must lie in \(0, 1\)"),
        ({}, {"method": "naive"}, "`method` must be one of lac, aps"),
        ({}, {"level": 0.99}, "there are 50 questions; prediction sets of level 0.99 need at least 100"),
    ],
)
def test_bad_input(change, options, message):
    with pytest.raises(ValueError, match=message):
        PredictionSets.fit(replace(draw(50, 9), **change), **options)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("method", METHODS)
def test_least_questions(level, method):
    least = least_questions_of_sets(level)
    assert PredictionSets.fit(draw(least, 10), level, method).n == least
    with pytest.raises(ValueError, match=f"there are {least - 1} questions"):
        PredictionSets.fit(draw(least - 1, 10), level, method)
