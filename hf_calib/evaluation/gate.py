"""Gates: a confidence threshold with its guarantee and the predictions that it is of, as a gate.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..inference.predictions import OptionPredictions
from ..measures.threshold import AccuracyThreshold, accuracy_threshold, accuracy_thresholds, importance_sample
from ..prediction_files.confidences import ConfidencePredictions
from .gate_fingerprint import CROSS_VALIDATED, check_fingerprint, predictions_fingerprint
from .protocol import questions_digest
from .tables import write_json


FILE = "gate.json"
_KEPT = 500  # most points of the distribution of the confidences in a gate.json


class Answers(NamedTuple):
    """
    Confidences of N predictions and whether they are right, as far as it is known.

    Attributes:
        confidences (`np.ndarray` of shape `(N,)`): Confidence of each prediction.
        correct (`np.ndarray` of shape `(N,)`): 1 right, 0 wrong, NaN unknown.
        subjects (`np.ndarray` of shape `(N,)`, *optional*): Subject of each question.
    """

    confidences: np.ndarray
    correct: np.ndarray
    subjects: np.ndarray | None

    @classmethod
    def of(cls, predictions: OptionPredictions | ConfidencePredictions) -> Answers:
        """Take the predicted options of predictions."""
        if isinstance(predictions, ConfidencePredictions):
            return cls(predictions.confidences, predictions.correct.astype(np.float64), predictions.subjects)
        if predictions.of_answers:
            confidences, correct = predictions.outcomes
            return cls(confidences.astype(np.float64), correct, predictions.subjects)
        probabilities, labels = predictions.outcomes
        correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
        return cls(
            probabilities.max(axis=1).astype(np.float64), np.where(labels < 0, np.nan, correct), predictions.subjects
        )

    @classmethod
    def joined(cls, parts: Iterable[Answers]) -> Answers:
        """Concatenate answers; the subjects are kept where all parts have them."""
        confidences, correct, subjects = zip(*parts, strict=True)
        known = all(names is not None for names in subjects)
        return cls(np.concatenate(confidences), np.concatenate(correct), np.concatenate(subjects) if known else None)

    @property
    def labelled(self) -> np.ndarray:
        """Whether the outcome of each prediction is known, `(N,)`."""
        return ~np.isnan(self.correct)


@dataclass
class Gate:
    """
    Thresholds of the confidence with a guarantee on the accuracy of the answers.

    Args:
        target_accuracy (`float`):
            Accuracy that is guaranteed.
        level (`float`):
            Probability of the guarantee.
        thresholds (`dict[str, AccuracyThreshold]`):
            Thresholds by subject, or one of the name `""` for all questions.
        fingerprint (`dict`):
            What the predictions are of, see
            [`~hf_calib.evaluation.gate_fingerprint.predictions_fingerprint`].
        questions (`str`):
            Digest of the questions and their answers.
        confidences (`dict[str, list]`):
            Distribution of the confidences: `values` and how many confidences are at most each and above the last
            (`counts`).
    """

    target_accuracy: float
    level: float
    thresholds: dict[str, AccuracyThreshold]
    fingerprint: dict[str, Any]
    questions: str
    confidences: dict[str, list] = field(repr=False)

    @classmethod
    def fit(
        cls,
        predictions: OptionPredictions | ConfidencePredictions,
        target_accuracy: float,
        level: float = 0.95,
        by_subject: bool = False,
        max_weight: float | None = None,
    ) -> Gate:
        """
        Find thresholds on labelled predictions.

        Args:
            predictions ([`OptionPredictions`] or [`~hf_calib.prediction_files.confidences.ConfidencePredictions`]):
                Predictions with their right options, of questions that did not train or calibrate the model.
            target_accuracy (`float`):
                Accuracy in (0, 1) that the answers must have.
            level (`float`, *optional*, defaults to `0.95`):
                Probability of the guarantee.
            by_subject (`bool`, *optional*, defaults to `False`):
                Whether each subject has a threshold of its own. The guarantees hold together with probability `level`.
            max_weight (`float`, *optional*):
                Largest importance weight that a question can have, for a guarantee in the mix of questions that the
                `weights` of the predictions describe: the gate is made of questions drawn by their weights, see
                [`~hf_calib.measures.threshold.accuracy_threshold`].

        Raises:
            `ValueError`: labels or subjects are missing, a value is outside its range, or there are fewer questions
                than any guarantee needs; or the predictions were calibrated by cross-validation.
        """
        if predictions.metadata.get("calibrator") and not predictions.metadata.get("calibrator_digest"):
            raise ValueError(f"a gate would hold for no calibrator: {CROSS_VALIDATED}")
        answers = Answers.of(predictions)
        if missing := int((~answers.labelled).sum()):
            raise ValueError(
                f"{missing} of {len(predictions)} questions have no right option: a threshold needs labels. Give them "
                "with --labels FILE, or leave these questions out."
            )
        if max_weight is not None:
            if predictions.weights is None:
                raise ValueError("max_weight needs a weight of each question: a column `weight` in the file.")
            kept = importance_sample(answers.confidences, answers.correct, predictions.weights, max_weight)
            answers = Answers(*(None if array is None else array[kept] for array in answers))
        arrays = answers.confidences, answers.correct
        if by_subject:
            if answers.subjects is None:
                raise ValueError("the predictions have no subjects: leave out --by subject.")
            if "" in answers.subjects.tolist():
                raise ValueError("the subject of a question is empty: name it, or leave out --by subject.")
            thresholds = accuracy_thresholds(*arrays, answers.subjects, target_accuracy, level)
        else:
            thresholds = {"": accuracy_threshold(*arrays, target_accuracy, level)}
        return cls(
            target_accuracy,
            level,
            thresholds,
            predictions_fingerprint(predictions),
            predictions_digest(predictions),
            _distribution(answers.confidences),
        )

    @property
    def by_subject(self) -> bool:
        """Whether the thresholds are of subjects."""
        return "" not in self.thresholds

    @property
    def found(self) -> bool:
        """Whether any threshold reaches the target."""
        return any(threshold.found for threshold in self.thresholds.values())

    def answered(self, answers: Answers) -> np.ndarray:
        """Whether each question is answered, `(N,)`. Subjects without a threshold are not."""
        if not self.by_subject:
            return answers.confidences >= self.thresholds[""].threshold
        if answers.subjects is None:
            raise ValueError("the thresholds of the gate are of subjects, and the predictions have none.")
        least = {name: threshold.threshold for name, threshold in self.thresholds.items()}
        return answers.confidences >= np.array([least.get(str(name), inf) for name in answers.subjects])

    def to_dict(self) -> dict[str, Any]:
        """Content of a gate.json; a threshold that was not found is `None`."""
        head = {"target_accuracy": self.target_accuracy, "level": self.level}
        described = {name: _as_json(threshold) for name, threshold in self.thresholds.items()}
        body = {"subjects": described} if self.by_subject else described[""]
        rest = {name: getattr(self, name) for name in ("fingerprint", "questions", "confidences")}
        return {**head, **body, **rest}

    def save(self, path: str | Path) -> None:
        """Write the gate as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Gate:
        """
        Read a gate.json, or that of a folder.

        Raises:
            `ValueError`: the file is no gate.
        """
        path = Path(path).expanduser()
        path = path / FILE if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            described = content["subjects"] if "subjects" in content else {"": content}
            thresholds = {name: _from_json(entry) for name, entry in described.items()}
            rest = {
                name: content[name] for name in ("target_accuracy", "level", "fingerprint", "questions", "confidences")
            }
            _check_numbers([rest["target_accuracy"], rest["level"]])
            rest["fingerprint"] = dict(rest["fingerprint"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} is no gate of `hf-calib threshold` ({reason}).") from None
        return cls(thresholds=thresholds, **rest)


def _as_json(threshold: AccuracyThreshold) -> dict[str, Any]:
    return {
        name: value if value is None or isfinite(value) else None
        for name, value in asdict(threshold).items()
        if name != "questions_needed" or not threshold.found
    }


def _check_numbers(values: Iterable[Any]) -> None:
    if wrong := [value for value in values if isinstance(value, bool) or not isinstance(value, (int, float))]:
        raise TypeError(f"{wrong[0]!r} is no number")


def _from_json(entry: Mapping[str, Any]) -> AccuracyThreshold:
    names = [each.name for each in fields(AccuracyThreshold) if each.name != "questions_needed"]
    _check_numbers([entry[name] for name in names if entry[name] is not None])
    values = {name: float("nan") if entry[name] is None else entry[name] for name in names}
    if entry["threshold"] is None:
        values["threshold"] = inf
    return AccuracyThreshold(**values, questions_needed=entry.get("questions_needed"))


def check_same_model(gate: Gate, predictions: OptionPredictions | ConfidencePredictions, name: str) -> bool:
    """
    Check that predictions are of the gate's model, prompt and calibrator, and of other questions.

    Args:
        gate ([`Gate`]):
            The gate.
        predictions ([`OptionPredictions`] or [`~hf_calib.prediction_files.confidences.ConfidencePredictions`]):
            The predictions.
        name (`str`):
            Their name in messages.

    Returns:
        `bool`: whether the model is known on both sides, so that it was compared.

    Raises:
        `ValueError`: see [`~hf_calib.evaluation.gate_fingerprint.check_fingerprint`]; and if the predictions are those
            on which the gate was made.
    """
    known = check_fingerprint(gate.fingerprint, predictions_fingerprint(predictions), name)
    if predictions_digest(predictions) == gate.questions:
        raise ValueError(f"{name} holds the questions on which the gate was made: check it on new ones.")
    return known


def predictions_digest(predictions: OptionPredictions | ConfidencePredictions) -> str:
    """Digest of the questions, their answers and the confidences, independent of the order."""
    # Ids may be row numbers, so the confidences tell two files apart.
    rounded = Answers.of(predictions).confidences.round(4)
    return questions_digest(
        [f"{name}:{value}" for name, value in zip(predictions.ids, rounded, strict=True)], predictions.labels
    )


def _distribution(confidences: np.ndarray) -> dict[str, list]:
    """Distribution function of the confidences at no more than 500 of them."""
    values, counts = np.unique(confidences, return_counts=True)
    below = np.cumsum(counts)
    shares = np.arange(1, _KEPT + 1) / _KEPT * below[-1]
    kept = np.unique(np.searchsorted(below, shares - 1e-9)) if len(values) > _KEPT else np.arange(len(values))
    return {"values": values[kept].tolist(), "counts": np.diff(below[kept], prepend=0).tolist()}
