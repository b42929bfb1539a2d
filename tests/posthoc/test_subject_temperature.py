"""A temperature for each subject: recovery, shrinkage, unseen subjects, gradient."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.special import softmax
from scipy.stats import norm

from hf_calib.inference.predictions import OptionPredictions
from hf_calib.measures.calibration_error import negative_log_likelihood
from hf_calib.posthoc import (
    METHODS,
    PostHocCalibrator,
    SubjectTemperature,
    TemperatureScaling,
    choose_method,
    cross_validate,
)
from hf_calib.posthoc.logits_processor import OptionCalibrationProcessor
from hf_calib.posthoc.subject_temperature import penalised_loss


TRUE = {"art": 0.5, "biology": 1.0, "law": 2.0, "maths": 6.0}


def draw(n, temperatures=TRUE, seed=0, padding=False):
    """Logits that are too large by a temperature of their subject, labels of the true logits, subjects."""
    rng = np.random.default_rng(seed)
    true = 1.5 * rng.normal(size=(n, 4))
    if padding:
        true[::2, 3] = -np.inf
        true[::4, 2] = -np.inf
    subjects = rng.choice(list(temperatures), n)
    labels = (true + rng.gumbel(size=true.shape)).argmax(axis=1)
    return true * np.array([temperatures[name] for name in subjects])[:, None], labels, subjects


def held_out_nll(calibrator, **options):
    logits, labels, subjects = draw(5000, seed=99, **options)
    return negative_log_likelihood(calibrator.transform(logits, groups=subjects), labels)


@pytest.mark.parametrize("padding", [False, True])
def test_known_temperatures_are_recovered(padding):
    logits, labels, subjects = draw(2000, padding=padding)
    calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    assert calibrator.subjects == list(TRUE)
    np.testing.assert_allclose(calibrator.temperatures, list(TRUE.values()), rtol=0.25)
    probabilities = calibrator.transform(logits, groups=subjects)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities[np.isneginf(logits)] == 0).all()
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))


@pytest.mark.parametrize("n", [100, 500, 2000])
def test_better_than_one_temperature_where_subjects_differ(n):
    for seed in range(3):
        logits, labels, subjects = draw(n, seed=seed)
        one = TemperatureScaling().fit(logits, labels)
        many = SubjectTemperature().fit(logits, labels, groups=subjects)
        assert held_out_nll(many) < held_out_nll(one) - 0.02


def test_few_labels_are_shrunk_to_one_temperature():
    same = dict.fromkeys(TRUE, 3.0)
    fitted = []
    for seed in range(20):
        logits, labels, subjects = draw(30, same, seed)
        fitted.append((TemperatureScaling().fit(logits, labels), SubjectTemperature()))
        fitted[-1][1].fit(logits, labels, groups=subjects)
    alike = [np.allclose(many.temperatures, one.temperature, rtol=1e-6) for one, many in fitted]
    assert np.mean(alike) >= 0.75
    one, many = np.mean([[held_out_nll(each, temperatures=same) for each in pair] for pair in fitted], axis=0)
    assert many < one + 0.01


@pytest.mark.filterwarnings("ignore:The logits are never or hardly wrong")
def test_one_subject_and_hardly_wrong_labels_are_temperature_scaling():
    logits, labels, subjects = draw(300)
    for labels_, subjects_ in ((labels, np.full(300, "law")), (logits.argmax(axis=1), subjects)):
        calibrator = SubjectTemperature().fit(logits, labels_, groups=subjects_)
        expected = TemperatureScaling().fit(logits, labels_).temperature
        np.testing.assert_array_equal(calibrator.temperatures, np.repeat(expected, len(calibrator.subjects)))
        assert calibrator.spread == 0


def test_subjects_with_a_label_or_without_wrong_ones_stay_finite():
    logits, labels, subjects = draw(400)
    subjects[0] = "once"
    law = subjects == "law"
    labels[law] = logits[law].argmax(axis=1)
    calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    once = calibrator.temperatures[calibrator.subjects.index("once")]
    assert 0.2 < once / calibrator.temperature.item() < 5
    assert 1e-3 < calibrator.temperatures[calibrator.subjects.index("law")] < calibrator.temperature


def test_an_unseen_subject_has_the_mean_and_the_spread_of_the_others():
    logits, labels, subjects = draw(1000)
    calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    assert calibrator.spread > 0
    mean_of_logs = np.log(calibrator.temperatures).mean()
    assert np.log(calibrator.temperature).item() == pytest.approx(mean_of_logs, rel=1e-3)
    unseen, moments = np.log(calibrator.support[:, -1]), []
    for power in (1, 2):
        moments.append(calibrator.weights @ (unseen - mean_of_logs * (power == 2)) ** power)
    assert moments[0] == pytest.approx(mean_of_logs, abs=0.05)
    assert np.sqrt(moments[1]) > np.log(calibrator.temperatures).std()
    probabilities = calibrator.transform(logits, groups=np.full(1000, "chess"))
    expected = [softmax(logits / temperature, axis=1) for temperature in np.exp(unseen)]
    np.testing.assert_allclose(probabilities, np.tensordot(calibrator.weights, expected, 1))


def test_few_labels_make_an_average_that_is_better_than_its_most_probable_temperatures():
    differences = []
    for seed in range(10):
        logits, labels, subjects = draw(60, seed=seed)
        average = SubjectTemperature().fit(logits, labels, groups=subjects)
        single = SubjectTemperature().fit(logits, labels, groups=subjects)
        single.support, single.weights = np.append(single.temperatures, single.temperature)[None], np.ones(1)
        differences.append(held_out_nll(single) - held_out_nll(average))
    assert np.mean(differences) > 0.005


def test_posterior_of_a_temperature_is_that_of_a_grid():
    """Two subjects: the mean and the spread are integrated on a grid."""
    logits, labels, subjects = draw(80, {"art": 1.0, "maths": 4.0}, seed=3)
    calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    rows, grid = np.arange(len(labels)), np.linspace(-4, 4, 161)
    likelihood = {
        name: np.array(
            [np.log(softmax(logits / np.exp(t), axis=1)[rows, labels][subjects == name]).sum() for t in grid]
        )
        for name in ("art", "maths")
    }
    posterior = np.zeros((2, len(grid)))
    for spread in np.linspace(0.025, 4, 160):
        for mean in np.linspace(-3, 3, 61):
            prior = norm.logpdf(grid, mean, spread)
            both = [np.exp(each - each.max() + prior) for each in likelihood.values()]
            evidence = [each.sum() for each in both]
            weight = np.prod(evidence) * norm.pdf(spread, 0, 0.8)
            posterior += [weight * each / max(total, 1e-300) for each, total in zip(both, evidence, strict=True)]
    posterior /= posterior.sum(axis=1, keepdims=True)
    for column in range(2):
        expected = sum(p * softmax(logits / np.exp(t), axis=1) for p, t in zip(posterior[column], grid, strict=True))
        found = calibrator.transform(logits, groups=np.full(80, calibrator.subjects[column]))
        assert np.abs(found - expected).mean() < 0.01


@pytest.mark.parametrize("spread", [0.1, 0.8, 4.0])
def test_gradient_equals_finite_differences(spread):
    logits, labels, subjects = draw(60, padding=True)
    index = np.unique(subjects, return_inverse=True)[1]
    theta = np.random.default_rng(1).normal(size=1 + len(TRUE)) / 2
    arguments = (logits, labels, index, spread)
    numerical = approx_fprime(theta, lambda point: penalised_loss(point, *arguments)[0], 1e-6)
    np.testing.assert_allclose(penalised_loss(theta, *arguments)[1], numerical, rtol=1e-4, atol=1e-3)


def test_penalised_loss_is_that_of_the_definition():
    logits, labels, subjects = draw(60, padding=True)
    index = np.unique(subjects, return_inverse=True)[1]
    mean, spread = 0.3, 0.5
    log_temperatures = np.array([0.1, 0.9, -0.4, 0.3])
    theta = np.array([mean, *(log_temperatures - mean) / spread])
    probabilities = softmax(logits / np.exp(log_temperatures[index])[:, None], axis=1)
    nll = -np.log(probabilities[np.arange(60), labels]).sum()
    prior = ((log_temperatures - mean) ** 2).sum() / (2 * spread**2)
    assert penalised_loss(theta, logits, labels, index, spread)[0] == pytest.approx(nll + prior)


def test_save_and_load(tmp_path):
    logits, labels, subjects = draw(500)
    calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    calibrator.save(tmp_path)
    assert json.loads((tmp_path / "calibrator.json").read_text())["subjects"] == list(TRUE)
    loaded = PostHocCalibrator.load(tmp_path)
    assert isinstance(loaded, SubjectTemperature)
    others = np.where(np.arange(500) % 2, subjects, "chess")
    np.testing.assert_array_equal(loaded.transform(logits, groups=others), calibrator.transform(logits, groups=others))
    config = json.loads((tmp_path / "calibrator.json").read_text())
    del config["subjects"]
    (tmp_path / "calibrator.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="calibrator.json lacks subjects"):
        PostHocCalibrator.load(tmp_path)


def test_groups_are_checked_and_others_ignore_them():
    logits, labels, subjects = draw(100)
    with pytest.raises(ValueError, match="SubjectTemperature needs the subject of every question"):
        SubjectTemperature().fit(logits, labels)
    with pytest.raises(ValueError, match=r"shape \(100,\), one name a question, got \(99,\)"):
        SubjectTemperature().fit(logits, labels, groups=subjects[1:])
    calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    with pytest.raises(ValueError, match="needs the subject of every question"):
        calibrator.transform(logits)
    one = TemperatureScaling().fit(logits, labels, groups=subjects)
    np.testing.assert_array_equal(one.transform(logits, groups=subjects), one.transform(logits))


def test_cross_validation_divides_the_subjects_too():
    logits, labels, subjects = draw(600)
    outcomes = cross_validate(["temperature", "subject_temperature"], logits, labels, groups=subjects)
    chosen, scores = choose_method(outcomes, labels, list(METHODS))
    assert chosen == "subject_temperature" and scores["temperature"]["cv_excess"] > 0.02


def test_predictions_pass_their_subjects():
    logits, labels, subjects = draw(300)
    calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    predictions = OptionPredictions(logits, labels, np.arange(300).astype(str), subjects=subjects)
    after = predictions.recalibrated(calibrator)
    np.testing.assert_allclose(after.probabilities, calibrator.transform(logits, groups=subjects), atol=1e-6)
    predictions.subjects = None
    with pytest.raises(ValueError, match="needs the subject"):
        predictions.recalibrated(calibrator)


def test_logits_processor_takes_the_subject():
    logits, labels, subjects = draw(2000)
    calibrator = SubjectTemperature().fit(logits, labels, groups=subjects)
    with pytest.raises(ValueError, match="needs `group`"):
        OptionCalibrationProcessor(calibrator, [1, 2, 3, 4], 3)
    scores = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    after = OptionCalibrationProcessor(calibrator, [1, 2, 3, 4], 3, group="maths")(torch.zeros(2, 3), scores)
    expected = calibrator.transform(scores[:, 1:5].numpy(), groups=np.full(2, "maths"))
    np.testing.assert_allclose(after[:, 1:5].softmax(-1), expected, rtol=1e-5)
