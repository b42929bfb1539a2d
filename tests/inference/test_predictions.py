"""Predictions for questions that differ in their number of options."""

import evaluate
import numpy as np
import pytest

import hf_calib
from hf_calib import OptionEvaluator, OptionPredictions, classify_regime
from hf_calib.evaluation.compare import compare_calibrators, comparison_stages
from hf_calib.evaluation.diagnose import diagnose
from hf_calib.evaluation.tables import evaluation_results
from hf_calib.posthoc import TemperatureScaling


N = 2000


@pytest.fixture(scope="module")
def mixed():
    """2,000 questions of two options, below chance, and one of four. With padding, chance would be 1/4."""
    rng = np.random.default_rng(0)
    confidences, wrong = rng.uniform(0.55, 0.95, N), rng.random(N) > 0.38
    logits = np.full((N + 1, 4), -np.inf, np.float32)
    logits[:N, 0], logits[:N, 1] = np.log(confidences), np.log(1 - confidences)
    logits[N] = np.log([0.1, 0.2, 0.3, 0.4])
    target = np.zeros((N + 1, 4))
    target[:, :2] = 0.5
    ids = np.arange(N + 1).astype(str)
    return OptionPredictions(logits, np.append(wrong, 3).astype(int), ids, target)


def test_all_interfaces_give_the_same_regime(mixed, evaluate_cache):
    mixed = OptionPredictions(mixed.option_logits, mixed.labels, mixed.ids)
    rows = [p[np.isfinite(logits)] for p, logits in zip(mixed.probabilities, mixed.option_logits, strict=True)]
    expected = classify_regime(rows, mixed.labels)
    assert expected.regime == "non-calibratable"
    assert classify_regime(mixed.probabilities, mixed.labels).regime == "calibratable"  # as documented of arrays

    metric = evaluate.load(hf_calib.metric_path())
    inputs = OptionEvaluator().predictions_processor(mixed)
    for result in (evaluation_results(mixed, n_bootstrap=10), metric.compute(**inputs, n_bootstrap=10)):
        assert (result["regime"], result["p_value"]) == (expected.regime, pytest.approx(expected.p_value))


def test_target_and_reference_have_the_same_rows(mixed):
    results = evaluation_results(mixed, n_bootstrap=10)
    assert results["test"] == "target" and results["tce"] > 0.1
    # a reference in a wider table, among other questions and in another order
    logits = np.full((N + 2, 5), -np.inf, np.float32)
    logits[:-1, :4], logits[-1] = mixed.option_logits[::-1], 0.0
    reference = OptionPredictions(logits, np.append(mixed.labels[::-1], 0), np.append(mixed.ids[::-1], "x"))
    by_reference = evaluation_results(mixed, reference, n_bootstrap=10)
    assert by_reference["reference_accuracy"] == by_reference["accuracy"] < 0.4
    narrow = mixed.select(mixed.ids[:N])  # the one question of four options is gone, its columns are not
    assert narrow.unpadded()[0].shape == narrow.unpadded()[2].shape == (N, 2)
    assert evaluation_results(narrow, reference, n_bootstrap=10)["n"] == N


def test_a_label_beyond_the_options_is_an_error(mixed):
    labels = mixed.labels.copy()
    labels[7] = 2
    with pytest.raises(ValueError, match=r"`labels` row 7 is 2, outside \[0, 2\)"):
        evaluation_results(OptionPredictions(mixed.option_logits, labels, mixed.ids))


@pytest.mark.filterwarnings("ignore:The logits are no better than uniform")
def test_calibrators_keep_all_options(mixed):
    probabilities = mixed.probabilities.copy()
    probabilities[:9] = np.eye(4)[0]  # as histogram binning has it where all were right
    certain = mixed.with_probabilities(probabilities, calibrator="mine")
    assert certain.num_options.tolist() == mixed.num_options.tolist() == [2] * N + [4]
    np.testing.assert_allclose(certain.probabilities, probabilities, rtol=1e-6)
    assert (certain.probabilities[:9, 1:] == 0).all() and np.isneginf(certain.option_logits[:N, 2:]).all()
    assert certain.metadata == {"calibrator": "mine"}
    again = certain.recalibrated(TemperatureScaling().fit(certain.option_logits, certain.labels))
    assert again.num_options.tolist() == mixed.num_options.tolist()


@pytest.mark.filterwarnings("ignore:The logits are no better than uniform")
def test_calibrators_are_compared_with_each_questions_chance(mixed):
    mixed = OptionPredictions(mixed.option_logits, mixed.labels, mixed.ids)
    comparison = compare_calibrators(mixed, methods=["temperature", "histogram"])
    for stage in comparison_stages(comparison, n_bootstrap=10):
        assert stage["regime"] == "non-calibratable", stage["stage"]


def test_joined_predictions_have_the_larger_width(mixed):
    narrow, wide = mixed.select(mixed.ids[:5]), mixed.select(mixed.ids[-2:])
    narrow.option_logits, narrow.target_probabilities = narrow.option_logits[:, :2], narrow.target_probabilities[:, :2]
    for parts in ([narrow, wide], [wide, narrow]):
        joined = OptionPredictions.join(parts)
        assert joined.ids.tolist() == [*parts[0].ids, *parts[1].ids]
        expected = mixed.select(joined.ids)
        np.testing.assert_array_equal(joined.option_logits, expected.option_logits)
        np.testing.assert_array_equal(joined.target_probabilities, expected.target_probabilities)
        np.testing.assert_array_equal(joined.labels, expected.labels)
    wide.target_probabilities = None
    assert OptionPredictions.join([narrow, wide]).target_probabilities is None
    double = mixed.select(["4", "4", "5"])  # one that stands twice in the data
    assert OptionPredictions.join([double, wide]).ids.tolist() == ["4", "4", "5", *wide.ids]
    for part, tokens, left_out in ((narrow, True, 1), (wide, False, 2)):
        part.metadata = {
            "single_tokens": tokens,
            "too_long": left_out,
            "fingerprint": "a",
            "option_normalization": "sum",
        }
    joined = OptionPredictions.join([narrow, wide])
    assert joined.metadata == {"single_tokens": False, "too_long": 3, "option_normalization": "sum"}
    with pytest.raises(ValueError, match="question '4' was predicted twice"):
        OptionPredictions.join([narrow, mixed.select(["4", "7"])])


def restarting(seed=0):
    """Predictions for two files joined, with ids that start again."""
    generator = np.random.default_rng(seed)
    ids = np.array([*map(str, range(30)), *map(str, range(30))])
    return OptionPredictions(generator.normal(size=(60, 4)).astype(np.float32), generator.integers(0, 4, 60), ids)


def test_repeated_ids_are_matched_by_position_or_refused():
    predictions = restarting()
    assert predictions.select(predictions.ids).labels.tolist() == predictions.labels.tolist()
    itself = evaluation_results(predictions, predictions, n_bootstrap=10)
    assert itself["reference_accuracy"] == itself["accuracy"]
    shuffled = OptionPredictions(predictions.option_logits[::-1], predictions.labels[::-1], predictions.ids[::-1])
    with pytest.raises(ValueError, match="30 ids are of several questions, the first of them '29', and the order"):
        predictions.select(shuffled.ids)
    with pytest.raises(ValueError, match="ids are of several questions"):
        compare_calibrators(predictions, reference=shuffled, methods=["agreement"])
    with pytest.raises(ValueError, match="ids are of several questions"):
        diagnose(shuffled, predictions, n_bootstrap=10)
    # the same question twice is no harm
    twice = OptionPredictions(
        predictions.option_logits[[0, 1, 0]], predictions.labels[[0, 1, 0]], np.array(["a", "b", "a"])
    )
    assert twice.select(["b", "a"]).labels.tolist() == predictions.labels[[1, 0]].tolist()


def test_predictions_for_other_questions_are_refused():
    predictions, other = restarting(0), restarting(1)
    for call in (evaluation_results, lambda *both: compare_calibrators(both[0], reference=both[1])):
        with pytest.raises(ValueError, match="the answer of question '.*' is option ., in the reference predictions"):
            call(predictions, other)


def test_test_questions_among_repeated_calibration_ids_are_found():
    predictions = restarting()
    with pytest.raises(ValueError, match="1 of 1 test questions are among the calibration questions"):
        compare_calibrators(predictions, _rows(predictions, [3]), methods=["temperature"])


def _rows(predictions, rows):
    return OptionPredictions(predictions.option_logits[rows], predictions.labels[rows], predictions.ids[rows])
