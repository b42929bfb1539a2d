"""The regime: bounds on random distributions, error rates of the tests, models in both regimes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_calib.measures.calibration_error import expected_calibration_error, target_calibration_error
from hf_calib.measures.noise_floor import noise_floor
from hf_calib.regime.classify import RegimeReport, classify_confidences, classify_regime


HAIR = 1e-9

_spec = importlib.util.spec_from_file_location(
    "regime_benchmark", Path(__file__).resolve().parents[2] / "benchmarks" / "regime" / "regime.py"
)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)
softmax = benchmark.softmax


def world(n, seed, sharpness=1.0):
    """Draw a target, labels from it, and a model whose log-probabilities are `sharpness` times those of the target."""
    target, labels = benchmark.questions(n, np.random.default_rng(seed))
    return softmax(sharpness * np.log(target)), labels, target


def memorised(labels):
    probabilities = np.full((len(labels), 4), 0.01)
    probabilities[np.arange(len(labels)), labels] = 0.97
    return probabilities


def check_bounds(report):
    assert report.ece_lower_bound - HAIR <= report.ece <= report.ece_upper_bound + HAIR
    assert report.tce_lower_bound - HAIR <= report.tce <= report.tce_upper_bound + HAIR
    assert report.tce_lower_bound + HAIR >= report.confidence - report.critical_accuracy
    assert report.ece + report.tce + HAIR >= report.sum_lower_bound
    assert report.sum_lower_bound + HAIR >= report.border_distance
    assert report.border_distance == pytest.approx(report.accuracy - report.critical_accuracy)


# The bounds


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 5), st.integers(1, 12), st.floats(0.1, 8))
@settings(max_examples=150)
def test_bounds_on_a_data_set(seed, n, k, n_bins, scale):
    rng = np.random.default_rng(seed)
    probabilities, target = softmax(rng.normal(size=(n, k)) * scale), softmax(rng.normal(size=(n, k)) * scale)
    labels = rng.integers(0, k, n) if seed % 2 else probabilities.argmax(axis=1)  # random labels, memorised labels
    report = classify_regime(probabilities, labels, target, n_bins=n_bins)
    assert report.ece == pytest.approx(expected_calibration_error(probabilities, labels, n_bins))
    assert report.tce == pytest.approx(target_calibration_error(probabilities, target, n_bins))
    assert report.critical_accuracy == pytest.approx(target.max(axis=1).mean())
    check_bounds(report)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 5), st.integers(1, 12), st.booleans())
@settings(max_examples=150)
def test_bounds_in_the_population(seed, n, k, n_bins, follows):
    """Exact expectations. Labels follow the target or another distribution."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(n))
    model, target, other = (softmax(3 * rng.normal(size=(n, k))) for _ in range(3))
    weights = (share[:, None] * (target if follows else other)).ravel()
    labels = np.tile(np.arange(k), n)
    report = classify_regime(
        model.repeat(k, axis=0), labels, target.repeat(k, axis=0), n_bins=n_bins, sample_weight=weights
    )
    assert report.critical_accuracy == pytest.approx(share @ target.max(axis=1))
    check_bounds(report)
    if follows:  # the corollary: ACC = T <= ACC*
        assert report.sum_lower_bound == pytest.approx(0, abs=HAIR) and report.border_distance <= HAIR


@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(0, 1))
@settings(max_examples=60)
def test_a_constant_confidence_attains_the_bound(seed, k, share):
    rng = np.random.default_rng(seed)
    n = 40
    target, prediction = softmax(rng.normal(size=(n, k)) * 3), rng.integers(0, k, n)
    labels = np.where(rng.random(n) < 0.7, prediction, rng.integers(0, k, n))
    accuracy, expected = (prediction == labels).mean(), target[np.arange(n), prediction].mean()
    confidence = share * accuracy + (1 - share) * expected
    if confidence <= 1 / k + 1e-6:
        return
    probabilities = np.full((n, k), (1 - confidence) / (k - 1))
    probabilities[np.arange(n), prediction] = confidence
    report = classify_regime(probabilities, labels, target)
    assert report.ece + report.tce == pytest.approx(abs(accuracy - expected), abs=HAIR)
    assert report.sum_lower_bound == pytest.approx(abs(accuracy - expected), abs=HAIR)


@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(1, 12), st.booleans())
@settings(max_examples=80)
def test_critical_accuracies_of_a_reference(seed, n, n_bins, weighted):
    """They differ by at most the ECE of the reference, and ECE + TCE is at least the distance to the higher one."""
    rng = np.random.default_rng(seed)
    model, reference = softmax(3 * rng.normal(size=(n, 4))), softmax(3 * rng.normal(size=(n, 4)))
    labels = model.argmax(axis=1) if seed % 2 else rng.integers(0, 4, n)
    weights = rng.gamma(1.0, size=n) if weighted else None
    options = {"n_bins": n_bins, "sample_weight": weights}
    report = classify_regime(model, labels, reference_probabilities=reference, **options)
    assert abs(report.critical_accuracy - report.reference_accuracy) <= report.reference_ece + HAIR
    as_target = classify_regime(model, labels, reference, **options)
    assert as_target.ece + as_target.tce + HAIR >= report.sum_lower_bound
    assert report.critical_accuracy == as_target.critical_accuracy
    assert report.border_distance_low <= as_target.border_distance_low
    assert report.border_distance_high >= as_target.border_distance_high
    assert report.p_value >= as_target.p_value and report.p_value_calibratable >= as_target.p_value_calibratable


# The regime


def test_overconfident_and_memorised():
    probabilities, labels, target = world(4000, seed=0, sharpness=4.0)
    weak = probabilities.copy()  # every fifth prediction is wrong: accuracy below the critical accuracy
    weak[::5] = np.roll(weak[::5], 1, axis=1)
    report = classify_regime(weak, labels, target)
    assert (report.regime, report.recommended_method, report.test) == ("calibratable", "cft", "target")
    assert report.ece > 0.2 and report.p_value > 0.95 and report.p_value_calibratable < 0.05
    assert report.border_distance_low < report.border_distance < report.border_distance_high < 0

    report = classify_regime(memorised(labels), labels, target)
    assert (report.regime, report.recommended_method) == ("non-calibratable", "rcft")
    assert report.ece < 0.05 and report.tce > report.border_distance - report.ece - HAIR
    assert report.p_value < 1e-6 and report.border_distance_low > 0


RUNS = 300


@pytest.mark.parametrize("name", benchmark.SCENARIOS)
def test_error_rate(name):
    """The error rate is at most 0.05; for the t-tests only for large N, so 0.07 is accepted."""
    errors, _ = benchmark.SCENARIOS[name]
    simulates_itself = name.startswith(("reference", "no target"))
    runs = RUNS // 3 if simulates_itself else RUNS
    found = benchmark.rates(name, 200, runs)
    exact = name == "critical accuracy"
    for verdict in errors:
        assert found[verdict] * runs <= stats.binom.ppf(0.999, runs, 0.05 if exact else 0.07), verdict


def test_tests_are_not_conservative():
    """At the border the error rate is close to the level."""
    found = benchmark.rates("target; Bayes model", 300, 600)
    for verdict in benchmark.BORDER:
        rate = found[verdict]
        assert rate * 600 >= stats.binom.ppf(0.001, 600, 0.04), verdict


def test_calibrated_reference():
    _, labels, target = world(3000, seed=5)
    report = classify_regime(memorised(labels), labels, reference_probabilities=target)
    assert (report.regime, report.recommended_method, report.test) == ("non-calibratable", "rcft", "reference")
    assert report.tce is None  # a reference is not a target
    correct = (target.argmax(axis=1) == labels).astype(float)
    assert report.reference_accuracy == correct.mean()
    assert report.reference_ece == pytest.approx(expected_calibration_error(target, labels))
    assert report.reference_ece_p_value == noise_floor(target.max(axis=1), correct).p_value > 0.01
    assert classify_regime(np.roll(target, 1, axis=1), labels, reference_probabilities=target).regime == "calibratable"


def test_miscalibrated_reference_decides_nothing_between_its_estimates():
    """The accuracy is between the accuracy and the confidence of the reference."""
    _, labels, target = world(3000, seed=6)
    reference = benchmark.sharpened(target)
    model = benchmark.knowing(labels, (benchmark.CRITICAL + benchmark.OVERCONFIDENCE) / 2, np.random.default_rng(6))
    report = classify_regime(model, labels, reference_probabilities=reference)
    assert report.reference_accuracy < report.accuracy < report.critical_accuracy
    assert min(report.p_value, report.p_value_calibratable) > 0.05 and report.reference_ece_p_value < 0.01
    assert report.regime == "target-contradicted"  # its labels are partly learnt
    assert report.border_distance_low < 0 < report.border_distance_high and report.sum_lower_bound == 0
    # taken as the truth, the reference is contradicted: the model is right more often than it allows
    assert classify_regime(model, labels, reference).regime == "target-contradicted"


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_bound_uses_the_higher_estimate_of_a_reference(power):
    """It is the accuracy of an underconfident reference and the confidence of an overconfident one."""
    _, labels, target = world(3000, seed=6)
    report = classify_regime(memorised(labels), labels, reference_probabilities=softmax(power * np.log(target)))
    assert (report.reference_accuracy > report.critical_accuracy + 0.05) == (power < 1)
    highest = max(report.reference_accuracy, report.critical_accuracy)
    assert report.sum_lower_bound == pytest.approx(1 - highest)


def test_critical_accuracy_takes_precedence():
    probabilities, labels, target = world(1000, seed=3)
    report = classify_regime(probabilities, labels, target, critical_accuracy=0.99)
    assert report.regime == "calibratable" and report.test == "critical_accuracy" and report.tce is not None
    assert report.critical_accuracy == 0.99
    report = classify_regime(probabilities, labels, reference_probabilities=target, critical_accuracy=0.99)
    assert report.test == "critical_accuracy" and report.reference_accuracy is not None


def test_without_a_target():
    probabilities, labels, _ = world(3000, seed=1, sharpness=4.0)
    report = classify_regime(probabilities, labels)
    assert (report.regime, report.recommended_method, report.test) == ("calibratable", "cft", "recalibration")
    assert report.critical_accuracy is None and report.tce is None
    assert report.recalibrated_ece < 0.06 < report.ece
    few = classify_regime(probabilities[:15], labels[:15])
    assert (few.regime, few.recommended_method, few.recalibrated_ece) == ("undetermined", "rcft", None)
    assert classify_regime(probabilities[:60], labels[:60]).regime == "undetermined"  # too few questions
    blind = classify_regime(memorised(labels), labels)
    assert blind.regime == "calibratable" and "memorised" in blind.explanation
    detectable = blind.border_distance_detectable
    assert detectable == pytest.approx((stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) * np.sqrt(0.25 * 0.75 / 3000))
    assert f"{detectable:.3f} below guessing" in blind.explanation


def unsure_and_wrong(n, seed):
    """Draw a model whose least confident predictions are right less often than its other confidences suggest."""
    rng = np.random.default_rng(seed)
    hard = rng.random((n, 1)) < 0.2
    target = np.where(hard, [0.1, 0.4, 0.3, 0.2], [0.85, 0.05, 0.05, 0.05])
    model = np.where(hard, [0.4, 0.2, 0.2, 0.2], [0.91, 0.03, 0.03, 0.03])
    return model, (target.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1), target


@pytest.mark.parametrize("weighted", [False, True])
def test_repairable_by_one_confidence_is_not_non_calibratable(weighted):
    """Proposition 4: a recalibration that changes the order of the confidences reaches an ECE of 0."""
    model, labels, target = unsure_and_wrong(8000 if weighted else 4000, seed=0)
    weights = np.random.default_rng(0).gamma(2.0, size=len(labels)) if weighted else None
    report = classify_regime(model, labels, sample_weight=weights)
    assert (report.regime, report.recommended_method) == ("undetermined", "rcft")
    assert report.p_value > 0.99 and report.recalibrated_ece_p_value < 0.05
    assert report.recalibrated_ece > report.recalibrated_ece_p95 and report.explanation
    constant = np.full(model.shape, (1 - report.accuracy) / 3)
    constant[:, 0] = report.accuracy  # the option that the model predicts
    assert expected_calibration_error(constant, labels, sample_weight=weights) < 1e-9
    assert classify_regime(model, labels, target, sample_weight=weights).regime == "calibratable"


def worse_than_guessing(n, accuracy, seed=0, k=4):
    rng = np.random.default_rng(seed)
    confidences = 1 / k + 0.01 + (0.98 - 1 / k) * rng.random(n)
    probabilities = np.repeat(((1 - confidences) / (k - 1))[:, None], k, axis=1)
    probabilities[:, 0] = confidences
    return probabilities, np.where(rng.random(n) < accuracy, 0, 1)


def test_worse_than_guessing():
    probabilities, labels = worse_than_guessing(3000, 0.05)
    report = classify_regime(probabilities, labels)
    assert (report.regime, report.recommended_method, report.test) == ("non-calibratable", "rcft", "recalibration")
    hits = int((labels == 0).sum())
    assert report.p_value == pytest.approx(stats.binomtest(hits, 3000, 0.25, "less").pvalue)
    assert "guessing" in report.explanation
    assert classify_regime(probabilities[:15], np.ones(15, dtype=int)).regime == "non-calibratable"  # .75^15 = .013
    assert classify_regime(*worse_than_guessing(3000, 0.25)).regime != "non-calibratable"


def test_guessing_among_rows_of_different_lengths():
    """Half the questions have two options and half have four, so the accuracy of guessing is 3/8."""
    two, first = worse_than_guessing(600, 0.33, seed=1, k=2)
    four, second = worse_than_guessing(600, 0.33, seed=2)
    report = classify_regime(two.tolist() + four.tolist(), np.concatenate([first, second]))
    assert report.regime == "non-calibratable" and "0.375 of guessing" in report.explanation
    assert classify_regime(four, second).regime != "non-calibratable"
    # the confidence of a question with two options is at least 1/2
    four, second = worse_than_guessing(600, 0.42, seed=2)
    report = classify_regime(two.tolist() + four.tolist(), np.concatenate([first, second]))
    assert report.regime == "undetermined" and report.recalibrated_ece > 0.1


# Confidences, weights, the report


@pytest.mark.parametrize("critical_accuracy", [0.5, None])
def test_confidences_give_the_same_result(critical_accuracy):
    probabilities, labels, _ = world(1500, seed=7, sharpness=3.0)
    confidences, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    weights = np.random.default_rng(7).gamma(1.0, size=1500)
    for sample_weight in (None, weights):
        options = {"critical_accuracy": critical_accuracy, "seed": 3, "sample_weight": sample_weight}
        assert classify_confidences(confidences, correct, num_options=4, **options) == classify_regime(
            probabilities, labels, **options
        )


def test_confidences_without_number_of_options():
    report = classify_confidences(np.full(200, 0.9), np.arange(200) % 2)
    assert (report.regime, report.test, report.p_value) == ("undetermined", "none", None)
    assert report.ece == pytest.approx(0.4)


@pytest.mark.parametrize("known", ["target_probabilities", "reference_probabilities", "critical_accuracy", None])
def test_weights_select_rows_and_only_ratios_matter(known):
    probabilities, labels, target = world(600, seed=8)
    chosen = np.random.default_rng(8).random(600) < 0.5
    weights = np.random.default_rng(9).gamma(1.0, size=600)

    def classify(rows, sample_weight):
        given_ = {} if known is None else {known: 0.6 if known == "critical_accuracy" else target[rows]}
        return classify_regime(probabilities[rows], labels[rows], sample_weight=sample_weight, **given_).to_dict()

    everything = slice(None)
    assert classify(everything, 7.0 * chosen) == classify(chosen, None)
    assert classify(everything, chosen)["n"] == chosen.sum()
    once, scaled = classify(everything, weights), classify(everything, 1e4 * weights)
    for name, value in once.items():
        if isinstance(value, float):
            assert scaled[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_report_is_frozen_and_valid_json():
    probabilities, labels, target = world(100, seed=4)
    known = ({"target_probabilities": target}, {"reference_probabilities": target}, {"critical_accuracy": 0.5}, {})
    for given_ in known:
        report = classify_regime(probabilities, labels, **given_)
        assert isinstance(report, RegimeReport)
        with pytest.raises(AttributeError):
            report.regime = "calibratable"
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
        assert report.recommended_method.upper() in report.explanation and "{" not in report.explanation


def test_explanations():
    _, labels, target = world(2000, seed=5)
    above = classify_regime(memorised(labels), labels, reference_probabilities=target).explanation
    assert "1.000" in above and "critical accuracy 0.5" in above
    assert "20 questions" in classify_regime(target[:20], labels[:20], target[:20]).explanation
    assert "90% interval" in classify_regime(target, labels, target).explanation
    assert "number of options" in classify_confidences([0.9], [1]).explanation


def test_certainty_without_spread():
    target = np.tile([1.0, 0.0], (30, 1))
    report = classify_regime(target, np.zeros(30, dtype=int), target)
    assert report.regime == "undetermined" and report.border_distance == 0 and report.ece == 0


@pytest.mark.parametrize("known", ["target_probabilities", "reference_probabilities"])
def test_one_question_and_ragged_rows(known):
    one = [[0.5, 0.3, 0.2]]
    assert classify_regime(one, [0], **{known: one}).regime == "undetermined"
    ragged = [[0.6, 0.4], [0.2, 0.3, 0.5]]
    report = classify_regime(ragged, [0, 2], **{known: ragged})
    assert report.accuracy == 1 and report.critical_accuracy == pytest.approx(0.55)


def test_bad_input_is_named():
    good = [[0.5, 0.5]] * 2, [0, 1]
    with pytest.raises(ValueError, match="`alpha`"):
        classify_regime(*good, alpha=1.0)
    with pytest.raises(ValueError, match="`critical_accuracy`"):
        classify_regime(*good, critical_accuracy=60)
    for name in ("target_probabilities", "reference_probabilities"):
        with pytest.raises(ValueError, match=f"`{name}` row 0"):
            classify_regime(*good, **{name: [[0.5, 0.4]] * 2})
        with pytest.raises(ValueError, match=f"`{name}` has shape"):
            classify_regime(*good, **{name: [[0.5, 0.5]]})
    with pytest.raises(ValueError, match="`target_probabilities` and `reference_probabilities`"):
        classify_regime(*good, target_probabilities=good[0], reference_probabilities=good[0])
    with pytest.raises(ValueError, match="`sample_weight` row 1"):
        classify_regime(*good, sample_weight=[1, -1])
    with pytest.raises(ValueError, match="`correct` row 1"):
        classify_confidences([0.5, 0.5], [1, 0.5])
    for num_options in (1, 2.5, True):
        with pytest.raises(ValueError, match=f"`num_options`.*{num_options}"):
            classify_confidences([0.5], [1], num_options=num_options)
    for name in ("alpha", "critical_accuracy"):
        for value in (True, "x", float("nan"), 0.0):
            with pytest.raises(ValueError, match=f"`{name}`.*{value!r}"):
                classify_regime(*good, **{name: value})
    with pytest.raises(ValueError, match="`alpha`"):
        classify_regime(*good, alpha=None)


@pytest.mark.parametrize("name", ["target_probabilities", "reference_probabilities"])
def test_rows_need_the_options_of_the_model(name):
    model, other = [[0.6, 0.4], [0.2, 0.3, 0.5]], [[0.2, 0.3, 0.5], [0.6, 0.4]]
    padded = np.array([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]])
    for given_ in (other, np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])):
        with pytest.raises(ValueError, match=f"`{name}` row 0"):
            classify_regime(model, [0, 2], **{name: given_})
    with pytest.raises(ValueError, match=f"`{name}` row 1"):
        classify_regime(np.array([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]]), [0, 1], **{name: other})
    reports = [classify_regime(m, [0, 2], **{name: o}) for m in (model, padded) for o in (model, padded)]
    assert len({(report.accuracy, report.critical_accuracy) for report in reports}) == 1
    if name == "target_probabilities":
        with pytest.raises(ValueError, match="`target_probabilities` row 0"):
            target_calibration_error(model, other)
