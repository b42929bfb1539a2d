"""Answers and labels of options: read rightly, or refused with one line."""

import json
import logging

import pandas as pd
import pytest
from datasets import Dataset

from hf_calib.data.adapters import adapt_questions
from hf_calib.data.questions import load_questions


FOUR = ["oxygen", "carbon", "helium", "argon"]


def rows(answers, choices=FOUR, **more):
    return [{"question": f"q{i}", "choices": choices, "answer": answer, **more} for i, answer in enumerate(answers)]


def adapted(given, **options):
    return adapt_questions(Dataset.from_list(given), **options)["answer"][:]


@pytest.mark.parametrize("drop_invalid", [False, True])
@pytest.mark.parametrize("kind", ["numbers", "texts", "cop", "file"])
def test_answers_counted_from_one_are_never_shifted_or_dropped_silently(tmp_path, kind, drop_invalid):
    answers, options = [1, 2, 3, 4, 4, 2], {"drop_invalid": drop_invalid}
    given = rows(answers if kind == "numbers" else list(map(str, answers)))
    if kind == "cop":
        given = [
            {"question": "q", **dict(zip(("opa", "opb", "opc", "opd"), FOUR, strict=True)), "cop": a} for a in answers
        ]

    def load(**more):
        if kind != "file":
            return adapted(given, **options, **more)
        (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows(answers))))
        return load_questions(tmp_path / "q.jsonl", **options, **more)["answer"][:]

    with pytest.raises(ValueError, match="no answer is 0 and some equal the number of options, .*--answers_from 1"):
        load()
    assert load(answers_from=1) == [0, 1, 2, 3, 3, 1]
    if drop_invalid:
        assert load(answers_from=0) == [1, 2, 3, 2]
    else:
        with pytest.raises(ValueError, match="4'? is out of range; it must be 0 to 3"):
            load(answers_from=0)


def test_a_zero_settles_that_answers_count_from_zero(caplog):
    given = rows([0, 1, 4, 2])
    assert adapted(given, drop_invalid=True) == [0, 1, 2]
    assert "left out 1 of 4 rows as invalid (1 for `answer`)" in caplog.text
    with pytest.raises(ValueError, match="row 0, column 'answer': 0 is out of range; it must be 1 to 4"):
        adapted(given, answers_from=1)
    with pytest.raises(ValueError, match="answers_from=2"):
        adapted(given, answers_from=2)


def test_many_answers_without_a_zero_are_worth_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert adapted(rows([1, 2, 3] * 10)) == [1, 2, 3] * 10
    assert "none of 30 answers is 0; pass `answers_from=1`" in caplog.text
    caplog.clear()
    adapt_questions(Dataset.from_list(rows([1, 2, 3] * 10))).to_parquet(tmp_path / "q.parquet")
    caplog.clear()
    load_questions(tmp_path / "q.parquet")
    assert "none of 30 answers is 0" in caplog.text
    caplog.clear()
    adapted(rows([1, 2, 3] * 10), answers_from=0)
    load_questions(tmp_path / "q.parquet", answers_from=0)
    assert not caplog.text


@pytest.mark.parametrize(
    "written", ["b", "(B)", "B.", "B)", " B ", "[b]", "1", "1.0", "carbon", ["B"], 1, 1.0]
)  # fmt: skip
def test_one_answer_in_many_spellings(written):
    first = {**rows([0])[0], "answer": written}  # a column of one type
    assert adapted([first]) == [1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (True, "True is a bool"),
        (["A", "B"], r"\['A', 'B'\] is a list"),
        ("E", "'E' is not one of the option labels A, B, C, D, and no option's text"),
        ("neon", "'neon' is not one of the option labels"),
        (1.5, "1.5 is out of range"),
        ("-2", "'-2' is out of range"),
        ("-1", "no answer"),
        ("", "no answer"),
        (None, "no answer"),
    ],
)
def test_answers_that_name_no_option_are_refused(answer, message):
    with pytest.raises(ValueError, match=f"row 0, column 'answer': {message}"):
        adapted(rows([answer]))


LABELLED = [
    {"text": FOUR, "label": ["A", "B", "C", "D"]},
    {"text": FOUR, "label": ["1", "2", "3", "4"]},
    {"label": [1, 2, 3, 4], "text": FOUR},
    dict(zip("ABCD", FOUR, strict=True)),
    dict(reversed(list(zip("ABCD", FOUR, strict=True)))),
    dict(zip("1234", FOUR, strict=True)),
    dict(zip("PQRS", FOUR, strict=True)),
    [{"label": label, "text": text} for label, text in zip("ABCD", FOUR, strict=True)],
    [{"key": label, "content": text} for label, text in zip("1234", FOUR, strict=True)],
]


@pytest.mark.parametrize("choices", LABELLED, ids=str)
@pytest.mark.parametrize("column", ["answer", "answerKey"])
@pytest.mark.parametrize("written", ["value", "json", "python"])
def test_options_with_labels_in_every_layout(choices, column, written):
    labels = choices.get("label", None) if isinstance(choices, dict) else [next(iter(c.values())) for c in choices]
    labels = [label for label in (labels or choices)]
    right = dict(
        zip(labels, choices.values() if "label" not in choices and isinstance(choices, dict) else FOUR, strict=True)
    )
    given = {"value": choices, "json": json.dumps(choices), "python": str(choices)}[written]
    for label, text in right.items():
        (row,) = adapt_questions(Dataset.from_list([{"question": "q", "choices": given, column: str(label)}]))
        assert row["choices"][row["answer"]] == text and sorted(row["choices"]) == sorted(FOUR)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"text": FOUR, "label": ["A", "B", "B", "D"]}, "the label 'B' is there twice"),
        ({"text": FOUR, "label": ["A", "B", "C", None]}, r"3 label\(s\) for 4 options"),
        ({"text": FOUR, "label": ["A", "B", "C", " "]}, r"3 label\(s\) for 4 options"),
        ({"text": FOUR, "label": ["A", "B", "C"]}, r"3 label\(s\) for 4 options"),
        ([{"label": "A", "text": "x"}, {"label": "A", "text": "y"}], "the label 'A' is there twice"),
        (
            [{"letter": "A", "word": "x"}, {"letter": "B", "word": "y"}],
            "an option has no 'text', only 'letter', 'word'",
        ),
        ([["x", "y"], ["z"]], r"column 'choices\[0\]': \['x', 'y'\] is a list, not a text"),
        ([True, False], r"column 'choices\[0\]': True is a bool, not a text"),
        ({"A": ["x", "y"], "B": ["z"]}, "a dict from label to text"),
        ("x; y", "'x; y' is text, not a list; write it as JSON"),
        (5, "it must be a list of texts, not int"),
    ],
)
def test_options_that_cannot_be_read_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        adapt_questions(Dataset.from_list([{"question": "q", "choices": choices, "answer": "A"}]))


def test_missing_options_in_a_column_of_dicts():
    given = [
        {"question": "q0", "choices": {"A": "x", "B": "y", "C": None}, "answer": "B"},
        {"question": "q1", "choices": {"A": "x", "B": "y", "C": "z"}, "answer": "C"},
    ]
    questions = adapt_questions(Dataset.from_list(given))
    assert questions["choices"][:] == [["x", "y"], ["x", "y", "z"]] and questions["answer"][:] == [1, 2]


def test_answers_that_are_texts_of_options(tmp_path):
    numbers = [["12", "15", "18", "2"], ["2", "4", "6", "8"], ["0", "1", "2", "3"]]
    given = [{"question": "q", "choices": c, "answer": a} for c, a in zip(numbers, ["18", "8", "3"], strict=True)]
    assert adapted(given) == [2, 3, 3]
    (tmp_path / "q.json").write_text('[{"question": "q", "choices": [2, 4, 1.50], "answer": 1.50}]')
    assert load_questions(tmp_path / "q.json")["answer"][:] == [2]
    with pytest.raises(ValueError, match="answers such as '1' are places of options and also texts of other options"):
        adapted([{"question": "q", "choices": ["1", "2", "3"], "answer": "1"}])
    with pytest.raises(ValueError, match="answers such as 'A' are places of options and also texts"):
        adapted([{"question": "q", "choices": ["C", "A", "B"], "answer": "A"}])
    # a number beside texts is an index
    assert adapted([{"question": "q", "choices": ["1", "2", "3"], "answer": 0}]) == [0]


def test_more_invalid_than_valid_rows_are_an_error_in_any_case(caplog):
    given = rows(["A", "x", "y", "z"])
    for drop_invalid in (False, True):
        with pytest.raises(
            ValueError, match="row 1, column 'answer': 'x' .*; 3 of 4 rows are invalid: correct the data"
        ):
            adapted(given, drop_invalid=drop_invalid)
    # rows without an answer may be the larger part
    assert adapted(rows(["A", None, None, None]), drop_invalid=True) == [0]
    with pytest.raises(ValueError, match="no valid question among 2 rows"):
        adapted(rows(["", ""]), drop_invalid=True)


@pytest.mark.parametrize(
    "written",
    [
        "['oxygen' 'carbon dioxide'\n 'helium']",  # a numpy array
        "{'text': array(['oxygen', 'carbon dioxide', 'helium'], dtype=object), 'label': array(['A', 'B', 'C'], dtype=object)}",
        """["oxygen" 'carbon dioxide' 'helium']""",
    ],
)
def test_lists_as_pandas_writes_arrays(tmp_path, written):
    pd.DataFrame([{"question": "Plants breathe in", "choices": written, "answer": "B"}]).to_csv(
        tmp_path / "q.csv", index=False
    )
    (row,) = load_questions(tmp_path / "q.csv")
    assert row["choices"] == ["oxygen", "carbon dioxide", "helium"] and row["answer"] == 1


def test_texts_with_the_look_of_arrays_stay_as_they_are(tmp_path):
    texts = ["array(['a' 'b'])", "tensor([1 2])", "it's \"so\" 'here'"]
    pd.DataFrame([{"question": "?", "choices": str(texts), "answer": 2}]).to_csv(tmp_path / "q.csv", index=False)
    assert load_questions(tmp_path / "q.csv")[0]["choices"] == texts


def test_mmlu_pro_states_the_answer_twice():
    row = {
        "question_id": 1,
        "question": "?",
        "options": ["x", "y"],
        "answer": "B",
        "answer_index": 1,
        "category": "law",
    }
    assert adapt_questions(Dataset.from_list([row]))[0]["answer"] == 1
    with pytest.raises(ValueError, match="'B' is not the option that answer_index 0 names"):
        adapt_questions(Dataset.from_list([{**row, "answer_index": 0}]))
