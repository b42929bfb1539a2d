"""The base class of post-hoc calibrators, and checks of their arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.special import softmax

from ..data.layouts import digest
from ..measures.validation import as_labels, as_numbers, parsed


_FORMAT_VERSION = 1


class PostHocCalibrator:
    """
    Base class of post-hoc calibrators: fit a map of option logits to probabilities, apply it, save and load it.

    A subclass sets `method` and `parameters`, and implements `_fit` and `_transform`. [`PostHocCalibrator.load`] then
    finds it by its `method`.

    Class attributes:
        method (`str`): Name in files and on the command line.
        parameters (`tuple[str, ...]`): Names of the fitted arrays, float64.
        title (`str`): Name in tables.
        keeps_order (`bool`): Whether the order of a question's options, and so the accuracy, is preserved.
        supervised (`bool`): Whether it is fitted on labels; otherwise on a reference model's option logits.
        grouped (`bool`): Whether it needs the group of each question, such as its subject.
        names (`tuple[str, ...]`): Names of the fitted lists of text.
    """

    method: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    keeps_order: ClassVar[bool] = True
    supervised: ClassVar[bool] = True
    grouped: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = ()

    kinds: ClassVar[dict[str, type[PostHocCalibrator]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "method"):
            cls.kinds[cls.method] = cls

    def fit(self, option_logits, labels, *, groups=None) -> PostHocCalibrator:
        """
        Fit the calibration map.

        Args:
            option_logits (array-like of shape `(N, K)`):
                Option logits, `-inf` where a question has fewer than K options.
            labels (array-like of shape `(N,)`):
                Index of the right option.
            groups (array-like of shape `(N,)`, *optional*):
                Name of the group (subject) of each question. Only a `grouped` calibrator uses them.

        Returns:
            The calibrator itself.

        Raises:
            `ValueError`: for invalid arguments, and if a `grouped` calibrator gets no groups.
        """
        logits = check_option_logits(option_logits)
        self._fit(logits, check_labels(labels, logits), *self._group_arguments(groups, logits))
        return self

    def transform(self, option_logits, *, groups=None) -> np.ndarray:
        """
        Compute calibrated option probabilities.

        Args:
            option_logits (array-like of shape `(N, K)`):
                Option logits, `-inf` where a question has fewer than K options.
            groups (array-like of shape `(N,)`, *optional*):
                Name of the group (subject) of each question. Only a `grouped` calibrator uses them.

        Returns:
            `np.ndarray` of shape `(N, K)`: probabilities, float64; rows sum to 1, padding is 0. With `keeps_order` the
            largest option of every row stays the largest.

        Raises:
            `RuntimeError`: if the calibrator is not fitted.
            `ValueError`: for invalid arguments, and if a `grouped` calibrator gets no groups.
        """
        missing = [name for name in self.parameters if not hasattr(self, name)]
        if missing:
            raise RuntimeError(f"This {type(self).__name__} is not fitted: call `fit` first.")
        logits = check_option_logits(option_logits)
        return self._transform(logits, *self._group_arguments(groups, logits))

    def _group_arguments(self, groups, logits: np.ndarray) -> tuple[np.ndarray, ...]:
        """The checked groups as further arguments of `_fit` and `_transform`; none if the calibrator uses none."""
        if not self.grouped:
            return ()
        if groups is None:
            raise ValueError(
                f"{type(self).__name__} needs the subject of every question: pass `groups`, e.g. "
                "`groups=predictions.subjects`. Questions without subjects need another method, e.g. temperature "
                "scaling."
            )
        groups = np.asarray(groups).astype(np.str_)
        if groups.shape != (len(logits),):
            raise ValueError(f"`groups` must have shape ({len(logits)},), one name a question, got {groups.shape}.")
        return (groups,)

    @property
    def digest(self) -> str:
        """Digest of the method and of what was fitted: a saved calibrator and the loaded one have the same."""
        arrays = {name: [array.shape, array.tobytes().hex()] for name, array in self._arrays().items()}
        names = {name: getattr(self, name) for name in self.names}
        return digest(self.method, json.dumps([arrays, names], sort_keys=True))

    def _arrays(self) -> dict[str, np.ndarray]:
        """The fitted arrays, as they are saved."""
        return {name: np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64)) for name in self.parameters}

    def save(self, path) -> None:
        """
        Save the calibrator to a folder, as `calibrator.safetensors` and `calibrator.json`.

        Args:
            path (`str` or `PathLike`):
                The folder, which is created if it is missing.
        """
        from safetensors.numpy import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._arrays(), folder / "calibrator.safetensors")
        config = {"format_version": _FORMAT_VERSION, "method": self.method}
        config |= {name: getattr(self, name) for name in self.names}
        (folder / "calibrator.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, path) -> PostHocCalibrator:
        """
        Load a calibrator. `PostHocCalibrator.load` loads any kind, a subclass only its own.

        Args:
            path (`str` or `PathLike`):
                The folder that [`~PostHocCalibrator.save`] wrote.

        Raises:
            `FileNotFoundError`: if it holds no calibrator.
            `ValueError`: for a calibrator of another kind, of a newer version, or without its parameters.
        """
        from safetensors.numpy import load_file

        config_path = Path(path) / "calibrator.json"
        if not config_path.is_file():
            raise FileNotFoundError(f"{config_path} does not exist: no calibrator was saved in this folder.")
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
        if missing := set(kind.names).difference(config):
            raise ValueError(f"{config_path} lacks {', '.join(sorted(missing))}.")
        for name in kind.parameters:
            setattr(calibrator, name, arrays[name])
        for name in kind.names:
            setattr(calibrator, name, config[name])
        return calibrator


def check_labels(labels, logits: np.ndarray) -> np.ndarray:
    """Check labels against checked option logits, and return them as integers `(N,)`."""
    labels = as_labels(labels, *logits.shape)
    padded = np.isneginf(logits[np.arange(len(labels)), labels])
    if padded.any():
        row = int(np.argmax(padded))
        raise ValueError(f"`labels` row {row} is {labels[row]}, an option whose logit is -inf (padding).")
    return labels


def check_option_logits(option_logits) -> np.ndarray:
    """Check option logits and return them as float64 `(N, K)`: no NaN, no `+inf`, at least two options a row."""
    logits = as_numbers(option_logits)
    logits = parsed(logits, "option_logits") if logits.dtype.kind in "OUS" and logits.ndim == 2 else logits
    logits = logits.astype(np.float64)
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


def set_confidence(logits: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """
    Set the probability of the predicted option of each row, and keep the order of the options.

    The other options share the rest in their old proportions.

    Args:
        logits (`np.ndarray` of shape `(N, K)`):
            Option logits, `-inf` as padding. A saturated softmax would have lost the proportions of the others.
        confidences (`np.ndarray` of shape `(N,)`):
            New confidences. One that would let the second option overtake is raised to just above that limit.

    Returns:
        `np.ndarray` of shape `(N, K)`: probabilities.
    """
    rows, prediction = np.arange(len(logits)), logits.argmax(axis=1)
    others = logits.copy()
    others[rows, prediction] = -np.inf
    rest = softmax(others, axis=1)
    runner_up = rest.max(axis=1)
    # The limit is c = (1 - c) * runner_up. A little more avoids a tie.
    least = runner_up / (1 + runner_up) * (1 + 1e-6)
    confidences = np.maximum(confidences, least)
    probabilities = rest * (1 - confidences)[:, None]
    probabilities[rows, prediction] = confidences
    return probabilities
