"""Check a gate on new predictions: the accuracy of the answers, or the distribution of the confidences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..measures.sequential_test import accuracy_evidence
from ..measures.threshold import clopper_pearson
from .gate import Answers, Gate


@dataclass
class GateCheck:
    """
    Result of a check.

    Attributes:
        holds (`bool`): Whether nothing speaks against the gate.
        kind (`str`): `"accuracy"`, a sequential test of the answers, or `"shift"`, a test of the confidences alone.
        sentences (`list[str]`): What was found.
        results (`dict`): Its numbers.
    """

    holds: bool
    kind: str
    sentences: list[str]
    results: dict[str, Any]


def check_gate(gate: Gate, answers: Answers) -> GateCheck:
    """
    Check a gate on new predictions of the same model.

    With labels the accuracy of the answers is tested sequentially (see
    [`~hf_calib.measures.sequential_test.accuracy_evidence`]): the check may be repeated as often as one likes while
    labelled predictions are added at the end. A true guarantee is ever refuted with a probability of at most
    `1 - level`. With several subjects the evidence must exceed the number of subjects with a threshold divided by
    `1 - level`.

    Without labels the confidences are compared with those of the gate, by the Kolmogorov-Smirnov test at the error
    rate `1 - level`. It tests no accuracy, and each repetition may reject by chance.

    Args:
        gate ([`Gate`]):
            The gate.
        answers ([`~hf_calib.evaluation.gate.Answers`]):
            New predictions, in the order in which they came.

    Raises:
        `ValueError`: the gate has no threshold, or no subject of the predictions has one.
    """
    if not gate.found:
        raise ValueError("the gate has no threshold: there is nothing to check.")
    answered = gate.answered(answers)
    if gate.by_subject and not np.isin(answers.subjects, [n for n, t in gate.thresholds.items() if t.found]).any():
        raise ValueError("no subject of these predictions has a threshold in the gate.")
    return (
        _check_accuracy(gate, answers, answered) if answers.labelled.any() else _check_shift(gate, answers, answered)
    )


def _check_accuracy(gate: Gate, answers: Answers, answered: np.ndarray) -> GateCheck:
    labelled, alpha = answers.labelled, round(1 - gate.level, 12)
    tested = {name: threshold for name, threshold in gate.thresholds.items() if threshold.found}
    limit = len(tested) / alpha
    sentences, refuted, parts = [], [], {}
    for name in tested:
        rows = answered & labelled & (answers.subjects == name if gate.by_subject else True)
        correct = answers.correct[rows]
        evidence = accuracy_evidence(correct, gate.target_accuracy)
        low, high = clopper_pearson(int(correct.sum()), len(correct))
        accuracy = float(correct.mean()) if len(correct) else float("nan")
        parts[name] = {
            "n_answered": len(correct),
            "accuracy": accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "e_value": evidence.e_value,
            "largest_e_value": evidence.largest,
            "holds": evidence.largest < limit,
        }
        if evidence.largest >= limit:
            refuted.append(name)
        if len(correct) and (evidence.largest >= limit or not gate.by_subject):
            sentences.append(
                f"{f'{name}: ' if name else ''}{accuracy:.1%} [{low:.1%}, {high:.1%}] of {len(correct):,} answers are "
                f"right; the evidence against {gate.target_accuracy:.1%} has reached {evidence.largest:.3g}, and "
                f"{limit:.3g} refutes it."
            )
    n = int(labelled.sum())
    if n < len(labelled):
        sentences.append(f"{len(labelled) - n:,} of {len(labelled):,} questions have no label and are left out.")
    if not (answered & labelled).any():
        sentences.append(f"No labelled question is answered, of {n:,}: nothing was tested.")
    sentences.append(
        f"The guarantee is refuted{' for ' + ', '.join(refuted) if gate.by_subject else ''}."
        if refuted
        else "The guarantee is not refuted. The check may be repeated when more predictions are added."
    )
    coverage = float(answered[labelled].mean())
    results = {"n": n, "coverage": coverage, "e_value_that_refutes": limit}
    results |= {"subjects": parts} if gate.by_subject else parts[""]
    return GateCheck(not refuted, "accuracy", sentences, {**results, "holds": not refuted})


def _check_shift(gate: Gate, answers: Answers, answered: np.ndarray) -> GateCheck:
    from scipy.stats import ks_2samp

    values, counts = (np.array(gate.confidences[name]) for name in ("values", "counts"))
    # Both samples on the points that the gate keeps. Ties make the test conservative.
    cells = np.searchsorted(values, answers.confidences)
    before = np.repeat(np.arange(len(values)), counts)
    test = ks_2samp(before, cells, method="auto" if len(before) * len(cells) < 1e6 else "asymp")
    holds = bool(test.pvalue > round(1 - gate.level, 12))
    n = sum(threshold.n for threshold in gate.thresholds.values())
    expected = sum(threshold.n_answered for threshold in gate.thresholds.values()) / n
    coverage = float(answered.mean())
    sentences = [
        f"Without labels: {coverage:.1%} of {len(answered):,} questions are answered, {expected:.1%} of those of the "
        f"gate. Kolmogorov-Smirnov test of the confidences: distance {test.statistic:.3f}, p = {test.pvalue:.3g}.",
        "No shift of the confidences was found. Whether the accuracy holds takes labels to tell."
        if holds
        else "The confidences have shifted, so the questions are of another kind: the guarantee need not hold. "
        "Label some of these questions and check again.",
    ]
    results = {
        "n": len(answered),
        "coverage": coverage,
        "coverage_of_gate": expected,
        "distance": float(test.statistic),
        "p_value": float(test.pvalue),
        "holds": holds,
    }
    return GateCheck(holds, "shift", sentences, results)
