"""The E-step of EM-ECE: a calibration map, and the target distributions that follow from it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from ..measures.binning import reliability_bins


ESTIMATORS = ("isotonic", "bins", "equal_mass")


class EMCalibrator:
    r"""
    Calibration map a(c) = P(correct | confidence c), and the target distributions t(. | x) that follow from it.

    Args:
        estimator (`str`, *optional*, defaults to `"isotonic"`):
            Estimator of the map:

            - `"isotonic"`: the best non-decreasing map, linear between the centres of its blocks.
            - `"bins"`: accuracy in equal-width bins, as in the paper.
            - `"equal_mass"`: accuracy in bins of equally many questions.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the two binned estimators; at least 1.
        pseudo_count (`float`, *optional*, defaults to `2.0`):
            Number of perfectly calibrated pseudo-questions added to every bin (or block), which shrinks its accuracy
            towards its mean confidence. At least 0; 0 takes the raw accuracies, as in the paper. The target of an
            empty bin is the confidence itself, whatever the pseudo-count.

    References:
        Xiao et al., "Restoring Calibration for Aligned Large Language Models: A Calibration-Aware Fine-Tuning
        Approach", ICML 2025, https://huggingface.co/papers/2505.01997, section 5. The isotonic map and the shrinkage
        are ours.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib import EMCalibrator

    >>> probabilities = np.tile([0.9, 0.05, 0.03, 0.02], (100, 1))
    >>> labels = np.repeat([0, 1], 50)  # right half of the time, at confidence .9
    >>> calibrator = EMCalibrator(estimator="bins", pseudo_count=0).fit(probabilities, labels)
    >>> calibrator.targets(probabilities[:1]).round(2).tolist()
    [[0.5, 0.18, 0.17, 0.15]]

    ```
    """

    def __init__(
        self,
        estimator: Literal["isotonic", "bins", "equal_mass"] = "isotonic",
        n_bins: int = 10,
        pseudo_count: float = 2.0,
    ):
        if estimator not in ESTIMATORS:
            raise ValueError(f"Unknown estimator {estimator!r}; choose one of {', '.join(ESTIMATORS)}.")
        if n_bins < 1:
            raise ValueError(f"n_bins must be at least 1, got {n_bins}.")
        if not pseudo_count >= 0:
            raise ValueError(f"pseudo_count must be at least 0, got {pseudo_count}.")
        self.estimator = estimator
        self.n_bins = n_bins
        self.pseudo_count = pseudo_count
        # Isotonic: points of a piecewise linear map. Binned: inner edges, and a value per bin (NaN: empty bin).
        self._abscissae: np.ndarray | None = None
        self._ordinates: np.ndarray | None = None

    def fit(self, probabilities, labels) -> EMCalibrator:
        """
        Estimate the map on the E-step questions.

        Args:
            probabilities (`np.ndarray` or `torch.Tensor` of shape `(N, K)`):
                Option probabilities; 0 in the columns beyond a question's options.
            labels (`np.ndarray` or `torch.Tensor` of shape `(N,)` or `(N, K)`):
                Index of the right option, or the probability of each option to be right (such as the agreement of
                annotators).

        Returns:
            `EMCalibrator`: itself.

        Raises:
            `ValueError`: if there is no question, a probability is NaN or outside [0, 1], or the lengths differ.
        """
        probabilities = np.asarray(_to_numpy(probabilities), dtype=np.float64)
        labels = np.asarray(_to_numpy(labels))
        if probabilities.ndim != 2 or labels.shape not in (probabilities.shape, probabilities.shape[:1]):
            raise ValueError(
                f"Expected probabilities (N, K) and labels (N,) or (N, K), got shapes {probabilities.shape} and "
                f"{labels.shape}."
            )
        if not len(labels):
            raise ValueError("The E-step has no questions: raise em_holdout, or give more questions.")
        valid = ((probabilities >= 0) & (probabilities <= 1 + 1e-6)).all(axis=1)
        if not valid.all():
            row = int(np.argmin(valid))
            raise ValueError(f"Row {row} of the E-step is not a probability distribution: {probabilities[row]}.")
        confidences, predictions = probabilities.max(axis=1), probabilities.argmax(axis=1)
        if labels.ndim == 2:
            correct = np.take_along_axis(labels.astype(np.float64), predictions[:, None], axis=1)[:, 0]
        else:
            correct = (predictions == labels).astype(np.float64)
        fit = self._fit_isotonic if self.estimator == "isotonic" else self._fit_bins
        self._abscissae, self._ordinates = fit(confidences, correct)
        return self

    def _fit_isotonic(self, confidences: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.isotonic import isotonic_regression

        # Equal confidences are one observation: the map is a function.
        abscissae, group = np.unique(confidences, return_inverse=True)
        counts = np.bincount(group)
        fitted = isotonic_regression(np.bincount(group, correct) / counts, sample_weight=counts)
        _, block = np.unique(fitted, return_inverse=True)
        mass = np.bincount(block, counts)
        centres = np.bincount(block, counts * abscissae) / mass
        accuracies = np.bincount(block, counts * fitted) / mass
        values = (mass * accuracies + self.pseudo_count * centres) / (mass + self.pseudo_count)
        # Blocks of different sizes are shrunk by different amounts, which may break the order; restore it.
        return centres, isotonic_regression(values, sample_weight=mass + self.pseudo_count)

    def _fit_bins(self, confidences: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        binning = "equal_width" if self.estimator == "bins" else "equal_mass"
        bins = reliability_bins(confidences, correct, self.n_bins, binning)
        with np.errstate(invalid="ignore"):
            # An empty bin has neither mean nor accuracy; it becomes NaN.
            values = (bins.counts * bins.accuracy + self.pseudo_count * bins.confidence) / (
                bins.counts + self.pseudo_count
            )
        return bins.edges[1:-1], values

    @property
    def fitted(self) -> bool:
        """Whether the map has been estimated."""
        return self._abscissae is not None

    def accuracy(self, confidences):
        """
        Evaluate the map a(c), before it is clipped to the range of possible targets.

        Args:
            confidences (`np.ndarray` or `torch.Tensor`):
                Confidences in [0, 1], of any shape.

        Returns:
            Estimated P(correct | confidence), of the type and shape of `confidences`.

        Raises:
            `RuntimeError`: if the map has not been fitted.
        """
        if not self.fitted:
            raise RuntimeError("The calibration map is not fitted: call fit (the E-step) first.")
        c = torch.as_tensor(confidences)
        x, y = (torch.as_tensor(array, dtype=c.dtype, device=c.device) for array in (self._abscissae, self._ordinates))
        if self.estimator != "isotonic":
            # As in the calibration errors: an edge belongs to the bin above it, 1.0 to the last bin.
            a = y[torch.searchsorted(x, c.contiguous(), right=True)]
            a = torch.where(a.isnan(), c, a)
        elif len(x) == 1:
            a = y.expand_as(c)
        else:
            right = torch.searchsorted(x, c.contiguous()).clamp(1, len(x) - 1)
            left = right - 1
            share = ((c - x[left]) / (x[right] - x[left])).clamp(0, 1)
            a = y[left] + share * (y[right] - y[left])
        return a if isinstance(confidences, torch.Tensor) else a.numpy()

    def targets(self, probabilities, mask=None):
        r"""
        Compute the target distributions t(. | x).

        The top probability becomes the value of the map; the other options share the rest and keep their order. With
        the sorted probabilities :math:`q_{(1)} \ge q_{(2)} \ge \dots` and :math:`a = a(q_{(1)})`

        .. math::

            t_{(1)} &= a, \qquad t_{(j)} = \alpha \tanh(\gamma q_{(j)}) + \beta \quad (j \ge 2), \\
            \alpha &= \beta = \frac{1 - a}{\sum_{j \ge 2} \tanh(\gamma q_{(j)}) + K - 1}, \qquad
            \gamma = \frac{\ln \max(K - 1, 2)}{q_{(2)} (1 - a)}.

        The value of the map is clipped to [1/K, 1], and raised where the second target would exceed it, so that the
        ranking of the options never changes. a = 1 gives a one-hot target.

        Args:
            probabilities (`np.ndarray` or `torch.Tensor` of shape `(N, K)`):
                Option probabilities.
            mask (`np.ndarray` or `torch.Tensor` of shape `(N, K)`, *optional*):
                True where there is an option; by default everywhere. The targets of all other columns are 0.

        Returns:
            Targets of shape `(N, K)`, of the type of `probabilities`; each row sums to 1. No gradient flows through
            them.
        """
        q = torch.as_tensor(probabilities).detach()
        if not q.is_floating_point() or q.dtype in (torch.float16, torch.bfloat16):
            q = q.float()
        mask = torch.ones_like(q, dtype=torch.bool) if mask is None else torch.as_tensor(mask, device=q.device).bool()
        ranked, order = q.masked_fill(~mask, -1.0).sort(dim=-1, descending=True, stable=True)
        k = mask.sum(-1)
        rest = torch.arange(q.size(-1), device=q.device) < k[:, None]
        rest[:, 0] = False
        a = self.accuracy(ranked[:, 0].clamp(0, 1))
        a = self._order_preserving(torch.maximum(a, 1 / k).clamp(max=1.0), ranked, rest, k)
        t = (a[:, None] * 0).repeat(1, q.size(-1))
        t[:, 0] = a
        t = t + _tail(a, ranked, rest, k)
        t = torch.zeros_like(t).scatter(-1, order, t)
        return t if isinstance(probabilities, torch.Tensor) else t.numpy()

    @staticmethod
    def _order_preserving(a, ranked, rest, k):
        """Find by bisection the smallest a' >= a with which the top target is not below the second."""
        low, high = a, torch.ones_like(a)
        fits = a >= _tail(a, ranked, rest, k).amax(-1)
        if fits.all():
            return a
        for _ in range(30):
            middle = (low + high) / 2
            enough = middle >= _tail(middle, ranked, rest, k).amax(-1)
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return torch.where(fits, a, high)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the fitted map as plain numbers and lists, for JSON (an empty bin is `None`)."""
        state = {"estimator": self.estimator, "n_bins": self.n_bins, "pseudo_count": self.pseudo_count}
        for name, array in (("abscissae", self._abscissae), ("ordinates", self._ordinates)):
            state[name] = None if array is None else [None if np.isnan(v) else float(v) for v in array]
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> EMCalibrator:
        """Rebuild a calibrator from the result of [`EMCalibrator.state_dict`]."""
        calibrator = cls(state["estimator"], state["n_bins"], state["pseudo_count"])
        if state["abscissae"] is not None:
            calibrator._abscissae = np.array(state["abscissae"], dtype=np.float64)
            calibrator._ordinates = np.array(state["ordinates"], dtype=np.float64)
        return calibrator


def _tail(a, ranked, rest, k):
    """Targets of the options after the first, `(N, K)` in ranked order, given the top targets `a` `(N,)`."""
    if ranked.size(-1) < 2:
        return torch.zeros_like(ranked)
    second = ranked[:, 1:2]
    # gamma * q_(j) as a ratio times a scale: q_(2) = 0 (all others equal it) and a = 1 (gamma infinite) have limits.
    ratio = torch.where(second > 0, ranked / second.clamp(min=torch.finfo(ranked.dtype).tiny), torch.ones_like(ranked))
    scale = torch.log((k - 1).clamp(min=2).to(ranked.dtype)) / (1 - a)
    saturation = torch.where(rest, torch.tanh(scale[:, None] * ratio.clamp(min=0)).nan_to_num(1.0), 0.0)
    alpha = (1 - a) / (saturation.sum(-1) + (k - 1)).clamp(min=1)
    return torch.where(rest, alpha[:, None] * (saturation + 1), 0.0)


def _to_numpy(array):
    return array.detach().float().cpu().numpy() if isinstance(array, torch.Tensor) else array
