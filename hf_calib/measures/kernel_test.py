"""Kernel calibration test: the squared kernel calibration error (SKCE) with its p-value."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from .bootstrap import LEVEL
from .checked import Examples, Predictions, check_scores
from .options import MeasureOptions


_NULL_ROWS = 4096  # most rows of a simulated calibrated model
_PAIRED_ROWS = 1000  # most rows behind the median distance
_FREQUENCIES = 128  # of the features that approximate the kernel
_FEATURE_ROWS = 1 << 13  # rows at a time
_DRAWN_AT_ONCE = 1 << 21  # numbers in a block of draws
_LEAST_BANDWIDTH = 1 / 500  # exp(1 / bandwidth) stays finite


class KernelTest(NamedTuple):
    """
    Squared kernel calibration error and the test of perfect calibration.

    Attributes:
        skce (`float`): Unbiased estimate of the SKCE. It is below 0 for about every second calibrated model.
        low (`float`): Lower end of the 95% interval of the SKCE of the population, at least 0.
        high (`float`): Upper end.
        noise_p95 (`float`): 95th percentile of the estimate of a perfectly calibrated model on as many rows.
        p_value (`float`): Probability that such a model has at least the measured estimate, in (0, 1].
        bandwidth (`float`): Bandwidth of the kernel.
    """

    skce: float
    low: float
    high: float
    noise_p95: float
    p_value: float
    bandwidth: float


def kernel_calibration_test(
    predictions, outcomes, sample_weight=None, bandwidth: float | None = None, **options
) -> KernelTest:
    r"""
    Test perfect calibration by the squared kernel calibration error (SKCE), without bins.

    With the confidence c and the outcome z of each prediction, the SKCE is the mean over pairs of different rows

    .. math::
        \frac{1}{N (N - 1)} \sum_{i \ne j} (z_i - c_i)(z_j - c_j) \exp(-|c_i - c_j| / \nu)

    With the probabilities of all options it is the mean of

    .. math::
        \langle e_{y_i} - p_i, e_{y_j} - p_j \rangle \exp(-\mathrm{TV}(p_i, p_j) / \nu)

    with the total variation distance TV. This tests all options together (strong calibration), which is more than
    the confidence in the predicted option: a rejection may be due to options that the model does not choose.

    The p-value is of a simulation: outcomes are drawn from the predictions themselves. So it is valid for any N up to
    4,096 and any bandwidth. Beyond, a random sample of 4,096 rows gives the distribution of N times the SKCE, which
    converges. The interval is normal, with the variance of the jackknife, of the same sample.

    For confidences the sum over pairs is exact and takes one sort. For option probabilities the kernel is
    approximated by 256 random features, the same for all rows, in O(N): the estimate differs by some percent
    from that of the exact kernel. The features are a kernel too, so the p-value is valid.

    Args:
        predictions (array-like of shape `(N, K)` or `(N,)`):
            Option probabilities, rows summing to 1; or, in one dimension, confidences in [0, 1].
        outcomes (array-like of shape `(N,)`):
            Index of the right option; with confidences, whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
        bandwidth (`float`, *optional*):
            Bandwidth of the kernel, the distance at which it has fallen to 1 / e, at least 0.002. Defaults to the
            median distance of pairs of predictions.
        options:
            `n_bootstrap` (number of simulations) and `seed`, see [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        [`KernelTest`]: `skce`, `low`, `high`, `noise_p95`, `p_value` and `bandwidth`.

    Raises:
        TypeError: An array has the wrong type, or an option is unknown.
        ValueError: A value is outside its range, the shapes do not fit, or there are fewer than two rows.

    References:
        Widmann, Lindsten & Zachariah (2019), "Calibration tests in multi-class classification", arXiv 1910.11385.
        Widmann, Lindsten & Zachariah (2021), "Calibration tests beyond classification", arXiv 2210.13355.
        Rahimi & Recht (2007), "Random Features for Large-Scale Kernel Machines", NIPS 20.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.measures.kernel_test import kernel_calibration_test
    >>> confidences, correct = np.full(100, 0.9), np.repeat([1, 0], [60, 40])
    >>> test = kernel_calibration_test(confidences, correct)
    >>> round(test.skce, 3), round(test.p_value, 3)
    (0.088, 0.001)

    ```
    """
    options = MeasureOptions(**options)
    examples = check_scores(predictions, outcomes, sample_weight)
    return kernel_test_of(examples, options, bandwidth, all_options=isinstance(examples, Predictions))


def kernel_test_of(
    examples: Examples, options: MeasureOptions, bandwidth: float | None = None, all_options: bool = False
) -> KernelTest:
    """Test checked examples, see [`kernel_calibration_test`]; `all_options` for the probabilities of all options."""
    if len(examples) < 2:
        raise ValueError("the kernel test needs at least two rows with a weight above 0, got 1.")
    rng = options.generator(5)
    points = examples.probabilities if all_options else examples.confidences[:, None]
    if bandwidth is None:
        bandwidth = _median_distance(points, rng)
    elif not _LEAST_BANDWIDTH <= bandwidth < np.inf:
        raise ValueError(f"`bandwidth` must be at least {_LEAST_BANDWIDTH:g}, got {bandwidth}.")
    kernel = _OptionKernel(examples, bandwidth, rng) if all_options else _ConfidenceKernel(examples, bandwidth)
    weights = np.ones(len(examples)) if examples.weights is None else examples.weights
    total, squares = weights.sum(), weights @ weights
    pairs = total**2 - squares
    sample = np.arange(len(weights))
    if len(weights) > _NULL_ROWS:
        sample = np.sort(rng.choice(len(weights), _NULL_ROWS, replace=False))
    summed, shares = kernel.pairs(sample)
    value, of_sample = float(summed / pairs), weights[sample]
    spread = ((shares / (total - of_sample) - of_sample * value) ** 2).mean()
    error = 2 * sqrt(len(weights) * spread) / total
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    scale = squares / (weights[sample] @ weights[sample]) / pairs
    drawn = kernel.draws(sample, options.n_bootstrap, rng) * scale
    # the tolerance keeps the rounding of sums from breaking ties
    exceeding = int((drawn >= value - 1e-9 * abs(value) - 1e-12).sum())
    p_value = (1 + exceeding) / (1 + len(drawn))
    noise = float(np.quantile(drawn, 0.95))
    low, high = (max(0.0, float(value + side * z * error)) for side in (-1, 1))
    return KernelTest(value, low, high, noise, p_value, float(bandwidth))


def _median_distance(points: np.ndarray, rng: np.random.Generator) -> float:
    """Median distance of pairs of rows: total variation of probabilities, or the difference of confidences."""
    from scipy.spatial.distance import pdist

    if len(points) > _PAIRED_ROWS:
        points = points[np.sort(rng.choice(len(points), _PAIRED_ROWS, replace=False))]
    distances = pdist(points.astype(np.float64), "cityblock") / (2 if points.shape[1] > 1 else 1)
    typical = np.median(distances) or distances.mean() or 1.0  # 0 where most rows are equal, or all
    return max(float(typical), _LEAST_BANDWIDTH)


class _ConfidenceKernel:
    """Pairs of confidences under the kernel `exp(-|c - c'| / bandwidth)`, exactly, from sorted rows."""

    def __init__(self, examples: Examples, bandwidth: float):
        order = np.argsort(examples.confidences, kind="stable")
        self.order, self.confidences = order, examples.confidences[order]
        self.weights = np.ones(len(order)) if examples.weights is None else examples.weights[order]
        self.residuals = self.weights * (examples.correct[order] - self.confidences)
        self.growth = np.exp(self.confidences / bandwidth)

    def pairs(self, sample: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum over the pairs of different rows, and that of each row of a sample, `(rows,)`."""
        scaled, shrunk = self.residuals * self.growth, self.residuals / self.growth
        below = (np.cumsum(scaled) - scaled) / self.growth
        above = (np.cumsum(shrunk[::-1])[::-1] - shrunk) * self.growth
        shares = np.empty(len(self.order))
        shares[self.order] = self.residuals * (below + above)
        return float(shares.sum()), shares[sample]

    def draws(self, sample: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """Sum over the pairs of a sample of rows of calibrated models, `(n_draws,)`."""
        rows = np.sort(np.argsort(self.order)[sample])
        confidences, weights, growth = self.confidences[rows], self.weights[rows], self.growth[rows]
        size, parts = max(1, _DRAWN_AT_ONCE // len(rows)), []
        for start in range(0, n_draws, size):
            right = rng.random((min(size, n_draws - start), len(rows))) < confidences
            residuals = weights * (right - confidences)
            scaled = residuals * growth
            below = np.cumsum(scaled, axis=1) - scaled
            parts.append(2 * np.einsum("dn,dn->d", residuals / growth, below))
        return np.concatenate(parts)


class _OptionKernel:
    """Pairs of option probabilities under random Fourier features of `exp(-TV(p, p') / bandwidth)`."""

    def __init__(self, predictions: Predictions, bandwidth: float, rng: np.random.Generator):
        self.predictions = predictions
        shape = (predictions.probabilities.shape[1], _FREQUENCIES)
        # the characteristic function of Cauchy's distribution is the exponential of a sum of distances
        self.frequencies = (rng.standard_cauchy(shape) / (2 * bandwidth)).astype(np.float32)
        n = len(predictions)
        self.weights = np.ones(n) if predictions.weights is None else predictions.weights

    def features(self, probabilities: np.ndarray) -> np.ndarray:
        """Features of length 1, `(rows, 256)`."""
        angles = probabilities.astype(np.float32) @ self.frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.float32(sqrt(_FREQUENCIES))

    def _parts(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and weighted residuals of some rows."""
        probabilities = self.predictions.probabilities[rows].astype(np.float64)
        residuals = -probabilities
        residuals[np.arange(len(residuals)), self.predictions.labels[rows]] += 1
        return self.features(probabilities), residuals * self.weights[rows, None]

    def pairs(self, sample: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum over the pairs of different rows, and that of each row of a sample, `(rows,)`."""
        total, diagonal = np.zeros((2 * _FREQUENCIES, self.predictions.probabilities.shape[1])), 0.0
        for start in range(0, len(self.weights), _FEATURE_ROWS):
            features, residuals = self._parts(slice(start, start + _FEATURE_ROWS))
            total += features.T @ residuals.astype(np.float32)
            diagonal += np.einsum("nk,nk->", residuals, residuals)
        features, residuals = self._parts(sample)
        shares = np.einsum("nk,nk->n", features @ total.astype(np.float32) - residuals, residuals)
        return float((total**2).sum() - diagonal), shares

    def draws(self, sample: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """Sum over the pairs of a sample of rows of calibrated models, `(n_draws,)`."""
        probabilities = self.predictions.probabilities[sample].astype(np.float64)
        weights, (rows, num_options) = self.weights[sample], probabilities.shape
        features = self.features(probabilities).T * weights.astype(np.float32)
        expected = (features @ probabilities.astype(np.float32)).astype(np.float64)
        cumulative = probabilities.cumsum(axis=1)
        cumulative /= cumulative[:, -1:]
        squares = np.einsum("nk,nk->n", probabilities, probabilities) + 1
        size, parts = max(1, _DRAWN_AT_ONCE // (rows * num_options)), []
        for start in range(0, n_draws, size):
            drawn = rng.random((rows, min(size, n_draws - start)))
            labels = (cumulative[:, None, :-1] <= drawn[:, :, None]).sum(axis=2)
            right = (labels[:, :, None] == np.arange(num_options)).astype(np.float32)
            found = (features @ right.reshape(rows, -1)).reshape(len(features), -1, num_options)
            sums = found - expected[:, None, :]
            picked = np.take_along_axis(probabilities, labels, axis=1)
            diagonal = (weights**2) @ (squares[:, None] - 2 * picked)
            parts.append(np.einsum("fdk,fdk->d", sums, sums) - diagonal)
        return np.concatenate(parts)
