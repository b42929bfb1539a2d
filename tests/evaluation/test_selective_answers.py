"""Answers behind a gate, from predictions and questions in Python."""

import numpy as np
from datasets import Dataset

from hf_calib import Gate, OptionPredictions
from hf_calib.evaluation.selective_answers import selective_answers


def test_an_option_without_a_letter():
    n, options = 40, 30
    chosen = np.arange(n) % options
    logits = np.where(np.arange(options) == chosen[:, None], 9, 0).astype(np.float32)
    predictions = OptionPredictions(logits, chosen, np.arange(n).astype(str))
    columns = {"id": predictions.ids.tolist(), "question": ["?"] * n}
    questions = Dataset.from_dict({**columns, "choices": [[f"option {k}" for k in range(options)]] * n})
    answers = selective_answers(Gate.fit(predictions, 0.5), questions, predictions)
    assert all(answer.answered and answer.correct for answer in answers)
    assert [answer.text for answer in answers] == [f"option {k}" for k in chosen]
    assert [answer.answer for answer in answers[24:28]] == ["Y", "Z", None, None]
