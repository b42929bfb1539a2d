"""Measures of fixed predictions as functions of the weights, for the draws of a bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .binning import assign_bins, bin_edges
from .checked import Examples, Predictions
from .options import MeasureOptions
from .selective import TieGroups
from .validation import SMALLEST_PROBABILITY


OfWeights = Callable[[np.ndarray], float]  # weights of the rows, `(N,)` and above 0, to the measure


def _mean(values: np.ndarray) -> OfWeights:
    return lambda weights: float(weights @ values / weights.sum())


def _accuracy(examples: Examples, options: MeasureOptions) -> OfWeights:
    return _mean(examples.correct)


def _confidence(examples: Examples, options: MeasureOptions) -> OfWeights:
    return _mean(examples.confidences)


def _overconfidence(examples: Examples, options: MeasureOptions) -> OfWeights:
    return _mean(examples.confidences - examples.correct)


def _ece(examples: Examples, options: MeasureOptions) -> OfWeights:
    edges = bin_edges(examples.confidences, options.n_bins, options.binning, examples.weights)
    bins, gaps = assign_bins(examples.confidences, edges), examples.confidences - examples.correct
    return lambda weights: float(np.abs(np.bincount(bins, weights * gaps)).sum() / weights.sum())


def _nll(predictions: Predictions, options: MeasureOptions) -> OfWeights:
    return _mean(-np.log(np.maximum(_picked(predictions), SMALLEST_PROBABILITY)))


def _brier(predictions: Predictions, options: MeasureOptions) -> OfWeights:
    probabilities = predictions.probabilities.astype(np.float64)
    return _mean(np.einsum("nk,nk->n", probabilities, probabilities) - 2 * _picked(predictions) + 1)


def _picked(predictions: Predictions) -> np.ndarray:
    """Probability of the right option, `(N,)`."""
    return predictions.probabilities[np.arange(len(predictions)), predictions.labels].astype(np.float64)


def _cw_ece(predictions: Predictions, options: MeasureOptions) -> OfWeights:
    probabilities = predictions.probabilities.astype(np.float64)
    num_options, edges = probabilities.shape[1], bin_edges(np.empty(0), options.n_bins)
    cells = (assign_bins(probabilities, edges) + options.n_bins * np.arange(num_options)).ravel()
    gaps = probabilities.copy()
    gaps[np.arange(len(gaps)), predictions.labels] -= 1
    used = int(((probabilities > 0).any(axis=0) | np.isin(np.arange(num_options), predictions.labels)).sum())

    def error(weights: np.ndarray) -> float:
        sums = np.bincount(cells, (weights[:, None] * gaps).ravel())
        return float(np.abs(sums).sum() / used / weights.sum())

    return error


def _of_order(value: Callable[[TieGroups], float]) -> Callable[[Examples, MeasureOptions], OfWeights]:
    """A measure that depends on the order of the confidences: they are sorted once."""

    def prepare(examples: Examples, options: MeasureOptions) -> OfWeights:
        order = np.argsort(examples.confidences, kind="stable")
        confidences, correct = examples.confidences[order], examples.correct[order]
        starts = np.flatnonzero(np.diff(confidences, prepend=-1.0))
        counts = np.diff(starts, append=len(confidences)).astype(np.float64)

        def measure(weights: np.ndarray) -> float:
            sorted_weights = weights[order]
            masses = np.add.reduceat(sorted_weights, starts)
            hits = np.add.reduceat(sorted_weights * correct, starts)
            return value(TieGroups(counts, masses, hits, confidences[starts] * masses))

        return measure

    return prepare


def _e_aurc(examples: Examples, options: MeasureOptions) -> OfWeights:
    n_right = int(examples.correct.sum())
    return _of_order(lambda groups: max(0.0, groups.aurc() - groups.best_aurc(n_right)))(examples, options)


# Functions of checked predictions and options that return the measure as a function of the weights.
OF_CONFIDENCES: dict[str, Callable[[Examples, MeasureOptions], OfWeights]] = {
    "accuracy": _accuracy,
    "confidence": _confidence,
    "overconfidence": _overconfidence,
    "ece": _ece,
    "auroc": _of_order(TieGroups.auroc),
    "aurc": _of_order(TieGroups.aurc),
    "e_aurc": _e_aurc,
    "augrc": _of_order(TieGroups.augrc),
}
OF_PROBABILITIES: dict[str, Callable[[Predictions, MeasureOptions], OfWeights]] = {
    "cw_ece": _cw_ece,
    "nll": _nll,
    "brier": _brier,
}
