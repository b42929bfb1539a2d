"""What every post-hoc calibrator has: fit, transform, save, load, and checks of what comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..measures.validation import as_labels


_FORMAT_VERSION = 1


class PostHocCalibrator:
    """
    Base class: `fit` on a calibration split, `transform` anything, `save` and `load`.

    A subclass names itself in `method`, keeps what it has learnt in the float64 arrays listed in `parameters`, and is then
    known to [`PostHocCalibrator.load`].

    Class attributes:
        method (`str`): Name in files and on the command line.
        parameters (`tuple[str, ...]`): Names of the learnt arrays.
        title (`str`): Name in tables.
        keeps_order (`bool`): Whether the order of a question's options, and with it the accuracy, stays as it is.
        supervised (`bool`): Whether it is fitted on labels (or on a reference model's option logits).
    """

    method: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    keeps_order: ClassVar[bool] = True
    supervised: ClassVar[bool] = True

    kinds: ClassVar[dict[str, type[PostHocCalibrator]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "method"):
            cls.kinds[cls.method] = cls

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
        self._fit(logits, check_labels(labels, logits))
        return self

    def transform(self, option_logits) -> np.ndarray:
        """
        Calibrated option probabilities, float64.

        Args:
            option_logits (array-like of shape `(N, K)`):
                Option logits, `-inf` where a question has fewer than K options.

        Returns:
            `np.ndarray` of shape `(N, K)`: rows sum to 1, padding is 0. Where `keeps_order`, every row's largest option
            stays the largest.
        """
        missing = [name for name in self.parameters if not hasattr(self, name)]
        if missing:
            raise RuntimeError(f"This {type(self).__name__} is not fitted: call `fit` first.")
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
        config = {"format_version": _FORMAT_VERSION, "method": self.method}
        (folder / "calibrator.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, path) -> PostHocCalibrator:
        """
        Read a calibrator back. `PostHocCalibrator.load` reads any kind, a subclass only its own.

        Args:
            path (`str` or `PathLike`):
                The folder that [`~PostHocCalibrator.save`] wrote.
        """
        from safetensors.numpy import load_file

        config_path = Path(path) / "calibrator.json"
        if not config_path.is_file():
            raise FileNotFoundError(f"{config_path} does not exist: not a folder that a calibrator was saved in.")
        config = json.loads(config_path.read_text())
        if config.get("format_version", 1) > _FORMAT_VERSION:
            raise ValueError(
                f"{config_path} was written by a newer hf_calib: upgrade it with `pip install -U hf_calib`."
            )
        kind = cls.kinds.get(config.get("method"))
        if kind is None or not issubclass(kind, cls):
            raise ValueError(
                f"{config_path} holds the method {config.get('method')!r}, which {cls.__name__} cannot load."
            )
        calibrator, arrays = kind(), load_file(Path(path) / "calibrator.safetensors")
        if missing := set(kind.parameters).difference(arrays):
            raise ValueError(f"{Path(path) / 'calibrator.safetensors'} lacks {', '.join(sorted(missing))}.")
        for name in kind.parameters:
            setattr(calibrator, name, arrays[name])
        return calibrator


def check_labels(labels, logits: np.ndarray) -> np.ndarray:
    """Labels as integers `(N,)`, one for each row of checked option logits; one that names padding is an error."""
    labels = as_labels(labels, *logits.shape)
    padded = np.isneginf(logits[np.arange(len(labels)), labels])
    if padded.any():
        row = int(np.argmax(padded))
        raise ValueError(f"`labels` row {row} is {labels[row]}, an option whose logit is -inf (padding).")
    return labels


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


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities `(N, K)` of logits `(N, K)`, `-inf` where the logit is."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def folds(n: int, n_folds: int, seed: int) -> np.ndarray:
    """Fold of each of n examples, `(n,)`: random, of sizes that differ by one at most."""
    return np.random.default_rng(seed).permutation(n) % n_folds


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities `(N, K)` of logits `(N, K)`, 0 where the logit is `-inf`."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


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
