import json

import pytest

from hf_calib.data.questions import load_questions


ROWS = [
    {"id": "007", "question": "When?", "A": "2020-01-01", "B": "None", "answer": "B", "subject": "NA"},
    {"id": "008", "question": "How much?", "A": "1.50", "B": "NA", "answer": "A", "subject": None},
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_texts_are_read_as_written(tmp_path, suffix):
    file = tmp_path / f"questions{suffix}"
    if suffix == ".json":
        file.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        sep = "\t" if suffix == ".tsv" else ","
        lines = [sep.join(ROWS[0]), *(sep.join(value or "" for value in row.values()) for row in ROWS)]
        file.write_text("\n".join(lines))
    questions = load_questions(file)
    assert questions["id"][:] == ["007", "008"] and questions["answer"][:] == [1, 0]
    assert questions["choices"][:] == [["2020-01-01", "None"], ["1.50", "NA"]]
    assert questions["subject"][:] == ["NA", None]


def test_dates_in_a_json_list_are_texts(tmp_path):
    file = tmp_path / "questions.json"
    rows = [{"question": f"When {i}?", "choices": ["2020-01-01", "2021-01-01"], "answer": 1} for i in range(3)]
    file.write_text(json.dumps(rows))
    questions = load_questions(file, split="test[1:]")
    assert questions["question"][:] == ["When 1?", "When 2?"]
    assert questions["choices"][0] == ["2020-01-01", "2021-01-01"]


@pytest.mark.parametrize("answers", [["1", "0"], ["1.0", "0.0"]])
def test_numbers_in_a_csv_file_are_indices(tmp_path, answers):
    file = tmp_path / "questions.csv"
    lines = [f'Q{i}?,"[""x"", ""y""]",{answer}' for i, answer in enumerate(answers)]
    file.write_text("\n".join(["question,choices,answer", *lines]))
    assert load_questions(file)["answer"][:] == [1, 0]
