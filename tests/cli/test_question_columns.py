"""Questions in files of others, given to the commands as they are."""

import csv
import json

import pytest
import yaml
from samples import save_world_model

from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.training.restore_data import load_restore_questions
from hf_calib.training.restore_options import RestoreOptions


COLUMNS = "question=Prompt,A=First,B=Second,C=Third,D=Fourth,answer=Gold"
READ = ["--columns", COLUMNS, "--answers_from", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and questions in columns of other names, with answers that count from 1."""
    folder = tmp_path_factory.mktemp("reading")
    save_world_model(folder / "model")
    world = World()
    for name, questions in {"train": world.questions(200, split="train"), "test": world.questions(120)}.items():
        questions = questions.remove_columns("target_probabilities")
        questions.to_parquet(folder / f"{name}.parquet")
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["No", "PROMPT", "First", "Second", "Third", "Fourth", "Gold"])
            for row in questions:
                options = [*row["choices"], "", ""][:4]
                writer.writerow([row["id"], row["question"], *options, row["answer"] + 1])
    return folder


def evaluate(folder, dataset, out, *arguments):
    call = ["evaluate", "--model", f"{folder}/model", "--dataset", str(dataset), "--scoring", "text"]
    return main([*call, "--n_bootstrap", "20", "--output_dir", str(out), *arguments])


def test_evaluate_reads_named_columns(folder, tmp_path):
    assert evaluate(folder, folder / "test.csv", tmp_path / "csv", *READ) == 0
    assert evaluate(folder, folder / "test.parquet", tmp_path / "parquet") == 0
    csv_results, results = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("csv", "parquet"))
    assert csv_results["accuracy"] == results["accuracy"] and csv_results["nll"] == pytest.approx(results["nll"])
    assert (csv_results["columns"], csv_results["answers_from"]) == (COLUMNS, 1)


def test_answers_counted_from_one_are_named(folder, tmp_path, capsys):
    for more in ([], ["--drop_invalid", "true"]):
        assert evaluate(folder, folder / "test.csv", tmp_path, "--columns", COLUMNS, *more) == 2
        assert "they seem to count from 1; pass `answers_from=1` (--answers_from 1)" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_wrong_columns_are_named_before_the_model_is_loaded(folder, tmp_path, capsys):
    assert evaluate("/no/model", folder / "test.csv", tmp_path, "--columns", "question=Promt,answer=Gold") == 2
    assert "no column 'Promt' among No, PROMPT, First, Second, Third, Fourth, Gold" in capsys.readouterr().err
    assert evaluate("/no/model", folder / "test.csv", tmp_path) == 2
    assert "a question has question, choices (or A, B, ...) and answer: name them by" in capsys.readouterr().err


def test_diagnose_and_transfer_read_named_columns(folder, tmp_path):
    call = ["diagnose", "--reference", f"{folder}/model", "--model", f"{folder}/model", "--scoring", "text"]
    call += ["--dataset", f"{folder}/test.csv", "--n_bootstrap", "20", *READ]
    assert main([*call, "--output_dir", str(tmp_path / "diagnosis")]) == 0
    results = json.loads((tmp_path / "diagnosis" / "results.json").read_text())
    assert results["n"] == 120 and results["reference/accuracy"] == results["accuracy"]
    # the labelled questions are in the unified columns and count from 0
    call = ["transfer", "--model", f"{folder}/model", "--labelled_dataset", f"{folder}/train.parquet"]
    call += ["--dataset", f"{folder}/test.csv", "--scoring", "text", "--columns", COLUMNS]
    assert main([*call, "--output_dir", str(tmp_path / "transferred")]) == 0
    assert json.loads((tmp_path / "transferred" / "results.json").read_text())["n"] == 120


def test_train_and_restore_read_named_columns(folder, tmp_path):
    pytest.importorskip("trl")
    recipe = {
        "model_name_or_path": f"{folder}/model", "dataset_name": f"{folder}/train.csv", "objective": "cft",
        "scoring": "text", "columns": dict(pair.split("=") for pair in COLUMNS.split(",")), "answers_from": 1,
        "output_dir": f"{tmp_path}/trained", "max_steps": 1, "report_to": "none", "bf16": False,
        "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", str(tmp_path / "recipe.yaml")]) == 0
    assert (tmp_path / "trained" / "model.safetensors").exists()
    options = RestoreOptions(
        model="", dataset=f"{folder}/train.csv", test=f"{folder}/test.csv", columns=COLUMNS, answers_from=1
    )
    questions = load_restore_questions(options)
    assert len(questions.test) == 120


def test_a_model_is_its_own_reference_where_ids_start_again(folder, tmp_path):
    rows = [json.dumps({**row, "id": str(i % 60)}) for i, row in enumerate(World().questions(120))]
    (tmp_path / "joined.jsonl").write_text("\n".join(rows))
    assert evaluate(folder, tmp_path / "joined.jsonl", tmp_path / "out") == 0
    reference = ["--reference_predictions", str(tmp_path / "out")]
    assert evaluate(folder, tmp_path / "joined.jsonl", tmp_path / "again", *reference) == 0
    results = json.loads((tmp_path / "again" / "results.json").read_text())
    assert results["reference_accuracy"] == results["accuracy"]
    assert len(OptionPredictions.load(tmp_path / "out" / "predictions.npz")) == 120
    (tmp_path / "shuffled.jsonl").write_text("\n".join(rows[::-1]))
    assert evaluate(folder, tmp_path / "shuffled.jsonl", tmp_path / "shuffled", *reference) == 2
