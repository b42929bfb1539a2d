"""Gates of answers in free text: from `threshold` to `answer`, `push` and `verify`."""

import json

import pandas as pd
import pytest
from datasets import Dataset

from hf_calib import Gate, PromptFormat, SelectiveAnswerer, predict_answers
from hf_calib.cli.main import main
from hf_calib.data.short_answers import short_questions
from hf_calib.inference.model_loading import load_model


NAMES = ("likelihood", "agreement", "p_true")
ASK = ["--prompt_template", "{question}", "--max_new_tokens", 1, "--num_samples", 3]


def call(command, *arguments):
    return main([command, *map(str, arguments)])


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizers, tiny_llama):
    """A random model, its evaluated answers, and a gate of each confidence."""
    folder = tmp_path_factory.mktemp("written")
    tiny_llama(tiny_tokenizers["qwen"]).save_pretrained(folder / "model")
    tiny_tokenizers["qwen"].save_pretrained(folder / "model")
    for name, numbers in {"labelled": range(60), "new": range(60, 90)}.items():
        save_questions(folder, name, numbers)
    asked = ["--model", folder / "model", "--dataset", folder / "labelled.parquet", "--output_dir", folder / "short"]
    asked += [*ASK, "--confidence", *NAMES, "--batch_size", 64, "--n_bootstrap", 10]
    assert call("evaluate", *asked) == 0
    for name in NAMES:
        target = ["--target_accuracy", 0.2, "--level", 0.8, "--output_dir", folder / f"{name}-gate"]
        assert call("threshold", folder / "short" / name, *target) == 0
    return folder


def save_questions(folder, name, numbers):
    """Questions to half of which what the model writes is accepted: a random model is never right."""
    questions = Dataset.from_list([{"question": f"What is {i} + {i}?", "answers": ["?"]} for i in numbers])
    written = predict_answers(
        *load_model(str(folder / "model")),
        short_questions(questions),
        prompt_format=PromptFormat("text", "{question}"),
        confidences=("likelihood",),
        max_new_tokens=1,
        batch_size=64,
        progress=False,
    )
    accepted = [[text if place % 2 and text else "no"] for place, text in enumerate(written.answers)]
    frame = pd.DataFrame({"question": questions["question"][:], "answers": accepted})
    frame.to_parquet(folder / f"{name}.parquet")


def answer(world, output, gate, *more, dataset="new"):
    files = ["--dataset", world / f"{dataset}.parquet", "--output", output, "--batch_size", 64]
    return call("answer", "--model", world / "model", "--gate", world / f"{gate}-gate", *files, *more)


@pytest.mark.parametrize("name", NAMES)
def test_answer(world, tmp_path, name, capsys):
    assert answer(world, tmp_path / "answers.jsonl", name) == 0
    printed = capsys.readouterr().out
    assert "of 30 questions, abstained on" in printed and "accuracy:" in printed
    rows = pd.DataFrame(map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines()))
    threshold = Gate.load(world / f"{name}-gate").thresholds[""].threshold
    assert (rows["answered"] == (rows["confidence"] >= threshold)).all() and len(rows) == 30
    assert rows["text"].notna().tolist() == rows["answered"].tolist() and rows["answer"].isna().all()
    assert rows["correct"].notna().all()
    written = tmp_path / "answers.npz.written" / "answers.jsonl"
    texts = [json.loads(line)["written"][0]["text"] for line in written.read_text().splitlines()]
    assert set(rows["text"].dropna()) <= set(texts)
    # The result is that of a second run, which writes nothing again.
    before = written.read_bytes(), (tmp_path / "answers.jsonl").read_bytes()
    assert answer(world, tmp_path / "answers.jsonl", name) == 0
    assert (written.read_bytes(), (tmp_path / "answers.jsonl").read_bytes()) == before
    assert call("threshold", "--check", world / f"{name}-gate", tmp_path / "answers.npz") in (0, 1)


def test_in_python_without_known_answers(world):
    model, tokenizer = load_model(str(world / "model"))
    answerer = SelectiveAnswerer(model, tokenizer, world / "likelihood-gate")
    questions = [{"question": question} for question in pd.read_parquet(world / "new.parquet")["question"][:4]]
    answers = answerer(questions)
    assert len(answers) == 4 and all(each.correct is None and 0 < each.confidence < 1 for each in answers)
    with pytest.raises(ValueError, match="no subject"):
        SelectiveAnswerer(model, tokenizer, by_subject(world))(questions)
    model.model.norm.weight.data.mul_(2)
    with pytest.raises(ValueError, match="with other weights or in another dtype"):
        SelectiveAnswerer(model, tokenizer, world / "likelihood-gate")


def by_subject(world):
    gate = Gate.load(world / "likelihood-gate")
    gate.thresholds = {"colour": gate.thresholds[""]}
    return gate


@pytest.mark.parametrize(("name", "value"), [("max_new_tokens", 3), ("grader", "graders:even")])
def test_answers_that_were_written_otherwise(world, tmp_path, name, value, capsys):
    gate = Gate.load(world / "likelihood-gate")
    gate.fingerprint["answering"] |= {name: value}
    gate.save(tmp_path / "gate.json")
    assert call("threshold", "--check", tmp_path, world / "short" / "likelihood") == 2
    assert "differs from the gate in its writing of answers" in capsys.readouterr().err
    assert call("threshold", "--check", tmp_path, world / "short" / "agreement") == 2
    assert "kind of confidence" in capsys.readouterr().err


def test_accuracy_is_not_known_where_a_function_graded(world, tmp_path, capsys):
    gate = Gate.load(world / "likelihood-gate")
    gate.fingerprint["answering"] |= {"grader": "graders:even"}
    gate.save(tmp_path / "gate.json")
    files = ["--dataset", world / "new.parquet", "--output", tmp_path / "answers.csv", "--batch_size", 64]
    assert call("answer", "--model", world / "model", "--gate", tmp_path, *files) == 0
    assert "accuracy: not known (the function graders:even graded" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_push_and_verify(world, tmp_path, name, capsys):
    published = ["--model", world / "model", "--evaluation", world / "short" / name, "--gate", world / f"{name}-gate"]
    assert call("push", *published, "--output_dir", tmp_path / "out", "--dry_run", "true") == 0
    assert '[{"question": "Ice is"}]' in (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    assert call("verify", tmp_path / "out", "--dataset", world / "labelled.parquet", "--batch_size", 64) == 0
    printed = capsys.readouterr().out
    assert "The gate is of this model, prompt and calibrator." in printed
    assert "coverage, of the gate" in printed and "accuracy, of the gate" in printed
    assert call("verify", tmp_path / "out", "--dataset", world / "new.parquet", "--batch_size", 64) in (0, 1)
    assert "of the gate" not in capsys.readouterr().out
