"""`hf-calib answer`: from a threshold to answers and their check, resuming, and calls that are wrong."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from samples import save_answerable_world, save_world_model

from hf_calib import Gate, OptionPredictions
from hf_calib.cli.main import main
from hf_calib.evaluation.gate import Answers


TARGET = 0.7


def call(command, *arguments):
    return main([command, *map(str, arguments)])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, its gates of raw and calibrated predictions, and questions."""
    folder = tmp_path_factory.mktemp("world")
    save_answerable_world(folder, fit=300, labelled=700, new=400)
    for name in ("fit", "labelled"):
        asked = ["--model", folder / "model", "--dataset", folder / f"{name}.parquet", "--scoring", "text"]
        more = ["--batch_size", 128, "--n_bootstrap", 10]
        assert call("evaluate", *asked, "--output_dir", folder / name, *more) == 0
    calibrated = ["--predictions", folder / "fit", "--apply_to", folder / "labelled", "--method", "temperature"]
    assert call("calibrate", *calibrated, "--output_dir", folder / "calibration", "--n_bootstrap", 10) == 0
    target = ["--target_accuracy", TARGET, "--output_dir"]
    assert call("threshold", folder / "labelled", *target, folder / "gate") == 0
    assert call("threshold", folder / "calibration", *target, folder / "calibrated-gate") == 0
    frame = pd.read_parquet(folder / "new.parquet").drop(columns=["answer", "target_probabilities"])
    frame.to_parquet(folder / "unlabelled.parquet")
    return folder


def answer(world, output, *more, gate="gate", dataset="new", model="model"):
    files = ["--dataset", world / f"{dataset}.parquet", "--output", output, "--batch_size", 128]
    return call("answer", "--model", world / model, *(["--gate", world / gate] if gate else []), *files, *more)


def read(path):
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def test_threshold_answer_check(world, tmp_path, capsys):
    assert answer(world, tmp_path / "answers.jsonl") == 0
    printed = capsys.readouterr().out
    rows, questions = read(tmp_path / "answers.jsonl"), pd.read_parquet(world / "new.parquet")
    gate = json.loads((world / "gate/gate.json").read_text())
    assert (
        rows["id"].tolist() == questions["id"].tolist() and rows["question"].tolist() == questions["question"].tolist()
    )
    assert (rows["answered"] == (rows["confidence"] >= gate["threshold"])).all()
    assert rows["answer"].isna().tolist() == rows["text"].isna().tolist() == (~rows["answered"]).tolist()
    answered = rows[rows["answered"]]
    places = [ord(letter) - ord("A") for letter in answered["answer"]]
    asked = questions.iloc[answered.index]
    assert answered["text"].tolist() == [row[place] for row, place in zip(asked["choices"], places, strict=True)]
    assert answered["correct"].tolist() == (asked["answer"] == places).tolist()
    # The truth is known: the probability that each answer is right.
    truth = [row[place] for row, place in zip(asked["target_probabilities"], places, strict=True)]
    assert 40 < len(answered) < 360 and np.mean(truth) >= TARGET
    assert f"answered: {len(answered)} of 400 questions, abstained on {400 - len(answered)}" in printed
    assert f"with the gate's questions it was {gate['coverage']:.1%} [{gate['coverage_low']:.1%}" in printed
    assert f"accuracy: {answered['correct'].mean():.1%} [" in printed and "the target is 0.7, at level 0.95" in printed
    for file in ("answers.npz", "answers.jsonl"):
        assert call("threshold", "--check", world / "gate", tmp_path / file) == 0
    assert "The guarantee is not refuted" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_formats_and_another_gate_on_the_same_scores(world, tmp_path, ending, capsys, monkeypatch):
    assert answer(world, tmp_path / "answers.jsonl") == 0
    monkeypatch.setattr("hf_calib.inference.option_scorer.OptionScorer._forward", None)  # nothing is scored again
    assert answer(world, tmp_path / f"answers.{ending}") == 0
    expected, found = read(tmp_path / "answers.jsonl"), read(tmp_path / f"answers.{ending}")
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    stricter = ["--target_accuracy", 0.72, "--output_dir", tmp_path / "stricter"]
    assert call("threshold", world / "labelled", *stricter) == 0
    assert answer(world, tmp_path / "answers.csv", gate=tmp_path / "stricter") == 0
    assert read(tmp_path / "answers.csv")["answered"].sum() < expected["answered"].sum()


def test_questions_without_answers(world, tmp_path, capsys):
    assert answer(world, tmp_path / "answers.csv", dataset="unlabelled") == 0
    assert "accuracy: not known (the questions have no answers)" in capsys.readouterr().out
    assert "correct" not in read(tmp_path / "answers.csv")
    assert call("threshold", "--check", world / "gate", tmp_path / "answers.npz") in (0, 1)
    assert "Kolmogorov-Smirnov" in capsys.readouterr().out


def test_some_questions_without_answers(world, tmp_path, capsys):
    frame = pd.read_parquet(world / "new.parquet")
    frame["answer"] = frame["answer"].astype(object).where(frame.index > 10, None)
    frame.to_parquet(tmp_path / "some.parquet")
    output = tmp_path / "answers.jsonl"
    assert call("answer", "--model", world / "model", "--gate", world / "gate", "--dataset", tmp_path / "some.parquet",
                "--output", output, "--drop_invalid", "true", "--batch_size", 128) == 0  # fmt: skip
    assert len(read(output)) == 400 and "not all questions have a valid answer" in capsys.readouterr().out


def test_with_a_calibrator(world, tmp_path, capsys):
    calibrator = ["--calibrator", world / "calibration/calibrators/temperature"]
    assert answer(world, tmp_path / "answers.jsonl", *calibrator, gate="calibrated-gate") == 0
    rows, kept = read(tmp_path / "answers.jsonl"), OptionPredictions.load(tmp_path / "answers.npz")
    np.testing.assert_allclose(rows["confidence"], kept.probabilities.max(axis=1), rtol=1e-6)
    assert kept.metadata["calibrator"] == "temperature" and kept.labels.min() >= 0
    assert call("threshold", "--check", world / "calibrated-gate", tmp_path / "answers.npz") == 0
    # the same again, from the saved predictions, which are calibrated once
    first = (tmp_path / "answers.jsonl").read_bytes()
    assert answer(world, tmp_path / "answers.jsonl", *calibrator, gate="calibrated-gate") == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == first
    capsys.readouterr()
    assert answer(world, tmp_path / "answers.jsonl") == 1
    assert "holds predictions with another calibrator (temperature)" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from unittest import mock
from hf_calib.cli.main import main
from hf_calib.inference import option_scorer, resumable

passes, forward = 0, option_scorer.OptionScorer._forward

def count(self, features):
    global passes
    passes += 1
    if passes == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, features)

with mock.patch.object(resumable, "SAVE_INTERVAL", 0), mock.patch.object(option_scorer.OptionScorer, "_forward", count):
    main(sys.argv[1:])
"""


def test_a_killed_run_resumes_with_the_same_bytes(world, tmp_path, capsys):
    whole, resumed = tmp_path / "whole" / "answers.jsonl", tmp_path / "resumed" / "answers.jsonl"
    files = ["--dataset", world / "new.parquet", "--batch_size", 16]
    arguments = ["--model", world / "model", "--gate", world / "gate", *files]
    assert call("answer", *arguments, "--output", whole) == 0
    command = [sys.executable, "-c", KILLED, "answer", *map(str, arguments), "--output", str(resumed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = resumed.parent / "answers.npz.partial"
    assert not resumed.exists() and len(list(partial.glob("*.npz"))) > 3
    # Another model does not continue it.
    save_world_model(tmp_path / "other", seed=1)
    asked = ["--model", tmp_path / "other", "--dataset", world / "labelled.parquet", "--scoring", "text"]
    assert call("evaluate", *asked, "--output_dir", tmp_path / "after", "--batch_size", 128, "--n_bootstrap", 10) == 0
    assert call("threshold", tmp_path / "after", "--target_accuracy", 0.01, "--output_dir", tmp_path) == 0
    other = ["--model", tmp_path / "other", "--gate", tmp_path / "gate.json"]
    assert call("answer", *other, *files, "--output", resumed) == 1
    assert "answers.npz.partial holds predictions with other weights" in capsys.readouterr().err
    assert call("answer", *arguments, "--output", resumed) == 0
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in resumed.parent.iterdir()) == ["answers.jsonl", "answers.npz"]


def test_two_processes_answer_as_one(world, tmp_path, launch):
    arguments = ["--model", world / "model", "--gate", world / "calibrated-gate", "--dataset", world / "new.parquet"]
    arguments += ["--calibrator", world / "calibration/calibrators/temperature", "--batch_size", 32]
    assert call("answer", *arguments, "--output", tmp_path / "one.jsonl") == 0
    script = tmp_path / "script.py"
    script.write_text("import sys; from hf_calib.cli.main import main; assert main(sys.argv[1:]) == 0")
    launched = launch("ddp", script, "answer", *map(str, arguments), "--output", str(tmp_path / "two.jsonl"))
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("answered: ") == 1
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_by_subject(world, tmp_path, capsys, caplog):
    gate = ["--target_accuracy", 0.55, "--by", "subject", "--output_dir", tmp_path]
    assert call("threshold", world / "labelled", *gate) == 0
    loaded = Gate.load(tmp_path)
    del loaded.thresholds["colour"]
    loaded.save(tmp_path / "gate.json")
    capsys.readouterr()
    assert answer(world, tmp_path / "answers.jsonl", gate=tmp_path) == 0
    rows = read(tmp_path / "answers.jsonl")
    least = {name: threshold.threshold for name, threshold in loaded.thresholds.items()}
    expected = [c >= least.get(name, np.inf) for c, name in zip(rows["confidence"], rows["subject"], strict=True)]
    assert rows["answered"].tolist() == expected and 0 < sum(expected) < 400
    printed = capsys.readouterr().out
    without = sum(least.get(name, np.inf) == np.inf for name in rows["subject"])
    assert f"{without} questions are of subjects without a threshold: none is answered." in printed
    assert "no threshold in the gate for questions of" in caplog.text and "'colour'" in caplog.text
    frame = pd.read_parquet(world / "unlabelled.parquet")
    frame.loc[3, "subject"] = None
    frame.to_parquet(tmp_path / "some.parquet")
    frame.drop(columns="subject").to_parquet(tmp_path / "none.parquet")
    for name, row in (("some", 3), ("none", 0)):
        files = ["--dataset", tmp_path / f"{name}.parquet", "--output", tmp_path / f"{name}.csv"]
        assert call("answer", "--model", world / "model", "--gate", tmp_path, *files) == 2
        assert f"question '{frame['id'][row]}' has no subject" in capsys.readouterr().err


def changed(world, tmp_path, **fingerprint):
    """The gate with another fingerprint."""
    gate = Gate.load(world / "gate")
    gate.fingerprint |= fingerprint
    gate.save(tmp_path / "gate.json")
    return tmp_path


@pytest.mark.parametrize(
    "fingerprint, message",
    [
        (
            {"weights": "0", "model": "org/other"},
            "and the gate is of org/other, with other weights or in another dtype: make a gate",
        ),
        ({"calibrator": "temperature", "calibrator_digest": "0"}, "has none"),
        ({"prompt_digest": "0"}, "the answerer differs from the gate in its chat template or tokenizer"),
        ({"prompt_format": None}, "does not state of which weights it is and how questions were asked"),
        ({"answer_confidence": "p_true"}, "does not state of which weights it is and how questions were asked"),
        ({"weights": None}, "does not state of which weights it is and how questions were asked"),
        ({"prompt_format": {"mode": "letter"}}, "does not state in a known form how questions were asked"),
    ],
)
def test_a_gate_of_something_else(world, tmp_path, capsys, fingerprint, message):
    assert answer(world, tmp_path / "answers.jsonl", gate=changed(world, tmp_path, **fingerprint)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "answers.jsonl").exists()


def test_another_calibrator_than_the_gates(world, tmp_path, capsys):
    calibrator = ["--calibrator", world / "calibration/calibrators/temperature"]
    assert answer(world, tmp_path / "answers.jsonl", *calibrator) == 2
    assert "differs from the gate in its calibrator: temperature instead of None" in capsys.readouterr().err
    again = ["--predictions", world / "labelled", "--method", "temperature", "--n_bootstrap", 10]
    assert call("calibrate", *again, "--output_dir", tmp_path / "again") == 0
    calibrator = ["--calibrator", tmp_path / "again/calibrators/temperature"]
    assert answer(world, tmp_path / "answers.jsonl", *calibrator, gate="calibrated-gate") == 2
    assert "temperature with other parameters instead of temperature" in capsys.readouterr().err


def test_no_gate_and_a_gate_without_threshold(world, tmp_path, capsys):
    assert answer(world, tmp_path / "answers.jsonl", gate=None) == 2
    assert "has no gate.json: make one with `hf-calib threshold`" in capsys.readouterr().err
    assert answer(world, tmp_path / "answers.jsonl", gate="missing.json") == 2
    assert "there is no gate" in capsys.readouterr().err
    assert call("threshold", world / "labelled", "--target_accuracy", 0.99, "--output_dir", tmp_path) == 1
    assert answer(world, tmp_path / "answers.jsonl", gate=tmp_path) == 2
    assert "none reaches an accuracy of 0.99: no question would be answered" in capsys.readouterr().err
    (tmp_path / "gate.json").write_text("{}")
    assert answer(world, tmp_path / "answers.jsonl", gate=tmp_path) == 2
    assert "is no gate of `hf-calib threshold`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "questions.jsonl: the file is empty"),
        ([{"question": "Ice is", "choices": ["cold"]}], "1 option(s); there must be 2 to 26"),
        ([{"question": "Ice is"}], "correct the row"),
        ([{"question": " ", "choices": ["hot", "cold"]}], "empty text"),
    ],
)
def test_bad_questions(world, tmp_path, capsys, rows, message):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--dataset", tmp_path / "questions.jsonl", "--output", tmp_path / "answers.jsonl"]
    assert call("answer", "--model", world / "model", "--gate", world / "gate", *files) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--output", "answers.txt"], "answers are written as .jsonl, .csv, .parquet; name it answers.txt.jsonl"),
        (["--output", "predictions.csv"], "predictions.npz is the name of a file of hf-calib evaluate"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--calibrator", "missing"], "missing"),
        (["--dataset", "missing.parquet"], "missing.parquet"),
        (["--model", "missing/folder/here"], "missing/folder/here"),
    ],
)
def test_wrong_calls(world, tmp_path, capsys, more, message):
    assert answer(world, tmp_path / "answers.jsonl", *more) == 2
    assert message in capsys.readouterr().err


def test_answers_of_unknown_origin_are_not_replaced(world, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    output.write_text("{}\n")
    assert answer(world, output) == 2
    assert "so its model is not known" in capsys.readouterr().err and output.read_text() == "{}\n"
    assert answer(world, output, "--no_resume", "true") == 0 and len(read(output)) == 400
    # Other questions do not continue them.
    assert answer(world, output, dataset="fit") == 1
    assert "answers.npz holds predictions with other questions and prompts" in capsys.readouterr().err
    assert len(read(output)) == 400


def test_too_long_questions(world, tmp_path, capsys):
    frame = pd.read_parquet(world / "unlabelled.parquet")
    frame.loc[5, "question"] = "the colour of bavo is " * 40
    frame.to_parquet(tmp_path / "long.parquet")
    files = ["--dataset", tmp_path / "long.parquet", "--output", tmp_path / "answers.jsonl", "--batch_size", 128]
    arguments = ["--model", world / "model", "--gate", world / "gate", *files]
    assert call("answer", *arguments) == 1
    assert "max_length is 64" in capsys.readouterr().err
    assert call("answer", *arguments, "--drop_too_long", "true") == 0
    assert read(tmp_path / "answers.jsonl")["id"].tolist() == frame["id"].drop(5).tolist()


def test_the_gates_own_rows_are_answered_as_counted(world, tmp_path):
    """The questions of the gate: as many are answered as it states."""
    assert answer(world, tmp_path / "answers.jsonl", dataset="labelled") == 0
    gate = Gate.load(world / "gate")
    assert read(tmp_path / "answers.jsonl")["answered"].sum() == gate.thresholds[""].n_answered
    kept = OptionPredictions.load(tmp_path / "answers.npz")
    assert gate.answered(Answers.of(kept)).sum() == gate.thresholds[""].n_answered
