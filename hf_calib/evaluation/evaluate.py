"""Measures, regime and groups of a set of predictions in one flat dictionary."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np

from ..measures.calibration_error import report_examples, report_predictions, report_target
from ..measures.checked import Examples, check_examples, check_predictions
from ..measures.noise_floor import floor_of
from ..regime.classify import choose_other, classify_examples, classify_predictions
from .decision import decision_results
from .options import EvaluationOptions


# Measures of a group. Those that need many questions are left out.
GROUP_KEYS = (
    "n", "accuracy", "confidence", "overconfidence", "ece", "ece_low", "ece_high", "debiased_ece",
    "ece_noise_floor", "ece_p_value",
)  # fmt: skip

_MOST_SIMULATIONS = 100_000
# A group without `n` has a comparison alone, whose measures all have a prefix.
_GROUP_KEY = re.compile(r"group/(.*?)/((?:difference/|other/)?[^/]+)", re.DOTALL)


def evaluate_probabilities(
    probabilities,
    labels,
    target_probabilities=None,
    reference_probabilities=None,
    sample_weight=None,
    groups=None,
    **options,
) -> dict[str, Any]:
    """
    Compute measures, regime and groups of option probabilities.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities, rows summing to 1. Where questions differ in K, a list of rows of different lengths;
            a row of a padded array counts as a question with K options, see
            [`~hf_calib.regime.classify.classify_regime`].
        labels (array-like of shape `(N,)`):
            Index of the right option, in `[0, K)`.
        target_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of a calibrated target, taken as the truth. Adds the target calibration error.
        reference_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of another model, e.g. the one before alignment, that may be miscalibrated.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
        groups (array-like of shape `(N,)`, *optional*):
            Group of each row, e.g. its subject; see [`group_results`].
        options:
            `n_bins`, `binning`, `n_bootstrap`, `seed`, `alpha`, `critical_accuracy`, `details`, `risks`, `coverages`
            and `target_accuracy`, see [`EvaluationOptions`].

    Returns:
        `dict`: the keys of [`~hf_calib.measures.calibration_error.calibration_report`], of
        [`~hf_calib.regime.report.RegimeReport`] and, with groups, of [`group_results`].

    Raises:
        TypeError: An array has the wrong type, or an option is unknown.
        ValueError: A value is outside its range, or the shapes do not fit. The row is named.
    """
    options = EvaluationOptions(**options)
    other, name = choose_other(target_probabilities, reference_probabilities)
    predictions = check_predictions(probabilities, labels, sample_weight, other, name)
    regime = classify_predictions(predictions, name, options.regime)
    report = report_predictions(predictions, options)
    if target_probabilities is not None:
        report |= report_target(predictions, options)
    # The report uses the requested bins. A given critical accuracy takes precedence over that of the target.
    results = {**regime.to_dict(), **report, "critical_accuracy": regime.critical_accuracy}
    results |= decision_results(predictions, options)
    if options.details:
        from .details import probability_details

        results |= probability_details(predictions, options)
    return results if groups is None else results | _group_results(predictions, groups, options)


def evaluate_confidences(
    confidences, correct, num_options: int | None = None, sample_weight=None, groups=None, **options
) -> dict[str, Any]:
    """
    Compute measures, regime and groups of confidences without option probabilities.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        num_options (`int`, *optional*):
            K, at least 2. The empirical test of the regime needs it.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
        groups (array-like of shape `(N,)`, *optional*):
            Group of each row, e.g. its subject; see [`group_results`].
        options:
            `n_bins`, `binning`, `n_bootstrap`, `seed`, `alpha`, `critical_accuracy`, `details`, `risks`, `coverages`
            and `target_accuracy`, see [`EvaluationOptions`].

    Returns:
        `dict`: as [`evaluate_probabilities`], without the measures that need every option (`cw_ece`, `nll`, `brier`
        and its parts).

    Raises:
        TypeError: An option is unknown.
        ValueError: A value is outside its range, or the shapes do not fit. The row is named.
    """
    options = EvaluationOptions(**options)
    examples = check_examples(confidences, correct, sample_weight)
    regime = classify_examples(examples, num_options, options.regime)
    results = {**regime.to_dict(), **report_examples(examples, options), **decision_results(examples, options)}
    if options.details:
        from .details import confidence_details

        results |= confidence_details(examples, options)
    return results if groups is None else results | _group_results(examples, groups, options)


def group_results(confidences, correct, groups, sample_weight=None, **options) -> dict[str, Any]:
    """
    Compute measures of every group, with p-values corrected for the number of groups.

    Among G groups of a calibrated model, about G / 20 have a p-value below .05. `ece_p_value_holm` is corrected for
    this: with probability `1 - alpha` no calibrated group has a corrected p-value below `alpha`. If a p-value is as
    small as the number of simulations permits, up to 100,000 simulations are made, enough for the correction to
    reject.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        groups (array-like of shape `(N,)`):
            Name of the group of each row.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row. A group whose weights are all 0 is left out.
        options:
            `n_bins`, `binning`, `n_bootstrap`, `seed` and `alpha`, see [`EvaluationOptions`].

    Returns:
        `dict`: `n_groups`; `n_groups_miscalibrated` (corrected p-value below `alpha`); for every group, in the order
        of their names, `group/<name>/<key>` for the keys `n`, `accuracy`, `confidence`, `overconfidence`, `ece`,
        `ece_low`, `ece_high`, `debiased_ece`, `ece_noise_floor`, `ece_p_value` and `ece_p_value_holm`.

    Raises:
        TypeError: An option is unknown.
        ValueError: A value is outside its range, or the shapes do not fit. The row is named.

    References:
        Holm (1979), "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6.
    """
    examples = check_examples(confidences, correct, sample_weight)
    return _group_results(examples, groups, EvaluationOptions(**options))


def _group_results(examples: Examples, groups, options: EvaluationOptions) -> dict[str, Any]:
    names, rows_of = _rows_by_group(examples, groups)
    most = min(ceil(2 * len(names) / options.alpha), _MOST_SIMULATIONS)
    results: dict[str, dict[str, Any]] = {}
    for name, rows in zip(names, rows_of, strict=True):
        group = examples.examples(rows)
        report = report_examples(group, options)
        if report["ece_p_value"] * (1 + options.n_bootstrap) < 1.5 and most > options.n_bootstrap:
            report["ece_p_value"] = floor_of(group, replace(options, n_bootstrap=most)).p_value
        results[str(name)] = {key: report[key] for key in GROUP_KEYS}
    corrected = holm({name: result["ece_p_value"] for name, result in results.items()})
    flat: dict[str, Any] = {
        "n_groups": len(results),
        "n_groups_miscalibrated": sum(p < options.alpha for p in corrected.values()),
    }
    for name, result in results.items():
        result["ece_p_value_holm"] = corrected[name]
        flat |= {f"group/{name}/{key}": value for key, value in result.items()}
    return flat


def _rows_by_group(examples: Examples, groups) -> tuple[list, list[np.ndarray]]:
    """Names of the groups in their order, and the rows of each."""
    groups = np.asarray(groups)
    if groups.dtype.kind == "O":  # None has no order
        groups = groups.astype(str)
    n = len(examples) if examples.kept is None else len(examples.kept)
    if groups.shape != (n,):
        raise ValueError(f"`groups` has shape {groups.shape} for {n} rows: give one name per row.")
    if examples.kept is not None:
        groups = groups[examples.kept]
    names, index = np.unique(groups, return_inverse=True)
    # one sort instead of one pass per group
    rows_of = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    return names.tolist(), rows_of


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """
    Correct p-values for their number by Holm's method, valid for any dependence between the tests.

    Args:
        p_values (`Mapping[str, float]`):
            P-value of each test, by name.

    Returns:
        `dict[str, float]`: corrected p-values in [0, 1].
    """
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return corrected


def groups_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """
    Collect the groups of a flat dictionary of results.

    Names and measures may contain slashes. The names are those with a key `group/<name>/n`, and a key belongs to the
    longest one that fits. So with groups `law` and `law/other`, the key `group/law/other/ece` belongs to the latter;
    in a comparison the former has the same key, and one of the two values is lost: rename such groups.

    Args:
        results (`Mapping`):
            Result of [`evaluate_probabilities`], or the content of a `results.json`.

    Returns:
        `dict`: measures of each group, by name.
    """
    keys = [key for key in results if key.startswith("group/")]
    names = {key.removeprefix("group/").removesuffix("/n") for key in keys if key.endswith("/n")}
    groups: dict[str, dict[str, Any]] = {}
    for key in keys:
        name, measure = _split_group_key(key, names)
        groups.setdefault(name, {})[measure] = results[key]
    return groups


def _split_group_key(key: str, names: Collection[str]) -> tuple[str, str]:
    """Name of the group, the longest one of `names` that fits, and measure."""
    parts = key.split("/")[1:]
    for end in range(len(parts) - 1, 0, -1):
        if (name := "/".join(parts[:end])) in names:
            return name, "/".join(parts[end:])
    return _GROUP_KEY.fullmatch(key).groups()
