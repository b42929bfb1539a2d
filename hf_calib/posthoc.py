"""Post-hoc calibrators: fitted on option logits and labels, they leave the predicted option as it is."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np

from .inputs import as_labels


_LOG_TEMPERATURE_LIMIT = 7.0  # temperatures from 0.0009 to 1,097


class PostHocCalibrator:
    """
    Base class: `fit` on a calibration split, `transform` anything, `save` and `load`.

    A subclass names itself in `method` and keeps what it has learnt in the float64 arrays listed in `parameters`.
    """

    method: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]

    def fit(self, option_logits, labels) -> PostHocCalibrator:
        """
        Learn the calibration map.

        Args:
            option_logits (array-like of shape `(N, K)`):
                Option logits, `-inf` where a question has fewer than K options.
            labels (array-like of shape `(N,)`):
                Index of the right option.

        Returns:
            The calibrator itself.
        """
        logits = check_option_logits(option_logits)
        labels = as_labels(labels, *logits.shape)
        padded = np.isneginf(logits[np.arange(len(labels)), labels])
        if padded.any():
            row = int(np.argmax(padded))
            raise ValueError(f"`labels` row {row} is {labels[row]}, an option whose logit is -inf (padding).")
        self._fit(logits, labels)
        return self

    def transform(self, option_logits) -> np.ndarray:
        """
        Calibrated option probabilities, float64.

        Args:
            option_logits (array-like of shape `(N, K)`):
                Option logits, `-inf` where a question has fewer than K options.

        Returns:
            `np.ndarray` of shape `(N, K)`: rows sum to 1, padding is 0, every row's largest option stays the largest.
        """
        missing = [name for name in self.parameters if not hasattr(self, name)]
        if missing:
            raise RuntimeError(f"This {type(self).__name__} is not fitted: call `fit(option_logits, labels)` first.")
        return self._transform(check_option_logits(option_logits))

    def save(self, path) -> None:
        """
        Write `calibrator.safetensors` and `calibrator.json` into a folder.

        Args:
            path (`str` or `PathLike`):
                The folder; made where it is missing.
        """
        from safetensors.numpy import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64)) for name in self.parameters}
        save_file(arrays, folder / "calibrator.safetensors")
        (folder / "calibrator.json").write_text(json.dumps({"method": self.method}, indent=2) + "\n")

    @classmethod
    def load(cls, path) -> PostHocCalibrator:
        """
        Read a calibrator back. `PostHocCalibrator.load` reads any kind, a subclass only its own.

        Args:
            path (`str` or `PathLike`):
                The folder that [`~PostHocCalibrator.save`] wrote.
        """
        from safetensors.numpy import load_file

        config = Path(path) / "calibrator.json"
        if not config.is_file():
            raise FileNotFoundError(f"{config} does not exist: not a folder that a calibrator was saved in.")
        method = json.loads(config.read_text()).get("method")
        kinds = {kind.method: kind for kind in PostHocCalibrator.__subclasses__()}
        if method not in kinds or not issubclass(kinds[method], cls):
            raise ValueError(f"{config} holds the method {method!r}, which {cls.__name__} cannot load.")
        calibrator = kinds[method]()
        for name, array in load_file(Path(path) / "calibrator.safetensors").items():
            setattr(calibrator, name, array)
        return calibrator


def check_option_logits(option_logits) -> np.ndarray:
    """Option logits as float64 `(N, K)`, `-inf` as padding; NaN, `+inf` and rows of one option are errors."""
    logits = np.asarray(option_logits, dtype=np.float64)
    if logits.size == 0:
        raise ValueError("`option_logits` is empty.")
    if logits.ndim != 2:
        raise ValueError(f"`option_logits` must have shape (N, K), got shape {logits.shape}.")
    bad = np.isnan(logits) | np.isposinf(logits)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"`option_logits` row {row}, option {column} is {logits[row, column]} ({int(bad.any(axis=1).sum())} of "
            f"{len(logits)} rows): look at the model's output for that question (half precision overflow?)."
        )
    few = np.isfinite(logits).sum(axis=1) < 2
    if few.any():
        raise ValueError(f"`option_logits` row {int(np.argmax(few))} has fewer than two options that are not -inf.")
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities `(N, K)` of logits `(N, K)`, 0 where the logit is `-inf`."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


class TemperatureScaling(PostHocCalibrator):
    """
    Temperature scaling (Guo et al., arXiv 1706.04599): `softmax(z / T)`, with the T of least negative log-likelihood.

    In `1 / T` the objective is convex, so the optimum is where its derivative is zero, and that root is found to
    machine precision: no step size, no early end. Where every calibration example is right (or the logits say less
    than nothing) there is no best T; it then stops at a limit of about 0.0009 (or 1,097), with a warning.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.posthoc import TemperatureScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> calibrator = TemperatureScaling().fit(logits, [0, 0, 0, 0])
    >>> round(float(calibrator.transform(logits)[0, 0]), 4)
    0.75

    ```
    """

    method = "temperature"
    parameters = ("temperature",)

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        from scipy.optimize import brentq

        rows = np.arange(len(labels))
        shifted = logits - logits.max(axis=1, keepdims=True)
        values = np.where(np.isneginf(shifted), 0.0, shifted)  # padding has weight 0, and 0 * -inf would be NaN
        right = shifted[rows, labels].mean()

        def slope(log_temperature: float) -> float:
            """Derivative of the negative log-likelihood in 1 / T."""
            weights = np.exp(shifted * np.exp(-log_temperature))
            return float(np.mean((weights * values).sum(axis=1) / weights.sum(axis=1)) - right)

        limit = _LOG_TEMPERATURE_LIMIT
        if slope(limit) >= 0:  # flat is best
            log_temperature = limit
        elif slope(-limit) <= 0:  # sharper is always better
            log_temperature = -limit
        else:
            log_temperature = brentq(slope, -limit, limit, xtol=1e-12)
        if abs(log_temperature) == limit:
            what = "no better than uniform" if log_temperature > 0 else "never wrong"
            warnings.warn(
                f"The logits are {what} on these {len(labels)} examples, so no temperature is best: it stops at "
                f"{np.exp(log_temperature):.4g}. Use more calibration examples.",
                stacklevel=3,
            )
        self.temperature = np.array([np.exp(log_temperature)])

    def _transform(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits / self.temperature)


class TemperatureIsotonic(PostHocCalibrator):
    """
    TS-IR: a temperature, then an isotonic regression of "correct" on the top confidence.

    Accuracy is preserved: the predicted option gets the calibrated confidence, the rest of the mass goes to the others
    in their old proportions, and the confidence is raised where the predicted option would otherwise lose its place.
    No confidence goes above `1 - 1 / (n + 2)`, which is all that n calibration examples can vouch for.
    """

    method = "temperature_isotonic"
    parameters = ("temperature", "confidences", "accuracies")

    def _fit(self, logits: np.ndarray, labels: np.ndarray) -> None:
        from sklearn.isotonic import IsotonicRegression

        self.temperature = TemperatureScaling().fit(logits, labels).temperature
        probabilities = softmax(logits / self.temperature)
        correct = probabilities.argmax(axis=1) == labels
        regression = IsotonicRegression(y_min=0.0, y_max=1 - 1 / (len(labels) + 2))
        regression.fit(probabilities.max(axis=1), correct.astype(np.float64))
        self.confidences, self.accuracies = regression.X_thresholds_, regression.y_thresholds_

    def _transform(self, logits: np.ndarray) -> np.ndarray:
        logits = logits / self.temperature
        probabilities = softmax(logits)
        confidences = np.interp(probabilities.max(axis=1), self.confidences, self.accuracies)
        return set_confidence(logits, confidences)


def set_confidence(logits: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """
    Give the predicted option of each row a new confidence and keep the ranking.

    Args:
        logits (`np.ndarray` of shape `(N, K)`):
            Option logits, `-inf` as padding. (Logits, because a saturated softmax has lost the proportions of the
            rest.)
        confidences (`np.ndarray` of shape `(N,)`):
            The confidence wanted; raised to just above the runner-up's share where it lies below that.
    """
    rows, prediction = np.arange(len(logits)), logits.argmax(axis=1)
    others = logits.copy()
    others[rows, prediction] = -np.inf
    rest = softmax(others)
    runner_up = rest.max(axis=1)
    # c >= (1 - c) * runner_up, and a hair more, so that a tie does not hand the prediction to another option
    least = runner_up / (1 + runner_up) * (1 + 1e-6)
    confidences = np.maximum(confidences, least)
    probabilities = rest * (1 - confidences)[:, None]
    probabilities[rows, prediction] = confidences
    return probabilities
