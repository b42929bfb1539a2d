"""Short answers from `hf-calib evaluate` to `calibrate`, `threshold`, `push` and `verify`."""

import json
import sys

import numpy as np
import pytest
import torch
from datasets import load_dataset

from hf_calib.cli.main import main
from hf_calib.data.questions import load_questions
from hf_calib.data.synthetic_world import World
from hf_calib.evaluation.gate import Answers
from hf_calib.evaluation.tables import evaluation_results
from hf_calib.hub.saved_predictions import load_predictions
from hf_calib.inference.predictions import OptionPredictions


N = 120
PLAIN = ["--prompt_template", "{question}", "--max_new_tokens", "1", "--batch_size", "64", "--n_bootstrap", "20"]
TWO = ["--confidence", "likelihood", "agreement"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model of the world, too sure of itself, and its answers to questions whose options it does not see."""
    folder = tmp_path_factory.mktemp("short")
    save_trained_model(folder / "model")
    World().questions(N).to_parquet(folder / "test.parquet")
    World().questions(N, split="train").to_parquet(folder / "train.parquet")
    for name in ("train", "test"):
        assert main([*evaluate(folder, f"{name}.parquet", name), *TWO]) == 0
    return folder


def save_trained_model(folder):
    """A model that has read some statements, with its logits doubled."""
    world = World()
    model, tokenizer = world.model(), world.tokenizer()
    texts = world.pretraining_statements(64 * 200)["text"][:]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for first in range(0, len(texts), 64):
        ids = tokenizer(texts[first : first + 64], return_tensors="pt")["input_ids"]
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def evaluate(folder, dataset, output):
    call = ["evaluate", "--model", str(folder / "model"), "--dataset", str(folder / dataset)]
    return [*call, "--output_dir", str(folder / output), *PLAIN]


def read(path):
    return json.loads(path.read_text())


def test_results_are_those_of_the_confidence(world):
    graded = [json.loads(line) for line in (world / "test" / "graded.jsonl").read_text().splitlines()]
    right = np.array([row["correct"] for row in graded])
    accepted = {row["id"]: row["choices"][row["answer"]] for row in load_questions(world / "test.parquet")}
    assert all(row["correct"] == (row["answer"] == accepted[row["id"]]) for row in graded)
    for name in ("likelihood", "agreement"):
        results = read(world / "test" / name / "results.json")
        confidences = np.array([row[name] for row in graded])
        assert results["n"] == N and results["confidence"] == pytest.approx(confidences.mean())
        assert results["accuracy"] == pytest.approx(right.mean())
        assert 0 < results["accuracy"] < 1 and results["empty_answers"] == 0
        assert results["brier"] == pytest.approx(2 * ((confidences - right) ** 2).mean(), rel=1e-3)
        assert results["regime"] == "undetermined" and results["n_groups"] > 1
        for key in ("ece_low", "ece_noise_floor", "auroc", "aurc", "nll"):
            assert results[key] is not None, key


def test_a_second_run_writes_nothing_again(world, capsys):
    (world / "test" / "likelihood" / "results.json").unlink()
    before = (world / "test" / "answers.jsonl").read_text()
    assert main([*evaluate(world, "test.parquet", "test"), *TWO]) == 0
    assert (world / "test" / "answers.jsonl").read_text() == before
    assert f"{N} answers, " in capsys.readouterr().out
    assert main([*evaluate(world, "test.parquet", "test"), *TWO, "--max_new_tokens", "3"]) == 1
    assert "answers with other max_new_tokens" in capsys.readouterr().err


def test_calibrate_and_threshold_take_them(world, tmp_path, capsys):
    call = ["calibrate", "--predictions", str(world / "train" / "likelihood"), "--n_bootstrap", "20"]
    call += ["--apply_to", str(world / "test" / "likelihood"), "--output_dir", str(tmp_path / "calibration")]
    assert main(call) == 0
    stages = {stage["stage"]: stage for stage in read(tmp_path / "calibration" / "results.json")}
    assert stages["temperature scaling"]["nll"] < stages["as is"]["nll"]
    assert len({stage["accuracy"] for stage in stages.values()}) == 1  # the answers are what they were
    capsys.readouterr()
    gate = ["threshold", str(tmp_path / "calibration"), "--output_dir", str(tmp_path)]
    gate += ["--target_accuracy", "0.12", "--level", "0.8"]
    assert main(gate) == 0
    predictions = load_predictions(tmp_path / "calibration")
    confidences, correct = predictions.outcomes
    found = read(tmp_path / "gate.json")
    assert correct[confidences >= found["threshold"]].mean() >= 0.12
    np.testing.assert_allclose(Answers.of(predictions).confidences, confidences)
    assert main(["threshold", "--check", str(tmp_path), str(world / "train" / "agreement")]) == 2
    assert "differs from the gate in its" in capsys.readouterr().err
    mixed = [*call[:2], str(world / "train" / "agreement"), *call[3:]]
    assert main(mixed) == 2 and "confidence" in capsys.readouterr().err
    assert main(["calibrate", "--predictions", str(world / "test")]) == 2
    assert "name one of its folders agreement, likelihood" in capsys.readouterr().err


def test_push_and_verify_take_them(world, tmp_path, capsys):
    call = ["push", "--model", str(world / "model"), "--evaluation", str(world / "test" / "likelihood")]
    assert main([*call, "--output_dir", str(tmp_path / "published"), "--dry_run", "true"]) == 0
    card = (tmp_path / "published" / "README.md").read_text()
    for stated in ("confidence: likelihood", "predict_answers(", "--confidence likelihood", "Short answers"):
        assert stated in card, stated
    verify = ["verify", str(tmp_path / "published"), "--dataset", str(world / "test.parquet"), "--batch_size", "64"]
    capsys.readouterr()
    assert main(verify) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{N} of its {N} questions" in printed and "figures hold" in printed


def test_the_function_of_a_results_json_is_not_imported(world, tmp_path, capsys):
    call = ["push", "--model", str(world / "model"), "--evaluation", str(world / "test" / "likelihood")]
    assert main([*call, "--output_dir", str(tmp_path), "--dry_run", "true"]) == 0
    (tmp_path / "results.json").write_text(json.dumps({**read(tmp_path / "results.json"), "grader": "os:system"}))
    assert main(["verify", str(tmp_path), "--dataset", str(world / "test.parquet")]) == 1
    assert "graded by the function os:system" in capsys.readouterr().err


@pytest.fixture(scope="module")
def letters(tmp_path_factory, tiny_tokenizers, tiny_llama):
    """A random model that knows letters, and questions with accepted texts."""
    folder = tmp_path_factory.mktemp("letters")
    tiny_llama(tiny_tokenizers["qwen"]).save_pretrained(folder / "model")
    tiny_tokenizers["qwen"].save_pretrained(folder / "model")
    rows = [{"question": f"What is {i} + {i}?", "answers": [str(2 * i)]} for i in range(20)]
    (folder / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_all_three_confidences_by_default_and_a_function_that_grades(letters, tmp_path, monkeypatch, capsys):
    (tmp_path / "graders.py").write_text("def even(answer, accepted):\n    return len(answer) % 2 == 0\n")
    monkeypatch.chdir(tmp_path)
    call = [*evaluate(letters, "short.jsonl", "out"), "--num_samples", "2", "--grader", "graders:even"]
    assert main(call) == 0
    for name in ("likelihood", "agreement", "p_true"):
        results = read(letters / "out" / name / "results.json")
        assert results["confidence"] > 0 and results["grader"] == "graders:even", name
    judged = load_questions(letters / "out" / "p_true" / "questions.parquet")
    predictions = OptionPredictions.load(letters / "out" / "p_true" / "predictions.npz")
    assert judged["answer"][:] == predictions.labels.tolist() and set(judged["answer"]) == {0, 1}
    assert predictions.of_answers
    stated = read(letters / "out" / "p_true" / "results.json")
    assert evaluation_results(predictions, n_bootstrap=20)["confidence"] == pytest.approx(stated["confidence"])
    answers = (letters / "out" / "answers.jsonl").read_bytes()
    (tmp_path / "graders.py").write_text("def odd(answer, accepted):\n    return len(answer) % 2 == 1\n")
    sys.modules.pop("graders")
    assert main([*call[:-1], "graders:odd"]) == 0  # graded anew, and neither written nor scored again
    assert (letters / "out" / "answers.jsonl").read_bytes() == answers
    again = OptionPredictions.load(letters / "out" / "p_true" / "predictions.npz")
    assert (again.labels != predictions.labels).any()
    np.testing.assert_array_equal(again.option_logits, predictions.option_logits)
    printed = capsys.readouterr().out
    assert "20 answers" in printed and "p_true" in printed
    assert "regime: undetermined. The regime of answers in free text is tested only with their critical" in printed
    assert f"regime of True or False: {stated['judgement_regime']}. {stated['judgement_explanation']}" in printed
    assert "judgement_regime" not in read(letters / "out" / "likelihood" / "results.json")
    assert main([*call[:-1], "graders:odd", "--critical_accuracy", "0.9"]) == 0
    assert "the critical accuracy 0.900" in (printed := capsys.readouterr().out) and "True or False" not in printed
    saved = load_dataset("parquet", data_files=str(letters / "out" / "p_true" / "questions.parquet"), split="train")
    assert saved.column_names == ["id", "question", "choices", "answer"]


def test_all_answers_wrong_is_said_and_not_recalibrated(letters, tmp_path, capsys):
    call = [*evaluate(letters, "short.jsonl", "wrong"), "--confidence", "likelihood"]
    assert main(call) == 0
    assert "All are wrong" in capsys.readouterr().out
    call = ["calibrate", "--predictions", str(letters / "wrong" / "likelihood"), "--output_dir", str(tmp_path)]
    assert main(call) == 2
    assert "all 20 answers are wrong: no recalibration is possible" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--confidence", "certainty"], "choose among likelihood"),
        (["--grader", "no_such_module:f"], "cannot be imported"),
        (["--temperature", "0"], "above 0"),
        (["--reference_predictions", "x"], "written answers have no reference"),
    ],
)
def test_wrong_calls(letters, more, named, capsys):
    assert main([*evaluate(letters, "short.jsonl", "never"), *more]) == 2
    assert named in capsys.readouterr().err
