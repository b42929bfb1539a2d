"""Verification of the gate that was published with a model."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np

from ..evaluation.gate import FILE, Answers, Gate, predictions_digest
from ..evaluation.gate_check import check_gate
from ..evaluation.gate_fingerprint import check_fingerprint, predictions_fingerprint
from ..inference.predictions import OptionPredictions
from .calibrator import load_calibrator
from .gate import calibrated_as, gate_statement, usable_gate
from .verify import Check, Published


def verify_gate(
    published: Published, predictions: OptionPredictions, same_questions: bool, tolerance: float = 0.005
) -> tuple[list[Check], list[str]]:
    """
    Check that a published gate belongs to its model, and that the guarantee is not refuted.

    On the questions with which the gate was made, or some of them, coverage and accuracy of the answers are repeated.
    On others the guarantee is tested as by `hf-calib threshold --check`.

    Args:
        published ([`~hf_calib.hub.verify.Published`]):
            The checkpoint and its results.json.
        predictions ([`~hf_calib.OptionPredictions`]):
            Labelled predictions of the model.
        same_questions (`bool`):
            Whether these are all or some of the questions of the card.
        tolerance (`float`, *optional*, defaults to `0.005`):
            Allowed difference between machines and batch sizes, beside that of one question.

    Returns:
        `tuple`: the figures that were repeated, and sentences. Both are empty if no gate was published.

    Raises:
        `OSError`: the gate of the card, or its calibrator, is missing.
        `ValueError`: the gate cannot be read, is not the one of the card, is of another model, prompt or calibrator,
            or its guarantee is refuted.
    """
    stated, path = published.results.get("gate"), published.folder / FILE
    if not stated and not path.is_file():
        return [], []
    if not stated:
        raise ValueError(f"there is a {FILE}, and the card shows none: push them together.")
    if not path.is_file():
        raise FileNotFoundError(f"the card shows a gate, and there is no {FILE}.")
    gate = usable_gate(path)
    if gate_statement(gate) != {name: value for name, value in stated.items() if name != "of_evaluation"}:
        raise ValueError(f"{FILE} is not the gate of the card: push them together.")
    calibrator = load_calibrator(published.folder) if gate.fingerprint.get("calibrator") else None
    predictions = calibrated_as(gate, predictions, calibrator)
    return _verify(gate, predictions, published.name, same_questions and stated.get("of_evaluation"), tolerance)


def verify_given_gate(
    published: Published,
    predictions: OptionPredictions,
    same_questions: bool,
    gate: str,
    calibrator: str | None = None,
    tolerance: float = 0.005,
) -> tuple[list[Check], list[str]]:
    """
    Check a gate that is not published, as [`verify_gate`] does; `calibrator` is the folder of its calibrator.

    Whether the gate was made with the questions of the evaluation is known from the predictions in the folder.
    """
    gate, fitted = usable_gate(gate), None
    if gate.fingerprint.get("calibrator"):
        fitted = load_calibrator(calibrator or published.folder)
    saved, of_evaluation = published.folder / "predictions.npz", False
    if same_questions and saved.is_file():
        before = calibrated_as(gate, OptionPredictions.load(saved), fitted)
        of_evaluation = predictions_digest(before) == gate.questions
    return _verify(gate, calibrated_as(gate, predictions, fitted), published.name, of_evaluation, tolerance)


def _verify(
    gate: Gate, predictions: OptionPredictions, name: str, of_evaluation: bool, tolerance: float
) -> tuple[list[Check], list[str]]:
    """Check that a gate belongs to calibrated predictions; repeat its figures, or test its guarantee."""
    check_fingerprint(gate.fingerprint, predictions_fingerprint(predictions), name, "is")
    answers, belongs = Answers.of(predictions), "The gate is of this model, prompt and calibrator."
    if of_evaluation:
        return _repeated(gate, answers, tolerance), [belongs]
    result = check_gate(gate, answers)
    if not result.holds:
        raise ValueError(" ".join(result.sentences))
    return [], [belongs, *result.sentences]


def _repeated(gate: Gate, answers: Answers, tolerance: float) -> list[Check]:
    """Coverage and accuracy of the answers to questions of the gate; on a sample, with its error."""
    thresholds, answered = gate.thresholds.values(), gate.answered(answers)
    n, n_answered = (sum(getattr(threshold, name) for threshold in thresholds) for name in ("n", "n_answered"))
    right = sum(threshold.accuracy * threshold.n_answered for threshold in thresholds if threshold.n_answered)
    figures = {
        "coverage": (n_answered / n, answered.astype(np.float64), n),
        "accuracy": (right / n_answered, answers.correct[answered], n_answered),
    }
    z, checks = NormalDist().inv_cdf(1 - 0.05 / (2 * len(figures))), []
    for name, (value, sample, total) in figures.items():
        if len(sample):
            error = z * sqrt(value * (1 - value) * max(0.0, 1 / len(sample) - 1 / total))
            margin, found = tolerance + 1 / len(sample) + error, float(sample.mean())
            holds = abs(found - value) <= margin
            checks.append(Check(f"gate/{name}", value, found, value - margin, value + margin, holds))
    return checks
