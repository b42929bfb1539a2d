"""Fixed-sequence tests of confidence thresholds: which are the lowest above which the accuracy reaches a target."""

from __future__ import annotations

from math import ceil, log
from typing import NamedTuple

import numpy as np


_STARTS = 5  # most starts of the sequence of tests
_MORE = 1.6  # first start, in multiples of the least number of questions that it can reject


class ThresholdTests(NamedTuple):
    """
    One-sided binomial tests of the accuracy above each threshold, `accuracy < target`.

    Attributes:
        counts (`np.ndarray` of shape `(V,)`): Number of questions down to each different confidence, descending.
        p_values (`np.ndarray` of shape `(V,)`): p-values of these questions.
        starts (`list[int]`): Numbers of questions at which the sequence starts.
        start_p_values (`np.ndarray` of shape `(starts,)`): p-values of so many questions, equal confidences in
            random order.
    """

    counts: np.ndarray
    p_values: np.ndarray
    starts: list[int]
    start_p_values: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, hits: np.ndarray, target: float, alpha: float) -> ThresholdTests:
        """Test all thresholds, from the numbers of questions and of right answers down to each."""
        starts = start_sizes(int(counts[-1]), target, alpha)
        start_p_values = _p_values(_first_hits(starts, counts, hits), np.array(starts), target)
        return cls(counts, _p_values(hits, counts, target), starts, start_p_values)

    def last_rejected(self, alpha: float) -> int | None:
        """
        Find the lowest threshold whose hypothesis is rejected, as an index of `counts`; `None` if there is none.

        A start passes if its own test rejects at its share of `alpha`. The thresholds behind it are tested in
        descending order at the summed shares of the starts that passed, until a test does not reject.
        """
        share, passed, last = alpha / len(self.starts), 0.0, None
        firsts = np.searchsorted(self.counts, self.starts, side="right").tolist()
        ends = [*firsts[1:], len(self.counts)]
        for size, p_value, first, end in zip(self.starts, self.start_p_values, firsts, ends, strict=True):
            if p_value <= share:
                passed += share
                if self.counts[first - 1] == size:  # the start is a threshold itself
                    last = max(first - 1, -1 if last is None else last)
            if passed == 0:
                continue
            failed = np.flatnonzero(self.p_values[first:end] > passed)
            rejected = first + int(failed[0]) if len(failed) else end
            if rejected > first:
                last = rejected - 1
            if len(failed):
                passed = 0.0
        return last


def least_rejected(target: float, alpha: float) -> int:
    """Compute the least number of questions, all answered rightly, that reject `accuracy < target` at `alpha`."""
    return max(1, ceil(log(alpha) / log(target) - 1e-9))


def start_sizes(n: int, target: float, alpha: float) -> list[int]:
    """
    Choose the numbers of answered questions at which the sequence of tests starts.

    They must not depend on the data. The first is 1.6 times the least number that a start can reject, which allows
    an error or so. The last is all questions, and the others are in between in equal ratios. Where N is too small for
    several, there is the first alone.
    """
    for starts in range(_STARTS, 1, -1):
        first = ceil(_MORE * least_rejected(target, alpha / starts))
        if first * 1.5 ** (starts - 1) <= n:
            return np.geomspace(first, n, starts).round().astype(int).tolist()
    return [min(n, ceil(_MORE * least_rejected(target, alpha)))]


def _p_values(hits: np.ndarray, counts: np.ndarray, target: float) -> np.ndarray:
    """P(binomial >= hits)."""
    from scipy.special import betainc

    some = hits > 0
    p_values = np.ones(len(counts))
    p_values[some] = betainc(hits[some], counts[some] - hits[some] + 1, target)
    return p_values


def _first_hits(starts: list[int], counts: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Right answers among the first questions of each start, with equal confidences in one random order."""
    rng, drawn, group_before = np.random.default_rng(0), [], None
    count = hit = 0
    for start, group in zip(starts, np.searchsorted(counts, starts).tolist(), strict=True):
        if group != group_before:
            count, hit = (0, 0) if group == 0 else (int(counts[group - 1]), int(hits[group - 1]))
        right, left = int(hits[group]) - hit, int(counts[group]) - count
        hit += int(rng.hypergeometric(right, left - right, start - count))
        count, group_before = start, group
        drawn.append(hit)
    return np.array(drawn)
