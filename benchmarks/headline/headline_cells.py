"""Cells of the headline: their measures, paired comparisons on the same questions, and bars over all cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from headline_config import Bar
from scipy.stats import t as student

from hf_calib import calibration_report, one_vs_rest_error
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.measures.binning import assign_bins, bin_edges, top_label
from hf_calib.measures.bootstrap import Estimate, ResampledMeans


MEASURES = (
    "n", "accuracy", "confidence", "ece", "ece_low", "ece_high", "ece_noise_floor", "ece_noise_floor_p95",
    "ece_p_value", "debiased_ece", "one_vs_rest", "one_vs_rest_debiased", "one_vs_rest_noise_floor", "smooth_ece",
    "nll", "brier", "brier_calibration", "brier_refinement", "auroc", "aurc",
)  # fmt: skip
PAIRED = ("ece", "one_vs_rest", "nll", "brier", "accuracy")


class Place(NamedTuple):
    """What the methods are compared on: the same model, labels and test questions."""

    model: str
    source: str
    budget: int
    test: str
    seed: int

    @property
    def domain(self) -> str:
        return "in" if self.source == self.test else "out"


# Measures of every method, by place.
Results = Mapping[Place, Mapping[str, Mapping[str, float]]]


def measure(views: Sequence[OptionPredictions]) -> dict[str, float]:
    """The measures of predictions, averaged over the orders in which the options were shown."""
    reports = [
        calibration_report(p.probabilities, p.labels, p.target_probabilities) | one_vs_rest(p.probabilities, p.labels)
        for p in views
    ]
    names = [*MEASURES, *(name for name in ("tce",) if name in reports[0])]
    return {name: float(np.mean([report[name] for report in reports])) for name in names}


def one_vs_rest(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """One-vs-rest error, debiased, and its noise floor."""
    found = one_vs_rest_error(probabilities, labels)
    return {
        "one_vs_rest": found.error,
        "one_vs_rest_debiased": found.debiased,
        "one_vs_rest_noise_floor": found.floor.mean,
    }


def quantities(views: Sequence[OptionPredictions], n_bins: int = 10) -> dict[str, np.ndarray]:
    """
    What the measures of [`PAIRED`] are made of, question by question: a measure is the mean, or, where there is a row
    for each bin, the summed absolute mean of the rows.
    """
    edges, found = bin_edges(np.empty(0), n_bins), []
    for predictions in views:
        probabilities, labels = predictions.probabilities.astype(np.float64), predictions.labels
        confidences, correct = top_label(probabilities, labels)
        right = np.eye(probabilities.shape[1])[labels]
        columns = probabilities.T  # (options, questions)
        in_bin = assign_bins(columns, edges)[:, None] == np.arange(n_bins)[:, None]
        gaps = (in_bin * (columns - right.T)[:, None]).sum(axis=0)
        found.append(
            {
                "ece": (assign_bins(confidences, edges) == np.arange(n_bins)[:, None]) * (confidences - correct),
                "one_vs_rest": gaps * len(labels) / (columns > 0).sum(),
                "nll": -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)),
                "brier": ((probabilities - right) ** 2).sum(axis=1),
                "accuracy": correct,
            }
        )
    together = {name: [quantity[name] / len(views) for quantity in found] for name in PAIRED}
    return {name: np.concatenate(q) if q[0].ndim == 2 else np.sum(q, axis=0) for name, q in together.items()}


def compare(
    ours: Sequence[OptionPredictions], other: Sequence[OptionPredictions], n_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """
    Ours less another method, on the same questions.

    The interval is that of the difference as it is measured on so many questions: how far the Bayesian bootstrap, in
    which every draw weighs the questions alike for both methods, scatters. A measured calibration error is too large
    by what noise adds to it, the more so the smaller it is; so the difference, and its interval, rather understate how
    much better the better method is.

    Args:
        ours, other (`Sequence[OptionPredictions]`):
            Predictions, one for each order of the options.
        n_bootstrap (`int`, *optional*, defaults to `1000`), seed (`int`, *optional*, defaults to `0`):
            Draws, and their seed.

    Returns:
        `dict[str, Estimate]`: by measure.
    """
    if any(not np.array_equal(a.ids, b.ids) for a, b in zip(ours, other, strict=True)):
        raise ValueError("The methods were asked different questions.")
    sides = {"ours": quantities(ours), "other": quantities(other)}
    chunk = {f"{side}/{name}": values for side, found in sides.items() for name, values in found.items()}
    means = ResampledMeans([chunk], len(ours[0]), n_bootstrap=n_bootstrap, seed=seed)
    estimates = {}
    for name in PAIRED:
        value, draws = (
            _total(found[f"ours/{name}"], ndim) - _total(found[f"other/{name}"], ndim)
            for found, ndim in ((means.means, 0), (means.draws, 1))
        )
        low, high = np.quantile(draws - draws.mean(), [0.025, 0.975])
        estimates[name] = Estimate(float(value), float(value + low), float(value + high))
    return estimates


def _total(means: np.ndarray, ndim: int) -> np.ndarray:
    """The measure: the mean itself, or the sum over the bins that follow the axes of the draws."""
    return np.abs(means).sum(axis=-1) if means.ndim > ndim else means


def best_of(methods: Sequence[str], found: Mapping[str, Mapping[str, float]], name: str) -> str:
    """The method with the least of a measure."""
    return min(methods, key=lambda method: found[method][name])


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over the seeds, and half the width of its 95% t interval (NaN for one seed)."""
    spread = np.std(values, ddof=1) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(student.ppf(0.975, max(len(values) - 1, 1)) * spread / np.sqrt(len(values)))


def over_seeds(values: Mapping[Place, float], divisors: Mapping[Place, float] | None = None) -> tuple[float, float]:
    """
    Mean over the places of each seed, then over the seeds, with its interval.

    With divisors it is the sum of the values over that of the divisors, a ratio of means, for each seed.
    """
    found = []
    for seed in sorted({place.seed for place in values}):
        places = [place for place in values if place.seed == seed]
        divisor = len(places) if divisors is None else sum(divisors[place] for place in places)
        found.append(sum(values[place] for place in places) / divisor if divisor else math.nan)
    return mean_and_interval(found)


# What a bar reads in one place: measures of ours, those of the methods against it, those of the original, names of
# measures.
READINGS: dict[str, Callable[..., float]] = {
    "ratio": lambda ours, against, original, names: ours[names[0]],
    "difference": lambda ours, against, original, names: float(np.mean([ours[n] - original[n] for n in names])),
    "share_below": lambda ours, against, original, names: float(
        all(ours[name] < other[name] for name in names for other in against)
    ),
}


def read_bar(bar: Bar, results: Results, ours: str, baselines: Sequence[str], original: str) -> dict[str, Any] | None:
    """
    A bar's figure.

    Args:
        bar ([`Bar`]):
            What is asked.
        results (`Mapping`):
            Measures of every method, by place; places that lack a method are passed over.
        ours (`str`), baselines (`Sequence[str]`), original (`str`):
            Methods compared, where the bar names no others.

    Returns:
        `dict`: `value`, `half` (of its interval over the seeds), `cells`, `met`; or `None` where nothing has been
        measured yet.
    """
    ours, against, values, divisors = bar.ours or ours, bar.against or baselines, {}, {}
    budgets = bar.where.get("budget")
    for place, found in results.items():
        if budgets is not None and place.budget not in (budgets if isinstance(budgets, list) else [budgets]):
            continue
        if bar.where.get("domain", place.domain) != place.domain or not {ours, original, *against} <= set(found):
            continue
        others = [found[name] for name in against]
        values[place] = READINGS[bar.statistic](found[ours], others, found[original], bar.measures)
        divisors[place] = min(other[bar.measures[0]] for other in others)
    if not values:
        return None
    value, half = over_seeds(values, divisors if bar.statistic == "ratio" else None)
    met = value <= bar.at_most if bar.at_most is not None else value >= bar.at_least
    return {"value": value, "half": half, "cells": len(values), "met": bool(met)}
