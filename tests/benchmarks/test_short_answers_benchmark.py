"""The benchmark of short answers: its world, its questions, and the rivals."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset


sys.path += [str(Path(__file__).parents[2] / "benchmarks" / name) for name in ("short_answers", "rivals", "headline")]

from calibration_tuning import CalibrationTuning  # noqa: E402
from confidence_combination import combine, fit_combination  # noqa: E402
from real_questions import open_questions  # noqa: E402
from short_answer_world import FORMAT, OPTIONS, ShortAnswerWorld  # noqa: E402

from hf_calib import predict_answers, predict_options  # noqa: E402
from hf_calib.data.short_answers import short_questions  # noqa: E402


@pytest.fixture(scope="module")
def world():
    return ShortAnswerWorld()


def test_judgements_are_true_as_often_as_the_world_says(world):
    texts = [text.split() for text in world.judgements(4000)["text"]]
    assert all(words[0] == "?" and words[-1] in ("true", "false") for words in texts)
    expected, found = [], []
    for _, _, relation, _, entity, _, value, judgement in texts:
        r = world.relations.index(relation)
        expected.append(world.probabilities[r, world.entities.index(entity), world.values[r].index(value)])
        found.append(judgement == "true")
    assert abs(np.mean(expected) - np.mean(found)) < 3 * np.sqrt(0.25 / 4000)
    assert np.corrcoef(expected, found)[0, 1] > 0.3


def test_the_truth_of_answers(world):
    questions = short_questions(world.questions(50))
    accepted = [answers[0] for answers in questions["answers"]]
    truth = world.truth(questions, accepted)
    assert ((truth > 0) & (truth < 1)).all()
    assert (world.truth(questions, ["no such value"] * 50) == 0).all()


def test_calibration_tuning_learns_judgements_and_leaves_the_model(world):
    model, tokenizer = world.model(), world.tokenizer()
    questions = short_questions(world.questions(300))
    found = predict_answers(model, tokenizer, questions, OPTIONS, confidences=("p_true",))
    rows = [{**row, "answer": world.relations.index(row["subject"]) % 2} for row in found.judgements]
    judgements = Dataset.from_list(rows, features=found.judgements.features)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = CalibrationTuning(model, tokenizer, FORMAT, epochs=5).fit(judgements)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    options = {"prompt_format": FORMAT, "progress": False}
    losses = []
    for each in (model, tuned.model):
        predictions = predict_options(each, tokenizer, judgements, **options)
        rows = np.arange(len(predictions))
        losses.append(-np.log(predictions.probabilities[rows, predictions.labels]).mean())
    assert losses[1] < losses[0] and tuned.epochs > 0


def test_the_combination_uses_what_tells_right_from_wrong():
    rng = np.random.default_rng(0)
    truth = rng.random(4000)
    correct = rng.random(4000) < truth
    confidences = [truth, rng.random(4000)]
    combined = combine(fit_combination(confidences, correct), confidences)
    assert np.abs(combined - truth).mean() < 0.05


def test_questions_that_need_their_options_are_left_out(tmp_path):
    rows = [
        {"question": "What do bees make?", "choices": ["honey", "milk"], "answer": 0},
        {"question": "Which of these is a metal?", "choices": ["iron", "wood"], "answer": 0},
        {"question": "What is true?", "choices": ["both of them", "one"], "answer": 0},
        {"question": "Why do leaves fall?", "choices": ["because the days are short", "rain"], "answer": 0},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "questions.parquet")
    assert open_questions(tmp_path / "questions.parquet")["question"][:] == ["What do bees make?"]
