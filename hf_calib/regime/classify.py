"""Test of the calibration regime: can a model be calibrated at its accuracy? Proofs: docs/concepts/theory.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from statistics import NormalDist
from typing import Any

import numpy as np

from ..measures.binning import bins_of
from ..measures.checked import Examples, Predictions, check_examples, check_predictions
from ..measures.noise_floor import floor_of
from ..measures.options import MeasureOptions
from ..measures.validation import check_whole
from .accuracy_tests import ThresholdTest, discordance_test, intersection_union, paired_test, rate_test
from .recalibration_test import recalibration_of
from .report import CALIBRATABLE, NON_CALIBRATABLE, TARGET_CONTRADICTED, UNDETERMINED, RegimeReport, make_report


_TOLERABLE = 0.1  # ECE that the empirical test must exclude for "calibratable", at most half the accuracy of guessing


@dataclass(frozen=True)
class RegimeOptions:
    """
    Options of the regime test.

    Args:
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1), if it is known. Takes precedence over that of a target or a reference.
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level of each one-sided test, in (0, 0.5).
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins of ECE and TCE.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the empirical test and of the noise floor of the reference.

    Raises:
        ValueError: A value is outside its range.
    """

    critical_accuracy: float | None = None
    alpha: float = 0.05
    n_bins: int = 10
    seed: int = 0

    def __post_init__(self):
        for name, most in (("alpha", 0.5), ("critical_accuracy", 1)):
            value = getattr(self, name)
            if value is None and name == "critical_accuracy":
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < most:
                raise ValueError(f"`{name}` must lie in (0, {most}), got {value!r}.")
        check_whole(self.n_bins, "n_bins")


def classify_regime(
    probabilities,
    labels,
    target_probabilities=None,
    critical_accuracy: float | None = None,
    alpha: float = 0.05,
    reference_probabilities=None,
    sample_weight=None,
    **options,
) -> RegimeReport:
    r"""
    Test whether a model can be calibrated without losing accuracy.

    The model is calibratable up to the critical accuracy

    .. math::
        \mathrm{ACC}^* = \mathbb{E}\left[ \max_k \pi^*(k | x) \right]

    of the target distribution. The test depends on what is known:

    - `target_probabilities`, taken as the truth: ACC against ACC*, a paired t-test.
    - `reference_probabilities` of a model that may be miscalibrated: ACC against two estimates of ACC*, the
      reference's mean confidence (right if it is calibrated; a paired t-test) and its accuracy (right if it is
      calibrated by a change of its confidences alone; McNemar's exact test). A decision needs both.
    - `critical_accuracy`: ACC against that number, an exact binomial test.
    - none of these: whether a recalibration that keeps the predictions exists. The model is non-calibratable if ACC is
      below that of guessing, 1 / K (an exact binomial test). It is calibratable if an isotonic map fitted on a random
      half of the questions leaves no more ECE on the other half than noise does. In between it is undetermined. This
      test has no power against memorised questions: an accuracy above ACC* looks like any other.

    With a target or a reference ACC is also tested on both sides against the expected accuracy T, the mean probability
    that it gives to the predictions (a paired t-test at level `alpha / 2` a side). ACC and T are equal for a model
    that has not seen the labels, if these follow the target. If ACC is not above ACC* but differs from T by more than
    noise, the target is contradicted by the labels, and no confidence of these predictions makes both ECE and TCE 0.
    ACC < T: the target is wrong for these questions. ACC > T: some labels are memorised, or the model knows more than
    the reference.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities of the model. Where questions differ in K, a list of rows of different lengths: a row
            of a padded array counts as a question with K options, so 1 / K is too small.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        target_probabilities (array-like of shape `(N, K)`, *optional*):
            True option probabilities of the same questions and options.
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1), if it is known. Takes precedence over that of a target or a reference.
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level of each one-sided test, in (0, 0.5).
        reference_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of a model that was not trained on these answers, e.g. the model before alignment. Not
            together with `target_probabilities`.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row. Exact tests become t-tests.
        options:
            `n_bins` and `seed`, see [`RegimeOptions`].

    Returns:
        [`~hf_calib.regime.report.RegimeReport`].

    Raises:
        TypeError: An array has the wrong type, or an option is unknown.
        ValueError: A value is outside its range, the shapes do not fit, or both a target and a reference are given.

    References:
        Regimes: Xiao et al. (2025), "Restoring Calibration for Aligned Large Language Models", arXiv 2505.01997.
        Tests: docs/concepts/theory.md.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.regime.classify import classify_regime
    >>> target = np.tile([0.6, 0.4], (500, 1))  # a calibrated model is right at most 60% of the time
    >>> memorised = np.tile([0.99, 0.01], (500, 1))
    >>> report = classify_regime(memorised, np.zeros(500, dtype=int), target)
    >>> report.regime, report.recommended_method, round(report.border_distance, 2)
    ('non-calibratable', 'rcft', 0.4)

    ```
    """
    options = RegimeOptions(critical_accuracy, alpha, **options)
    other, name = choose_other(target_probabilities, reference_probabilities)
    return classify_predictions(check_predictions(probabilities, labels, sample_weight, other, name), name, options)


def choose_other(target_probabilities, reference_probabilities) -> tuple[Any, str]:
    """Return the target or the reference, whichever is given, and its name."""
    if target_probabilities is not None and reference_probabilities is not None:
        raise ValueError("`target_probabilities` and `reference_probabilities` exclude each other: give one of them.")
    if reference_probabilities is not None:
        return reference_probabilities, "reference_probabilities"
    return target_probabilities, "target_probabilities"


def classify_predictions(predictions: Predictions, other_name: str, options: RegimeOptions) -> RegimeReport:
    """Test checked predictions, see [`classify_regime`]. `other_name` tells a target from a reference."""
    chance = np.broadcast_to(1 / np.asarray(predictions.num_options), len(predictions))
    evidence = _Evidence(predictions, chance)
    if (other := predictions.other) is not None:
        evidence = replace(evidence, expected=predictions.expected, optimal=other.confidences)
        if other_name == "reference_probabilities":
            evidence = replace(evidence, reference_correct=other.correct)
    return _classify(evidence, options)


def classify_confidences(
    confidences,
    correct,
    critical_accuracy: float | None = None,
    alpha: float = 0.05,
    num_options: int | None = None,
    sample_weight=None,
    **options,
) -> RegimeReport:
    """
    Test whether a model can be calibrated, from confidences without option probabilities.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1). Without it the empirical test of [`classify_regime`] is made, which needs `num_options`.
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level of each one-sided test, in (0, 0.5).
        num_options (`int`, *optional*):
            K, at least 2. A prediction has a confidence of at least 1 / K.
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
        options:
            `n_bins` and `seed`, see [`RegimeOptions`].

    Returns:
        [`~hf_calib.regime.report.RegimeReport`]; `"undetermined"` by the test `"none"` if neither `critical_accuracy`
        nor `num_options` is given.

    Raises:
        TypeError: An option is unknown.
        ValueError: A value is outside its range, or the shapes do not fit.

    Example:

    ```python
    >>> from hf_calib.regime.classify import classify_confidences
    >>> report = classify_confidences([0.9] * 100, [1] * 60 + [0] * 40, critical_accuracy=0.8)
    >>> report.regime, round(report.border_distance_low, 2), round(report.border_distance_high, 2)
    ('calibratable', -0.29, -0.12)

    ```
    """
    options = RegimeOptions(critical_accuracy, alpha, **options)
    return classify_examples(check_examples(confidences, correct, sample_weight), num_options, options)


def classify_examples(examples: Examples, num_options: int | None, options: RegimeOptions) -> RegimeReport:
    """Test checked examples, see [`classify_confidences`]."""
    chance = None
    if num_options is not None:
        check_whole(num_options, "num_options", least=2)
        chance = np.broadcast_to(1 / num_options, len(examples))
    return _classify(_Evidence(examples, chance), options)


@dataclass(frozen=True)
class _Evidence:
    """
    What the regime test is made from.

    Attributes:
        examples ([`Examples`]): Confidences and outcomes of N questions.
        chance (`np.ndarray` of shape `(N,)`, *optional*): Accuracy of guessing, 1 / K.
        expected (`np.ndarray` of shape `(N,)`, *optional*): Probability that the target or reference gives to the
            prediction.
        optimal (`np.ndarray` of shape `(N,)`, *optional*): Largest probability of the target or reference.
        reference_correct (`np.ndarray` of shape `(N,)`, *optional*): Whether the reference is right.
    """

    examples: Examples
    chance: np.ndarray | None = None
    expected: np.ndarray | None = None
    optimal: np.ndarray | None = None
    reference_correct: np.ndarray | None = None

    def error(self, confidences: np.ndarray, outcomes: np.ndarray, n_bins: int) -> float:
        """ECE of confidences against outcomes, `(N,)` each."""
        return bins_of(confidences, outcomes, self.examples.weights, n_bins).error


def _classify(evidence: _Evidence, options: RegimeOptions) -> RegimeReport:
    examples = evidence.examples
    if examples.weights is not None and examples.weights.min() == examples.weights.max():
        evidence = replace(evidence, examples=replace(examples, weights=None))  # exact tests apply
        examples = evidence.examples
    confidences, correct, mean = examples.confidences, examples.correct, examples.mean
    fields = {
        "alpha": options.alpha,
        "n": len(examples),
        "accuracy": mean(correct),
        "confidence": mean(confidences),
        "ece": evidence.error(confidences, correct, options.n_bins),
        "ece_lower_bound": abs(mean(correct - confidences)),
        "ece_upper_bound": mean(np.abs(correct - confidences)),
        "critical_accuracy": None,
        "border_distance": None,
        "p_value": None,
    }
    if evidence.expected is not None:
        fields |= _compare_with_other(evidence, options)
    if options.critical_accuracy is not None or evidence.optimal is not None:
        test, threshold, highest = _test_threshold(evidence, options, fields)
        fields.setdefault("sum_lower_bound", max(0.0, fields["accuracy"] - highest))
        regime = UNDETERMINED
        if threshold.p_above < options.alpha:
            regime = NON_CALIBRATABLE
        elif fields.get("expected_accuracy_p_value", 1.0) < options.alpha:
            regime = TARGET_CONTRADICTED
        elif threshold.p_below < options.alpha:
            regime = CALIBRATABLE
        return make_report(regime, test, fields, None)
    if evidence.chance is None:
        return make_report(UNDETERMINED, "none", fields, None)
    regime = _test_recalibration(evidence, options, fields)
    return make_report(regime, "recalibration", fields, mean(evidence.chance))


def _compare_with_other(evidence: _Evidence, options: RegimeOptions) -> dict[str, float]:
    """Compute TCE or the numbers of the reference, and test whether the labels contradict it."""
    examples, expected, alpha = evidence.examples, evidence.expected, options.alpha / 2  # two sides
    confidences, correct, mean = examples.confidences, examples.correct, examples.mean
    test = paired_test(correct, expected, alpha, examples.weights)
    if evidence.reference_correct is None:
        fields = {
            "tce": evidence.error(confidences, expected, options.n_bins),
            "tce_lower_bound": abs(mean(confidences - expected)),
            "tce_upper_bound": mean(np.abs(expected - confidences)),
            "sum_lower_bound": abs(mean(correct - expected)),
        }
    else:
        reference = Examples(evidence.optimal, evidence.reference_correct, examples.weights)
        fields = {
            "reference_accuracy": mean(reference.correct),
            "reference_ece": evidence.error(reference.confidences, reference.correct, options.n_bins),
            "reference_ece_p_value": floor_of(
                reference, MeasureOptions(n_bins=options.n_bins, seed=options.seed)
            ).p_value,
        }
        # where both predict the same option, a difference shows only that the reference is miscalibrated
        differ = expected < evidence.optimal
        test = intersection_union(test, paired_test(differ * correct, differ * expected, alpha, examples.weights))
    return fields | {
        "expected_accuracy": mean(expected),
        "expected_accuracy_p_value": min(1.0, 2 * min(test.p_above, test.p_below)),
        "expected_accuracy_detectable": test.detectable,
    }


def _test_threshold(
    evidence: _Evidence, options: RegimeOptions, fields: dict[str, Any]
) -> tuple[str, ThresholdTest, float]:
    """Test ACC against ACC* and add the numbers to `fields`. Returns the test and the largest estimate of ACC*."""
    examples, alpha = evidence.examples, options.alpha
    correct, weights = examples.correct, examples.weights
    if options.critical_accuracy is not None:
        test, critical = "critical_accuracy", options.critical_accuracy
        threshold, highest = rate_test(correct, critical, alpha, weights), critical
    else:
        test, critical = "target", examples.mean(evidence.optimal)
        threshold, highest = paired_test(correct, evidence.optimal, alpha, weights), critical
        if evidence.reference_correct is not None:
            test, highest = "reference", max(critical, fields["reference_accuracy"])
            discordance = discordance_test(correct, evidence.reference_correct, alpha, weights)
            threshold = intersection_union(threshold, discordance)
    fields |= {
        "critical_accuracy": critical,
        "border_distance": fields["accuracy"] - critical,
        "p_value": threshold.p_above,
        "p_value_calibratable": threshold.p_below,
        "border_distance_low": threshold.low,
        "border_distance_high": threshold.high,
        "border_distance_detectable": threshold.detectable,
    }
    return test, threshold, highest


def _test_recalibration(evidence: _Evidence, options: RegimeOptions, fields: dict[str, Any]) -> str:
    """Make the empirical test and add its numbers to `fields`. Returns the regime."""
    examples, chance, alpha = evidence.examples, evidence.chance, options.alpha
    guessing = rate_test(examples.correct, chance, alpha, examples.weights)
    fields |= {"p_value": guessing.p_below, "border_distance_detectable": guessing.detectable}
    tested = recalibration_of(examples, float(chance.max()), options.n_bins, options.seed)
    if tested is not None:
        fields |= {
            "recalibrated_ece": tested.error,
            "recalibrated_ece_p95": tested.p95,
            "recalibrated_ece_p_value": tested.p_value,
        }
    if fields["p_value"] < alpha:
        return NON_CALIBRATABLE
    if tested is not None and tested.p_value >= alpha:
        highest_error = tested.error + NormalDist().inv_cdf(1 - alpha) * tested.deviation
        if highest_error <= min(_TOLERABLE, chance.min() / 2):
            return CALIBRATABLE
    return UNDETERMINED
