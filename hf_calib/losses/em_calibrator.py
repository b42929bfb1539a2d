"""The E-step of EM-ECE: a calibration map, and the target distributions that follow from it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from ..measures.binning import inner_edges, reliability_bins
from ..measures.validation import as_numbers
from .parametric_maps import beta_map, fit_beta, fit_temperature, temperature_confidence
from .target_tails import TAILS


ESTIMATORS = ("isotonic", "bins", "equal_mass", "temperature", "beta")


class EMCalibrator:
    r"""
    Calibration map a(c) = P(correct | confidence c), and the target distributions t(. | x) that follow from it.

    Args:
        estimator (`str`, *optional*, defaults to `"isotonic"`):
            Estimator of the map:

            - `"isotonic"`: the best non-decreasing map, linear between the centres of its blocks.
            - `"bins"`: accuracy in equal-width bins, as in the paper.
            - `"equal_mass"`: accuracy in bins of equally many questions.
            - `"temperature"`: the confidence at one temperature for all questions, a map for few labels.
            - `"beta"`: a beta calibration map of the confidence, also for few labels.

            The last two have a normal prior; see [`~hf_calib.losses.parametric_maps`].
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the two binned estimators; at least 1.
        pseudo_count (`float`, *optional*, defaults to `2.0`):
            Number of perfectly calibrated pseudo-questions added to every bin (or block), which shrinks its accuracy
            towards its mean confidence. At least 0; 0 takes the raw accuracies, as in the paper. The target of an
            empty bin is the confidence itself, whatever the pseudo-count. Not used by `"temperature"` and `"beta"`.
        tail (`"paper"` or `"temperature"`, *optional*, defaults to `"paper"`):
            How the options after the first share the rest of the probability: the formula of the paper, which flattens
            them, or softmax at the temperature that gives the top option its target, which keeps their proportions;
            see [`~hf_calib.losses.target_tails`].

    References:
        Xiao et al., "Restoring Calibration for Aligned Large Language Models: A Calibration-Aware Fine-Tuning
        Approach", ICML 2025, https://huggingface.co/papers/2505.01997, section 5. The other maps, the shrinkage and
        the temperature tail are ours.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib import EMCalibrator

    >>> probabilities = np.tile([0.9, 0.05, 0.03, 0.02], (100, 1))
    >>> labels = np.repeat([0, 1], 50)  # right half of the time, at confidence .9
    >>> calibrator = EMCalibrator(estimator="bins", pseudo_count=0, tail="paper").fit(probabilities, labels)
    >>> calibrator.targets(probabilities[:1]).round(2).tolist()
    [[0.5, 0.18, 0.17, 0.15]]

    ```
    """

    def __init__(
        self,
        estimator: Literal["isotonic", "bins", "equal_mass", "temperature", "beta"] = "isotonic",
        n_bins: int = 10,
        pseudo_count: float = 2.0,
        tail: Literal["paper", "temperature"] = "paper",
    ):
        if estimator not in ESTIMATORS:
            raise ValueError(f"Unknown estimator {estimator!r}; choose one of {', '.join(ESTIMATORS)}.")
        if n_bins < 1:
            raise ValueError(f"n_bins must be at least 1, got {n_bins}.")
        if not pseudo_count >= 0:
            raise ValueError(f"pseudo_count must be at least 0, got {pseudo_count}.")
        if tail not in TAILS:
            raise ValueError(f"Unknown tail {tail!r}; choose one of {', '.join(TAILS)}.")
        self.estimator = estimator
        self.n_bins = n_bins
        self.pseudo_count = pseudo_count
        self.tail = tail
        # Isotonic: points of a piecewise linear map. Binned: inner edges, and a value per bin (NaN: empty bin).
        # Temperature and beta: no abscissae, and the parameters.
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
            `ValueError`: if there is no question, a probability is NaN or outside [0, 1], a label is not of an option,
                or the lengths differ.
        """
        probabilities, labels = as_numbers(probabilities).astype(np.float64), as_numbers(labels)
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
        valid = (labels >= 0) & (labels < probabilities.shape[1] if labels.ndim == 1 else labels <= 1 + 1e-6)
        if not valid.all():
            row = int(np.argmin(valid if labels.ndim == 1 else valid.all(axis=1)))
            raise ValueError(f"Row {row} of the E-step has no valid label: {labels[row]}.")
        if self.estimator == "temperature":
            self._abscissae, self._ordinates = np.zeros(0), fit_temperature(probabilities, labels)
            return self
        confidences, predictions = probabilities.max(axis=1), probabilities.argmax(axis=1)
        if labels.ndim == 2:
            correct = np.take_along_axis(labels.astype(np.float64), predictions[:, None], axis=1)[:, 0]
        else:
            correct = (predictions == labels).astype(np.float64)
        if self.estimator == "beta":
            self._abscissae, self._ordinates = np.zeros(0), fit_beta(confidences, correct)
            return self
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
        return inner_edges(bins.edges), values

    @property
    def fitted(self) -> bool:
        """Whether the map has been estimated."""
        return self._abscissae is not None

    def accuracy(self, confidences):
        """
        Evaluate the map a(c), before it is clipped to the range of possible targets.

        With `estimator="temperature"` the value depends on all options of a question; this is the one for two options.

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
        c = _widened(_as_tensor(confidences))
        x, y = (torch.as_tensor(array, dtype=c.dtype, device=c.device) for array in (self._abscissae, self._ordinates))
        if self.estimator == "temperature":
            a = temperature_confidence(torch.stack([c, 1 - c], dim=-1), y)
        elif self.estimator == "beta":
            a = beta_map(c, y)
        elif self.estimator != "isotonic":
            # As in the calibration errors: an edge belongs to the bin above it, 1.0 to the last bin.
            a = y[torch.searchsorted(x, c.contiguous(), right=True)]
            a = torch.where(a.isnan(), c, a)
        elif len(x) == 1:
            a = y.expand_as(c)
        else:
            right = torch.searchsorted(x, c.contiguous()).clamp(1, len(x) - 1)
            left = right - 1
            # In float32 two points may be one.
            share = ((c - x[left]) / (x[right] - x[left]).clamp(min=torch.finfo(c.dtype).tiny)).clamp(0, 1)
            a = y[left] + share * (y[right] - y[left])
        if not isinstance(confidences, torch.Tensor):
            return a.numpy()
        return a.to(confidences.dtype) if confidences.is_floating_point() else a

    def targets(self, probabilities, mask=None):
        """
        Compute the target distributions t(. | x).

        The top probability becomes the value of the map, clipped to [1/K, 1]; the other options share the rest by the
        formula of `tail` and keep their order.

        Args:
            probabilities (`np.ndarray` or `torch.Tensor` of shape `(N, K)`):
                Option probabilities.
            mask (`np.ndarray` or `torch.Tensor` of shape `(N, K)`, *optional*):
                True where there is an option; by default everywhere. The targets of all other columns are 0.

        Returns:
            Targets of shape `(N, K)`, of the type of `probabilities`; each row sums to 1. No gradient flows through
            them.
        """
        q = _widened(_as_tensor(probabilities).detach())
        mask = torch.ones_like(q, dtype=torch.bool) if mask is None else _as_tensor(mask).to(q.device).bool()
        ranked, order = q.masked_fill(~mask, -1.0).sort(dim=-1, descending=True, stable=True)
        k = mask.sum(-1)
        if self.estimator == "temperature" and self.fitted:
            inverse = torch.as_tensor(self._ordinates, dtype=q.dtype, device=q.device)
            a = temperature_confidence(ranked, inverse)
        else:
            a = self.accuracy(ranked[:, 0].clamp(0, 1))
        t = TAILS[self.tail](torch.maximum(a, 1 / k).clamp(max=1.0), ranked, k)
        t = torch.zeros_like(t).scatter(-1, order, t)
        return t if isinstance(probabilities, torch.Tensor) else t.numpy()

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the fitted map as plain numbers and lists, for JSON (an empty bin is `None`)."""
        names = ("estimator", "n_bins", "pseudo_count", "tail")
        state = {name: getattr(self, name) for name in names}
        for name, array in (("abscissae", self._abscissae), ("ordinates", self._ordinates)):
            state[name] = None if array is None else [None if np.isnan(v) else float(v) for v in array]
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> EMCalibrator:
        """Rebuild a calibrator from the result of [`EMCalibrator.state_dict`]."""
        calibrator = cls(state["estimator"], state["n_bins"], state["pseudo_count"], state["tail"])
        if state["abscissae"] is not None:
            calibrator._abscissae = np.array(state["abscissae"], dtype=np.float64)
            calibrator._ordinates = np.array(state["ordinates"], dtype=np.float64)
        return calibrator


def _as_tensor(values) -> torch.Tensor:
    """Convert an array, whose strides may be negative, to a tensor."""
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(np.array(values))


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """Convert integers and 16-bit floats to float32, by the rule of `as_numbers`."""
    if not tensor.is_floating_point():
        return tensor.float()
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor
    return torch.from_numpy(as_numbers(tensor)).to(tensor.device, torch.float32)
