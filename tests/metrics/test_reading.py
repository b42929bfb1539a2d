"""Accepted formats of predictions, and errors that name the column and the row."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_calib import OptionPredictions, classify_regime


PROBABILITIES = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]
CSV = "p_0,p_1,p_2,label\n0.7,0.2,0.1,0\n0.1,0.3,0.6,1\n"


@pytest.fixture(scope="module")
def reading(space_module):
    return space_module("reading")


TEXTS = {
    "csv": CSV,
    "semicolons": CSV.replace(",", ";"),
    "tabs": CSV.replace(",", "\t"),
    "letters": "A,B,C,answer\n0.7,0.2,0.1,A\n0.1,0.3,0.6,b\n",
    "any order, other columns": "id,prob_2,label,prob_0,prob_1\nx,0.1,0,0.7,0.2\ny,0.6,1.0,0.1,0.3\n",
    "numbered from 1": CSV.replace("p_0,p_1,p_2", "p_1,p_2,p_3").replace("1,0\n", "1,1\n").replace("6,1\n", "6,2\n"),
    "letters as names, and N": "A,B,C,N,answer\n0.7,0.2,0.1,5,A\n0.1,0.3,0.6,7,b\n",
    "two prefixes": "option_0,option_1,p_0,p_1,p_2,label\nyes,no,0.7,0.2,0.1,0\nyes,no,0.1,0.3,0.6,1\n",
    "line ends of old": CSV.replace("\n", "\r"),
    "list in a cell": 'probabilities,label\n"[0.7, 0.2, 0.1]",0\n"[0.1 0.3 0.6]",1\n',
    "records": json.dumps([{"probabilities": p, "label": y} for p, y in zip(PROBABILITIES, [0, 1], strict=True)]),
    "columns": json.dumps({"predictions": PROBABILITIES, "references": [0, 1]}),
    "lines": "\n".join(json.dumps({"Probs": p, "Label": y}) for p, y in zip(PROBABILITIES, [0, 1], strict=True)),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_option_probabilities(reading, text):
    read = reading.read_text(text)
    np.testing.assert_array_equal(read.scores, PROBABILITIES)
    assert read.outcomes.tolist() == [0, 1]
    assert read.target is read.reference is read.groups is None


@pytest.mark.parametrize(
    "text",
    [
        "confidence,correct\n0.9,1\n0.6,0\n",
        "confidence,correct\n0.9,True\n0.6,False\n",
        "Confidence, Is Correct\n0.9, yes\n0.6, no\n",
        '{"confidence": [0.9, 0.6], "correct": [true, false]}',
        '{"predictions": [0.9, 0.6], "references": [1, 0]}',
    ],
)
def test_confidences(reading, text):
    read = reading.read_text(text)
    assert read.scores.tolist() == [0.9, 0.6] and read.outcomes.tolist() == [1, 0]


def test_more_than_ten_options_keep_their_order(reading):
    names = [f"p_{k}" for k in range(1, 13)]
    row = [0.01 * k for k in range(1, 13)]
    text = "\n".join(
        [",".join([*sorted(names), "label"]), ",".join([*(str(row[int(n[2:]) - 1]) for n in sorted(names)), "12"])]
    )
    read = reading.read_text(text)
    assert read.scores.tolist() == [row] and read.outcomes.tolist() == [11]


def test_unpaired_surrogates(reading):
    read = reading.read_text('[{"p_0": 0.5, "p_1": 0.5, "label": 0, "subject": "la\\ud800w"}]')
    assert read.groups == ["la?w"]


def test_questions_may_differ_in_their_options(reading):
    records = [{"probabilities": [0.5, 0.5], "label": 0}, {"probabilities": [0.2, 0.3, 0.5], "label": 2}]
    assert reading.read_text(json.dumps(records)).scores == [[0.5, 0.5], [0.2, 0.3, 0.5]]
    empty_cell = reading.read_text("p_0,p_1,p_2,label\n0.5,0.5,,0\n0.2,0.3,0.5,2")
    assert [row.tolist() for row in empty_cell.scores] == [[0.5, 0.5], [0.2, 0.3, 0.5]]


def test_target_reference_and_groups(reading):
    read = reading.read_text(
        'p_0,p_1,label,target_0,target_1,reference_probabilities,subject\n0.9,0.1,0,0.6,0.4,"[0.7, 0.3]",law\n'
    )
    assert read.target.tolist() == [[0.6, 0.4]] and read.reference == [[0.7, 0.3]] and read.groups == ["law"]
    assert read.scores.tolist() == [[0.9, 0.1]]


def test_files(reading, tmp_path):
    for kind, name in (("csv", "a.csv"), ("tabs", "a.tsv"), ("records", "a.json"), ("lines", "a.jsonl")):
        (tmp_path / name).write_text(
            "\ufeff" + TEXTS[kind], encoding="utf-8"
        )  # with the byte order mark of spreadsheets
    pq.write_table(pa.table({"probabilities": PROBABILITIES, "label": [0, 1]}), tmp_path / "a.parquet")
    pq.write_table(
        pa.table({**{f"p_{k}": [row[k] for row in PROBABILITIES] for k in range(3)}, "label": [0, 1]}),
        tmp_path / "spread.parquet",
    )
    arrays = {"probabilities": np.array(PROBABILITIES), "labels": np.array([0, 1]), "metadata": np.array("{}")}
    np.savez(tmp_path / "a.npz", **arrays)
    for path in sorted(tmp_path.iterdir()):
        read = reading.read_file(path)
        np.testing.assert_array_equal(read.scores, PROBABILITIES, err_msg=path.name)
        assert read.outcomes.tolist() == [0, 1]


def test_predictions_of_the_command_line(reading, tmp_path):
    from hf_calib.inference.predict import OptionPredictions

    logits = np.log(np.array(PROBABILITIES, dtype=np.float32))
    predictions = OptionPredictions(
        logits, np.array([0, 1]), np.array(["a", "b"]), np.array([[1, 0, 0], [0, 0.5, 0.5]])
    )
    predictions.save(tmp_path / "predictions.npz")
    read = reading.read_file(tmp_path / "predictions.npz")
    np.testing.assert_array_equal(read.scores, predictions.probabilities)
    np.testing.assert_array_equal(read.target, predictions.target_probabilities)


def test_empty_cells_are_missing_options(reading):
    """An accuracy of .4 is worse than guessing between two options, and better than guessing among four."""
    rows = ["0.7,0.3,,,0\n"] * 160 + ["0.7,0.3,,,1\n"] * 240 + ["0.1,0.2,0.3,0.4,3\n"]
    text = "".join(["p_0,p_1,p_2,p_3,label\n", *rows])
    read = reading.read_text(text)
    assert classify_regime(read.scores, read.outcomes).regime == "non-calibratable"


def test_predictions_of_the_command_line_with_fewer_options(reading, tmp_path):
    logits = np.array([[0.0, 0.0, -np.inf, -np.inf], [0.0, 0.0, 0.0, -np.inf]], dtype=np.float32)
    target = np.array([[0.5, 0.5, 0.0, 0.0], [0.2, 0.3, 0.5, 0.0]])
    predictions = OptionPredictions(logits, np.array([0, 1]), np.array(["a", "b"]), target)
    predictions.save(tmp_path / "predictions.npz")
    read = reading.read_file(tmp_path / "predictions.npz")
    assert [len(row) for row in read.scores] == [len(row) for row in read.target] == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"probabilities": [], "label": []}', "`probabilities`"),
        ('{"p_0": [0.5], "p_1": [], "label": [0]}', "p_0.*p_1"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('p_0,p_1,label,text\n0.5,0.5,0,"x', "quotes"),
        (f'{{"probabilities": [[0.5, 0.5]], "label": [1{"0" * 400}]}}', "`label` row 0"),
        (f'{{"probabilities": [[1{"0" * 400}, 0.5]], "label": [0]}}', "`probabilities` row 0"),
        (f'{{"confidence": [1{"0" * 400}], "correct": [0]}}', "`confidence` row 0"),
        (
            "p_1,p_2,label\n0.5,0.5,1\n0.5,0.5,0",
            "`label` row 1 is 0.* from 1 to 2.* from 0",
        ),
        ("p_1,p_2,label\n0.5,0.5,3", "`label` row 0 is 3.* from 1 to 2"),
        ("p_1,p_2,label\n0.5,0.5,first", "`label` row 0 is 'first'.* from 1"),
        ("p_0,p_2,label\n0.5,0.5,0", "p_0, p_2"),
        ("p_2,p_3,label\n0.5,0.5,2", "p_2, p_3"),
        ("p_b,p_c,label\n0.5,0.5,b", "p_b, p_c"),
        ("p_1,p_01,label\n0.5,0.5,1", "p_01, p_1"),
        ("p_0,p_1,target_0,target_2,label\n0.5,0.5,0.5,0.5,0", "target_0, target_2"),
        ("  ", "No predictions"),
        ("p_0,p_1,label", "one line"),
        ("a,b\n1,2,3", "CSV"),
        ("p_0,p_1,label\n0.5,0.5,0\n0.5,0.5,0,1", "CSV"),
        ("p_0,p_1,label\n0.5,0.5", "`label` row 0"),
        ("a,b\n1,2", "`probabilities`.* a, b"),
        ("p_0,p_1\n0.5,0.5", "`label`"),
        ("confidence\n0.5", "`confidence` .*`correct`"),
        ("p_0,p_1,label\n0.5,many,0", "`p_1` row 0 is 'many'"),
        ("p_0,p_1,label\n0.5,0.5,first", "`label` row 0 is 'first'"),
        ("p_0,p_1,label\n0.5,0.5,0.5", "`label` row 0 is '0.5'"),
        ('{"probabilities": [[0.5, 0.5]], "label": [null]}', "`label` row 0"),
        ("p_0,p_1,p_2,label\n0.5,0.5,,2\n0.2,0.3,0.5,2", "`label` row 0 is 2.* from 0 to 1"),
        ("p_1,p_2,p_3,label\n0.5,0.5,,3\n0.2,0.3,0.5,2", "`label` row 0 is 3.* from 1 to 2"),
        ("confidence,correct,target_0,target_1\n0.9,1,0.6,0.4", "`confidence` .*target"),
        ("confidence,correct,reference_0,reference_1\n0.9,1,0.6,0.4", "`confidence` .*reference"),
        ("confidence,correct\n0.5,2", "`correct` row 0 is '2'"),
        ('[{"probabilities": [0.5, 0.5], "label": 0}, {"label": 1}]', "`probabilities` row 1"),
        ("[1, 2", "JSON"),
        ("[[0.5, 0.5]]", "JSON must be a list of records"),
        ("[]", "JSON must be a list of records"),
    ],
)
def test_errors_name_the_place(reading, text, message):
    with pytest.raises(ValueError, match=message):
        reading.read_text(text)


@pytest.mark.parametrize("name", ["a.xlsx", "a.npz", "a.parquet", "a.csv"])
def test_unreadable_files_are_named(reading, tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00 not a table")
    with pytest.raises(ValueError, match=name):
        reading.read_file(tmp_path / name)


def test_arrays_of_words_are_an_error(reading, tmp_path):
    np.savez(tmp_path / "a.npz", probabilities=np.array([["yes", "no"]]), label=np.array([0]))
    with pytest.raises(ValueError, match="`probabilities`"):
        reading.read_file(tmp_path / "a.npz")


def test_pickles_are_not_opened(reading, tmp_path):
    np.savez(tmp_path / "a.npz", probabilities=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="a.npz"):
        reading.read_file(tmp_path / "a.npz")


def test_examples_can_be_read(reading, space_module):
    for text in space_module("examples").EXAMPLES.values():
        assert len(reading.read_text(text).outcomes) >= 100


def test_predictions_of_hf_calib_with_subjects(reading, tmp_path):
    predictions = OptionPredictions(
        option_logits=np.log([[0.7, 0.3], [0.4, 0.6]]).astype(np.float32),
        labels=np.array([0, 1]),
        ids=np.array(["a", "b"]),
        subjects=np.array(["law", "logic"]),
    )
    predictions.save(tmp_path / "predictions.npz")
    assert reading.read_file(tmp_path / "predictions.npz").groups == ["law", "logic"]
