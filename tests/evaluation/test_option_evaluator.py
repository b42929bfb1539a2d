"""The evaluator of language models on option questions."""

import pytest

from hf_calib import OptionEvaluator, calibration_report, predict_options
from hf_calib.data.synthetic_world import World


pytestmark = pytest.mark.usefixtures("evaluate_cache")


@pytest.fixture(scope="module")
def world():
    return World()


def test_evaluator(world, tmp_path):
    model, tokenizer, questions = world.model(), world.tokenizer(), world.questions(60, 0, split="test")
    options = {"scoring": "text", "progress": False}
    results = OptionEvaluator().compute(
        model, questions, tokenizer=tokenizer, metric_kwargs={"critical_accuracy": 0.01}, **options
    )
    predictions = predict_options(model, tokenizer, questions, **options)
    expected = calibration_report(predictions.probabilities, predictions.labels, predictions.target_probabilities)
    del expected["critical_accuracy"]  # the one given goes before that of the target
    assert results["n_groups"] == len(set(predictions.subjects.tolist())) > 1
    assert {key: results[key] for key in expected} == pytest.approx(expected)
    assert results["regime"] == "non-calibratable" and results["samples_per_second"] > 0

    folder = tmp_path / "model"  # and by name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    questions.to_parquet(tmp_path / "test.parquet")
    by_name = OptionEvaluator().compute(str(folder), str(tmp_path / "test.parquet"), **options)
    assert by_name["ece"] == pytest.approx(expected["ece"], abs=1e-6)


def test_model_without_tokenizer_raises(world):
    with pytest.raises(ValueError, match="tokenizer"):
        OptionEvaluator().compute(world.model(), world.questions(5, 0, split="test"))
