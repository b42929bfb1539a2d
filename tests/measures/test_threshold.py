"""Thresholds with a guarantee, and the sequential test, against scipy, slow versions and simulations."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binomtest

from hf_calib.measures.fixed_sequence import _first_hits, start_sizes
from hf_calib.measures.sequential_test import accuracy_evidence
from hf_calib.measures.threshold import (
    accuracy_threshold,
    accuracy_thresholds,
    clopper_pearson,
    least_questions,
)


@pytest.mark.parametrize("hits, counts", [(0, 7), (7, 7), (3, 7), (480, 500)])
def test_clopper_pearson(hits, counts):
    assert clopper_pearson(hits, counts) == pytest.approx(tuple(binomtest(hits, counts).proportion_ci(0.95)))


@pytest.mark.parametrize("target, level", [(0.5, 0.95), (0.9, 0.95), (0.99, 0.9), (0.3, 0.5)])
def test_least_questions(target, level):
    needed = least_questions(target, level)
    assert target**needed <= 1 - level + 1e-9 < target ** (needed - 1) + 1e-9
    right = np.ones(needed)
    assert accuracy_threshold(right, right, target, level).threshold == 0  # every question is answered
    if needed > 1:
        with pytest.raises(ValueError, match=f"{needed - 1} questions; .* needs at least {needed}"):
            accuracy_threshold(right[1:], right[1:], target, level)


def slow_threshold(confidences, correct, target, alpha):
    """The sequence of tests, one threshold after the other; without a start inside a group of ties."""
    n, passed, answer = len(correct), 0.0, np.inf
    starts = start_sizes(n, target, alpha)
    values = sorted(set(confidences), reverse=True)
    for value, lower in zip(values, [*values[1:], None], strict=True):
        above = confidences >= value
        p_value = binomtest(int(correct[above].sum()), int(above.sum()), target, "greater").pvalue
        start_rejects = above.sum() in starts and p_value <= alpha / len(starts)
        passed = passed if p_value <= passed else 0.0
        if passed or start_rejects:
            answer = 0.0 if lower is None else np.nextafter(lower, np.inf)
        passed += alpha / len(starts) * start_rejects
    return answer


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [60, 400])
def test_threshold_is_the_sequence_of_tests(n, ties):
    rng = np.random.default_rng(n)
    found = []
    for _ in range(12):
        confidences = np.sort(rng.beta(3, 1, n))[::-1]
        if ties:  # groups of up to 9 that end at every start
            ends = np.array([0, *start_sizes(n, 0.8, 0.05), n])
            rank = np.arange(n)
            begin = ends[np.searchsorted(ends, rank, side="right") - 1]
            confidences = confidences[begin + (rank - begin) // 9 * 9]
        correct = rng.random(n) < confidences ** rng.uniform(0.1, 1.5)
        result = accuracy_threshold(confidences, correct, 0.8)
        answered = confidences >= result.threshold
        np.testing.assert_array_equal(answered, confidences >= slow_threshold(confidences, correct, 0.8, 0.05))
        assert result.n_answered == answered.sum() and result.found == answered.any()
        if result.found:
            assert result.accuracy == correct[answered].mean() > 0.8
        found.append(result.found)
    assert any(found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threshold_divides_the_confidences_in_their_own_type(dtype):
    confidences = np.linspace(0.3, 1, 500).astype(dtype)
    result = accuracy_threshold(confidences, confidences > 0.6, 0.9)
    assert (confidences >= result.threshold).sum() == (confidences.astype(np.float64) >= result.threshold).sum()
    assert (confidences >= result.threshold).sum() == result.n_answered < 500


def test_starts_do_not_depend_on_the_data():
    assert start_sizes(29, 0.9, 0.05) == [29]
    sizes = start_sizes(10_000, 0.9, 0.05)
    assert len(sizes) == 5 and sizes[-1] == 10_000 and sizes == sorted(sizes)


def test_start_inside_a_group_of_ties_is_tested_on_some_of_the_group():
    """All confidences are equal, so only all questions together have a threshold."""
    starts = start_sizes(1000, 0.8, 0.05)
    hits = [_first_hits(starts, np.array([1000]), np.array([right])) for right in (0, 500, 1000)]
    assert hits[0].tolist() == [0] * 5 and hits[2].tolist() == starts
    assert hits[1][-1] == 500 and (np.diff(hits[1]) > 0).all() and hits[1] / starts == pytest.approx(0.5, abs=0.15)
    # The last start, all questions, is tested at a fifth of .05: 832 right answers are enough for .05, not for .01.
    share = 1 - binomtest(832, 1000, 0.8, "greater").pvalue
    assert 0.95 < share < 0.999
    assert accuracy_threshold(np.ones(1000), np.arange(1000) < 870, 0.8).threshold == 0


@pytest.mark.parametrize("equal", [False, True])
def test_weights_are_another_mix_of_questions(equal):
    """Half of the questions are hard, and a fifth of those to come."""
    rng = np.random.default_rng(4)
    hard = np.arange(4000) % 2 == 0
    confidences, correct = rng.random(4000), rng.random(4000) < np.where(hard, 0.5, 0.97)
    if equal:
        weights, most = np.full(4000, 3), 3
        assert accuracy_threshold(confidences, correct, 0.7, 0.95, weights, most) == accuracy_threshold(
            confidences, correct, 0.7
        )
        return
    weights = np.where(hard, 0.5, 2.0)
    result = accuracy_threshold(confidences, correct, 0.85, sample_weight=weights, max_weight=2)
    assert not accuracy_threshold(confidences, correct, 0.85).found
    assert result.coverage == 1 and result.accuracy == pytest.approx(0.876, abs=0.03)
    assert result.n == pytest.approx(4000 * 1.25 / 2, rel=0.1)
    mixed = rng.permutation(4000)  # the order of the rows does not matter
    assert result == accuracy_threshold(confidences[mixed], correct[mixed], 0.85, 0.95, weights[mixed], 2)
    by_group = accuracy_thresholds(confidences, correct, np.zeros(4000, int), 0.85, 0.95, weights, 2)
    assert by_group == {"0": result}


def test_weighted_threshold_is_seldom_wrong():
    """The weighted accuracy is just below the target, the unweighted one above."""
    rng, found = np.random.default_rng(5), 0
    for _ in range(300):
        heavy = rng.random(400) < 0.3
        correct = rng.random(400) < np.where(heavy, 0.75, 0.95)  # weighted (.7 * .95 + .3 * 3 * .75) / 1.6 = .8375
        found += accuracy_threshold(np.ones(400), correct, 0.838, 0.9, np.where(heavy, 3, 1), 3).found
    assert found <= 0.1 * 300


def test_questions_needed_would_be_enough():
    """A model right in 92% of its answers: 200 questions do not show 90%, the stated number about does."""
    confidences, correct = np.ones(200), np.arange(200) % 25 >= 2
    result = accuracy_threshold(confidences, correct, 0.9)
    assert not result.found and result.coverage == 0 and np.isnan(result.accuracy)
    more = 25 * round(2 * result.questions_needed / 25)  # twice, as the starts share the level
    assert 200 < result.questions_needed and accuracy_threshold(np.ones(more), np.arange(more) % 25 >= 2, 0.9).found
    assert accuracy_threshold(confidences, np.arange(200) % 2, 0.9).questions_needed is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_may_be_tensors_of_16_bits(dtype):
    confidences = torch.linspace(0.5, 1, 200).to(dtype)
    correct, weights = torch.ones(200), torch.ones(200, dtype=dtype)
    found = accuracy_threshold(confidences, correct, 0.9, sample_weight=weights, max_weight=1.0)
    assert found == accuracy_threshold(confidences, correct, 0.9)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_missing_names_are_a_group(missing):
    names = [1.0, missing] * 100
    found = accuracy_thresholds(np.linspace(0.5, 1, 200), np.ones(200), names, 0.9)
    assert list(found) == ["1.0", str(missing)]


def test_groups_share_the_level():
    rng = np.random.default_rng(0)
    confidences = rng.random(3000)
    correct, groups = rng.random(3000) < confidences**0.2, np.array(["a", "b", "c"], dtype="<U5")[np.arange(3000) % 3]
    groups[:20] = "small"
    together = accuracy_thresholds(confidences, correct, groups, 0.9)
    for name in "abc":
        rows = groups == name
        assert together[name] == accuracy_threshold(confidences[rows], correct[rows], 0.9, 1 - 0.05 / 4)
    assert not together["small"].found and together["small"].questions_needed == least_questions(0.9, 1 - 0.05 / 4)
    with pytest.raises(ValueError, match="largest of 3000 groups has 1 questions"):
        accuracy_thresholds(confidences, correct, np.arange(3000), 0.9)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target_accuracy": 1.0}, r"`target_accuracy` must lie in \(0, 1\), got 1.0"),
        ({"level": 0}, "`level` must lie in"),
        ({"correct": [0.5] * 50}, "`correct` row 0"),
        ({"sample_weight": np.ones(50)}, "`sample_weight` and `max_weight` are needed together"),
        ({"max_weight": 2}, "`sample_weight` and `max_weight` are needed together"),
        ({"sample_weight": np.arange(50), "max_weight": 2}, "`sample_weight` row 49 is 49, and `max_weight` is 2"),
        ({"sample_weight": np.ones(50), "max_weight": np.inf}, "`max_weight` is inf"),
        ({"sample_weight": np.ones(50), "max_weight": np.nan}, "`max_weight` is nan"),
        ({"sample_weight": -np.ones(50), "max_weight": 2}, "`sample_weight` row 0 is -1"),
        ({"sample_weight": np.ones(50), "max_weight": 1000}, "questions drawn by their weights, of 50; a guarantee"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        accuracy_threshold(**{"confidences": np.ones(50), "correct": np.ones(50), "target_accuracy": 0.9, **changes})


def test_evidence_is_the_mean_likelihood_ratio():
    correct = np.array([1, 0, 0, 1, 0, 1, 1])
    values = []
    for n in range(1, 8):
        right, wrong = correct[:n].sum(), n - correct[:n].sum()
        mean = quad(lambda p, r=right, w=wrong: p**r * (1 - p) ** w, 0, 0.7)[0] / 0.7
        values.append(mean / (0.7**right * 0.3**wrong))
    found = accuracy_evidence(correct, 0.7)
    assert found == pytest.approx((values[-1], max(1, *values)))
    assert accuracy_evidence([], 0.7) == (1, 1)
    assert (
        accuracy_evidence(np.zeros(100_000), 0.9).largest > 1e100
        and accuracy_evidence(np.ones(100_000), 0.9).e_value == 0
    )


def test_evidence_seldom_grows_at_the_target_and_does_below():
    rng = np.random.default_rng(1)
    false = np.mean([accuracy_evidence(rng.random(500) < 0.8, 0.8).largest >= 20 for _ in range(1000)])
    true = np.mean([accuracy_evidence(rng.random(500) < 0.65, 0.8).largest >= 20 for _ in range(100)])
    assert false <= 0.05 and true > 0.95
