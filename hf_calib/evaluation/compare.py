"""Compare post-hoc calibrators: fit them, choose one by cross-validation, and measure them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.predictions import OptionPredictions
from ..posthoc import AS_IS, METHODS, PostHocCalibrator, choose_method, cross_validate, fit_calibrator
from .tables import evaluation_results, write_stage_report


@dataclass
class Comparison:
    """
    Result of [`compare_calibrators`].

    Attributes:
        chosen (`str`): The chosen method, or `"as is"`.
        calibrators (`dict[str, PostHocCalibrator]`): Calibrators by method, fitted on all calibration questions.
        scores (`dict[str, dict]`): `cv_nll`, `cv_excess` and `cv_excess_se` of `"as is"` and each method.
        predictions (`dict[str, OptionPredictions]`): Predictions for the test questions, of `"as is"` and each method.
        left_out (`dict[str, str]`): Methods that could not be fitted, with the reason.
        held_out (`bool`): Whether the test questions are disjoint from the calibration questions.
    """

    chosen: str
    calibrators: dict[str, PostHocCalibrator]
    scores: dict[str, dict[str, Any]]
    predictions: dict[str, OptionPredictions]
    left_out: dict[str, str]
    held_out: bool


def compare_calibrators(
    calibration: OptionPredictions,
    test: OptionPredictions | None = None,
    reference: OptionPredictions | None = None,
    methods: Sequence[str] | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> Comparison:
    """
    Fit calibrators, choose one by cross-validation on the calibration questions, and apply all.

    Args:
        calibration ([`OptionPredictions`]):
            Predictions to fit on.
        test ([`OptionPredictions`], *optional*):
            Predictions to calibrate, of the same model for other questions. Defaults to the calibration questions,
            each calibrated by calibrators that were fitted without it.
        reference ([`OptionPredictions`], *optional*):
            Predictions of the model before alignment for the calibration questions, for the method `"agreement"`.
        methods (`Sequence[str]`, *optional*):
            Keys of [`~hf_calib.posthoc.METHODS`]. Defaults to all that can be fitted.
        n_folds (`int`, *optional*, defaults to `5`):
            Folds of the cross-validation.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the folds.

    Raises:
        `ValueError`: for an unknown method, a named method that cannot be fitted, too few questions, or questions in
            both sets.
    """
    if unknown := [name for name in methods or () if name not in METHODS]:
        raise ValueError(f"method {unknown[0]!r} is not known; choose among {', '.join(METHODS)}.")
    if "agreement" in (methods or ()) and reference is None:
        raise ValueError("method 'agreement' needs the reference: predictions of the model before its alignment.")
    if calibration.of_answers and len(set(calibration.labels.tolist())) == 1:
        which = "right" if calibration.labels[0] == 0 else "wrong"
        raise ValueError(f"all {len(calibration)} answers are {which}: no recalibration is possible.")
    if test is not None:
        _check_disjoint(calibration, test)
    reference_logits = None
    if reference is not None:
        reference = reference.matching(calibration.ids, calibration.labels)
        reference_logits = reference.option_logits[:, : calibration.option_logits.shape[1]]
    if calibration.subjects is None and (grouped := [name for name in methods or () if METHODS[name].grouped]):
        raise ValueError(f"method {grouped[0]!r} needs the subjects of the questions, which the predictions lack.")
    named = [
        name
        for name, kind in METHODS.items()
        if name in (methods or METHODS)
        and (kind.supervised or reference is not None)
        and (not kind.grouped or calibration.subjects is not None)
    ]
    calibrators, left_out = {}, {}
    for method in named:
        try:
            fitted = fit_calibrator(
                method, calibration.option_logits, calibration.labels, reference_logits, calibration.subjects
            )
            if test is not None:
                fitted.transform(test.option_logits, groups=test.subjects)
            calibrators[method] = fitted
        except ValueError as error:
            if methods:
                raise
            left_out[method] = str(error)
    outcomes = cross_validate(
        list(calibrators),
        calibration.option_logits,
        calibration.labels,
        reference_logits,
        n_folds,
        seed,
        calibration.subjects,
    )
    chosen, scores = choose_method(outcomes, calibration.labels, list(METHODS))
    if test is None:
        # No one calibrator made them, so there is no digest.
        predictions = {
            name: calibration
            if name == AS_IS
            else calibration.with_probabilities(probabilities, calibrator=name, calibrator_digest=None)
            for name, probabilities in outcomes.items()
        }
    else:
        predictions = {AS_IS: test, **{name: test.recalibrated(fitted) for name, fitted in calibrators.items()}}
    return Comparison(chosen, calibrators, scores, predictions, left_out, test is not None)


def _check_disjoint(calibration: OptionPredictions, test: OptionPredictions) -> None:
    """Check that no question has the same id and logits in both sets. Ids alone may be row numbers of two files."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(calibration.ids.tolist()):
        rows.setdefault(name, []).append(row)
    shared = [
        name
        for row, name in enumerate(test.ids.tolist())
        if any(_same(calibration.option_logits[other], test.option_logits[row]) for other in rows.get(name, ()))
    ]
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(test)} test questions are among the calibration questions, the first of them "
            f"{shared[0]!r}: use disjoint sets of questions."
        )


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    return np.allclose(left[np.isfinite(left)][:2], right[np.isfinite(right)][:2], rtol=1e-3)


def stage_name(method: str) -> str:
    """Name of a method in tables."""
    return AS_IS if method == AS_IS else METHODS[method].title


def comparison_stages(comparison: Comparison, **measuring) -> list[dict[str, Any]]:
    """
    Compute the measures of every method, as rows of [`~hf_calib.evaluation.tables.results_table`].

    Args:
        comparison ([`Comparison`]):
            Result of [`compare_calibrators`].
        measuring:
            Options of [`~hf_calib.evaluation.evaluate.evaluate_probabilities`], e.g. `n_bins`, `seed`.
    """
    return [
        {
            "stage": stage_name(method),
            "method": method,
            "chosen": method == comparison.chosen,
            **evaluation_results(predictions, **measuring),
            **comparison.scores[method],
        }
        for method, predictions in comparison.predictions.items()
    ]


def write_comparison(
    output_dir: str | Path, comparison: Comparison, stages: Sequence[Mapping[str, Any]], num_questions: int, title: str
) -> Path:
    """
    Write a comparison to a folder.

    The files are `report.md`, `results.json`, `reliability.png` and `.svg`, the calibrators as
    `calibrators/<method>/`, and `predictions.npz`, the test predictions of the chosen method.

    Args:
        output_dir (`str` or `Path`):
            The folder, which is created if it is missing.
        comparison ([`Comparison`]):
            Result of [`compare_calibrators`].
        stages (`Sequence[Mapping]`):
            Result of [`comparison_stages`].
        num_questions (`int`):
            Number of calibration questions.
        title (`str`):
            Heading of the report.

    Returns:
        `Path`: path of `report.md`.
    """
    output_dir = Path(output_dir)
    for method, calibrator in comparison.calibrators.items():
        calibrator.save(output_dir / "calibrators" / method)
    comparison.predictions[comparison.chosen].save(output_dir / "predictions.npz")
    predictions = {stage_name(name): predictions for name, predictions in comparison.predictions.items()}
    return write_stage_report(output_dir, stages, predictions, title, _notes(comparison, num_questions))


def choice_sentence(comparison: Comparison) -> str:
    """Describe the chosen method in a sentence."""
    if comparison.chosen == AS_IS:
        return "Chosen: as is. No calibrator is better than the model as it is."
    calibrator = comparison.calibrators[comparison.chosen]
    detail = f" (T = {calibrator.temperature.item():.3g})" if calibrator.parameters == ("temperature",) else ""
    return f"Chosen: {calibrator.title}{detail}, the simplest that is no worse than the best by more than chance."


def _notes(comparison: Comparison, num_questions: int) -> str:
    how = (
        "other questions"
        if comparison.held_out
        else "the same questions, each calibrated by calibrators fitted without it"
    )
    rows = [
        "| method | cross-validated NLL | over the best ± standard error | keeps the answers |",
        "|---|---:|---:|---|",
    ]
    for method, score in comparison.scores.items():
        keeps = "yes" if method == AS_IS or METHODS[method].keeps_order else "no"
        excess = f"{score['cv_excess']:.4f} ± {score['cv_excess_se']:.4f}"
        name = f"**{stage_name(method)}**" if method == comparison.chosen else stage_name(method)
        rows.append(f"| {name} | {score['cv_nll']:.4f} | {excess} | {keeps} |")
    parts = [
        "## The choice",
        choice_sentence(comparison),
        f"Fitted on {num_questions:,} questions, measured above on {how}. "
        "The choice is made by cross-validation on the calibration questions.",
        "\n".join(rows),
    ]
    parts += [f"Left out: {METHODS[name].title} ({reason})" for name, reason in comparison.left_out.items()]
    if comparison.chosen != AS_IS:
        grouped = ", groups=subjects" if METHODS[comparison.chosen].grouped else ""
        parts.append(
            "```python\nfrom hf_calib import PostHocCalibrator\n\n"
            f'calibrator = PostHocCalibrator.load("calibrators/{comparison.chosen}")\n'
            f"probabilities = calibrator.transform(option_logits{grouped})\n```"
        )
    return "\n\n".join(parts)
