"""Everything there is to say about a set of predictions, as one flat dictionary: measures, regime, groups."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

from ..measures.binning import top_label
from ..measures.calibration_error import calibration_report, confidence_report
from ..measures.noise_floor import noise_floor
from ..measures.validation import as_labels, as_matrix, as_weights
from ..regime.classify import classify_confidences, classify_regime


# What is said of every group. The measures that need many questions, or that only rank, are left out.
GROUP_KEYS = (
    "n", "accuracy", "confidence", "overconfidence", "ece", "ece_low", "ece_high", "debiased_ece",
    "ece_noise_floor", "ece_p_value",
)  # fmt: skip

_MOST_SIMULATIONS = 100_000


def evaluate_probabilities(
    probabilities,
    labels,
    target_probabilities=None,
    reference_probabilities=None,
    critical_accuracy: float | None = None,
    n_bins: int = 10,
    binning: str = "equal_width",
    alpha: float = 0.05,
    n_bootstrap: int = 1000,
    seed: int = 0,
    sample_weight=None,
    groups=None,
) -> dict[str, Any]:
    """
    Measures, regime and groups of option probabilities.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1. Where questions differ in K, a list of rows of different lengths; rows
            padded with zeros count as rows of K options, see [`classify_regime`].
        labels (array-like of shape `(N,)`):
            Index of the right option, in `[0, K)`.
        target_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of a calibrated reference, taken as the truth; adds the target calibration error.
        reference_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of another model, e.g. the one before its alignment, which need not be calibrated.
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1) where it is known from elsewhere.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the binned measures.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level of the regime test, and of the share of miscalibrated groups.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Resamples behind the 95% intervals, and simulations behind the noise floors.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything that is drawn.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights.
        groups (array-like of shape `(N,)`, *optional*):
            Group of each row, e.g. its subject; see [`group_results`].

    Returns:
        `dict`: flat; the keys of [`calibration_report`] and of [`RegimeReport`], and those of [`group_results`].
    """
    matrix, num_options = as_matrix(probabilities)
    labels = as_labels(labels, len(matrix), num_options)
    # rows of different lengths go on as they came: they know their own number of options
    regime = classify_regime(
        probabilities, labels, target_probabilities=target_probabilities, critical_accuracy=critical_accuracy,
        reference_probabilities=reference_probabilities, alpha=alpha, n_bins=n_bins, seed=seed,
        sample_weight=sample_weight,
    )  # fmt: skip
    report = calibration_report(
        probabilities, labels, target_probabilities=target_probabilities, n_bins=n_bins, binning=binning,
        n_bootstrap=n_bootstrap, seed=seed, sample_weight=sample_weight,
    )  # fmt: skip
    # Where both name a measure they mean the same; the report's is made with the bins asked for. But a critical
    # accuracy that was given goes before the one of the targets.
    results = {**regime.to_dict(), **report, "critical_accuracy": regime.critical_accuracy}
    if groups is not None:
        confidences, correct = top_label(matrix, labels)
        results |= group_results(
            confidences, correct, groups, n_bins, binning, alpha, n_bootstrap, seed, sample_weight
        )
    return results


def evaluate_confidences(
    confidences,
    correct,
    num_options: int | None = None,
    critical_accuracy: float | None = None,
    n_bins: int = 10,
    binning: str = "equal_width",
    alpha: float = 0.05,
    n_bootstrap: int = 1000,
    seed: int = 0,
    sample_weight=None,
    groups=None,
) -> dict[str, Any]:
    """
    The same for confidences whose options are not known: the measures that need every option (`cw_ece`, `nll`, `brier`
    and its split) are left out.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        num_options (`int`, *optional*):
            K, for the empirical test of the regime: it cannot be made without.
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1) where it is known.
        n_bins, binning, alpha, n_bootstrap, seed, sample_weight, groups:
            As in [`evaluate_probabilities`].
    """
    regime = classify_confidences(
        confidences, correct, num_options=num_options, critical_accuracy=critical_accuracy, alpha=alpha,
        n_bins=n_bins, seed=seed, sample_weight=sample_weight,
    )  # fmt: skip
    options = {"n_bins": n_bins, "binning": binning, "n_bootstrap": n_bootstrap, "seed": seed}
    results = {**regime.to_dict(), **confidence_report(confidences, correct, sample_weight=sample_weight, **options)}
    if groups is not None:
        results |= group_results(
            np.asarray(confidences), np.asarray(correct), groups, n_bins, binning, alpha, n_bootstrap, seed,
            sample_weight,
        )  # fmt: skip
    return results


def group_results(
    confidences: np.ndarray,
    correct: np.ndarray,
    groups,
    n_bins: int = 10,
    binning: str = "equal_width",
    alpha: float = 0.05,
    n_bootstrap: int = 1000,
    seed: int = 0,
    sample_weight=None,
) -> dict[str, Any]:
    """
    Measures of every group, e.g. subject by subject, with what looking at many groups costs. A group whose rows all have
    weight 0 is left out.

    Among G groups of a calibrated model, G / 20 show a p-value below .05. `ece_p_value_holm` is corrected for that
    (Holm, 1979): a group whose corrected value is below `alpha` would be miscalibrated in a world where at most
    `alpha` of such tables accuse any calibrated group. Where a p-value is as small as the simulations allow, they are
    repeated with enough of them, 100,000 at most, for the correction to be able to reject.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        groups (array-like of shape `(N,)`):
            Name of each row's group.
        n_bins, binning, alpha, n_bootstrap, seed, sample_weight:
            As in [`evaluate_probabilities`].

    Returns:
        `dict`: flat; `n_groups`, `n_groups_miscalibrated` (corrected p-value below `alpha`), and for every group, in
        the order of their names, `group/<name>/<key>` for the keys `n`, `accuracy`, `confidence`, `overconfidence`,
        `ece`, `ece_low`, `ece_high`, `debiased_ece`, `ece_noise_floor`, `ece_p_value` and `ece_p_value_holm`.
    """
    groups = np.asarray(groups)
    if groups.dtype.kind == "O":  # None and the like have no order
        groups = groups.astype(str)
    if groups.shape != (len(confidences),):
        raise ValueError(f"`groups` has shape {groups.shape} for {len(confidences)} rows: give one name per row.")
    weights = as_weights(sample_weight, len(confidences))
    options = {"n_bins": n_bins, "binning": binning}
    names, index = np.unique(groups, return_inverse=True)
    # one sort instead of one pass per group
    rows_of = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    results: dict[str, dict[str, Any]] = {}
    for name, rows in zip(names.tolist(), rows_of, strict=True):
        weight = None if weights is None else weights[rows]
        if weight is not None and not weight.any():
            continue
        mine = (confidences[rows], correct[rows])
        report = confidence_report(*mine, n_bootstrap=n_bootstrap, seed=seed, sample_weight=weight, **options)
        most = min(ceil(2 * len(names) / alpha), _MOST_SIMULATIONS)
        if report["ece_p_value"] * (1 + n_bootstrap) < 1.5 and most > n_bootstrap:
            floor = noise_floor(*mine, n_simulations=most, seed=seed, sample_weight=weight, **options)
            report["ece_p_value"] = floor.p_value
        results[str(name)] = {key: report[key] for key in GROUP_KEYS}
    corrected = holm({name: result["ece_p_value"] for name, result in results.items()})
    flat: dict[str, Any] = {
        "n_groups": len(results),
        "n_groups_miscalibrated": sum(p < alpha for p in corrected.values()),
    }
    for name, result in results.items():
        result["ece_p_value_holm"] = corrected[name]
        flat |= {f"group/{name}/{key}": value for key, value in result.items()}
    return flat


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm, 1979): valid whatever the dependence between the tests."""
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return corrected


def groups_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """
    The groups in a flat dictionary of results, by name.

    Args:
        results (`Mapping`):
            Result of [`evaluate_probabilities`], or a `results.json` read back.
    """
    groups: dict[str, dict[str, Any]] = {}
    for key, value in results.items():
        if key.startswith("group/"):
            name, measure = key.removeprefix("group/").rsplit("/", 1)
            groups.setdefault(name, {})[measure] = value
    return groups
