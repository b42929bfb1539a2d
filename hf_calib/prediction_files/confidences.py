"""Confidences of N predictions and whether they are right, without probabilities of the other options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.predictions import npz_path, save_npz


_OPTIONAL = ("subjects", "weights")


@dataclass(eq=False)
class ConfidencePredictions:
    """
    Confidences and outcomes of N predictions.

    Args:
        confidences (`np.ndarray` of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (`np.ndarray` of shape `(N,)`):
            1 where the prediction is right, else 0.
        ids (`np.ndarray` of shape `(N,)`):
            Ids of the questions, as text.
        subjects (`np.ndarray` of shape `(N,)`, *optional*):
            Subject of each question, as text.
        weights (`np.ndarray` of shape `(N,)`, *optional*):
            Importance weight of each question, for a threshold.
        metadata (`dict`, *optional*):
            Where the predictions are from.
    """

    confidences: np.ndarray
    correct: np.ndarray
    ids: np.ndarray
    subjects: np.ndarray | None = None
    weights: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.confidences)

    @property
    def labels(self) -> np.ndarray:
        """Outcomes as integers `(N,)`, in place of the right options, which are not known."""
        return self.correct.astype(int)

    @property
    def outcomes(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidences, and whether the predictions are right, as the diagrams take them."""
        return self.confidences, self.correct

    def select(self, ids: Sequence[str]) -> ConfidencePredictions:
        """
        Select predictions by the ids of their questions, in the given order.

        Raises:
            `ValueError`: a question is not among those predicted, or its id is of several.
        """
        ids, own = [str(name) for name in ids], [str(name) for name in self.ids]
        if ids == own:
            return self
        rows = {name: row for row, name in enumerate(own)}
        if missing := [name for name in ids if name not in rows]:
            raise ValueError(
                f"{len(missing)} of {len(ids)} questions are not among the {len(self)} predicted, the first of them "
                f"{missing[0]!r}; both must be of the same questions"
            )
        if len(rows) < len(own):
            raise ValueError(
                f"{len(own) - len(rows)} ids are of several questions, and the order of the questions differs: give "
                "every question an id of its own"
            )
        order = np.array([rows[name] for name in ids])
        arrays = {name: getattr(self, name) for name in ("confidences", "correct", "ids", *_OPTIONAL)}
        return replace(self, **{name: None if array is None else array[order] for name, array in arrays.items()})

    @classmethod
    def join(cls, parts: Sequence[ConfidencePredictions]) -> ConfidencePredictions:
        """Concatenate predictions for disjoint sets of questions; the metadata are those of the first."""
        arrays = {
            name: [getattr(part, name) for part in parts] for name in ("confidences", "correct", "ids", *_OPTIONAL)
        }
        known = {name: each for name, each in arrays.items() if not any(array is None for array in each)}
        return cls(**{name: np.concatenate(each) for name, each in known.items()}, metadata=parts[0].metadata)

    def save(self, path: str | Path) -> None:
        """Write all arrays to an `.npz` file: completely or not at all."""
        arrays = {"confidences": self.confidences, "correct": self.correct, "ids": self.ids}
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        arrays |= {name: array for name, array in optional.items() if array is not None}
        save_npz(npz_path(path), {**arrays, "metadata": np.array(json.dumps(self.metadata))})
