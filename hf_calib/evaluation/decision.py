"""Measures for deciding which questions to answer: points of the risk-coverage curve, a threshold with a guarantee."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..measures.checked import Examples
from ..measures.risk_coverage import report_selective
from ..measures.threshold import accuracy_threshold
from .options import EvaluationOptions


def decision_results(examples: Examples, options: EvaluationOptions) -> dict[str, Any]:
    """
    Compute what `risks`, `coverages` and `target_accuracy` ask for.

    Args:
        examples ([`~hf_calib.measures.checked.Examples`]):
            Checked confidences and outcomes.
        options ([`~hf_calib.evaluation.options.EvaluationOptions`]):
            The options.

    Returns:
        `dict`: `coverage_at_risk/<risk>` and `risk_at_coverage/<coverage>` with `_low` and `_high`, see
        [`~hf_calib.measures.risk_coverage.selective_report`]; `threshold` with `threshold_coverage`,
        `threshold_accuracy` and the like, see [`~hf_calib.measures.threshold.AccuracyThreshold`]. Without a threshold
        all of these are `None` but `threshold_questions_needed`.

    Raises:
        ValueError: A value is outside its range, there are fewer questions than any guarantee needs, or there are
            weights and a target accuracy.
    """
    results: dict[str, Any] = {}
    risks, coverages = (np.atleast_1d(values).tolist() for values in (options.risks, options.coverages))
    if risks or coverages:
        report = report_selective(examples, risks, coverages, options)
        results |= {key: value for key, value in report.items() if "_at_" in key}
    if options.target_accuracy is None:
        return results
    if examples.weights is not None:
        raise ValueError(
            "`target_accuracy` does not go with `sample_weight`: use accuracy_threshold, which takes `max_weight`."
        )
    found = accuracy_threshold(examples.confidences, examples.correct, options.target_accuracy)
    names = ["n_answered", *(f"{name}{end}" for name in ("coverage", "accuracy") for end in ("", "_low", "_high"))]
    values = {f"threshold_{name}": getattr(found, name) if found.found else None for name in names}
    results |= {"threshold": found.threshold if found.found else None, **values}
    return results | {"threshold_questions_needed": found.questions_needed}
