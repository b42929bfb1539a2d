"""Measures of preference collapse in option probabilities and in preferences between pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .binning import bins_of
from .bootstrap import Estimate, ResampledMeans
from .calibration_error import target_calibration_error
from .checked import Predictions, check_predictions
from .noise_floor import cells_of, floor_of_cells, interval_of_cells
from .options import MeasureOptions
from .validation import SMALLEST_PROBABILITY, as_outcomes, iterate_columns


SATURATED = 0.99  # a confidence above it is saturated

# Meaning of each measure, in one sentence.
MEANINGS = {
    "accuracy": "Share of right answers.",
    "confidence": "Mean probability of the predicted option.",
    "overconfidence": "Confidence less accuracy.",
    "ece": "Gap between confidence and accuracy, averaged over bins of the confidence (conf-ECE).",
    "normalized_entropy": "Mean entropy of the option probabilities over log K: 1 for equal ones, 0 for certainty.",
    "saturation": "Share of predictions with a confidence above .99.",
    "position_shift": (
        "Share of predictions that must move until every place (A, B, ...) is predicted as often as it is right "
        "(total variation)."
    ),
    "kl_to_reference": "Mean KL divergence KL(model ‖ reference) of the option probabilities, in nats.",
    "prediction_change": "Share of questions for which the reference predicts another option.",
}  # fmt: skip
PAIR_MEANINGS = {
    "accuracy": "Share of pairs whose chosen answer the model prefers.",
    "confidence": "Mean probability of the side that the model prefers.",
    "overconfidence": "Confidence less accuracy.",
    "ece": "Gap between confidence and accuracy, averaged over bins of the confidence.",
    "saturation": "Share of pairs with a confidence above .99.",
    "tce": "The ECE against the probability with which annotators prefer that side.",
}

_SHARES = ("accuracy", "saturation", "prediction_change")
_MEANS = ("accuracy", "confidence", "overconfidence", "normalized_entropy", "saturation")


def collapse_report(
    probabilities, labels, reference_probabilities=None, num_options=None, **options
) -> dict[str, float]:
    """
    Compute measures of preference collapse with 95% intervals, and their changes from a reference.

    `MEANINGS` explains the measures. All means share one bootstrap over questions ([`ResampledMeans`]), so changes are
    paired. Noise makes `ece` and `position_shift` larger, so their intervals come from [`bootstrap_interval`] and
    [`ResampledMeans.total_variation`], and the intervals of their changes from those two.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities of the model, padded with zeros where a question has fewer than K options.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        reference_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of the model before alignment for the same questions.
        num_options (array-like of shape `(N,)`, *optional*):
            Number of options of each question, for the entropy. Defaults to K, or to the length of each row in a list
            of rows of different lengths.
        options:
            `n_bins`, `binning`, `n_bootstrap` and `seed`, see [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        `dict[str, float]`: `n`; `<measure>`, `<measure>_low` and `<measure>_high` of every measure; `ece_noise_floor`
        and `position_shift_noise_floor`. With a reference also the same keys as `reference/<key>`, the differences as
        `change/<measure>`, `kl_to_reference` and `prediction_change`.

    Raises:
        TypeError: An array has the wrong type, or an option is unknown.
        ValueError: A value is outside its range, or the shapes do not fit. The row is named.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.measures.preference_collapse import collapse_report
    >>> labels = np.arange(1000) % 2
    >>> base = np.tile([0.6, 0.4], (1000, 1))
    >>> report = collapse_report(np.tile([0.995, 0.005], (1000, 1)), labels, base)
    >>> report["saturation"], round(report["change/confidence"], 3), round(report["position_shift"], 3)
    (1.0, 0.395, 0.5)

    ```
    """
    options = MeasureOptions(**options)
    predictions = check_predictions(
        probabilities, labels, other=reference_probabilities, other_name="reference_probabilities"
    )
    models = {"": predictions}
    if predictions.other is not None:
        models["reference/"] = predictions.other
    lengths = _lengths(predictions, num_options)
    binary = {prefix + name for prefix in models for name in _SHARES}
    means = ResampledMeans(_quantities(models, lengths), len(predictions), binary, options.n_bootstrap, options.seed)
    report: dict[str, float] = {"n": len(predictions)}
    noisy = {}
    for prefix, model in models.items():
        means.define(f"{prefix}overconfidence", f"{prefix}confidence", f"{prefix}accuracy")
        for name in _MEANS:
            report |= means.estimate(prefix + name).named(prefix + name)
        noisy[prefix], floors = _noisy_measures(means, prefix, model, options)
        for name, estimate in noisy[prefix].items():
            report |= estimate.named(prefix + name)
        report |= floors
    if predictions.other is not None:
        for name in _MEANS:
            report |= means.estimate(name, minus=f"reference/{name}").named(f"change/{name}")
        for name, estimate in noisy[""].items():
            report |= estimate.minus(noisy["reference/"][name]).named(f"change/{name}")
        for name in ("kl_to_reference", "prediction_change"):
            report |= means.estimate(name).named(name)
    return report


def _lengths(predictions: Predictions, num_options) -> np.ndarray:
    """Check the number of options of each question."""
    lengths, most = predictions.num_options if num_options is None else num_options, predictions.probabilities.shape[1]
    lengths = np.broadcast_to(np.asarray(lengths), len(predictions))
    if (lengths < 2).any() or (lengths > most).any():
        row = int(np.argmax((lengths < 2) | (lengths > most)))
        raise ValueError(f"`num_options` row {row} is {lengths[row]}, outside [2, {most}].")
    return lengths


def _noisy_measures(
    means: ResampledMeans, prefix: str, model: Predictions, options: MeasureOptions
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """Compute the measures that noise makes larger, and their noise floors."""
    bins = bins_of(model.confidences, model.correct, None, options.n_bins, options.binning)
    cells = cells_of(model, options.n_bins, options.binning)
    floor = floor_of_cells(cells, options)
    shift, shift_floor = means.total_variation(f"{prefix}surplus")
    estimates = {
        "ece": Estimate(bins.error, *interval_of_cells(cells, floor, options)),
        "position_shift": shift,
    }
    floors = {f"{prefix}ece_noise_floor": floor.mean, f"{prefix}position_shift_noise_floor": shift_floor}
    return estimates, floors


def _quantities(models: dict[str, Predictions], lengths: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Quantities of every question, in chunks: `(rows,)` each, and `surplus` of shape `(K, rows)`."""
    chunks = [iterate_columns(model.probabilities, checked=True) for model in models.values()]
    for columns in zip(*chunks, strict=True):
        part = slice(columns[0][0], columns[0][0] + columns[0][1].shape[1])
        columns = [column for _, column in columns]
        logarithms = [np.log(np.maximum(column, SMALLEST_PROBABILITY)) for column in columns]
        chunk = {}
        for (prefix, model), column, logarithm in zip(models.items(), columns, logarithms, strict=True):
            places, predicted = np.arange(len(column))[:, None], model.predicted[part]
            quantities = {
                "accuracy": model.correct[part],
                "confidence": model.confidences[part],
                "normalized_entropy": -np.einsum("kn,kn->n", column, logarithm) / np.log(lengths[part]),
                "saturation": (model.confidences[part] > SATURATED).astype(np.float64),
                # how often each place is predicted, less how often it is right
                "surplus": (predicted == places).astype(np.float64) - (model.labels[part] == places),
            }
            chunk |= {prefix + name: values for name, values in quantities.items()}
        if len(columns) == 2:
            chunk["kl_to_reference"] = np.einsum("kn,kn->n", columns[0], logarithms[0] - logarithms[1])
            changed = models[""].predicted[part] != models["reference/"].predicted[part]
            chunk["prediction_change"] = changed.astype(np.float64)
        yield chunk


def pair_report(
    preference_probabilities,
    target_probabilities=None,
    n_bins: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """
    Compute saturation and calibration of preferences between pairs. `PAIR_MEANINGS` explains the measures.

    Args:
        preference_probabilities (array-like of shape `(N,)`):
            Probability, by the model, that the chosen answer is the better one; see
            [`~hf_calib.inference.preference_scores.preference_probabilities`]. As in TRL's `rewards/accuracies`, a tie
            (1/2) counts as wrong.
        target_probabilities (array-like of shape `(N,)`, *optional*):
            Probability that annotators prefer the chosen answer. Adds `tce`.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of draws behind every interval.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `dict[str, float]`: `n`; `accuracy`, `confidence`, `overconfidence`, `saturation` and `ece`, each with `_low`
        and `_high`; `ece_noise_floor`; with targets `tce`.

    Raises:
        ValueError: A value is outside its range, or the shapes do not fit. The row is named.

    Example:

    ```python
    >>> from hf_calib.measures.preference_collapse import pair_report
    >>> report = pair_report([0.999, 0.998, 0.001, 0.6])
    >>> report["accuracy"], report["saturation"], round(report["overconfidence"], 2)
    (0.75, 0.75, 0.15)

    ```
    """
    chosen, _ = as_outcomes(preference_probabilities, np.zeros(np.shape(preference_probabilities)))
    sides = np.stack([1 - chosen, chosen], axis=1)
    report = collapse_report(sides, np.ones(len(chosen), dtype=int), n_bins=n_bins, n_bootstrap=n_bootstrap, seed=seed)
    kept = {
        key: value for key, value in report.items() if not key.startswith(("position_shift", "normalized_entropy"))
    }
    if target_probabilities is not None:
        target, _ = as_outcomes(target_probabilities, np.zeros(np.shape(target_probabilities)))
        kept["tce"] = target_calibration_error(sides, np.stack([1 - target, target], axis=1), n_bins)
    return kept
