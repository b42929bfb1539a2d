import pytest
from datasets import Dataset

from hf_calib.data import adapters
from hf_calib.data.questions import adapt_questions
from hf_calib.data.unified import is_unified


ROW = {
    "id": "q",
    "question": "Ice is",
    "choices": ["hot", "cold", "dry"],
    "answer": 1,
    "subject": "physics",
    "target_probabilities": [0.1, 0.8, 0.1],
}


def unified():
    """Two valid questions in the unified features."""
    features = adapt_questions(Dataset.from_list([ROW])).features
    return Dataset.from_list([ROW, {**ROW, "choices": ["no", "yes"], "target_probabilities": None}], features)


def test_valid_questions_are_returned_as_they_are(monkeypatch):
    dataset = unified()
    monkeypatch.setattr(adapters, "_adapt_row", None)
    assert adapt_questions(dataset) is dataset
    chosen = dataset.select([1, 0, 1])
    assert adapt_questions(chosen) is chosen


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"id": ""},
        {"question": None},
        {"question": " Ice is"},
        {"choices": ["hot"]},
        {"choices": ["hot", "cold", "hot"]},
        {"choices": ["hot", "cold", None]},
        {"choices": ["hot", "cold", " "]},
        {"choices": [str(k) for k in range(27)]},
        {"answer": 3},
        {"answer": -1},
        {"answer": None},
        {"target_probabilities": [0.5, 0.5]},
        {"target_probabilities": [0.5, 0.7, -0.2]},
        {"target_probabilities": [0.5, 0.4, 0.2]},
        {"target_probabilities": [0.5, float("nan"), 0.5]},
    ],
)
def test_questions_that_need_adaptation_are_not_unified(change):
    dataset = unified()
    assert is_unified(dataset)
    assert not is_unified(Dataset.from_list([*dataset, {**ROW, **change}], dataset.features))


def test_unlabelled_questions_have_no_answers():
    dataset = unified()
    assert not is_unified(dataset, labelled=False)
    hidden = adapt_questions(dataset, labelled=False)
    assert hidden["answer"][:] == [None, None]
    assert is_unified(hidden, labelled=False) and not is_unified(hidden)


def test_other_features_are_not_unified():
    dataset = unified()
    assert not is_unified(dataset.remove_columns("id"))
    assert not is_unified(dataset.add_column("note", ["", ""]))
    assert not is_unified(dataset.select([]))
