"""Commands read each file of questions once, whatever it holds."""

import json
from collections import Counter
from pathlib import Path

import pytest

from hf_calib import Gate
from hf_calib.cli import answer, evaluate
from hf_calib.data import files


SHORT = [{"question": f"What is {i} + {i}?", "answers": [str(2 * i)]} for i in range(90)]
OPTIONS = [{"question": f"{i} + {i}", "choices": [str(2 * i), "none"], "answer": 0} for i in range(90)]


@pytest.fixture
def reads(monkeypatch):
    """Number of reads of each file."""
    counts, read = Counter(), files._load_file

    def counted(file, *rest):
        counts[Path(file).name] += 1
        return read(file, *rest)

    monkeypatch.setattr(files, "_load_file", counted)
    return counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizers, tiny_llama):
    folder = tmp_path_factory.mktemp("reading")
    tiny_llama(tiny_tokenizers["qwen"]).save_pretrained(folder / "model")
    tiny_tokenizers["qwen"].save_pretrained(folder / "model")
    for name, rows in {"short": SHORT, "options": OPTIONS}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("name", ["short", "options"])
def test_evaluate(folder, tmp_path, reads, name):
    given = ["--model", folder / "model", "--dataset", folder / f"{name}.jsonl", "--output_dir", tmp_path / "out"]
    evaluate.prepare(list(map(str, given)))
    assert reads == {f"{name}.jsonl": 1}


@pytest.mark.parametrize(("name", "confidence"), [("options", None), ("short", "likelihood")])
def test_answer(folder, reads, name, confidence):
    arguments = answer.AnswerArguments(model="m", dataset=str(folder / f"{name}.jsonl"), output="answers.csv")
    gate = Gate(0.9, 0.95, {}, {"answer_confidence": confidence}, "", {})
    questions, unlabelled = answer._questions(arguments, gate)
    assert len(questions) == 90 and unlabelled is None
    assert reads == {f"{name}.jsonl": 1}


@pytest.mark.parametrize("name", ["short", "options"])
def test_restore(folder, tmp_path, reads, name):
    pytest.importorskip("trl", reason="needs TRL")
    from hf_calib.training import restore

    rows = [{**row, "question": f"{row['question']} ?"} for row in (SHORT if name == "short" else OPTIONS)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows[:30])))
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows[30:])))
    options = restore.RestoreOptions(
        model=str(folder / "model"),
        dataset=str(folder / f"{name}.jsonl"),
        test=str(tmp_path / "test.jsonl"),
        unlabelled=str(tmp_path / "more.jsonl"),
        output_dir=str(tmp_path / "out"),
        batch_size=32,
    )
    if name == "options":
        restore.prepare_restore(options)
    else:  # a random model has no answer right
        with pytest.raises(ValueError, match="nothing to learn from"):
            restore.prepare_restore(options)
    assert reads == {f"{name}.jsonl": 1, "test.jsonl": 1, "more.jsonl": 1}
