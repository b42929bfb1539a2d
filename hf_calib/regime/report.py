"""Result of the regime test and its explanation in one sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


CALIBRATABLE, NON_CALIBRATABLE = "calibratable", "non-calibratable"
TARGET_CONTRADICTED, UNDETERMINED = "target-contradicted", "undetermined"


@dataclass(frozen=True)
class RegimeReport:
    """
    Result of [`~hf_calib.regime.classify.classify_regime`]. A number that the input does not determine is `None`.

    Attributes:
        regime (`str`): `"calibratable"`, `"non-calibratable"`, `"target-contradicted"` or `"undetermined"`.
        recommended_method (`str`): `"cft"` in the calibratable regime, else `"rcft"`.
        test (`str`): Test that decides: `"target"`, `"reference"`, `"critical_accuracy"`, `"recalibration"`
            (empirical), or `"none"` where no test is possible.
        p_value (`float` or `None`): p-value of the hypothesis that the model is calibratable: `accuracy <= critical
            accuracy`, in the empirical test `accuracy >= 1 / K`. Below `alpha` in the non-calibratable regime.
        alpha (`float`): Significance level.
        n (`int`): Number of questions with a weight above 0.
        accuracy (`float`): ACC.
        confidence (`float`): Mean confidence.
        critical_accuracy (`float` or `None`): ACC*.
        border_distance (`float` or `None`): `ACC - ACC*`, positive in the non-calibratable regime.
        ece (`float`): conf-ECE.
        ece_lower_bound (`float`): `|ACC - mean confidence|`.
        ece_upper_bound (`float`): Mean of `|correct - confidence|`.
        tce (`float` or `None`): Target calibration error.
        tce_lower_bound (`float` or `None`): `|mean confidence - expected accuracy|`.
        tce_upper_bound (`float` or `None`): Mean of `|target probability of the prediction - confidence|`.
        sum_lower_bound (`float` or `None`): Lower bound of ECE + TCE for these predictions, for any confidence:
            `|ACC - expected accuracy|` with a target, else `max(0, ACC - ACC*)`, with a reference for the larger of
            its two critical accuracies.
        expected_accuracy (`float` or `None`): Mean probability that the target or the reference gives to the
            predictions: the expected accuracy of a model that has not seen these labels.
        expected_accuracy_p_value (`float` or `None`): p-value of the hypothesis `accuracy == expected accuracy`
            (two-sided). Small with a lower accuracy: the labels contradict the target. Small with a higher accuracy:
            labels are memorised, or the reference knows less than the model.
        expected_accuracy_detectable (`float` or `None`): Difference between accuracy and expected accuracy that this
            test finds with probability 0.8 on as many questions.
        recalibrated_ece (`float` or `None`): Empirical test: ECE on the second half of the questions after the
            order-preserving recalibration fitted on the first half.
        recalibrated_ece_p95 (`float` or `None`): 95th percentile of that ECE if the recalibration is right.
        recalibrated_ece_p_value (`float` or `None`): Probability of at least that ECE if the recalibration is right.
        p_value_calibratable (`float` or `None`): p-value of the hypothesis `accuracy >= critical accuracy`. Below
            `alpha` in the calibratable regime.
        border_distance_low (`float` or `None`): Lower end of the interval of `border_distance` at level
            `1 - 2 * alpha`. Above 0 in the non-calibratable regime.
        border_distance_high (`float` or `None`): Upper end. Below 0 in the calibratable regime.
        border_distance_detectable (`float` or `None`): Distance between ACC and ACC* that the test finds with
            probability 0.8 on as many questions. In the empirical test: the distance below guessing, 1 / K; that test
            finds no distance above ACC*.
        reference_accuracy (`float` or `None`): Accuracy of the reference, the second estimate of ACC*.
        reference_ece (`float` or `None`): conf-ECE of the reference. The two estimates differ by at most this much.
        reference_ece_p_value (`float` or `None`): Probability that a calibrated reference has at least that ECE.
        explanation (`str`): The result in one sentence.
    """

    regime: str
    recommended_method: str
    test: str
    p_value: float | None
    alpha: float
    n: int
    accuracy: float
    confidence: float
    critical_accuracy: float | None
    border_distance: float | None
    ece: float
    ece_lower_bound: float
    ece_upper_bound: float
    tce: float | None = None
    tce_lower_bound: float | None = None
    tce_upper_bound: float | None = None
    sum_lower_bound: float | None = None
    expected_accuracy: float | None = None
    expected_accuracy_p_value: float | None = None
    expected_accuracy_detectable: float | None = None
    recalibrated_ece: float | None = None
    recalibrated_ece_p95: float | None = None
    recalibrated_ece_p_value: float | None = None
    p_value_calibratable: float | None = None
    border_distance_low: float | None = None
    border_distance_high: float | None = None
    border_distance_detectable: float | None = None
    reference_accuracy: float | None = None
    reference_ece: float | None = None
    reference_ece_p_value: float | None = None
    explanation: str = ""

    def to_dict(self) -> dict[str, float | str | None]:
        """Return all fields in a flat dictionary that `json.dumps` takes."""
        return asdict(self)


def make_report(regime: str, test: str, fields: dict[str, Any], guessing: float | None) -> RegimeReport:
    """
    Make the report of a regime.

    Args:
        regime (`str`):
            The regime.
        test (`str`):
            Test that decides.
        fields (`dict`):
            Numbers of the report.
        guessing (`float` or `None`):
            Accuracy of guessing, for the empirical test.
    """
    advice = {
        CALIBRATABLE: "calibration can be restored at this accuracy; CFT is the method of this regime",
        NON_CALIBRATABLE: "calibration cannot be restored at this accuracy; RCFT trades some of it",
        TARGET_CONTRADICTED: "RCFT, which calibrates to labels, is the safe choice",
        UNDETERMINED: "use more questions, or the predictions of the model before alignment; until then, RCFT",
    }[regime]
    if test == "none":
        found = "No test is possible without a target, a reference, a critical accuracy or the number of options"
    elif test == "recalibration":
        found, advice = _explain_recalibration(regime, fields, guessing, advice)
    elif regime == TARGET_CONTRADICTED:
        found, advice = _explain_contradiction(fields, advice)
    else:
        found, advice = _explain_threshold(regime, test, fields, advice)
    explanation = f"{found}: {advice}.".format(**fields)
    method = "cft" if regime == CALIBRATABLE else "rcft"
    return RegimeReport(regime=regime, recommended_method=method, test=test, explanation=explanation, **fields)


def _explain_recalibration(regime: str, fields: dict[str, Any], guessing: float, advice: str) -> tuple[str, str]:
    if regime == NON_CALIBRATABLE:
        found = f"Accuracy {{accuracy:.3f}} is below the {guessing:.3f} of guessing, the smallest mean confidence"
        return found, "calibration cannot be restored with these predictions; RCFT changes them"
    found = "A recalibration that keeps the order of the confidences "
    if regime == CALIBRATABLE:
        found += "leaves an ECE of {recalibrated_ece:.3f}, within noise"
    elif fields.get("recalibrated_ece_p_value", 1.0) < fields["alpha"]:
        found += "leaves an ECE of {recalibrated_ece:.3f}, where noise leaves up to {recalibrated_ece_p95:.3f}"
    else:
        found = "{n:,} questions are too few to tell whether the model can be calibrated at its accuracy"
    advice += ". Without a target or a reference, memorised questions are not detected on any number of questions; an "
    return found, advice + "accuracy {border_distance_detectable:.3f} below guessing is, with probability 0.8"


def _explain_contradiction(fields: dict[str, Any], advice: str) -> tuple[str, str]:
    by, doubt = ("target", "") if "tce" in fields else ("reference", " or better known than by the reference")
    difference = fields["accuracy"] - fields["expected_accuracy"]
    place = "above" if difference > 0 else "below"
    found = f"Accuracy {{accuracy:.3f}} is {place} the {{expected_accuracy:.3f}} that "
    found += f"the {by} gives to these predictions (p = {{expected_accuracy_p_value:.2g}})"
    if difference > 0:
        found += f", so some of these questions are memorised{doubt}"
    else:
        found += f", so the {by} is wrong for these questions"
    taken = "" if "tce" in fields else " (with the reference as the target)"
    return found, f"no confidence of these predictions brings ECE + TCE{taken} below {abs(difference):.3f}; {advice}"


def _explain_threshold(regime: str, test: str, fields: dict[str, Any], advice: str) -> tuple[str, str]:
    place = {
        CALIBRATABLE: "is below",
        NON_CALIBRATABLE: "is above",
        UNDETERMINED: "cannot be distinguished on {n:,} questions from",
    }[regime]
    found = f"Accuracy {{accuracy:.3f}} {place} the critical accuracy {{critical_accuracy:.3f}}"
    if test == "reference":
        found += " by the reference's confidence and {reference_accuracy:.3f} by its accuracy"
    found += f" ({100 * (1 - 2 * fields['alpha']):.3g}% interval of the distance"
    found += " {border_distance_low:+.3f} to {border_distance_high:+.3f})"
    if regime == CALIBRATABLE and "expected_accuracy" in fields:
        by = "target" if "tce" in fields else "reference"
        found += f" and not distinguishable from the {{expected_accuracy:.3f}} that the {by} gives to these "
        found += "predictions (a difference of {expected_accuracy_detectable:.3f} is found with probability 0.8)"
    elif regime == CALIBRATABLE:
        advice += ", if the model has not seen these labels. Only a target or a reference can show that"
    return found, advice
