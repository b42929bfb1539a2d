"""Preference collapse, measured: what alignment did to the option probabilities, and to the preferences between pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .binning import top_label
from .bootstrap import Estimate, ResampledMeans
from .calibration_error import expected_calibration_error, target_calibration_error
from .noise_floor import bootstrap_interval, noise_floor
from .validation import Rows, as_matrix, as_outcomes, as_probabilities, best_option, iterate_columns, iterate_rows


SATURATED = 0.99  # a confidence above it is saturated
_SMALLEST_PROBABILITY = 1e-12

# What each measure means, in one sentence.
MEANINGS = {
    "accuracy": "Share of the questions that are answered right.",
    "confidence": "Mean probability of the answer given.",
    "overconfidence": "Confidence less accuracy: by how much the model claims to know more than it does.",
    "ece": "How far confidence and accuracy lie apart, averaged over the levels of confidence (conf-ECE).",
    "normalized_entropy": "How much doubt is left between the options: 1 is none preferred, 0 is certainty.",
    "saturation": "Share of the answers given with a confidence above .99, as if there were no other option.",
    "position_shift": (
        "Share of the answers that would have to move to another place (A, B, ...) for every place to be chosen as often "
        "as it is right (total variation)."
    ),
    "kl_to_reference": "How far the option probabilities have moved from the reference: mean KL(model ‖ reference), in nats.",
    "prediction_change": "Share of the questions that the reference answers otherwise.",
}  # fmt: skip
PAIR_MEANINGS = {
    "accuracy": "Share of the pairs whose chosen answer the model prefers too.",
    "confidence": "Mean probability that the model gives to the side it prefers.",
    "overconfidence": "Confidence less accuracy: by how much the model takes its preference to be surer than it is.",
    "ece": "How far that confidence and the share of agreeing choices lie apart.",
    "saturation": "Share of the pairs decided with a probability above .99, as if no annotator could disagree.",
    "tce": "The same as `ece` against the probability with which annotators prefer that side.",
}

_SHARES = ("accuracy", "saturation", "prediction_change")


def collapse_report(
    probabilities,
    labels,
    reference_probabilities=None,
    num_options=None,
    n_bins: int = 10,
    binning: str = "equal_width",
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """
    Measures of preference collapse, each with a 95% interval; with a reference, what changed since.

    What they mean is told by `MEANINGS`. Intervals come from one bootstrap over the questions ([`ResampledMeans`]), so that
    changes are paired; those of `ece` and `position_shift`, which noise makes larger, from methods that know it
    ([`bootstrap_interval`], [`ResampledMeans.total_variation`]), and their changes from the two intervals.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities of the model, padded with zeros where a question has fewer than K options.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        reference_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of another model for the same questions: the one before alignment.
        num_options (array-like of shape `(N,)`, *optional*):
            Number of options of each question, for the entropy; defaults to K, or in a list of rows of different lengths to
            the length of each.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the ECE.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of draws behind every interval.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `dict[str, float]`: flat. For every measure `<measure>`, `<measure>_low` and `<measure>_high`; `n`,
        `ece_noise_floor` and `position_shift_noise_floor`. With a reference the same as `reference/<measure>`, the
        differences as `change/<measure>`, and `kl_to_reference` and `prediction_change`.

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
    matrix, lengths = as_matrix(probabilities)
    lengths = np.broadcast_to(lengths if num_options is None else np.asarray(num_options), len(matrix))
    if (lengths < 2).any() or (lengths > matrix.shape[1]).any():
        row = int(np.argmax((lengths < 2) | (lengths > matrix.shape[1])))
        raise ValueError(f"`num_options` row {row} is {lengths[row]}, outside [2, {matrix.shape[1]}].")
    models = {"": matrix}
    if reference_probabilities is not None:
        models["reference/"] = as_probabilities(reference_probabilities, "reference_probabilities")
        if models["reference/"].shape != matrix.shape:
            raise ValueError(
                f"`reference_probabilities` has shape {models['reference/'].shape}, `probabilities` {matrix.shape}: both "
                "must hold the same questions and options."
            )
    chunks = _quantities(models, labels, lengths)
    binary = {prefix + name for prefix in models for name in _SHARES}
    means = ResampledMeans(chunks, len(matrix), binary, n_bootstrap, seed)

    for prefix in models:
        means.define(f"{prefix}overconfidence", f"{prefix}confidence", f"{prefix}accuracy")

    names = ["accuracy", "confidence", "overconfidence", "normalized_entropy", "saturation"]
    report: dict[str, float] = {"n": len(matrix)}
    noisy: dict[str, dict[str, Estimate]] = {}
    for prefix, array in models.items():
        for name in names:
            report |= means.estimate(prefix + name).named(prefix + name)
        outcomes, options = top_label(array, labels), {"n_bins": n_bins, "binning": binning, "seed": seed}
        shift, floor = means.total_variation(f"{prefix}surplus")
        noisy[prefix] = {
            "ece": Estimate(
                expected_calibration_error(array, labels, n_bins, binning),
                *bootstrap_interval(*outcomes, n_bootstrap=n_bootstrap, **options),
            ),
            "position_shift": shift,
        }
        for name, estimate in noisy[prefix].items():
            report |= estimate.named(prefix + name)
        report[f"{prefix}ece_noise_floor"] = noise_floor(*outcomes, n_simulations=n_bootstrap, **options).mean
        report[f"{prefix}position_shift_noise_floor"] = floor
    if reference_probabilities is not None:
        for name in names:
            report |= means.estimate(name, minus=f"reference/{name}").named(f"change/{name}")
        for name, estimate in noisy[""].items():
            report |= estimate.minus(noisy["reference/"][name]).named(f"change/{name}")
        for name in ("kl_to_reference", "prediction_change"):
            report |= means.estimate(name).named(name)
    return report


def _quantities(models: dict[str, np.ndarray], labels, lengths: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """What every question contributes, chunk by chunk: `(rows,)` each, and `surplus` of shape `(K, rows)`."""
    reference = iterate_columns(models["reference/"]) if "reference/" in models else None
    start = 0
    for rows in iterate_rows(models[""], labels):
        part = slice(start, start := start + len(rows.labels))
        chunk = _of_model(rows, lengths[part], "")
        if reference is not None:
            _, columns = next(reference)
            chunk |= _of_model(Rows(columns, rows.labels), lengths[part], "reference/")
            ratio = np.log(np.maximum(rows.columns, _SMALLEST_PROBABILITY))
            ratio -= np.log(np.maximum(columns, _SMALLEST_PROBABILITY))
            chunk["kl_to_reference"] = np.einsum("kn,kn->n", rows.columns, ratio)
            chunk["prediction_change"] = (best_option(rows.columns)[1] != best_option(columns)[1]).astype(np.float64)
        yield chunk


def _of_model(rows: Rows, lengths: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    confidences, prediction = best_option(rows.columns)
    correct = (prediction == rows.labels).astype(np.float64)
    places = np.arange(len(rows.columns))[:, None]
    logarithms = np.log(np.maximum(rows.columns, _SMALLEST_PROBABILITY))
    quantities = {
        "accuracy": correct,
        "confidence": confidences,
        "normalized_entropy": -np.einsum("kn,kn->n", rows.columns, logarithms) / np.log(lengths),
        "saturation": (confidences > SATURATED).astype(np.float64),
        # how often each place is chosen, less how often it is right
        "surplus": (prediction == places).astype(np.float64) - (rows.labels == places),
    }
    return {prefix + name: values for name, values in quantities.items()}


def pair_report(
    preference_probabilities,
    target_probabilities=None,
    n_bins: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """
    Saturation and calibration of the preferences that a model implies, pair by pair; see `PAIR_MEANINGS`.

    Args:
        preference_probabilities (array-like of shape `(N,)`):
            Probability, by the model, that the chosen answer is the better one: sigmoid(beta * margin) for DPO. As in TRL's
            `rewards/accuracies`, a tie (1/2) counts as wrong.
        target_probabilities (array-like of shape `(N,)`, *optional*):
            Probability that annotators prefer the chosen answer; adds `tce`.
        n_bins, n_bootstrap, seed:
            As in [`collapse_report`].

    Returns:
        `dict[str, float]`: `n`, `accuracy`, `confidence`, `overconfidence`, `saturation` and `ece`, each but the first with
        `_low` and `_high`; `ece_noise_floor`, and with targets `tce`.

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
