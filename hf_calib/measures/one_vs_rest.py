"""One-vs-rest calibration error of all options in common bins, with its noise floor."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np

from .binning import assign_bins, bin_edges
from .checked import check_predictions
from .noise_floor import NoiseFloor
from .validation import check_whole


class OneVsRestError(NamedTuple):
    """
    One-vs-rest calibration error of N questions.

    Attributes:
        error (`float`): The measured error, in [0, 1].
        debiased (`float`): The error less its upward bias from sampling noise, at least 0.
        floor ([`~hf_calib.measures.noise_floor.NoiseFloor`]): Error of a perfectly calibrated model with these
            probabilities.
    """

    error: float
    debiased: float
    floor: NoiseFloor


def one_vs_rest_error(
    probabilities, labels, n_bins: int = 10, n_simulations: int = 200, seed: int | None = 0
) -> OneVsRestError:
    r"""
    Compute the calibration error of all options against "this option is the right one".

    The probabilities of all options of all questions share the bins:

    .. math::
        \sum_b \frac{1}{M} \left| \sum_i (s_{ib} - t_{ib}) \right|

    with the probability s of the options of question i in bin b, t = 1 if its right option is among them, and the
    number M of options of all questions. The classwise error has bins for each position, which mean nothing where
    options are texts in random order. This error never exceeds it, and has K times fewer bins.

    Debiased is the error less :math:`\sum_b \mathbb{E}\left[|g_b + \epsilon_b| - |g_b|\right]`, where the noise is
    normal and has the variance of the outcomes. The options of a question have one right answer, so the variance of
    a question in bin b is :math:`p_{ib} (1 - p_{ib})`, with s scaled to the outcomes of the bin.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1; 0 where a question has fewer than K options.
        labels (array-like of shape `(N,)`):
            Index of the right option, in `[0, K)`.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins.
        n_simulations (`int`, *optional*, defaults to `200`):
            Number of simulated models of the noise floor, whose labels are drawn from the probabilities.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the simulation; `None` for fresh randomness.

    Returns:
        [`OneVsRestError`]: `error`, `debiased` and `floor`.

    Raises:
        TypeError: An array has the wrong type.
        ValueError: Logits, NaN, empty input, a label out of range, or shapes that do not fit. The row is named.

    References:
        Kumar, Liang & Ma (2019), "Verified Uncertainty Calibration", arXiv 1909.10155, for the debiasing.

    Example:

    ```python
    >>> from hf_calib.measures.one_vs_rest import one_vs_rest_error
    >>> round(one_vs_rest_error([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1]).error, 4)
    0.3333

    ```
    """
    check_whole(n_simulations, "n_simulations")
    checked = check_predictions(probabilities, labels)
    q = checked.probabilities.astype(np.float64)
    rows = np.arange(len(checked.labels))
    bins, num_options = assign_bins(q, bin_edges(np.empty(0), n_bins)), (q > 0).sum()
    cells = (bins + n_bins * rows[:, None]).ravel()
    sums = np.bincount(cells, q.ravel(), n_bins * len(q)).reshape(-1, n_bins)  # s
    expected = sums.sum(axis=0)

    def errors(labels: np.ndarray) -> tuple[float, np.ndarray]:
        outcomes = np.bincount(bins[rows, labels], minlength=n_bins)
        return float(np.abs(expected - outcomes).sum() / num_options), outcomes

    error, outcomes = errors(checked.labels)
    scaled = np.minimum(sums * outcomes / np.where(expected > 0, expected, 1), 1)
    noise, gaps = np.sqrt((scaled * (1 - scaled)).sum(axis=0)), np.abs(expected - outcomes)
    bias = (_folded_mean(gaps, noise) - gaps).sum() / num_options
    rng, cumulative = np.random.default_rng(seed), q.cumsum(axis=1)
    simulated = np.empty(n_simulations)
    for draw in range(n_simulations):
        wanted = rng.random((len(q), 1)) * cumulative[:, -1:]
        simulated[draw] = errors((cumulative <= wanted).sum(axis=1))[0]
    p_value = (1 + int((simulated >= error - 1e-12).sum())) / (1 + n_simulations)
    floor = NoiseFloor(float(simulated.mean()), float(np.quantile(simulated, 0.95)), p_value)
    return OneVsRestError(error, max(0.0, error - float(bias)), floor)


def _folded_mean(means: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Mean of the absolute value of normal variables."""
    from scipy.special import erf

    z = np.divide(means, scales, out=np.full(len(means), np.inf), where=scales > 0)
    return scales * sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + means * erf(z / sqrt(2))
