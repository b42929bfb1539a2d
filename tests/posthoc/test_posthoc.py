"""Post-hoc calibrators: recovery of known maps, few labels, accuracy, saving."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import make_logits as make
from scipy import optimize
from scipy.special import softmax

from hf_calib.measures.calibration_error import expected_calibration_error, negative_log_likelihood
from hf_calib.posthoc import (
    AS_IS,
    METHODS,
    AgreementTemperature,
    BetaCalibration,
    EnsembleTemperatureScaling,
    HistogramBinning,
    IsotonicConfidence,
    MatrixScaling,
    TemperatureIsotonic,
    TemperatureScaling,
    VectorScaling,
    choose_method,
    cross_validate,
    set_confidence,
)


SUPERVISED = [kind for kind in METHODS.values() if kind.supervised and not kind.grouped]
ORDERLY = [kind for kind in SUPERVISED if kind.keeps_order]


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 19.0])
def test_temperature_is_the_best_on_a_grid(temperature, padding):
    logits, labels = make(temperature=temperature, padding=padding)
    calibrator = TemperatureScaling().fit(logits, labels)
    assert calibrator.temperature[0] == pytest.approx(temperature, rel=0.1)
    reached = negative_log_likelihood(calibrator.transform(logits), labels)
    grid = [negative_log_likelihood(softmax(logits / t, axis=-1), labels) for t in np.geomspace(0.05, 50, 400)]
    assert reached <= min(grid) + 1e-12


def test_temperature_agrees_with_scipy():
    logits, labels = make(n=300)
    found = optimize.minimize_scalar(
        lambda log_t: negative_log_likelihood(softmax(logits / np.exp(log_t), axis=-1), labels),
        bounds=(-3, 4),
        options={"xatol": 1e-10},
    )
    assert np.log(TemperatureScaling().fit(logits, labels).temperature[0]) == pytest.approx(found.x, abs=1e-4)


def drawn(logits, seed):
    """Labels drawn from the softmax of these logits."""
    return (softmax(logits, axis=-1).cumsum(axis=1) > np.random.default_rng(seed).random((len(logits), 1))).argmax(
        axis=1
    )


@pytest.mark.parametrize("kind", ORDERLY)
@pytest.mark.parametrize("padding", [False, True])
def test_calibrators_repair_and_keep_the_predictions(kind, padding):
    calibrator = kind().fit(*make(seed=1, padding=padding))
    logits, labels = make(n=5000, seed=2, padding=padding)
    before, after = softmax(logits, axis=-1), calibrator.transform(logits)
    assert expected_calibration_error(before, labels) > 0.15
    assert expected_calibration_error(after, labels) < 0.05
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
    assert (after[np.isneginf(logits)] == 0).all()


def test_isotonic_corrects_what_no_temperature_can():
    """Above a threshold accuracy does not depend on confidence: one temperature is not enough."""

    def uneven(seed):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(8000, 4)) * 3
        chance = np.where(softmax(logits, axis=-1).max(axis=1) > 0.8, 0.6, 0.55)
        labels = logits.argmax(axis=1)
        wrong = rng.random(8000) > chance
        labels[wrong] = (labels[wrong] + rng.integers(1, 4, wrong.sum())) % 4
        return logits, labels

    test, labels = uneven(2)
    errors = {
        kind: expected_calibration_error(kind().fit(*uneven(1)).transform(test), labels)
        for kind in (TemperatureScaling, TemperatureIsotonic)
    }
    assert errors[TemperatureIsotonic] < 0.03 < errors[TemperatureScaling]


@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.1, 300))
@settings(max_examples=60)
def test_set_confidence_keeps_the_ranking(seed, k, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(20, k)) * scale
    probabilities = set_confidence(logits, rng.random(20))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))
    for row, values in zip(logits, probabilities, strict=True):
        assert (np.diff(values[np.argsort(row)]) >= -1e-15).all()
    np.testing.assert_array_equal(probabilities.astype(np.float32).argmax(axis=1), logits.argmax(axis=1))


# Every kind on what it is for


@pytest.mark.parametrize("kind", [VectorScaling, MatrixScaling])
def test_linear_scaling_recovers_its_truth(kind):
    """A position bias, and for the matrix a dependence between options, which no temperature corrects."""
    rng = np.random.default_rng(0)
    weight, bias = np.diag([0.5, 0.3, 0.4, 0.3]), np.array([1.5, 0.0, -1.0, 0.0])
    if kind is MatrixScaling:
        weight[0, 2] = 0.3

    def world(n, seed):
        logits = np.random.default_rng(seed).normal(size=(n, 4)) * 4
        scores = np.log(softmax(logits, axis=-1)) @ weight.T + bias
        return logits, drawn(scores, seed + 1), softmax(scores, axis=-1)

    test, labels, truth = world(20_000, 1)
    logits, answers, _ = world(5000, 3)
    calibrator = kind().fit(logits, answers)
    lost = negative_log_likelihood(calibrator.transform(test), labels) - negative_log_likelihood(truth, labels)
    scaled = negative_log_likelihood(TemperatureScaling().fit(logits, answers).transform(test), labels)
    assert lost < 0.005 and scaled - negative_log_likelihood(truth, labels) > 0.05
    assert np.isfinite(calibrator.penalty[0])
    # a shift of all logits of a question means nothing
    shifted = calibrator.transform(test + rng.normal(size=(20_000, 1)) * 50)
    np.testing.assert_allclose(shifted, calibrator.transform(test), atol=1e-9)


@pytest.mark.parametrize("kind", [VectorScaling, MatrixScaling])
def test_linear_scaling_is_temperature_scaling_without_position_bias(kind):
    logits, labels = make(n=400)
    calibrator = kind().fit(logits, labels)
    assert np.isinf(calibrator.penalty[0])
    np.testing.assert_allclose(
        calibrator.transform(logits), TemperatureScaling().fit(logits, labels).transform(logits), atol=1e-9
    )


def test_unpenalised_matrix_scaling_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    logits, labels = make(n=500)
    calibrator = MatrixScaling()
    calibrator.penalties = (1e-9,)
    inputs = np.log(softmax(logits, axis=-1))
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(inputs, labels).predict_proba(inputs)
    np.testing.assert_allclose(calibrator.fit(logits, labels).transform(logits), expected, atol=2e-3)


def test_other_numbers_of_options_than_fitted():
    logits, labels = make(padding=True)
    few, many = logits[:, :3], np.concatenate([logits, logits[:, :1]], axis=1)
    vector = VectorScaling().fit(logits, labels)
    assert vector.transform(few).shape == few.shape
    padded = np.concatenate([logits, np.full((len(logits), 1), -np.inf)], axis=1)
    np.testing.assert_array_equal(vector.transform(padded)[:, :4], vector.transform(logits))
    with pytest.raises(ValueError, match="at most 4 options"):
        vector.transform(many)
    with pytest.raises(ValueError, match="row 0 has 3, not 4. Use vector scaling"):
        MatrixScaling().fit(logits, labels)
    matrix = MatrixScaling().fit(*make(n=200))
    for wrong in (few, logits):
        with pytest.raises(ValueError, match="has 3, not 4"):
            matrix.transform(wrong)


def test_ensemble_temperature_recovers_the_mixture():
    """A fifth of the labels are noise, which the uniform part of the mixture fits and a temperature does not."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 4
    labels = np.where(rng.random(20_000) < 0.2, rng.integers(0, 4, 20_000), drawn(logits, 1))
    calibrator = EnsembleTemperatureScaling().fit(logits, labels)
    np.testing.assert_allclose(calibrator.weights.sum(), 1)
    truth = 0.8 * softmax(logits, axis=-1) + 0.05
    np.testing.assert_allclose(calibrator.transform(logits), truth, atol=0.03)
    after, scaled = calibrator.transform(logits), TemperatureScaling().fit(logits, labels).transform(logits)
    assert negative_log_likelihood(after, labels) < negative_log_likelihood(scaled, labels) - 0.01


def test_beta_agrees_with_netcal():
    """With many labels the prior does not matter, so the result equals that of netcal."""
    netcal = pytest.importorskip("netcal.scaling")
    logits, labels = make(n=4000, k=2)
    calibrator = BetaCalibration().fit(logits, labels)
    confidences = softmax(logits / calibrator.temperature, axis=-1).max(axis=1)
    correct = (logits.argmax(axis=1) == labels).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = netcal.BetaCalibration().fit(confidences, correct).transform(confidences)
    ours = calibrator.transform(logits).max(axis=1)
    free = expected > 0.51  # below, the predicted option would lose its place
    assert free.mean() > 0.9
    np.testing.assert_allclose(ours[free], expected[free], atol=0.01)


def test_isotonic_equals_scikit_learn():
    from sklearn.isotonic import IsotonicRegression

    logits, labels = make(n=500)
    confidences, correct = softmax(logits, axis=-1).max(axis=1), logits.argmax(axis=1) == labels
    expected = IsotonicRegression(y_max=1 - 1 / 502).fit(confidences, correct).predict(confidences)
    ours = IsotonicConfidence().fit(logits, labels).transform(logits).max(axis=1)
    free = expected > 0.5
    np.testing.assert_allclose(ours[free], expected[free], atol=1e-12)


def test_histogram_bins_hold_their_accuracy():
    logits, labels = make(n=3000)
    calibrator = HistogramBinning().fit(logits, labels)
    bins = np.searchsorted(
        calibrator.edges, softmax(logits / calibrator.temperature, axis=-1).max(axis=1), side="right"
    )
    assert len(calibrator.accuracies) == 15 and np.bincount(bins).tolist() == [200] * 15
    correct = logits.argmax(axis=1) == labels
    rates = np.array([correct[bins == b].mean() for b in range(15)])
    np.testing.assert_allclose(calibrator.accuracies, (200 * rates + 2 * correct.mean()) / 202)


# Without labels


def test_agreement_temperature_recovers_the_temperature_of_the_reference():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(5000, 4)) * 1.5
    aligned = reference * 3
    moved = rng.random(5000) < 0.3  # alignment has changed these answers
    aligned[moved] = np.roll(aligned[moved], 1, axis=1)
    fitted = AgreementTemperature().fit(aligned, reference)
    assert fitted.temperature[0] == pytest.approx(3, rel=1e-9)
    # minimum of the mean KL divergence on the questions with agreement, found another way
    noisy = aligned + rng.normal(size=aligned.shape)
    agree, target = noisy.argmax(axis=1) == reference.argmax(axis=1), softmax(reference, axis=-1)
    found = optimize.minimize_scalar(
        lambda t: -(target * np.log(softmax(noisy / np.exp(t), axis=-1)))[agree].sum(),
        bounds=(-1, 3),
        options={"xatol": 1e-9},
    )
    temperature = AgreementTemperature().fit(noisy, reference).temperature[0]
    assert np.log(temperature) == pytest.approx(found.x, abs=1e-5)


def test_agreement_needs_the_same_questions_and_agreement():
    with pytest.raises(ValueError, match="agree on none of 2 questions"):
        AgreementTemperature().fit([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="same questions"):
        AgreementTemperature().fit([[1.0, 0.0, -np.inf]], [[1.0, 0.0, 0.5]])


# Few labels


@pytest.mark.parametrize("kind", SUPERVISED)
@pytest.mark.parametrize("n", [2, 5, 20, 100])
def test_few_labels_do_not_explode(kind, n):
    """On other questions, calibrators are not much worse than no calibrator, and never fully confident."""
    test, labels = make(n=5000, seed=100)
    as_it_is = negative_log_likelihood(softmax(test, axis=-1), labels)
    for seed in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calibrator = kind().fit(*make(n=n, seed=seed))
        after = negative_log_likelihood(calibrator.transform(test), labels)
        assert after < as_it_is + (0.1 if n >= 20 or kind.keeps_order else 0.3), (seed, after, as_it_is)


@pytest.mark.parametrize("kind", [TemperatureScaling, EnsembleTemperatureScaling, VectorScaling, MatrixScaling])
@given(st.integers(0, 10_000), st.integers(5, 60), st.integers(2, 5), st.floats(0.1, 100))
@settings(max_examples=15)
def test_likelihood_is_not_worse_where_it_was_fitted(kind, seed, n, k, temperature):
    logits, labels = make(n=n, k=k, temperature=temperature, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the property is that of a fit that has an optimum
        try:
            TemperatureScaling().fit(logits, labels)
        except UserWarning:
            return
    after = negative_log_likelihood(kind().fit(logits, labels).transform(logits), labels)
    assert after <= negative_log_likelihood(softmax(logits, axis=-1), labels) + 1e-9


# The choice


def test_choice_of_the_method():
    """Nothing for calibrated logits, a temperature for scaled ones, and more where that is not enough."""
    methods = ["temperature", "ensemble_temperature", "beta", "vector", "temperature_isotonic"]

    def choice(logits, labels):
        outcomes = cross_validate(methods, logits, labels)
        chosen, scores = choose_method(outcomes, labels, list(METHODS))
        assert scores[chosen]["cv_excess"] <= scores[chosen]["cv_excess_se"] / 2
        return chosen

    logits, labels = make(n=1000, temperature=1.0)
    assert choice(logits, labels) == AS_IS
    logits, labels = make(n=1000)
    assert choice(logits, labels) == "temperature"
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 4)) * 4
    assert choice(logits, drawn(logits / 3 + [2.0, 0, 0, 0], 1)) == "vector"


def test_cross_validation_does_not_see_the_question_it_calibrates():
    logits, labels = make(n=60)
    outcomes = cross_validate(["isotonic"], logits, labels, n_folds=60 // 2)
    changed = labels.copy()
    changed[7] = (labels[7] + 1) % 4
    np.testing.assert_array_equal(
        cross_validate(["isotonic"], logits, changed, n_folds=30)["isotonic"][7], outcomes["isotonic"][7]
    )
    with pytest.raises(ValueError, match="9 questions are too few for 5 folds: at least 10"):
        cross_validate(["isotonic"], logits[:9], labels[:9])
    with pytest.raises(ValueError, match="n_folds"):
        cross_validate(["isotonic"], logits, labels, n_folds=1)


# Files


def test_missing_optimum_warns():
    right, wrong = [[2.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [2.0, 0.0]]
    with pytest.warns(UserWarning, match="never or hardly wrong"):
        calibrator = TemperatureScaling().fit(right, [0, 1])
    # two examples vouch for a confidence of 3 in 4
    np.testing.assert_allclose(calibrator.transform(right).max(axis=1), 0.75)
    assert np.isfinite(calibrator.transform([[1e4, -1e4]])).all()
    with pytest.warns(UserWarning, match="no better than uniform"):
        calibrator = TemperatureScaling().fit(wrong, [0, 1])
    np.testing.assert_allclose(calibrator.transform(wrong), 0.5, atol=1e-3)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, 1.0], [float("nan"), 0.0]], [0, 0], "row 1, option 0 is nan"),
        ([[0.0, float("inf")]], [0], "row 0, option 1 is inf"),
        ([[0.0, float("-inf")]], [0], "row 0 has fewer than two options"),
        ([[0.0, 1.0, float("-inf")]], [2], "`labels` row 0 is 2, an option whose logit is -inf"),
        ([[0.0, 1.0]], [2], r"outside \[0, 2\)"),
        ([[0.0, 1.0]], [0, 1], "2 entries for 1 rows"),
        ([], [], "empty"),
        ([0.0, 1.0], [0], r"shape \(N, K\)"),
    ],
)
def test_invalid_input_raises(logits, labels, message):
    for kind in SUPERVISED:
        with pytest.raises(ValueError, match=message):
            kind().fit(logits, labels)


def test_transform_before_fit_is_an_error():
    with pytest.raises(RuntimeError, match="not fitted"):
        TemperatureScaling().transform([[0.0, 1.0]])


def test_reference_logits_may_be_tensors_of_16_bits():
    logits, labels = make(n=20)[:2]
    reference = torch.tensor(logits / 2).bfloat16()
    found = cross_validate(["agreement"], logits, labels, reference)["agreement"]
    np.testing.assert_allclose(found, softmax(logits / 2, axis=1), atol=0.01)
