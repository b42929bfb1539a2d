"""The comparison of a trained model with the aligned model under its best post-hoc calibrator."""

import numpy as np
import pytest
from samples import make_logits
from scipy.special import log_softmax

from hf_calib.evaluation.compare import compare_calibrators
from hf_calib.evaluation.no_harm import best_posthoc, compare_with_posthoc
from hf_calib.inference.predictions import OptionPredictions


@pytest.fixture(scope="module")
def aligned():
    logits, labels = make_logits(n=300, temperature=3.0)
    return OptionPredictions(logits.astype(np.float32), labels, np.array([f"q{i}" for i in range(300)]))


@pytest.mark.parametrize(("scale", "better"), [(1.0, False), (0.05, False), (3.0, False), (None, True)])
def test_the_difference_is_that_of_the_cross_validated_likelihoods(aligned, scale, better):
    """Too sure, too unsure, about as good as the calibrator, and a model that knows the answers."""
    before = compare_calibrators(aligned, methods=["temperature"])
    held_out = aligned.select(aligned.ids[::5])
    logits = held_out.option_logits * (scale or 1)
    if scale is None:
        logits = logits.copy()
        logits[np.arange(60), held_out.labels] += 8
    trained = OptionPredictions(logits, held_out.labels, held_out.ids)
    assert best_posthoc(before) == "temperature"
    found = compare_with_posthoc(trained, before.predictions["temperature"], "temperature")
    rows = np.arange(60)
    nll = -log_softmax(logits, axis=1)[rows, held_out.labels]
    rival = -np.log(before.predictions["temperature"].probabilities[::5][rows, held_out.labels])
    assert found.n == 60 and found.method == "temperature"
    assert found.difference == pytest.approx((nll - rival).mean(), abs=1e-4)
    assert found.difference_se == pytest.approx((nll - rival).std(ddof=1) / np.sqrt(60), abs=1e-4)
    assert found.better is better and found.to_dict()["better"] is better
    said = found.sentence("held-out labels")
    assert ("not better than" in said) is not better
    assert said.startswith("On 60 held-out labels") and "under temperature scaling" in said


def test_a_calibrated_model_is_compared_as_it_is(aligned):
    calibrated = OptionPredictions(aligned.option_logits / 3, aligned.labels, aligned.ids)
    before = compare_calibrators(calibrated, methods=["histogram"])
    assert best_posthoc(before) == "as is"
    found = compare_with_posthoc(calibrated, before.predictions["as is"], "as is")
    assert found.difference == 0 and not found.better
    assert "the aligned model as it is" in found.sentence("test questions")
