"""Option predictions: log-likelihoods of the options of many questions, with labels, on disk and in memory."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..measures.validation import options_present, unpad


if TYPE_CHECKING:
    from ..posthoc import PostHocCalibrator

_OPTIONAL = ("target_probabilities", "subjects", "votes")
_PADDING = {"option_logits": -np.inf, "target_probabilities": 0.0}  # beyond the options of a question


@dataclass(eq=False)
class OptionPredictions:
    """
    What a model thinks of the options of N questions of up to K options each.

    Args:
        option_logits (`np.ndarray` of shape `(N, K)`):
            Log-likelihood of each option; -inf at the end of the row of a question with fewer than K options.
        labels (`np.ndarray` of shape `(N,)`):
            Index of the right option; -100 where it was not asked for.
        ids (`np.ndarray` of shape `(N,)`):
            Ids of the questions (text), in the order of the data set.
        target_probabilities (`np.ndarray` of shape `(N, K)`, *optional*):
            Target distribution, where the questions carry one; 0 beyond their options.
        subjects (`np.ndarray` of shape `(N,)`, *optional*):
            Subject of each question (text), where the questions have one.
        votes (`np.ndarray` of shape `(N, 2)`, *optional*):
            Index of the option that each of two readings of the log-likelihoods prefers, see [`~hf_calib.inference.predict.predict_options`].
        metadata (`dict`, *optional*):
            How the predictions came about, for the record: model, prompt format, number of questions left out, ...
    """

    option_logits: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    target_probabilities: np.ndarray | None = None
    subjects: np.ndarray | None = None
    votes: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Softmax over the options, `(N, K)`; 0 where there is no option."""
        return torch.from_numpy(self.option_logits).float().softmax(-1).numpy()

    @property
    def num_options(self) -> np.ndarray:
        """Number of options of each question, `(N,)`."""
        return options_present(self.option_logits)

    def unpadded(self, num_options: np.ndarray | None = None) -> tuple:
        """
        What the measures take: probabilities, labels, target probabilities or `None`. Questions that differ in their
        number of options are rows of their own length, by which chance is 1/2 for one and 1/4 for another.

        Args:
            num_options (`np.ndarray` of shape `(N,)`, *optional*):
                Number of options of each question, where it is known from elsewhere.
        """
        lengths = self.num_options if num_options is None else num_options
        target = self.target_probabilities
        return unpad(self.probabilities, lengths), self.labels, None if target is None else unpad(target, lengths)

    @cached_property
    def option_mass(self) -> np.ndarray:
        """
        Probability of all options together under the full vocabulary, `(N,)`. Small values say that the model wants to
        write something else than an option. NaN where options are scored by their mean log-likelihood.
        """
        if self.metadata.get("option_normalization") == "mean":
            return np.full(len(self), np.nan, dtype=np.float32)
        # The head's own precision (bfloat16, say) may lift the sum a little above 1.
        return torch.from_numpy(self.option_logits).float().logsumexp(-1).exp().clamp(max=1).numpy()

    def recalibrated(self, calibrator: PostHocCalibrator) -> OptionPredictions:
        """The same questions under a fitted post-hoc calibrator."""
        return self.with_probabilities(calibrator.transform(self.option_logits), calibrator=type(calibrator).__name__)

    def with_probabilities(self, probabilities: np.ndarray, **metadata) -> OptionPredictions:
        """
        The same questions with other probabilities `(N, K)`: `option_logits` are their logarithms. An option of probability
        0 is not one that is lacking: its logarithm is that of the least number, whose softmax is 0 again.
        """
        log_probabilities = np.log(np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float64).tiny))
        present = np.arange(log_probabilities.shape[1]) < self.num_options[:, None]
        option_logits = np.where(present, log_probabilities, -np.inf).astype(np.float32)
        return replace(self, option_logits=option_logits, metadata={**self.metadata, **metadata})

    def select(self, ids) -> OptionPredictions:
        """
        Predictions for these questions, in this order, e.g. those of another model: `reference.select(aligned.ids)`.

        Args:
            ids (`Sequence[str]`):
                Ids of questions.
        """
        row_of = {name: row for row, name in enumerate(self.ids.tolist())}
        if missing := [str(name) for name in ids if str(name) not in row_of]:
            raise ValueError(
                f"{len(missing)} of {len(ids)} questions are not among the {len(self)} predicted, the first of them "
                f"{missing[0]!r}; predict both on the same questions"
            )
        rows = np.array([row_of[str(name)] for name in ids])
        arrays = {name: getattr(self, name) for name in ("option_logits", "labels", "ids", *_OPTIONAL)}
        return replace(self, **{name: None if array is None else array[rows] for name, array in arrays.items()})

    @classmethod
    def join(cls, parts: Sequence[OptionPredictions]) -> OptionPredictions:
        """
        Predictions of several models for other questions each, as one, with the metadata of the first.

        Args:
            parts (`Sequence[OptionPredictions]`):
                At least one. Arrays that not all have are left out.

        Raises:
            `ValueError`: if a question is in two of them.
        """
        # One that is twice in the data is twice in its own part.
        counts = Counter(name for part in parts for name in set(part.ids.tolist()))
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"question {twice[0]!r} was predicted twice")
        width = max(part.option_logits.shape[1] for part in parts)

        def joined(name: str) -> np.ndarray:
            rows = [getattr(part, name) for part in parts]
            if name in _PADDING:
                rows = [np.pad(r, ((0, 0), (0, width - r.shape[1])), constant_values=_PADDING[name]) for r in rows]
            return np.concatenate(rows)

        shared = [name for name in _OPTIONAL if all(getattr(part, name) is not None for part in parts)]
        arrays = {name: joined(name) for name in ("option_logits", "labels", "ids", *shared)}
        metadata = {name: value for name, value in parts[0].metadata.items() if name != "fingerprint"}
        for name, together in (("single_tokens", all), ("too_long", sum)):
            if all(name in part.metadata for part in parts):
                metadata[name] = together(part.metadata[name] for part in parts)
        return cls(**arrays, metadata=metadata)

    def save(self, path: str | Path) -> None:
        """Writes an `.npz` file of all arrays, `probabilities` and `option_mass` included; whole or not at all."""
        arrays = {
            "option_logits": self.option_logits,
            "probabilities": self.probabilities,
            "option_mass": self.option_mass,
            "labels": self.labels,
            "ids": self.ids,
            "metadata": np.array(json.dumps(self.metadata)),
        }
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        arrays |= {name: array for name, array in optional.items() if array is not None}
        save_npz(npz_path(path), arrays)

    @classmethod
    def load(cls, path: str | Path) -> OptionPredictions:
        """Reads what [`OptionPredictions.save`] wrote."""
        with np.load(npz_path(path), allow_pickle=False) as arrays:
            if missing := {"option_logits", "labels", "ids"}.difference(arrays.files):
                raise ValueError(f"{path} holds no option predictions: it lacks {', '.join(sorted(missing))}")
            return cls(
                option_logits=arrays["option_logits"],
                labels=arrays["labels"],
                ids=arrays["ids"],
                metadata=json.loads(str(arrays["metadata"])) if "metadata" in arrays else {},
                **{name: arrays[name] for name in _OPTIONAL if name in arrays},
            )


def npz_path(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"{path}: predictions are .npz files; name it {path.name}.npz")
    return path


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with open(unfinished, "wb") as file:
        np.savez(file, **arrays)
    unfinished.replace(path)
