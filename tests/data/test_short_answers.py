"""Questions with accepted texts."""

import json

import pytest
from datasets import Dataset

from hf_calib.data.files import load_records
from hf_calib.data.questions import load_questions
from hf_calib.data.short_answers import (
    holds_short_answers,
    load_short_questions,
    p_true_questions,
    short_questions,
)
from hf_calib.data.unified import is_unified


ROWS = [
    {"question": "Capital of France?", "answers": ["Paris", "Paris", "City of Paris"]},
    {"question": "2 + 2", "answers": ["4"]},
]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_file_of_accepted_texts(tmp_path):
    path = write(tmp_path / "short.jsonl", ROWS)
    questions = load_short_questions(path)
    assert holds_short_answers(load_records(path))
    assert questions["answers"][:] == [["Paris", "City of Paris"], ["4"]]
    assert len(set(questions["id"])) == 2
    assert short_questions(questions) is questions


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Paris", ["Paris"]),
        ('["Paris", "Lutetia"]', ["Paris", "Lutetia"]),
        ("[sic] Paris", ["[sic] Paris"]),
        ({"text": ["Paris"], "answer_start": [3]}, ["Paris"]),
        ({"value": "Paris", "aliases": ["Lutetia"]}, ["Paris", "Lutetia"]),
        (1000, ["1000"]),
    ],
)
def test_layouts_of_accepted_texts(value, expected, tmp_path):
    path = write(tmp_path / "short.jsonl", [{"question": "Capital?", "answers": value}])
    assert load_short_questions(path)["answers"][0] == expected


def test_a_csv_file_with_other_names(tmp_path):
    path = tmp_path / "short.csv"
    path.write_text("Prompt,Gold,subject\nCapital?,Paris,geography\nCode?,007,spies\n")
    columns = "question=Prompt,answer=Gold"
    assert holds_short_answers(load_records(path), columns)
    questions = load_short_questions(path, columns=columns)
    assert questions["answers"][:] == [["Paris"], ["007"]]
    assert questions["subject"][:] == ["geography", "spies"]


def test_options_are_taken_away(tmp_path):
    rows = [{"question": "Ice is", "choices": ["hot", "cold"], "answer": 1}]
    path = write(tmp_path / "options.jsonl", rows)
    assert not holds_short_answers(load_records(path))
    questions = load_short_questions(path)
    assert questions.column_names == ["id", "question", "answers"]
    assert questions["answers"][:] == [["cold"]]
    assert questions["id"][:] == load_questions(path)["id"][:]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Capital?", "answers": [""]}, "row 0|line 1.*column 'answers': empty text"),
        ({"question": "Capital?", "answers": []}, "there is no accepted text"),
        ({"question": "", "answers": ["Paris"]}, "column 'question': empty text"),
        ({"question": "Capital?", "answers": [["Paris"]]}, "is a list, not a text"),
        ({"question": "Capital?", "answer": True}, "is a bool, not a text"),
        ({"question": "Capital?", "answers": {"start": 3}}, "it must have `text`"),
        ({"question": "Capital?", "reply": "Paris"}, "hold neither accepted texts .* nor options"),
    ],
)
def test_invalid_rows_are_named(row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_short_questions(write(tmp_path / "short.jsonl", [row]))


def test_nan_is_no_answer():
    with pytest.raises(ValueError, match="column 'answer': nan is a float"):
        short_questions(Dataset.from_list([{"question": "2 / 0", "answer": float("nan")}]))


def test_invalid_rows_are_left_out_and_counted(tmp_path, caplog):
    path = write(tmp_path / "short.jsonl", [*ROWS, {"question": "Capital?", "answers": []}])
    assert len(load_short_questions(path, drop_invalid=True)) == 2
    assert "left out 1 of 3 questions" in caplog.text or "left out 1 of 3 rows" in caplog.text


def test_without_labels_answers_are_ignored(tmp_path):
    path = write(tmp_path / "short.jsonl", [{"question": "Capital?", "answers": []}])
    assert load_short_questions(path, labelled=False)["answers"][:] == [None]


@pytest.mark.parametrize("columns", [None, "question=Prompt,answers=Gold"])
def test_questions_alone_without_labels(tmp_path, columns):
    name = "Prompt" if columns else "question"
    path = write(tmp_path / "short.jsonl", [{name: "Capital?", "note": "x"}])
    assert holds_short_answers(load_records(path), columns, labelled=False)
    assert not holds_short_answers(load_records(path), columns)
    questions = load_short_questions(path, columns=columns, labelled=False)
    assert questions["question"][:] == ["Capital?"] and questions["answers"][:] == [None]
    with pytest.raises(ValueError, match="hold neither accepted texts" if columns is None else "Gold"):
        load_short_questions(path, columns=columns)


@pytest.mark.parametrize("row", [{"choices": ["a", "b"]}, {"A": "a", "B": "b"}, {"answerKey": "A"}])
def test_options_without_answers_are_no_short_answers(tmp_path, row):
    path = write(tmp_path / "options.jsonl", [{"question": "Which? (A) a (B) b", **row}])
    assert not holds_short_answers(load_records(path), labelled=False)


def test_option_questions_need_options(tmp_path):
    with pytest.raises(ValueError, match="hold no options.*hf-calib evaluate"):
        load_questions(write(tmp_path / "short.jsonl", ROWS))


def test_judgements_of_answers():
    questions = short_questions(
        Dataset.from_list([{**ROWS[0], "subject": "geography"}, {**ROWS[1], "subject": "sums"}])
    )
    judged = p_true_questions(questions, ["Paris\n", ""], [True, False])
    assert is_unified(judged)
    assert judged["question"][0] == (
        "Question: Capital of France?\nProposed answer: Paris\nIs the proposed answer right?"
    )
    assert "(no answer)" in judged["question"][1]
    assert judged["choices"][0] == ["True", "False"]
    assert judged["answer"][:] == [0, 1]
    assert judged["subject"][:] == ["geography", "sums"]
    assert p_true_questions(questions, ["Paris", "4"], None)["answer"][:] == [None, None]
