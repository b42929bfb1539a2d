"""Predictions that have been checked once. Measures take them without further checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .chunks import Rows, best_option, iterate_outcomes
from .validation import as_labels, as_matrix, as_outcomes, as_weights, clipped, iterate_columns


@dataclass(frozen=True)
class Examples:
    """
    Checked confidences and outcomes of N predictions. Rows of weight 0 are left out.

    Attributes:
        confidences (`np.ndarray` of shape `(N,)`): Confidence of each prediction, float64 in [0, 1].
        correct (`np.ndarray` of shape `(N,)`): 1.0 where the prediction is right, else 0.0.
        weights (`np.ndarray` of shape `(N,)`, *optional*): Importance weights, all above 0.
        kept (`np.ndarray` of shape `(rows,)`, *optional*): Whether each row given has a weight above 0; `None` if all
            have.
    """

    confidences: np.ndarray
    correct: np.ndarray
    weights: np.ndarray | None = None
    kept: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.confidences)

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Confidences, outcomes and weights in chunks that fit into a core's cache."""
        return iterate_outcomes(self.confidences, self.correct, self.weights)

    def examples(self, rows: np.ndarray) -> Examples:
        """Confidences and outcomes of some rows."""
        return Examples(
            self.confidences[rows], self.correct[rows], None if self.weights is None else self.weights[rows]
        )

    def mean(self, values: np.ndarray) -> float:
        """Weighted mean of a number per row, `(N,)`."""
        return float(np.average(values, weights=self.weights))


@dataclass(frozen=True)
class Predictions(Examples):
    """
    Checked option probabilities and labels of N questions. Rows of weight 0 are left out.

    Attributes:
        probabilities (`np.ndarray` of shape `(N, K)`): Option probabilities in [0, 1], in the dtype in which they were
            given.
        labels (`np.ndarray` of shape `(N,)`): Index of the right option.
        predicted (`np.ndarray` of shape `(N,)`): Index of the most probable option, the first of several.
        num_options (`int` or `np.ndarray` of shape `(N,)`): K, or the number of options of each question.
        other (`Predictions`, *optional*): A target or a reference for the same questions.
        expected (`np.ndarray` of shape `(N,)`, *optional*): Probability that `other` gives to `predicted`.
    """

    probabilities: np.ndarray | None = None
    labels: np.ndarray | None = None
    predicted: np.ndarray | None = None
    num_options: int | np.ndarray = 0
    other: Predictions | None = None
    expected: np.ndarray | None = None

    def rows(self) -> Iterator[Rows]:
        """Probabilities, labels and weights in chunks that fit into a core's cache."""
        for start, columns in iterate_columns(self.probabilities, checked=True):
            part = slice(start, start + columns.shape[1])
            yield Rows(columns, self.labels[part], None if self.weights is None else self.weights[part])


def check_examples(confidences, correct, sample_weight=None) -> Examples:
    """
    Check confidences and outcomes.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights, see [`~hf_calib.measures.validation.as_weights`].

    Raises:
        ValueError: A value is outside its range, or the shapes do not fit.
    """
    confidences, correct = as_outcomes(confidences, correct, binary=True)
    weights = as_weights(sample_weight, len(confidences))
    if weights is None or weights.all():
        return Examples(confidences, correct, weights)
    kept = weights > 0
    return Examples(confidences[kept], correct[kept], weights[kept], kept)


def check_predictions(
    probabilities, labels, sample_weight=None, other=None, other_name: str = "target_probabilities"
) -> Predictions:
    """
    Check option probabilities, labels and weights, in one pass over each.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, see [`~hf_calib.measures.validation.as_probabilities`].
        labels (array-like of shape `(N,)`):
            Index of the right option, in `[0, K)`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights, see [`~hf_calib.measures.validation.as_weights`].
        other (array-like of shape `(N, K)`, *optional*):
            Option probabilities of a target or a reference for the same questions and options.
        other_name (`str`, *optional*, defaults to `"target_probabilities"`):
            Name of `other` in error messages.

    Raises:
        TypeError: An array has the wrong type.
        ValueError: A value is outside its range, or the shapes do not fit.
    """
    matrix, num_options = as_matrix(probabilities)
    labels = as_labels(labels, len(matrix), num_options)
    weights = as_weights(sample_weight, len(matrix))
    confidences, predicted, _ = _top_options(matrix, "probabilities")
    predictions = Predictions(
        confidences,
        (predicted == labels).astype(np.float64),
        weights,
        None,
        clipped(matrix),
        labels,
        predicted,
        num_options,
    )
    if other is not None:
        predictions = _with_other(predictions, other, other_name)
    if weights is None or weights.all():
        return predictions
    return _select(predictions, weights > 0)


def check_scores(scores, outcomes, sample_weight=None) -> Examples:
    """
    Check confidences with outcomes (one dimension), or option probabilities with labels (two).

    Args:
        scores (array-like of shape `(N,)` or `(N, K)`), outcomes (array-like of shape `(N,)`), sample_weight:
            As in [`check_examples`] or [`check_predictions`].

    Returns:
        [`Examples`]: [`Predictions`] where option probabilities are given.
    """
    return (check_examples if is_flat(scores) else check_predictions)(scores, outcomes, sample_weight)


def is_flat(scores) -> bool:
    """Whether each of several scores is one number, a confidence."""
    if getattr(scores, "ndim", 1) != 1:
        return False
    first = next(iter(scores), None)  # a pandas Series has labels, not positions, in its brackets
    return first is not None and np.ndim(first) == 0


def target_confidence(
    probabilities, target_probabilities, name: str = "target_probabilities"
) -> tuple[np.ndarray, np.ndarray]:
    """
    Check two sets of predictions for the same questions and compare them.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities of the model.
        target_probabilities (array-like of shape `(N, K)`):
            Option probabilities of the target.
        name (`str`, *optional*, defaults to `"target_probabilities"`):
            Name of the target in error messages.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: confidence of the model and probability that the target gives to its
        prediction, both float64 of shape `(N,)`.
    """
    matrix, num_options = as_matrix(probabilities)
    target, target_options = as_matrix(target_probabilities, name)
    _check_same_options(matrix, num_options, target, target_options, name)
    confidences, predicted, _ = _top_options(matrix, "probabilities")
    return confidences, _top_options(target, name, predicted)[2]


def _top_options(
    matrix: np.ndarray, name: str, options: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Check a matrix; return its confidences, predicted options and the probabilities of `options`, `(N,)` each."""
    confidences, picked = np.empty(len(matrix)), None if options is None else np.empty(len(matrix))
    predicted = np.empty(len(matrix), dtype=np.min_scalar_type(matrix.shape[1]))
    for start, columns in iterate_columns(matrix, name):
        part = slice(start, start + columns.shape[1])
        confidences[part], predicted[part] = best_option(columns)
        if options is not None:
            picked[part] = columns[options[part], np.arange(columns.shape[1])]
    return confidences, predicted, picked


def _with_other(predictions: Predictions, other, name: str) -> Predictions:
    matrix, num_options = as_matrix(other, name)
    _check_same_options(predictions.probabilities, predictions.num_options, matrix, num_options, name)
    confidences, predicted, expected = _top_options(matrix, name, predictions.predicted)
    correct = (predicted == predictions.labels).astype(np.float64)
    weights, labels = predictions.weights, predictions.labels
    other = Predictions(confidences, correct, weights, None, clipped(matrix), labels, predicted, num_options)
    return replace(predictions, other=other, expected=expected)


def _check_same_options(model: np.ndarray, model_options, other: np.ndarray, other_options, name: str) -> None:
    if model.shape != other.shape:
        raise ValueError(
            f"`{name}` has shape {other.shape}, `probabilities` {model.shape}: "
            "both must hold the same questions and options."
        )
    if np.ndim(model_options) or np.ndim(other_options):
        fewest = _fewest_options(model, model_options), _fewest_options(other, other_options)
        bad = (fewest[0] > other_options) | (fewest[1] > model_options)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"`{name}` row {row} has {fewest[1][row]} options, `probabilities` row {row} has {fewest[0][row]}: "
                "both must hold the same questions and options."
            )


def _fewest_options(array: np.ndarray, num_options) -> np.ndarray:
    """Number of options of each row. Where it is unknown, zeros at the end of a row count as padding."""
    if np.ndim(num_options):
        return num_options
    return array.shape[1] - (array[:, ::-1] != 0).argmax(axis=1)


def _select(predictions: Predictions, kept: np.ndarray) -> Predictions:
    """Keep some rows of every array."""
    arrays = {
        name: value[kept] for name, value in vars(predictions).items() if isinstance(value, np.ndarray) and value.ndim
    }
    other = None if predictions.other is None else _select(predictions.other, kept)
    return replace(predictions, **arrays, other=other, kept=kept)
