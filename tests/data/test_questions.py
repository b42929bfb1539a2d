"""Files of questions, splits, and orders of the options."""

import json

import pytest
from datasets import Dataset, DatasetDict

from hf_calib.data.questions import (
    adapt_questions,
    deduplicate_questions,
    load_questions,
    permute_options,
    shuffle_options,
    split_questions,
)


TEXTS = ["oxygen", "carbon dioxide", "helium", "argon"]
QUESTION = {"question": "Plants breathe in", "choices": TEXTS, "answer": 1}


def questions(n=10, k=4):
    rows = [
        {"question": f"What is {i}?", "choices": [f"{i}-{j}" for j in range(k)], "answer": i % k} for i in range(n)
    ]
    return adapt_questions(Dataset.from_list(rows))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv", ".tsv"])
def test_local_files(tmp_path, suffix):
    file = tmp_path / f"questions{suffix}"
    rows = [{**QUESTION, "question": f"Question {i}", "subject": "gases"} for i in range(5)]
    if suffix in (".csv", ".tsv"):
        rows = [{**row, "choices": json.dumps(row["choices"])} for row in rows]
        Dataset.from_list(rows).to_csv(file, sep="\t" if suffix == ".tsv" else ",")
    elif suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_questions(file)
    assert loaded["choices"][:] == [TEXTS] * 5 and loaded["subject"][:] == ["gases"] * 5
    assert len(load_questions(str(file), split="test[:3]")) == 3
    assert len(set(loaded["id"])) == 5


def test_folders_limits_and_seeds(tmp_path):
    dataset = questions(20)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "two")
    assert load_questions(tmp_path / "one", limit=3)["id"][:] == dataset["id"][:3]
    assert len(load_questions(tmp_path / "two", split="test")) == 20
    shuffled = load_questions(tmp_path / "one", limit=20, seed=1)["id"][:]
    assert shuffled != dataset["id"][:] and sorted(shuffled) == sorted(dataset["id"])
    with pytest.raises(ValueError, match="choose `split` among train, test"):
        load_questions(tmp_path / "two")
    with pytest.raises(ValueError, match="limit=0"):
        load_questions(tmp_path / "one", limit=0)
    with pytest.raises(FileNotFoundError, match="absent.parquet: no such file"):
        load_questions(tmp_path / "absent.parquet")
    (tmp_path / "questions.xlsx").touch()
    with pytest.raises(ValueError, match="unknown file type '.xlsx'"):
        load_questions(tmp_path / "questions.xlsx")


def test_real_questions(shared_data):
    arc = load_questions(shared_data / "arc_easy_test.parquet")
    assert len(arc) == 2376 and set(map(len, arc["choices"])) >= {3, 4}
    with pytest.raises(ValueError, match="mmlu_dev.parquet, row 92, column 'choices': duplicate option"):
        load_questions(shared_data / "mmlu_dev.parquet")
    assert len(load_questions(shared_data / "mmlu_dev.parquet", drop_invalid=True)) == 284


def test_split_is_disjoint_deduplicated_and_seeded():
    dataset = questions(100)
    doubled = adapt_questions(
        Dataset.from_list(
            [
                *dataset,
                *(
                    {**row, "id": None, "question": row["question"].upper() + " ", "choices": row["choices"][::-1]}
                    for row in dataset
                ),
            ]
        )
    )
    splits = split_questions(doubled, train=None, calibration=0.25, test=10, seed=3)
    assert {name: len(part) for name, part in splits.items()} == {"train": 65, "calibration": 25, "test": 10}
    asked = [question.casefold() for part in splits.values() for question in part["question"]]
    assert len(set(asked)) == 100
    again = split_questions(doubled.select(range(100)).shuffle(seed=0), calibration=0.25, test=10, seed=3)
    assert sorted(splits["test"]["question"]) == sorted(again["test"]["question"])
    assert splits["test"]["question"][:] != split_questions(doubled, test=10, seed=4)["test"]["question"][:]
    assert list(split_questions(dataset, train=50, calibration=0, test=50)) == ["train", "test"]


@pytest.mark.parametrize(
    "sizes",
    [{"train": 90, "test": 20}, {"test": 0.001}, {"train": 5, "calibration": None, "test": None}, {"test": 1.5}],
)
def test_empty_splits_raise(sizes):
    with pytest.raises(ValueError, match="smaller splits|only one of|test=1.5"):
        split_questions(questions(100), **sizes)


def test_deduplicate_against_another_set():
    dataset = questions(10)
    assert deduplicate_questions(dataset, exclude=dataset.select([2, 5]))["id"][:] == [
        row["id"] for i, row in enumerate(dataset) if i not in (2, 5)
    ]


def test_shuffled_options_keep_their_answers_in_any_order_of_rows():
    rows = [{**row, "target_probabilities": [0.1, 0.2, 0.3, 0.4]} for row in questions(60)]
    dataset = Dataset.from_list(rows)
    shuffled = shuffle_options(dataset, seed=0)
    for before, after in zip(dataset, shuffled, strict=True):
        assert before["choices"][before["answer"]] == after["choices"][after["answer"]]
        moved = dict(zip(after["choices"], after["target_probabilities"], strict=True))
        assert moved == dict(zip(before["choices"], before["target_probabilities"], strict=True))
    assert set(shuffled["answer"]) == {0, 1, 2, 3}
    assert shuffle_options(dataset.select(range(59, -1, -1)), seed=0)["choices"][::-1] == shuffled["choices"][:]
    assert shuffle_options(dataset, seed=1)["choices"][:] != shuffled["choices"][:]


def test_permutation_is_cyclic():
    dataset = questions(3)
    once = permute_options(dataset, 1)
    assert once[0]["choices"] == ["0-3", "0-0", "0-1", "0-2"] and once[0]["answer"] == 1
    assert permute_options(once, 3)["choices"][:] == dataset["choices"][:]


def test_path_with_configuration(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("easy", "hard"):
        row = {"question": f"An {name} one?", "choices": ["yes", "no"], "answer": 0}
        Dataset.from_list([row]).to_json(folder / f"{name}.jsonl")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("easy", "hard"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("easy", "hard"):
        assert load_questions(f"{folder}:{name}", split="train")["question"] == [f"An {name} one?"]
    with pytest.raises(ValueError, match="'other' not found"):
        load_questions(f"{folder}:other", split="train")
    with pytest.raises(FileNotFoundError, match="gone.parquet: no such file"):
        load_questions("gone.parquet:easy")
    # A colon in the name of a file that is there is no configuration.
    (folder / "easy.jsonl").rename(tmp_path / "at 10:30.jsonl")
    assert len(load_questions(tmp_path / "at 10:30.jsonl")) == 1


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("allenai/ai2_arc", ("allenai/ai2_arc", None, "test")),
        ("allenai/ai2_arc:ARC-Easy", ("allenai/ai2_arc", "ARC-Easy", "test")),
        ("cais/mmlu:all:validation", ("cais/mmlu", "all", "validation")),
        ("a/b:default:train[:750]", ("a/b", "default", "train[:750]")),
    ],
)
def test_path_with_configuration_and_split(monkeypatch, path, expected):
    asked = []
    rows = Dataset.from_dict({"question": ["Is it?"], "choices": [["yes", "no"]], "answer": [0]})

    class Builder:
        def __init__(self, path, name, revision):
            self.name, self.config, self.named = "parquet", None, (path, name)

        def download_and_prepare(self):
            pass

        def as_dataset(self, split):
            asked.append((*self.named, split))
            return rows

    monkeypatch.setattr("hf_calib.data.files.load_dataset_builder", Builder)
    assert len(load_questions(path, split="test")) == 1
    assert asked == [expected]
