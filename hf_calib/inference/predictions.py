"""Option log-likelihoods of N questions, with labels, in memory and as an `.npz` file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
from numpy.lib.npyio import NpzFile
from scipy.special import logsumexp, softmax

from ..measures.validation import options_present, unpad


_OPTIONAL = ("target_probabilities", "subjects", "votes", "weights")
_PADDING = {"option_logits": -np.inf, "target_probabilities": 0.0}  # beyond the options of a question


@dataclass(eq=False)
class OptionPredictions:
    """
    Option log-likelihoods of N questions with up to K options each.

    Args:
        option_logits (`np.ndarray` of shape `(N, K)`):
            Log-likelihood of each option, in nats; -inf at the end of a row with fewer than K options.
        labels (`np.ndarray` of shape `(N,)`):
            Index of the right option, from 0; -100 where it is not known.
        ids (`np.ndarray` of shape `(N,)`):
            Ids of the questions, as text, in the order of the data set.
        target_probabilities (`np.ndarray` of shape `(N, K)`, *optional*):
            Target distribution of each question, if they have one; 0 beyond its options.
        subjects (`np.ndarray` of shape `(N,)`, *optional*):
            Subject of each question, as text, if they have one.
        votes (`np.ndarray` of shape `(N, 2)`, *optional*):
            Index of the likeliest option by each of two scores; see `votes` of
            [`~hf_calib.inference.predict.PredictionOptions`].
        weights (`np.ndarray` of shape `(N,)`, *optional*):
            Importance weight of each question, for a threshold.
        metadata (`dict`, *optional*):
            How the predictions were made: model, prompt format, number of questions left out, ...
    """

    option_logits: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    target_probabilities: np.ndarray | None = None
    subjects: np.ndarray | None = None
    votes: np.ndarray | None = None
    weights: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Softmax over the options, `(N, K)`, float32; 0 where there is no option."""
        logits = self.option_logits
        # Half precision is raised; float64 is rounded once, so that a stated 0.7 stays the float32 nearest to it.
        return softmax(logits.astype(np.promote_types(logits.dtype, np.float32)), axis=1).astype(np.float32)

    @property
    def of_answers(self) -> bool:
        """Whether these are confidences of written answers: option 0 is that the answer is right."""
        return "answer_confidence" in self.metadata

    @property
    def outcomes(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Probabilities and labels, as the diagrams take them.

        Of written answers: confidences `(N,)`, and whether each answer is right (1 or 0; NaN if it is not known).
        """
        if self.of_answers:
            return self.probabilities[:, 0], np.where(self.labels < 0, np.nan, self.labels == 0)
        return self.probabilities, self.labels

    @property
    def num_options(self) -> np.ndarray:
        """Number of options of each question, `(N,)`."""
        return options_present(self.option_logits)

    def unpadded(self, num_options: np.ndarray | None = None) -> tuple:
        """
        Arguments of the measures, without padding, so that each question has its own number of options.

        Args:
            num_options (`np.ndarray` of shape `(N,)`, *optional*):
                Number of options of each question. Defaults to the number of finite logits.

        Returns:
            `tuple`: probabilities, labels, and target probabilities or `None`. Where questions differ in their number
            of options, probabilities are a list of rows of different lengths.
        """
        lengths = self.num_options if num_options is None else num_options
        target = self.target_probabilities
        return unpad(self.probabilities, lengths), self.labels, None if target is None else unpad(target, lengths)

    @cached_property
    def option_mass(self) -> np.ndarray:
        """
        Probability of all options together under the full vocabulary, `(N,)`, in [0, 1].

        A small value means that the model would write something else than an option. NaN where options are not scored
        by their summed log-likelihood.
        """
        if self.metadata.get("option_normalization", "sum") != "sum":
            return np.full(len(self), np.nan, dtype=np.float32)
        # In half precision the sum may exceed 1 a little.
        return np.exp(np.minimum(logsumexp(self.option_logits.astype(np.float32), axis=1), 0))

    def recalibrated(self, calibrator) -> OptionPredictions:
        """
        Predictions for the same questions with calibrated probabilities.

        Args:
            calibrator ([`~hf_calib.PostHocCalibrator`]):
                A fitted calibrator: `transform` takes option logits `(N, K)`, and the subjects `(N,)` as `groups`, and
                returns probabilities `(N, K)`.

        Raises:
            `ValueError`: if the calibrator needs the subjects of the questions and there are none.
        """
        probabilities = calibrator.transform(self.option_logits, groups=self.subjects)
        named = {"calibrator": calibrator.method, "calibrator_digest": calibrator.digest}
        return self.with_probabilities(probabilities, **named)

    def with_probabilities(self, probabilities: np.ndarray, **metadata) -> OptionPredictions:
        """
        Predictions for the same questions with other probabilities, whose logarithms become the `option_logits`.

        Args:
            probabilities (`np.ndarray` of shape `(N, K)`):
                Probabilities of the options.
            metadata:
                Entries to add to the metadata.
        """
        # -inf would mark a probability of 0 as an option that does not exist.
        log_probabilities = np.log(np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float64).tiny))
        present = np.arange(log_probabilities.shape[1]) < self.num_options[:, None]
        option_logits = np.where(present, log_probabilities, -np.inf).astype(np.float32)
        return replace(self, option_logits=option_logits, metadata={**self.metadata, **metadata})

    def select(self, ids) -> OptionPredictions:
        """
        Select questions by their ids, in the given order, e.g. `reference.select(aligned.ids)`.

        The same ids in the same order are matched by position. Otherwise an id must be of one question only.

        Args:
            ids (`Sequence[str]`):
                Ids of questions.

        Raises:
            `ValueError`: if a question is not among those predicted, or its id is of several different ones.
        """
        ids, own = [str(name) for name in ids], self.ids.tolist()
        if ids == own:
            return replace(self)
        rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(own):
            rows_of.setdefault(name, []).append(row)
        if missing := [name for name in ids if name not in rows_of]:
            raise ValueError(
                f"{len(missing)} of {len(ids)} questions are not among the {len(self)} predicted, the first of them "
                f"{missing[0]!r}; predict both on the same questions"
            )
        repeated = [name for name in dict.fromkeys(ids) if not self._alike(rows_of[name])]
        if repeated:
            raise ValueError(
                f"{len(repeated)} ids are of several questions, the first of them {repeated[0]!r}, and the order of "
                "the questions differs: they cannot be matched. Give every question an id of its own, or predict both "
                "on the same questions in the same order"
            )
        rows = np.array([rows_of[name][0] for name in ids])
        arrays = {name: getattr(self, name) for name in ("option_logits", "labels", "ids", *_OPTIONAL)}
        return replace(self, **{name: None if array is None else array[rows] for name, array in arrays.items()})

    def matching(self, ids, labels) -> OptionPredictions:
        """
        Select questions by their ids, in the given order, and check that their answers agree.

        Args:
            ids (`Sequence[str]`), labels (`Sequence[int]`):
                Ids and answers of questions, e.g. of the predictions of another model; -100 for an unknown answer.

        Raises:
            `ValueError`: see [`OptionPredictions.select`]; and if a question has another answer, because the two are
                of different questions, or of options in another order.
        """
        selected, labels = self.select(ids), np.asarray(labels)
        known = (selected.labels >= 0) & (labels >= 0)
        if (differing := known & (selected.labels != labels)).any():
            row = int(np.argmax(differing))
            raise ValueError(
                f"the answer of question {str(ids[row])!r} is option {labels[row]}, in the reference "
                f"predictions option {selected.labels[row]}: predict both on the same questions and options"
            )
        return selected

    def _alike(self, rows: Sequence[int]) -> bool:
        """Whether rows with the same id have the same label and, up to rounding, the same logits."""
        first, *others = rows
        return all(
            self.labels[row] == self.labels[first]
            and np.allclose(self.option_logits[row], self.option_logits[first], rtol=1e-3, atol=1e-3)
            for row in others
        )

    @classmethod
    def join(cls, parts: Sequence[OptionPredictions]) -> OptionPredictions:
        """
        Concatenate predictions for disjoint sets of questions.

        Args:
            parts (`Sequence[OptionPredictions]`):
                At least one. The metadata are those of the first, without its fingerprint. Optional arrays are kept
                where all parts have them.

        Raises:
            `ValueError`: if a question is in two of them.
        """
        # A question may be repeated within a part.
        counts = Counter(name for part in parts for name in set(part.ids.tolist()))
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(
                f"question {twice[0]!r} was predicted twice; if ids start again in the data, give every question "
                "an id of its own"
            )
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
        """Write all arrays, with `probabilities` and `option_mass`, to an `.npz` file: completely or not at all."""
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
        """
        Read a file that [`OptionPredictions.save`] wrote.

        Raises:
            `ValueError`: for a damaged file, and for one that holds something else.
        """
        with open_npz(npz_path(path)) as arrays:
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
    """The path of an `.npz` file, with `~` expanded; another ending is a `ValueError`."""
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"{path}: predictions are .npz files; name it {path.name}.npz")
    return path


@contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Open an `.npz` file without pickled objects; a damaged one is a `ValueError`."""
    with open(path, "rb") as file:
        if not is_zipfile(file):
            raise ValueError(f"{path} is damaged or incomplete; write it again (resume=False, `--no_resume`)")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); write it again (resume=False, `--no_resume`)") from None


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a temporary file and rename it, so that `path` is complete as soon as it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)
    except BaseException:  # also an interruption; a full disk needs the space
        unfinished.unlink(missing_ok=True)
        raise
