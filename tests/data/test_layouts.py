"""Layouts of known data sets, names of columns, and rows that are malformed or have no answer."""

import re
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from hf_calib.data.layouts import find_adapter
from hf_calib.data.questions import (
    adapt_questions,
    load_questions,
)


TEXTS = ["oxygen", "carbon dioxide", "helium", "argon"]
QUESTION = {"question": "Plants breathe in", "choices": TEXTS, "answer": 1}
LAYOUTS = {
    "cais/mmlu": {**QUESTION, "subject": "biology"},
    "allenai/ai2_arc": {
        "id": "Mercury_1",
        "question": "Plants breathe in",
        "choices": {"text": TEXTS, "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    "allenai/ai2_arc, digits": {
        "id": "NYSEDREGENTS_1",
        "question": "Plants breathe in",
        "choices": {"text": TEXTS, "label": ["1", "2", "3", "4"]},
        "answerKey": "2",
    },
    "allenai/openbookqa": {
        "id": "7-980",
        "question_stem": "Plants breathe in",
        "choices": {"text": TEXTS, "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    "openlifescienceai/medmcqa": {
        "id": "e9ad",
        "question": "Plants breathe in",
        **dict(zip(("opa", "opb", "opc", "opd"), TEXTS, strict=True)),
        "cop": 1,
        "choice_type": "single",
        "exp": "An explanation.",
        "subject_name": "biology",
        "topic_name": None,
    },
    "tau/commonsense_qa": {
        "id": "075e",
        "question": "Plants breathe in",
        "question_concept": "plants",
        "choices": {"label": ["A", "B", "C", "D"], "text": TEXTS},
        "answerKey": "B",
    },
    "allenai/sciq": {
        "question": "Plants breathe in",
        "distractor3": "argon",
        "distractor1": "oxygen",
        "distractor2": "helium",
        "correct_answer": "carbon dioxide",
        "support": "",
    },
    "TIGER-Lab/MMLU-Pro": {
        "question_id": 70,
        "question": "Plants breathe in",
        "options": TEXTS,
        "answer": "B",
        "answer_index": 1,
        "cot_content": "",
        "category": "biology",
        "src": "ori_mmlu",
    },
    "Rowan/hellaswag": {
        "ind": 24,
        "activity_label": "",
        "ctx_a": "Plants",
        "ctx_b": "breathe in",
        "ctx": "Plants breathe in",
        "endings": TEXTS,
        "source_id": "activitynet~v_1",
        "split": "val",
        "split_type": "indomain",
        "label": "1",
    },
    "truthfulqa/truthful_qa": {
        "question": "Plants breathe in",
        "mc1_targets": {"choices": ["carbon dioxide", "oxygen", "helium", "argon"], "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": ["carbon dioxide", "CO2", "oxygen"], "labels": [1, 1, 0]},
    },
    "ehovy/race": {"article": "Plants", "question": "breathe in", "options": TEXTS, "answer": "B"},
    "Idavidrein/gpqa": {
        "Question": "Plants breathe in",
        "Correct Answer": "carbon dioxide\n",
        "Incorrect Answer 1": "oxygen",
        "Incorrect Answer 2": "helium",
        "Incorrect Answer 3": "argon",
        "High-level domain": "biology",
    },
    "truthful_qa, the authors' file": {
        "question": "Plants breathe in",
        "mc1_targets": {"carbon dioxide": 1, "oxygen": 0, "helium": 0, "argon": 0},
    },
    "haonan-li/cmmlu": {
        "Question": "Plants breathe in",
        **dict(zip("ABCD", TEXTS, strict=True)),
        "Answer": "B",
    },
    "arc, the authors' file": {
        "id": "Mercury_1",
        "question": {
            "stem": "Plants breathe in",
            "choices": [{"text": text, "label": label} for text, label in zip(TEXTS, "ABCD", strict=True)],
        },
        "answerKey": "B",
    },
    "spreadsheet": {
        "question": "Plants breathe in",
        **dict(zip("ABCD", TEXTS, strict=True)),
        "E": None,
        "answer": "B",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_are_recognised(layout):
    row = LAYOUTS[layout]
    adapted = adapt_questions(Dataset.from_list([row]))[0]
    assert " ".join(adapted["question"].split()) == "Plants breathe in"
    assert adapted["choices"][adapted["answer"]] == "carbon dioxide"
    assert sorted(adapted["choices"]) == sorted(TEXTS)
    assert adapted["id"] == str(row.get("id", row.get("question_id", adapted["id"]))) and adapted["id"]
    assert adapted.get("subject") == row.get(
        "subject", row.get("subject_name", row.get("category", row.get("High-level domain")))
    )


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_known_layouts_in_files_that_pandas_writes(tmp_path, layout):
    """With numpy arrays as text, and objects of columns or of rows."""
    questions = Dataset.from_list([LAYOUTS[layout]] * 2)
    expected = [(row["question"], row["choices"], row["answer"]) for row in adapt_questions(questions)]
    frame = questions.to_pandas()
    frame.to_csv(tmp_path / "table.csv", sep=";", encoding="utf-16")
    frame.to_csv(tmp_path / "table.tsv", sep="\t", index=False)
    for orient in ("columns", "index", "records"):
        frame.to_json(tmp_path / f"{orient}.json", orient=orient)
    for path in tmp_path.iterdir():
        found = [(row["question"], row["choices"], row["answer"]) for row in load_questions(path)]
        assert found == expected, path.name


def test_winogrande_options_are_called_1_and_2():
    row = {"sentence": "The trophy does not fit into the case because the _ is too large.", "option1": "trophy"}
    rows = [{**row, "option2": "case", "answer": answer} for answer in ("1", "2", "2", "1")]
    questions = adapt_questions(Dataset.from_list(rows))
    assert questions["answer"][:] == [0, 1, 1, 0] and questions["choices"][0] == ["trophy", "case"]
    with pytest.raises(ValueError, match="this split hides its answers"):
        adapt_questions(Dataset.from_list([{**rows[0], "answer": ""}]))


def test_piqa_and_padded_options(caplog):
    row = {"goal": "To dry", "sol1": "sit", "sol2": "run", "label": 1}
    assert adapt_questions(Dataset.from_list([row]))[0]["choices"] == ["sit", "run"]
    row = {"question": "q", "choices": ["x", "y", None], "answer": 1, "context": "Read this."}
    assert adapt_questions(Dataset.from_list([row]))[0]["choices"] == ["x", "y"]
    assert "the column 'context' is not read" in caplog.text


def test_marks_of_wikihow_are_removed():
    row = {"activity_label": "Family Life", "label": "0", "endings": ["Sit. [step] Down.", "[title] Run away."]}
    row["ctx"] = "[header] How to dry [title] Stand up. [step] Walk."
    (question,) = adapt_questions(Dataset.from_list([row]))
    assert question["question"] == "Family Life: How to dry. Stand up. Walk."
    assert question["choices"] == ["Sit. Down.", "Run away."]


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [1, 0, 0]])
def test_truthful_qa_has_one_right_answer(labels):
    row = {"question": "q", "mc1_targets": {"choices": ["x", "y"], "labels": labels}}
    with pytest.raises(ValueError, match="exactly one option must have the label 1"):
        adapt_questions(Dataset.from_list([row]))


def test_original_mmlu_has_no_header(tmp_path):
    (tmp_path / "high_school_physics_test.csv").write_text('"Is it, or not?",x,y,z,w,C\nIs it?,x,"y, or",z,w,A\n')
    questions = load_questions(tmp_path / "high_school_physics_test.csv")
    assert questions["question"][:] == ["Is it, or not?", "Is it?"] and questions["answer"][:] == [2, 0]
    assert questions["choices"][1] == ["x", "y, or", "z", "w"]
    assert questions["subject"][:] == ["high_school_physics"] * 2


def test_cmmlu_has_an_index_column(tmp_path):
    (tmp_path / "anatomy.csv").write_text(",Question,A,B,C,D,Answer\n0,骨骼?,一,二,三,四,D\n", encoding="utf-8")
    assert load_questions(tmp_path / "anatomy.csv")["answer"][:] == [3]


def test_columns_have_any_name_and_case(tmp_path, caplog):
    (tmp_path / "q.csv").write_text("ID,Prompt,First,Second,Gold\nx1,Is it?,yes,no,B\n")
    columns = "id=Id, question=prompt,A=First,B=Second,answer=Gold"
    parsed = dict(pair.strip().split("=") for pair in columns.split(","))
    for given in (columns, parsed):
        (row,) = load_questions(tmp_path / "q.csv", columns=given)
        assert (row["id"], row["question"], row["choices"], row["answer"]) == ("x1", "Is it?", ["yes", "no"], 1)
    dataset = Dataset.from_list([{"Prompt": "Is it?", "Choices": ["yes", "no"], "gold": 1, "question": "other"}])
    (row,) = adapt_questions(dataset, columns="question=Prompt,answer=gold")
    assert row["question"] == "Is it?" and row["answer"] == 1
    # a data set of a known layout may be read beside
    named = Dataset.from_list([QUESTION])
    assert adapt_questions(named, columns="question=prompt,answer=Gold")["answer"][:] == [1]
    assert "none of the columns prompt, Gold; it is read by its own names" in caplog.text
    for columns in ("answer=Glod", "question=question,answer=right"):
        with pytest.raises(ValueError, match=f"no column '{columns.split('=')[-1]}'"):
            adapt_questions(Dataset.from_list([{**QUESTION, "gold": 2}]), columns=columns)
    dataset = Dataset.from_list([{"question": "q", "Answer": 0, "ANSWER": 1, "choices": ["x", "y"]}])
    with pytest.raises(ValueError, match="'Answer', 'ANSWER' differ only in case"):
        adapt_questions(dataset)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("question=Promt,answer=Gold", "no column 'Promt' among Prompt, Gold; did you mean 'Prompt'"),
        ("question", "'question' must be name=column"),
        ("question=", "'question' must be name=column"),
        ("frage=Prompt", "'frage' is no column of questions"),
        ("question=Prompt,question=Gold", "a name is there twice"),
        ("question=Prompt,answer=Prompt", "one column is used for two names"),
    ],
)
def test_wrong_names_of_columns(columns, message):
    with pytest.raises(ValueError, match=message):
        adapt_questions(Dataset.from_list([{"Prompt": "q", "Gold": "A"}]), columns=columns)


def test_mmlu_answers_are_class_labels_on_the_hub():
    dataset = Dataset.from_list([LAYOUTS["cais/mmlu"]]).cast_column("answer", ClassLabel(names=list("ABCD")))
    assert adapt_questions(dataset, adapter="mmlu")[0]["answer"] == 1


def test_sciq_answers_have_stable_mixed_positions():
    rows = [{**LAYOUTS["allenai/sciq"], "question": f"Question {i}"} for i in range(200)]
    answers = adapt_questions(Dataset.from_list(rows))["answer"]
    assert min(Counter(answers).values()) > 25
    assert answers[::-1] == adapt_questions(Dataset.from_list(rows[::-1]))["answer"][:]


def test_adapter_function_for_any_other_layout():
    dataset = Dataset.from_list([{"ask": "Yes?", "right": "yes", "wrong": "no"}])
    adapted = adapt_questions(
        dataset, lambda row: {"question": row["ask"], "choices": [row["wrong"], row["right"]], "answer": 1}
    )
    assert adapted[0]["choices"] == ["no", "yes"]


def test_error_lists_the_columns_of_each_adapter():
    dataset = Dataset.from_list([{"query": "?", "choices": ["a", "b"], "answer": 0}])
    with pytest.raises(
        ValueError,
        match=r"query, choices, answer are of no known layout; for the layout 'unified', question is missing; .*--columns",
    ):
        adapt_questions(dataset)
    with pytest.raises(ValueError, match="'unified' misses column.s. question"):
        adapt_questions(dataset, adapter="unified")
    with pytest.raises(ValueError, match="unknown adapter 'uniform'"):
        adapt_questions(dataset, adapter="uniform")
    with pytest.raises(TypeError, match="one split"):
        adapt_questions(DatasetDict({"test": dataset}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "column 'answer': 4 is out of range.* 0 to 3"),
        ({"answer": 1.5}, "column 'answer': 1.5 is out of range"),
        ({"choices": ["only"], "answer": 0}, r"column 'choices': 1 option\(s\)"),
        ({"choices": [str(k) for k in range(27)]}, r"27 option\(s\).* 2 to 26"),
        ({"choices": ["a", "b", " b ", "c"]}, "duplicate option 'b'"),
        ({"choices": ["a", "b", " ", "c"]}, r"column 'choices\[2\]': empty text"),
        ({"question": ""}, "column 'question': empty text"),
        ({"question": None}, "column 'question': empty text"),
        ({"target_probabilities": [0.5, 0.5]}, "2 numbers that sum to 1.* 4"),
        ({"target_probabilities": [0.5, 0.5, 0.5, 0.5]}, "sum to 2"),
    ],
)
def test_invalid_rows_are_named_and_can_be_dropped(change, message, caplog):
    valid = {**QUESTION, "target_probabilities": [0.1, 0.7, 0.1, 0.1]}
    first = {**valid, "answer": 0}
    dataset = Dataset.from_list([first, {**valid, **change}])
    with pytest.raises(ValueError, match=f"exam.parquet, row 1, .*{message}.*drop_invalid=True"):
        adapt_questions(dataset, source="exam.parquet")
    assert len(adapt_questions(dataset, drop_invalid=True)) == 1
    assert "left out 1 of 2 rows" in caplog.text


@pytest.mark.parametrize("name", [name for name in LAYOUTS if not re.search("sciq|truthful|gpqa", name)])
def test_unlabelled_questions_need_no_answer(name):
    row = LAYOUTS[name]
    row = {name.lower() if name in ("Question", "Answer") else name: value for name, value in row.items()}
    adapter = find_adapter(row)
    expected = adapt_questions(Dataset.from_list([row]))[0]
    for rows in (
        [{k: v for k, v in row.items() if k != adapter.answer_column}],
        [{**row, adapter.answer_column: None}],
    ):
        (found,) = adapt_questions(Dataset.from_list(rows), labelled=False)
        assert found["answer"] is None
        assert (found["question"], found["choices"]) == (expected["question"], expected["choices"])


def test_hidden_labels_name_the_split(tmp_path):
    hidden = {**LAYOUTS["tau/commonsense_qa"], "answerKey": ""}
    Dataset.from_list([hidden]).to_parquet(tmp_path / "csqa.parquet")
    with pytest.raises(ValueError, match=r"csqa.parquet \(test\), row 0, column 'answerKey'.*this split hides"):
        load_questions(tmp_path / "csqa.parquet", split="test")
    with pytest.raises(ValueError, match="column 'cop': no answer .-1.*this split hides"):
        adapt_questions(Dataset.from_list([{**LAYOUTS["openlifescienceai/medmcqa"], "cop": -1}]))
    with pytest.raises(ValueError, match="no valid question among 1 rows"):
        adapt_questions(Dataset.from_list([hidden]), drop_invalid=True)
