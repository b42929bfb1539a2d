"""The calibration regime: can this model be calibrated at the accuracy it has? Proofs in docs/theory.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Real
from statistics import NormalDist

import numpy as np

from ..measures.binning import reliability_bins, top_label
from ..measures.calibration_error import target_confidence
from ..measures.noise_floor import noise_floor
from ..measures.validation import as_matrix, as_outcomes, as_weights, iterate_columns
from .accuracy_tests import discordance_test, either, paired_test, rate_test
from .recalibration_test import recalibration_test


CALIBRATABLE, NON_CALIBRATABLE, UNDETERMINED = "calibratable", "non-calibratable", "undetermined"

_TOLERABLE = 0.1  # an ECE that the empirical test must rule out before it vouches for a model, at most half of chance


@dataclass(frozen=True)
class RegimeReport:
    """
    What [`classify_regime`] found. `None` stands for what cannot be said with what was given.

    Attributes:
        regime (`str`): `"calibratable"`, `"non-calibratable"` or `"undetermined"`.
        recommended_method (`str`): `"cft"` in the calibratable regime, else `"rcft"` (the regulariser does no harm
            where it turns out not to be needed); `"rcft"`, too, where some of the labels are found to be memorised.
        test (`str`): What decided: `"target"`, `"reference"`, `"critical_accuracy"`, `"recalibration"` (the empirical
            test), or `"none"` where nothing could be tested.
        p_value (`float` or `None`): Of the hypothesis that the model is calibratable, below `alpha` where the regime is
            non-calibratable. The hypothesis is `accuracy <= critical accuracy`, in the empirical test `accuracy >= 1/K`.
        alpha (`float`): Significance level.
        n (`int`): Number of questions whose weight is not 0.
        accuracy (`float`): ACC.
        confidence (`float`): Mean confidence.
        critical_accuracy (`float` or `None`): ACC*.
        border_distance (`float` or `None`): ACC - ACC*, positive in the non-calibratable regime.
        ece (`float`): Measured conf-ECE.
        ece_lower_bound (`float`): |ACC - mean confidence|.
        ece_upper_bound (`float`): Mean of |correct - confidence|.
        tce (`float` or `None`): Target calibration error.
        tce_lower_bound (`float` or `None`): |mean confidence - mean target probability of the prediction|.
        tce_upper_bound (`float` or `None`): Mean of |target probability of the prediction - confidence|.
        sum_lower_bound (`float` or `None`): What ECE + TCE cannot go below, whatever becomes of the confidence:
            |ACC - mean target probability of the prediction| with target probabilities, else max(0, ACC - ACC*), with
            a reference for the larger of its two critical accuracies.
        expected_accuracy (`float` or `None`): Mean probability that the target or reference gives to the predictions:
            the accuracy of a model that has not seen these labels.
        expected_accuracy_p_value (`float` or `None`): Of the hypothesis `accuracy <= expected accuracy`: small speaks
            for memorised labels, or for a reference that knows less than the model.
        recalibrated_ece (`float` or `None`): Empirical test only: ECE on the second half after the order-keeping
            recalibration fitted on the first.
        recalibrated_ece_p95 (`float` or `None`): What that ECE stays below, 95 times out of 100, if the recalibration
            is right.
        recalibrated_ece_p_value (`float` or `None`): Probability of at least that ECE if the recalibration is right.
        p_value_calibratable (`float` or `None`): Of the hypothesis `accuracy >= critical accuracy`: small speaks for
            calibratable.
        border_distance_low (`float` or `None`): Lower end of the interval of the border distance at level
            `1 - 2 * alpha`, 90% by default: above 0 where the regime is non-calibratable.
        border_distance_high (`float` or `None`): Its upper end: below 0 where the regime is calibratable.
        reference_accuracy (`float` or `None`): Accuracy of the reference, the other estimate of ACC*.
        reference_ece (`float` or `None`): conf-ECE of the reference: the two estimates differ by no more than this.
        reference_ece_p_value (`float` or `None`): Probability that a calibrated reference shows at least that ECE.
        explanation (`str`): The verdict in a sentence.
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
    recalibrated_ece: float | None = None
    recalibrated_ece_p95: float | None = None
    recalibrated_ece_p_value: float | None = None
    p_value_calibratable: float | None = None
    border_distance_low: float | None = None
    border_distance_high: float | None = None
    reference_accuracy: float | None = None
    reference_ece: float | None = None
    reference_ece_p_value: float | None = None
    explanation: str = ""

    def to_dict(self) -> dict[str, float | str | None]:
        """All fields in a flat dictionary that `json.dumps` takes."""
        return asdict(self)


def classify_regime(
    probabilities,
    labels,
    target_probabilities=None,
    critical_accuracy: float | None = None,
    alpha: float = 0.05,
    n_bins: int = 10,
    seed: int = 0,
    reference_probabilities=None,
    sample_weight=None,
) -> RegimeReport:
    """
    Say whether a model can be calibrated without losing accuracy.

    Four tests, by what is known (definitions: Xiao et al., arXiv 2505.01997; tests: derived in docs/theory.md):

    - target probabilities, taken as the truth: ACC against ACC* = mean of `max_k target_k`, a paired t-test;
    - the predictions of a reference model, which may be miscalibrated: ACC against two estimates of ACC*, its mean
      confidence (right if it is calibrated, a paired t-test) and its accuracy (right if it is calibrated without a
      change of its predictions, McNemar's exact test); a verdict needs both, and so holds for every critical accuracy
      between them;
    - a critical accuracy: ACC against that number, an exact binomial test;
    - none of these: is there a recalibration that keeps the predictions? None is, if the accuracy is below that of
      guessing, 1/K (an exact binomial test). There is one that even keeps the order of the confidences, if an isotonic
      map fitted on a random half of the questions leaves no more ECE on the other half than fitting noise does. In
      between there is one that gives up the order of the least confident, and the regime is undetermined.
      This is a weak test: it is blind to memorised questions, which only a target or a reference shows.

    With a target or a reference the accuracy is also tested against T, the mean probability of the model's predictions
    there (a paired t-test). A model below ACC* and above T has memorised some of these labels, or knows what the
    reference does not: the verdict stands, but no confidence makes both ECE and TCE vanish, so RCFT is recommended.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities of the model. Where questions differ in K, a list of rows of different lengths: in an array
            padded with zeros every row counts as one of K options, and 1/K as the accuracy of guessing.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        target_probabilities (array-like of shape `(N, K)`, *optional*):
            The true option probabilities of the same questions and options, or what is to count as the truth.
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1) where it is known from elsewhere; goes before that of target or reference.
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level in (0, 0.5) of each one-sided test: a model at or below the critical accuracy is called
            non-calibratable with at most this probability, and the other way round.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins of ECE and TCE.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the empirical test, its halves and its simulations, and of the reference's noise floor.
        reference_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of another model that was not trained on the answers to these questions: the model
            before its alignment, an ensemble. Not together with `target_probabilities`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights. Exact tests become t-tests; a row of weight 0 counts for nothing.

    Returns:
        [`RegimeReport`].

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.regime.classify import classify_regime
    >>> target = np.tile([0.6, 0.4], (500, 1))  # nobody can be right more than 60% of the time and be calibrated
    >>> memorised = np.tile([0.99, 0.01], (500, 1))
    >>> report = classify_regime(memorised, np.zeros(500, dtype=int), target)
    >>> report.regime, report.recommended_method, round(report.border_distance, 2)
    ('non-calibratable', 'rcft', 0.4)

    ```
    """
    if target_probabilities is not None and reference_probabilities is not None:
        raise ValueError(
            "`target_probabilities` and `reference_probabilities` are both given: the first are taken as the truth, "
            "the second as a model that may be wrong. Give one of them."
        )
    confidences, correct = top_label(probabilities, labels)
    columns = {"confidences": confidences, "correct": correct}
    if target_probabilities is not None:
        _, columns["expected"] = target_confidence(probabilities, target_probabilities)
        chunks = iterate_columns(as_matrix(target_probabilities)[0])
        columns["ceilings"] = np.concatenate([options.max(axis=0) for _, options in chunks])
    if reference_probabilities is not None:
        _, columns["expected"] = target_confidence(probabilities, reference_probabilities, "reference_probabilities")
        columns["ceilings"], columns["reference_correct"] = top_label(reference_probabilities, labels)
    _, num_options = as_matrix(probabilities)
    columns["chance"] = np.broadcast_to(1 / np.asarray(num_options), len(correct))
    return _classify(columns, sample_weight, critical_accuracy, alpha, n_bins, seed)


def classify_confidences(
    confidences,
    correct,
    critical_accuracy: float | None = None,
    alpha: float = 0.05,
    n_bins: int = 10,
    seed: int = 0,
    sample_weight=None,
    num_options: int | None = None,
) -> RegimeReport:
    """
    [`classify_regime`] where only the confidences are known and which predictions are right.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether it is right, 0 or 1.
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1). Without it the empirical test is made, which wants to know `num_options`.
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level in (0, 0.5) of each one-sided test.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the empirical test.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weights.
        num_options (`int`, *optional*):
            K, at least 2: no confidence can go below 1 / K and keep its prediction.

    Returns:
        [`RegimeReport`]; `"undetermined"` by test `"none"` if neither `critical_accuracy` nor `num_options` is given,
        for then a recalibration always exists.

    Example:

    ```python
    >>> from hf_calib.regime.classify import classify_confidences
    >>> report = classify_confidences([0.9] * 100, [1] * 60 + [0] * 40, critical_accuracy=0.8)
    >>> report.regime, round(report.border_distance_low, 2), round(report.border_distance_high, 2)
    ('calibratable', -0.29, -0.12)

    ```
    """
    confidences, correct = as_outcomes(confidences, correct, binary=True)
    columns = {"confidences": confidences, "correct": correct}
    if num_options is not None:
        if isinstance(num_options, bool) or not isinstance(num_options, (int, np.integer)) or num_options < 2:
            raise ValueError(f"`num_options` must be a whole number of at least 2, got {num_options!r}.")
        columns["chance"] = np.broadcast_to(1 / num_options, len(correct))
    return _classify(columns, sample_weight, critical_accuracy, alpha, n_bins, seed)


def _classify(
    columns: dict[str, np.ndarray],
    sample_weight,
    critical_accuracy: float | None,
    alpha: float,
    n_bins: int,
    seed: int,
) -> RegimeReport:
    """Both forms of input, one column per quantity: with a target its probabilities of the predictions ("expected")
    and its ceilings, with a reference the same and its outcomes; where K is known the accuracy of guessing."""
    _check_share("alpha", alpha, 0.5)
    if critical_accuracy is not None:
        _check_share("critical_accuracy", critical_accuracy, 1)
    weights = as_weights(sample_weight, len(columns["correct"]))
    if weights is not None:
        rows = weights > 0
        columns, weights = {name: column[rows] for name, column in columns.items()}, weights[rows]
        if weights.min() == weights.max():
            weights = None  # the exact tests hold again

    def mean(values: np.ndarray) -> float:
        return float(np.average(values, weights=weights))

    def error(confidences: np.ndarray, outcomes: np.ndarray) -> float:
        return reliability_bins(confidences, outcomes, n_bins, sample_weight=weights).error

    confidences, correct = columns["confidences"], columns["correct"]
    fields = {
        "alpha": alpha,
        "n": len(correct),
        "accuracy": (accuracy := mean(correct)),
        "confidence": mean(confidences),
        "ece": error(confidences, correct),
        "ece_lower_bound": abs(mean(correct - confidences)),
        "ece_upper_bound": mean(np.abs(correct - confidences)),
    }
    if "expected" in columns:
        expected = columns["expected"]
        excess = paired_test(correct, expected, alpha, weights)
        if "reference_correct" not in columns:
            fields |= {
                "tce": error(confidences, expected),
                "tce_lower_bound": abs(mean(confidences - expected)),
                "tce_upper_bound": mean(np.abs(expected - confidences)),
                "sum_lower_bound": abs(mean(correct - expected)),
            }
        else:
            reference = columns["ceilings"], columns["reference_correct"]
            floor = noise_floor(*reference, n_bins, seed=seed, sample_weight=weights)
            fields["reference_accuracy"] = mean(columns["reference_correct"])
            fields |= {"reference_ece": error(*reference), "reference_ece_p_value": floor.p_value}
            # Where both predict the same, the reference's own miscalibration is no sign of memory.
            differ = expected < columns["ceilings"]
            excess = either(excess, paired_test(differ * correct, differ * expected, alpha, weights))
        fields |= {"expected_accuracy": mean(expected), "expected_accuracy_p_value": excess.p_above}

    highest = critical_accuracy
    if critical_accuracy is not None:
        test, border = "critical_accuracy", rate_test(correct, critical_accuracy, alpha, weights)
    elif "ceilings" in columns:
        critical_accuracy = highest = mean(columns["ceilings"])
        test, border = "target", paired_test(correct, columns["ceilings"], alpha, weights)
        if "reference_correct" in columns:
            test = "reference"
            border = either(border, discordance_test(correct, columns["reference_correct"], alpha, weights))
            highest = max(critical_accuracy, fields["reference_accuracy"])
    else:
        test, border = "recalibration" if "chance" in columns else "none", None

    fields |= {"critical_accuracy": critical_accuracy, "border_distance": None, "p_value": None}
    regime, guessing = UNDETERMINED, None
    if border is not None:
        if border.p_above < alpha:
            regime = NON_CALIBRATABLE
        elif border.p_below < alpha:
            regime = CALIBRATABLE
        fields |= {"p_value": border.p_above, "p_value_calibratable": border.p_below}
        fields |= {"border_distance_low": border.low, "border_distance_high": border.high}
        fields["border_distance"] = accuracy - critical_accuracy
        fields.setdefault("sum_lower_bound", max(0.0, accuracy - highest))
    elif test == "recalibration":
        chance = columns["chance"]
        # No confidence goes below 1/K, so none fits an accuracy below it. The largest is a floor for every question.
        guessing = mean(chance)
        fields["p_value"] = rate_test(correct, chance, alpha, weights).p_below
        tested = recalibration_test(confidences, correct, float(chance.max()), n_bins, seed, weights)
        if tested is not None:
            fields |= {"recalibrated_ece": tested.error, "recalibrated_ece_p95": tested.p95}
            fields["recalibrated_ece_p_value"] = tested.p_value
        if fields["p_value"] < alpha:
            regime = NON_CALIBRATABLE
        elif tested is not None and tested.p_value >= alpha:
            highest_error = tested.error + NormalDist().inv_cdf(1 - alpha) * tested.deviation
            if highest_error <= min(_TOLERABLE, chance.min() / 2):
                regime = CALIBRATABLE

    memorised = fields.get("expected_accuracy_p_value", 1.0) < alpha
    method = "cft" if regime == CALIBRATABLE and not memorised else "rcft"
    explanation = _explain(regime, test, fields, guessing, memorised)
    return RegimeReport(regime=regime, recommended_method=method, test=test, explanation=explanation, **fields)


def _check_share(name: str, value: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < most:
        raise ValueError(f"`{name}` must lie in (0, {most}), got {value!r}.")


def _explain(regime: str, test: str, fields: dict, guessing: float | None, memorised: bool) -> str:
    """The verdict in a sentence."""
    advice = {
        CALIBRATABLE: "calibration can be restored at this accuracy, and CFT is enough",
        NON_CALIBRATABLE: "calibration cannot be restored at this accuracy; RCFT trades some of it",
        UNDETERMINED: "RCFT is the safe choice, its regulariser does no harm where it is not needed",
    }[regime]
    if test == "none":
        found = "Without a target, a reference, a critical accuracy or the number of options nothing is tested"
    elif test == "recalibration" and regime == NON_CALIBRATABLE:
        found = (
            f"Accuracy {{accuracy:.3f}} lies below the {guessing:.3f} of guessing, where no confidence can follow it"
        )
        advice = "calibration cannot be restored with these predictions; RCFT changes them"
    elif test == "recalibration":
        found = "A recalibration that keeps the order of the confidences "
        if regime == CALIBRATABLE:
            found += "leaves an ECE of {recalibrated_ece:.3f}, within noise"
            advice += ", unless these questions were memorised, which only a target or a reference shows"
        elif fields.get("recalibrated_ece_p_value", 1.0) < fields["alpha"]:
            found += "leaves an ECE of {recalibrated_ece:.3f}, where noise leaves up to {recalibrated_ece_p95:.3f}; "
            found += "one that gives up the order of the least confident may leave none"
        else:
            found += "cannot be judged on {n:,} questions"
    else:
        place = {
            CALIBRATABLE: "lies below",
            NON_CALIBRATABLE: "lies above",
            UNDETERMINED: "cannot be told on {n:,} questions from",
        }[regime]
        found = f"Accuracy {{accuracy:.3f}} {place} the critical accuracy {{critical_accuracy:.3f}}"
        if test == "reference":
            found += " by the reference's confidence and {reference_accuracy:.3f} by its accuracy"
        found += f" ({100 * (1 - 2 * fields['alpha']):.3g}% interval of the distance"
        found += " {border_distance_low:+.3f} to {border_distance_high:+.3f})"
        if memorised and regime != NON_CALIBRATABLE:
            by, doubt = ("target", "") if "tce" in fields else ("reference", " or better known than by the reference")
            found += f", yet above the {{expected_accuracy:.3f}} that the {by} gives to these predictions"
            least = fields["accuracy"] - fields["expected_accuracy"]
            advice = f"some of these questions are memorised{doubt}, and no confidence brings ECE + TCE below "
            advice += f"{least:.3f}; RCFT is the safe choice"
    return f"{found}: {advice}.".format(**fields)
