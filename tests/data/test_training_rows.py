"""Texts, messages and preference pairs in files, read as text."""

import csv
import json

import pytest
from datasets import Dataset

from hf_calib.data.preference_pairs import load_pairs
from hf_calib.data.training_rows import load_training_rows


USER = [{"role": "user", "content": "When?"}]
PAIRS = [
    {"prompt": "When?", "chosen": "2020-01-01", "rejected": "None", "preference_probability": 0.75},
    {"prompt": "How much?", "chosen": "1.50", "rejected": "NA", "preference_probability": 1.0},
]


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_pairs_of_texts(tmp_path, suffix):
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "csv":
        write_csv(path, PAIRS)
    elif suffix == "parquet":
        Dataset.from_list(PAIRS).to_parquet(path)
    else:
        path.write_text(json.dumps(PAIRS) if suffix == "json" else "\n".join(map(json.dumps, PAIRS)))
    assert load_pairs(path).to_list() == PAIRS


@pytest.mark.parametrize("write", [json.dumps, str])
def test_messages_in_cells(tmp_path, write):
    pair = {"prompt": USER, "chosen": [{"role": "assistant", "content": "now"}]}
    pair["rejected"] = [{"role": "assistant", "content": 'it\'s "never"'}]
    write_csv(tmp_path / "pairs.csv", [{name: write(value) for name, value in pair.items()}] * 2)
    assert load_pairs(tmp_path / "pairs.csv").to_list() == [pair] * 2
    write_csv(tmp_path / "texts.csv", [{"messages": write(USER)}])
    assert load_training_rows(tmp_path / "texts.csv")["messages"][:] == [USER]
    write_csv(tmp_path / "broken.csv", [{"messages": write(USER)}, {"messages": write(USER)[:-5]}])
    with pytest.raises(ValueError, match="broken.csv, column 'messages': row 1: .* is not a list of messages"):
        load_training_rows(tmp_path / "broken.csv")


def test_token_ids_stay_numbers(tmp_path):
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "weight": 0.5}]
    (tmp_path / "ids.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_training_rows(tmp_path / "ids.jsonl").to_list() == rows


def test_columns_of_texts_and_numbers_become_texts(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "id": 1}\n{"text": "b", "id": "x"}\n{"text": "c"}\n')
    assert load_training_rows(tmp_path / "texts.jsonl")["id"][:] == ["1", "x", None]
    (tmp_path / "mixed.jsonl").write_text('{"text": "a", "id": [1]}\n{"text": "b", "id": "x"}\n')
    with pytest.raises(ValueError, match="mixed.jsonl, column 'id': the values have different types"):
        load_training_rows(tmp_path / "mixed.jsonl")


def test_probabilities_that_are_no_numbers(tmp_path):
    write_csv(tmp_path / "pairs.csv", [{**PAIRS[0], "preference_probability": "high"}])
    with pytest.raises(ValueError, match="pairs.csv, column 'preference_probability': row 0: 'high' is not a number"):
        load_pairs(tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match=r"the preference probability '0.5' is not in \[0, 1\]"):
        load_pairs(Dataset.from_list([{**PAIRS[0], "preference_probability": "0.5"}]))


def test_no_pair_is_left(tmp_path):
    with pytest.raises(ValueError, match="limit=0 leaves no pairs"):
        load_pairs(write_csv(tmp_path / "pairs.csv", PAIRS), limit=0)
    same = [{**pair, "rejected": pair["chosen"]} for pair in PAIRS]
    with pytest.raises(ValueError, match="none of 2 rows is a valid preference pair; row 0: 'chosen' and 'rejected'"):
        load_pairs(write_csv(tmp_path / "same.csv", same), drop_invalid=True)
