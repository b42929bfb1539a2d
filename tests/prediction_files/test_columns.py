"""csv, json, parquet and npz with named columns, and the results of the original MMLU evaluation."""

import json

import numpy as np
import pandas as pd
import pytest

from hf_calib.prediction_files import source, tables
from hf_calib.prediction_files.confidences import ConfidencePredictions
from hf_calib.prediction_files.options import ReadOptions
from hf_calib.prediction_files.read import read_predictions


PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
LABELS = [0, 2, 1]
IDS = ["007", "NA", "1.50"]


def frames():
    """The same predictions in every layout."""
    listed = pd.DataFrame({"id": IDS, "probabilities": PROBABILITIES.tolist(), "label": LABELS})
    spread = {f"p_{k}": PROBABILITIES[:, k] for k in range(3)}
    letters = {"ID": IDS, **{f"Prob {name}": PROBABILITIES[:, k] for k, name in enumerate("ABC")}}
    named = {"id": IDS, **{name: PROBABILITIES[:, k] for k, name in enumerate("ABC")}, "gold": ["A", "C", "B"]}
    return {
        "lists": listed,
        "spread": pd.DataFrame({"id": IDS, **spread, "label": LABELS}),
        "from 1": pd.DataFrame(
            {"id": IDS, **{f"prob{k + 1}": PROBABILITIES[:, k] for k in range(3)}, "answer": [1, 3, 2]}
        ),
        "letters": pd.DataFrame({**letters, "Correct Answer": ["a", "C", "(B)"]}),
        "only letters": pd.DataFrame(named),
    }


def write(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".json":
        frame.to_json(path, orient="records")
    elif path.suffix == ".gz":
        frame.to_json(path, orient="records", lines=True, compression="gzip")
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("layout", list(frames()))
def test_every_layout_in_every_type(tmp_path, layout, suffix):
    predictions = read_predictions(write(frames()[layout], tmp_path / f"file.{suffix}"))
    np.testing.assert_allclose(predictions.probabilities, PROBABILITIES, rtol=1e-7)
    assert predictions.labels.tolist() == LABELS and predictions.ids.tolist() == IDS
    np.testing.assert_array_equal(predictions.probabilities, PROBABILITIES.astype(np.float32))


@pytest.mark.parametrize("name", list(frames()))
def test_large_csv_files_are_read_alike(tmp_path, monkeypatch, name):
    path = write(frames()[name], tmp_path / "file.csv")
    small = read_predictions(path)
    monkeypatch.setattr(source, "_LARGE_CSV", 0)
    large = read_predictions(path)
    np.testing.assert_array_equal(small.option_logits, large.option_logits)
    assert small.ids.tolist() == large.ids.tolist() and small.labels.tolist() == large.labels.tolist()


def test_questions_with_fewer_options(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("p_0,p_1,p_2,label\n.5,.25,.25,2\n.75,.25,,1\n")
    predictions = read_predictions(path)
    assert predictions.num_options.tolist() == [3, 2]
    path.write_text("p_0,p_1,p_2,label\n.5,,.5,2\n")
    with pytest.raises(ValueError, match="file.csv, line 2: the column p_1 is empty"):
        read_predictions(path)


def test_logits_npz_and_columns_of_json(tmp_path):
    logits = np.log(PROBABILITIES) + 5
    np.savez(tmp_path / "other.npz", logits=logits, labels=np.array(LABELS))
    (tmp_path / "file.json").write_text(json.dumps({"logprobs": logits.tolist(), "labels": LABELS}))
    for name in ("other.npz", "file.json"):
        predictions = read_predictions(tmp_path / name)
        np.testing.assert_allclose(predictions.option_logits, logits)
        assert predictions.labels.tolist() == LABELS


def test_named_columns(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("yes score,no score,truth\n.75,.25,no\n.5,.5,yes\n")
    columns = {"probabilities": "yes score,no score", "label": "truth"}
    predictions = read_predictions(path, ReadOptions(columns=columns))
    np.testing.assert_allclose(predictions.probabilities, [[0.75, 0.25], [0.5, 0.5]])
    assert predictions.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="there is no column 'right'; the columns are yes score, no score, truth"):
        read_predictions(path, ReadOptions(columns={**columns, "label": "right"}))
    with pytest.raises(ValueError, match="--columns knows the roles .*, not gold"):
        read_predictions(path, ReadOptions(format="columns", columns={"gold": "truth"}))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("names", ["ABC", ("maybe", "no", "yes")])
def test_objects_with_the_probability_of_each_option(tmp_path, names, suffix):
    objects = [dict(zip(names, row, strict=True)) for row in PROBABILITIES.tolist()]
    objects[0] = {names[1]: 0.3, names[0]: 0.7}  # in any order; the last options may be missing
    frame = pd.DataFrame({"probabilities": objects, "label": [names[0], names[2], names[1]]})
    predictions = read_predictions(write(frame, tmp_path / f"file.{suffix}"))
    assert predictions.num_options.tolist() == [2, 3, 3] and predictions.labels.tolist() == LABELS
    np.testing.assert_allclose(predictions.probabilities[0], [0.7, 0.3, 0], rtol=1e-6)
    frame.at[1, "probabilities"] = {names[0]: 0.5, names[2]: 0.5}
    with pytest.raises(ValueError, match="(line|row) 2: probabilities is .*, not a number for each of"):
        read_predictions(write(frame, tmp_path / f"file.{suffix}"))


def test_objects_with_numbered_options(tmp_path):
    given = {str(k): 0.55 if k == 2 else 0.05 for k in range(1, 11)}
    rows = pd.DataFrame({"probabilities": [given, given], "label": [2, 10]})
    found = read_predictions(write(rows, tmp_path / "ten.jsonl"))
    assert found.probabilities.argmax(axis=1).tolist() == [1, 1] and found.labels.tolist() == [1, 9]
    rows = pd.DataFrame({"probabilities": [{"1": 0.6, "3": 0.4}], "label": [1]})
    with pytest.raises(ValueError, match="options 1, 3: number them without a gap"):
        read_predictions(write(rows, tmp_path / "gap.jsonl"))


def test_json_of_columns_with_one_value_for_all_rows(tmp_path):
    path, columns = tmp_path / "file.json", {"probabilities": [[0.7, 0.3], [0.2, 0.8]], "label": [0, 1], "group": "x"}
    path.write_text(json.dumps(columns, indent=1))
    assert read_predictions(path).subjects.tolist() == ["x", "x"]
    path.write_text(json.dumps({"probabilities": [0.7, 0.3], "label": 1}, indent=1))  # one row
    assert read_predictions(path).labels.tolist() == [1]


def test_columns_of_different_lengths(tmp_path):
    columns = {"probabilities": [[0.7, 0.3], [0.2, 0.8]], "label": [0]}
    (tmp_path / "file.json").write_text(json.dumps(columns, indent=1))
    np.savez(tmp_path / "file.npz", **columns)
    for name in ("file.json", "file.npz"):
        with pytest.raises(ValueError, match=f"{name}: the columns have different numbers of rows: .*label 1"):
            read_predictions(tmp_path / name)


def test_a_number_tells_no_option_of_named_ones(tmp_path):
    rows = pd.DataFrame({"probabilities": 2 * [{"sure": 0.7, "not": 0.3}], "label": [0, 1]})
    with pytest.raises(ValueError, match="which of the options not, sure it means"):
        read_predictions(write(rows, tmp_path / "words.jsonl"))
    rows["label"] = ["sure", "not"]
    assert read_predictions(write(rows, tmp_path / "names.jsonl")).labels.tolist() == [1, 0]
    rows = pd.DataFrame({"probabilities": 2 * [{"yes": 0.7, "no": 0.3}], "label": [1, 0]})
    assert read_predictions(write(rows, tmp_path / "yes.jsonl")).labels.tolist() == [1, 0]


def test_probabilities_rounded_below_zero(tmp_path):
    rows = pd.DataFrame({"p_0": [1.0000001, 0.3], "p_1": [-1e-7, 0.7], "label": [0, 1]})
    found = read_predictions(write(rows, tmp_path / "file.csv")).probabilities
    np.testing.assert_allclose(found, [[1, 0], [0.3, 0.7]], atol=1e-6)


@pytest.mark.parametrize(
    ("header", "outcome"), [("correct", "1,0,true"), ("is_correct", "TRUE,no,1.0"), ("Correct", "right,wrong,yes")]
)
def test_confidences(tmp_path, header, outcome):
    path = tmp_path / "file.csv"
    rows = zip((0.9, 0.5, 1), outcome.split(","), strict=True)
    path.write_text(f"Confidence,{header},subject\n" + "".join(f"{c},{o},s\n" for c, o in rows))
    predictions = read_predictions(path)
    assert isinstance(predictions, ConfidencePredictions)
    assert predictions.confidences.tolist() == [0.9, 0.5, 1.0] and predictions.subjects.tolist() == ["s"] * 3
    assert predictions.correct.tolist() == [1, 0, 1]


def test_confidences_with_predictions_and_labels(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text(
        '{"confidence": "0.5", "prediction": "B", "label": "B"}\n{"confidence": 1, "prediction": 3, "label": 2}\n'
    )
    predictions = read_predictions(path)
    assert predictions.correct.tolist() == [1, 0] and predictions.confidences.tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p_0,p_1,label\n.5,.5,0\n.5,x,0\n", "line 3: p_1 is 'x', not a number"),
        ("p_0,p_1,label\n.5,.5,0\n.5,.5,7\n", "line 3: label is 7; it must be 0 to 1"),
        ("p_0,p_1,label\n.5,.5,0\n.5,.4,0\n", "row 1 sums to 0.9"),
        ("p_0,p_1,label\n50,50,0\n40,60,0\n", "percentages: divide by 100"),
        ("p_0,p_1,label\n-1,-2,0\n", "apply a softmax"),
        ("p_0,p_1,label\n.5,.5,1\n.5,.5,2\n", "count from 1; .*--answers_from 1"),
        ("p_0,p_1,label\n.5,.5,0\n.5,.5\n", "line 3.*cells"),
        ("p_0,p_1,label\n", "there is a header .* but no row"),
        ("p_0,p_1,label\n.5,.5,A\n.5,.5,True\n", "line 3, column 'label': 'True' is not one of the option labels"),
        ("p_0,p_1,label\n.5,.5,A\n.5,.5,D\n", "line 3, column 'label': 'D' is not one of the option labels A, B"),
        ("p_0,p_1\n.5,.5\n", "there are no right options: give --labels FILE"),
        ("p_0,p_1,label,answer\n.5,.5,0,1\n", "the columns label, answer can all be the label: choose with --columns"),
        ("p_0,p_1,A,B,label\n.5,.5,.5,.5,0\n", "the probabilities can be in p_0, p_1 or in A, B: choose with"),
        ("confidence,correct\n.5,1\n50,0\n", "line 3: confidence is 50.0, outside .*divide percentages by 100"),
        ("confidence,correct\n.5,1\n.5,maybe\n", "line 3: correct is 'maybe', not a number"),
        ("confidence,correct\n.5,1\n.5,2\n", "line 3: correct is 2.0, not 1"),
        ("confidence,name\n.5,1\n", "`confidence` needs `correct`"),
        ("question,answer\nWhy?,B\n", "the content has none of the known formats"),
        ("", "the file is empty"),
    ],
)
def test_faults_are_one_clear_line(tmp_path, monkeypatch, text, message):
    path = tmp_path / "file.csv"
    path.write_text(text)
    for large in (10**7, 0):
        monkeypatch.setattr(source, "_LARGE_CSV", large)
        with pytest.raises(ValueError, match=f"file.csv.*{message}"):
            read_predictions(path)


def test_faults_in_json(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"probabilities": [0.5, 0.5], "label": 0}\n\n{"probabilities": ["x", 0.5], "label": 0}\n')
    with pytest.raises(ValueError, match="file.jsonl, line 3: probabilities is .*not a list of numbers"):
        read_predictions(path)
    path.write_text('{"probabilities": [0.5, 0.5], "label": 0}\n[1, 2]\n')
    with pytest.raises(ValueError, match="file.jsonl, line 2: it is not a JSON object"):
        read_predictions(path)
    path.write_text('{"probabilities": [1.0], "label": 0}\n')
    with pytest.raises(ValueError, match=r"line 1: 1 option\(s\): a question has at least two"):
        read_predictions(path)


def test_other_encodings_and_separators(tmp_path, monkeypatch, caplog):
    text = "id;p_0;p_1;label\ncafé;0.75;0.25;0\n"
    for large in (10**7, 0):
        monkeypatch.setattr(source, "_LARGE_CSV", large)
        for encoding in ("utf-8-sig", "utf-16", "latin-1"):
            path = tmp_path / "file.csv"
            path.write_bytes(text.encode(encoding))
            caplog.clear()
            assert read_predictions(path).ids.tolist() == ["café"]
            assert len(caplog.records) == (encoding == "latin-1")


def test_mmlu_results(tmp_path):
    path = tmp_path / "anatomy.csv"
    header = "0,1,2,3,4,5,ada_correct,ada_choiceA_probs,ada_choiceB_probs,ada_choiceC_probs,ada_choiceD_probs"
    rows = ['"Which, of these?",a,b,c,d,B,True,.1,.6,.2,.1', "What?,a,b,c,d,A,False,.1,.6,.2,.1"]
    path.write_text("\n".join([header, *rows]) + "\n")
    predictions = read_predictions(path)
    np.testing.assert_allclose(predictions.probabilities, [[0.1, 0.6, 0.2, 0.1]] * 2, rtol=1e-6)
    assert predictions.labels.tolist() == [1, 0] and set(predictions.subjects) == {"anatomy"}
    assert predictions.metadata["model"] == "ada" and "notes" not in predictions.metadata
    path.write_text("\n".join([header, rows[0], rows[1].replace("False", "True")]) + "\n")
    assert "1 rows differ from the file's own ada_correct" in read_predictions(path).metadata["notes"]
    second = tmp_path / "astronomy.csv"
    second.write_text(path.read_text())
    both = read_predictions([path, second])
    assert sorted(set(both.subjects)) == ["anatomy", "astronomy"] and both.ids[2] == "astronomy/0"


def test_lists_written_in_every_way():
    assert [tables._parse_list(text) for text in ("[0.7, 0.3]", "[0.7 0.3]", "0.7;0.3")] == [[0.7, 0.3]] * 3


TWO = np.array([[0.7, 0.3], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("excel.csv", "p_0;p_1;label\n0,7;0,3;0\n0,2;,8;1\n"),
        ("quoted.csv", 'p_0,p_1,label\n"0,7","0,3",0\n"0,2","0,8",1\n'),
        ("lists.csv", 'probabilities,label\n"0,7; 0,3",0\n"0,2; 0,8",1\n'),
        ("numpy.csv", 'probabilities,label\n"[0.7 0.3]",0\n"[0.2\n 0.8]",1\n'),
        ("numpy 2.csv", 'probabilities,label\n"[np.float64(0.7), np.float64(0.3)]",0\n"[0.2, 0.8]",1\n'),
        ("torch.csv", "probabilities,label\n\"tensor([0.7, 0.3], device='cuda:0')\",0\n\"tensor([0.2, 0.8])\",1\n"),
        ("pandas.json", json.dumps({"p_0": {"0": 0.7, "1": 0.2}, "p_1": {"0": 0.3, "1": 0.8}, "label": {"0": 0, "1": 1}})),
        ("excel 2.csv", "sep=;\np_0;p_1;label\n0.7;0.3;0\n0.2;0.8;1\n"),
        ("blank.csv", "\n\np_0,p_1,label\n0.7,0.3,0\n\n0.2,0.8,1\n"),
        ("digits.csv", "p_0,p_1,label\n\u0660.\u0667,0.3,\u0660\n0.2,0.8,\u0661\n"),
        ("pandas 2.json", json.dumps({"probs": {"0": [0.7, 0.3], "1": [0.2, 0.8]}, "label": {"0": "A", "1": "B"}})),
    ],
)  # fmt: skip
@pytest.mark.parametrize("large", [0, 1 << 30])
def test_numbers_in_the_spelling_of_others(tmp_path, monkeypatch, name, text, large):
    monkeypatch.setattr(source, "_LARGE_CSV", large)
    (tmp_path / name).write_text(text)
    predictions = read_predictions(tmp_path / name)
    np.testing.assert_allclose(predictions.probabilities, TWO, rtol=1e-6)
    assert predictions.labels.tolist() == [0, 1]


def test_a_comma_that_may_separate_thousands_is_refused(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text('confidence,correct\n"1,500",1\n')
    with pytest.raises(ValueError, match="line 2: confidence is '1,500', not a number"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ("[1.0, Infinity]", "line 2, logits: the score of an option is infinite"),
        ("[NaN, 1.0]", "line 2, logits: the score of an option is NaN"),
        ("[-Infinity, -Infinity]", "line 2, logits: the score of every option is -inf"),
    ],
)
def test_infinite_logits(tmp_path, logits, message):
    path = tmp_path / "file.jsonl"
    row = '{"logits": %s, "label": 0}\n'
    path.write_text(row % "[-Infinity, 0.0]" + row % logits + row % "[1.0, 2.0]")
    with pytest.raises(ValueError, match=message):
        read_predictions(path)
    path.write_text(row % "[-Infinity, 0.0]" + row % "[-9999.0, 0.0]" + row % "[-900.0, -901.0]")
    expected = [[0, 1], [0, 1], [1 / (1 + np.exp(-1)), 1 / (1 + np.e)]]
    predictions = read_predictions(path)
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-6)
    assert predictions.num_options.tolist() == [2, 2, 2]


def test_predictions_are_compared_with_labels_as_numbers_and_letters(tmp_path):
    path = tmp_path / "file.csv"
    # A hole in a column made floats of its numbers.
    path.write_text("confidence,prediction,label\n0.7,1,1.0\n0.8,0,1.0\n0.6,2,02\n")
    assert read_predictions(path).correct.tolist() == [1, 0, 1]
    path.write_text("confidence,prediction,label\n0.7,b,B\n0.8,A,B\n0.6,Paris,paris\n")
    assert read_predictions(path).correct.tolist() == [1, 0, 0]
    path.write_text("confidence,prediction,label\n0.7,A,0\n0.8,B,1\n")
    with pytest.raises(ValueError, match="prediction has 'A' and label has '0'; name a column of 1 .right. and 0"):
        read_predictions(path)
    for row, name in (("0.8,,B", "prediction"), ("0.8,A,", "label")):
        path.write_text(f"confidence,prediction,label\n0.7,A,A\n{row}\n")
        with pytest.raises(ValueError, match=f"line 3: {name} is empty"):
            read_predictions(path)


def test_named_columns_in_another_case(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("Yes Score,No Score,Truth\n0.7,0.3,0\n0.2,0.8,1\n")
    columns = {"probabilities": "yes score,no score", "label": "truth"}
    predictions = read_predictions(path, ReadOptions(columns=columns))
    np.testing.assert_allclose(predictions.probabilities, TWO, rtol=1e-6)
    path.write_text("Truth,truth ,p_0,p_1\n0,0,0.7,0.3\n")
    with pytest.raises(ValueError, match="there is no column 'TRUTH'"):
        read_predictions(path, ReadOptions(columns={"label": "TRUTH"}))


def test_repeated_ids_are_noted(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("id,p_0,p_1,label\na,0.7,0.3,0\na,0.7,0.3,0\nb,0.2,0.8,1\n")
    assert read_predictions(path).metadata["notes"][0].startswith("1 questions have the id of another one")


def test_values_in_lists_of_one(tmp_path):
    """As a tokenized data set or an array of shape (N, 1) has them."""
    path = tmp_path / "file.jsonl"
    path.write_text(
        '{"probs": [0.7, 0.3], "label": [0], "id": ["x"]}\n{"probs": [0.2, 0.8], "label": [1], "id": ["y"]}\n'
    )
    frame = pd.read_json(path, lines=True)
    frame.to_parquet(tmp_path / "file.parquet")
    frame.drop(columns="id").to_csv(tmp_path / "file.csv", index=False)
    np.savez(tmp_path / "file.npz", probs=TWO, labels=np.array([[0], [1]]))
    for name in ("file.jsonl", "file.parquet", "file.csv", "file.npz"):
        predictions = read_predictions(tmp_path / name)
        assert predictions.labels.tolist() == [0, 1], name
        assert predictions.ids.tolist() == (["x", "y"] if name in ("file.jsonl", "file.parquet") else ["0", "1"])
    path.write_text('{"probs": [0.7, 0.3], "label": [0, 1]}\n' * 2)
    with pytest.raises(ValueError, match=r"line 1, .*'\[0, 1\]' is not one of the option labels"):
        read_predictions(path)
    np.savez(tmp_path / "file.npz", probs=TWO, labels=np.array([[0, 1], [1, 0]]))
    with pytest.raises(ValueError, match="is not one of the option labels"):
        read_predictions(tmp_path / "file.npz")


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("logit_0", "logit_1"), {}),
        (("logprob_A", "logprob_B"), {}),
        (("Log Likelihood A", "Log Likelihood B"), {}),
        (("first", "second"), {"option_logits": "first,second"}),
    ],
)
def test_logits_in_columns_of_their_own(tmp_path, names, columns):
    frame = pd.DataFrame(np.log(TWO) + 1, columns=list(names)).assign(label=[0, 1])
    frame.to_csv(tmp_path / "file.csv", index=False)
    predictions = read_predictions(tmp_path / "file.csv", ReadOptions(columns=columns))
    np.testing.assert_allclose(predictions.probabilities, TWO, rtol=1e-6)
    assert predictions.labels.tolist() == [0, 1] and predictions.metadata["option_normalization"] == "logits"
    # Probabilities beside them are taken.
    frame.assign(p_0=TWO[:, 0], p_1=TWO[:, 1]).to_csv(tmp_path / "file.csv", index=False)
    predictions = read_predictions(tmp_path / "file.csv", ReadOptions(columns={}))
    assert predictions.metadata["option_normalization"] == "probabilities"


@pytest.mark.parametrize("text", ["about a half", "[0.7, x]", "array([0.7, 0.3", "{'a': 0.7", "f(0.7)", "'0.7'"])
def test_texts_that_are_no_lists_are_refused_in_one_line(tmp_path, text):
    pd.DataFrame({"probabilities": ["[0.7, 0.3]", text], "label": [0, 1]}).to_csv(tmp_path / "file.csv", index=False)
    with pytest.raises(ValueError, match="line 3: probabilities is .* not a list of numbers such as|line 3: 1 option"):
        read_predictions(tmp_path / "file.csv")
