"""Saved predictions, and resuming an interrupted run."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from samples import Counter, make_questions

from hf_calib.data.questions import PromptFormat
from hf_calib.inference import resumable
from hf_calib.inference.predict import predict_options
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.inference.resumable import ResumableScores


def test_saving_and_loading(tmp_path):
    predictions = OptionPredictions(
        option_logits=np.array([[0.0, -1.0, -np.inf], [-2.0, -1.0, -3.0]], dtype=np.float32),
        labels=np.array([0, 1]),
        ids=np.array(["a", "b"]),
        metadata={"model": "m"},
    )
    predictions.save(tmp_path / "predictions.npz")
    with np.load(tmp_path / "predictions.npz") as arrays:
        assert {"option_logits", "probabilities", "labels", "ids", "option_mass"} <= set(arrays.files)
        assert arrays["probabilities"][0, 2] == 0
    loaded = OptionPredictions.load(tmp_path / "predictions.npz")
    np.testing.assert_array_equal(loaded.option_logits, predictions.option_logits)
    assert loaded.ids.tolist() == ["a", "b"] and loaded.metadata == {"model": "m"} and len(loaded) == 2
    np.savez(tmp_path / "other.npz", labels=np.zeros(2))
    with pytest.raises(ValueError, match="lacks ids, option_logits"):
        OptionPredictions.load(tmp_path / "other.npz")


def test_interrupted_run_resumes(tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer, questions, path = tiny_tokenizers["gpt2"], make_questions(30), tmp_path / "new" / "predictions.npz"
    model = tiny_llama(tokenizer)
    settings = {"scoring": "text", "batch_size": 2, "output_path": path, "progress": False}
    uninterrupted = predict_options(model, tokenizer, questions, **{**settings, "output_path": None})
    counter = Counter(model)
    expected = predict_options(model, tokenizer, questions, scoring="text", progress=False)
    whole, counter.questions = counter.questions, 0

    def interrupt(module, args):
        if counter.questions >= whole - 10:
            raise KeyboardInterrupt

    handle = model.base_model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_options(model, tokenizer, questions, **settings)
    handle.remove()
    assert not path.exists()
    # Other weights, questions or prompts do not mix with what is there.
    with pytest.raises(
        ValueError, match="predictions.npz.partial holds predictions with other weights; .*resume=False"
    ):
        predict_options(tiny_llama(tokenizer, seed=1), tokenizer, questions, **settings)
    with pytest.raises(ValueError, match="other questions and prompts"):
        predict_options(model, tokenizer, questions.select(range(20)), **settings)
    with pytest.raises(ValueError, match="other prompts;"):
        plain = PromptFormat("text", prompt_template="Q: {question}")
        predict_options(model, tokenizer, questions, prompt_format=plain, **settings)

    counter.questions = 0
    resumed = predict_options(model, tokenizer, questions, **settings)
    assert counter.questions < whole - 10
    np.testing.assert_allclose(resumed.option_logits, expected.option_logits, atol=1e-5)
    np.testing.assert_array_equal(resumed.option_logits, uninterrupted.option_logits)  # the same batches
    assert os.listdir(path.parent) == ["predictions.npz"]
    # A finished file is not computed again, until that is asked for.
    counter.questions = 0
    again = predict_options(model, tokenizer, questions, **settings)
    assert counter.questions == 0 and again.ids.tolist() == expected.ids.tolist()
    with pytest.raises(ValueError, match="predictions.npz holds predictions with other weights"):
        predict_options(tiny_llama(tokenizer, seed=1), tokenizer, questions, **settings)
    other = predict_options(tiny_llama(tokenizer, seed=1), tokenizer, questions, **settings, resume=False)
    assert not np.allclose(OptionPredictions.load(path).probabilities, expected.probabilities, atol=1e-3)
    np.testing.assert_array_equal(OptionPredictions.load(path).option_logits, other.option_logits)


def test_subjects_and_targets_are_those_of_the_questions(tiny_tokenizers, tiny_llama, tmp_path):
    """No score depends on them, so they are not scored again, and those of the last run are not kept either."""
    tokenizer, questions, path = tiny_tokenizers["gpt2"], make_questions(6), tmp_path / "predictions.npz"
    model = tiny_llama(tokenizer)
    counter = Counter(model)

    def predict(subject, favoured):
        targets = [[float(k == favoured) for k in range(len(choices))] for choices in questions["choices"]]
        rows = questions.add_column("subject", [subject] * 6).add_column("target_probabilities", targets)
        predict_options(model, tokenizer, rows, scoring="text", output_path=path, progress=False)
        return OptionPredictions.load(path)

    bare = predict_options(model, tokenizer, questions, scoring="text", output_path=path, progress=False)
    assert bare.subjects is None and bare.target_probabilities is None
    scored = counter.questions
    for subject, favoured in (("physics", 0), ("law", 1)):
        found = predict(subject, favoured)
        assert set(found.subjects) == {subject} and (found.target_probabilities.argmax(1) == favoured).all()
        np.testing.assert_array_equal(found.option_logits, bare.option_logits)
    assert counter.questions == scored
    found.with_probabilities(found.probabilities, calibrator_digest="of subjects").save(path)
    with pytest.raises(ValueError, match="calibrated predictions for questions with other subjects"):
        predict("history", 0)


@pytest.mark.parametrize("kept", [0, 5, 600])
def test_a_damaged_file_is_named(tiny_tokenizers, tiny_llama, tmp_path, kept):
    tokenizer, questions, path = tiny_tokenizers["gpt2"], make_questions(6), tmp_path / "predictions.npz"
    model = tiny_llama(tokenizer)
    predict_options(model, tokenizer, questions, scoring="text", output_path=path, progress=False)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="predictions.npz is damaged or incomplete; .*--no_resume"):
        predict_options(model, tokenizer, questions, scoring="text", output_path=path, progress=False)


def test_a_full_disk_leaves_nothing_in_the_way(tiny_tokenizers, tiny_llama, tmp_path, monkeypatch):
    """The same command works once there is space again."""
    tokenizer, questions, path = tiny_tokenizers["gpt2"], make_questions(6), tmp_path / "predictions.npz"
    settings = {"scoring": "text", "output_path": path, "progress": False}
    write = Path.write_text

    def full(self, text, *args, **kwargs):
        write(self, "")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device: predictions cannot be written"):
        predict_options(tiny_llama(tokenizer), tokenizer, questions, **settings)
    monkeypatch.undo()
    predict_options(tiny_llama(tokenizer), tokenizer, questions, **settings)

    def fill(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", fill)
    with pytest.raises(OSError, match="No space left"):
        OptionPredictions.load(path).save(tmp_path / "again.npz")
    assert os.listdir(tmp_path) == ["predictions.npz"]


def test_the_main_process_decides_what_is_resumed(tmp_path, monkeypatch):
    """Another process takes what it is told, not what an earlier run left where it looks."""
    state = SimpleNamespace(is_main_process=True, num_processes=1)
    main = ResumableScores(tmp_path / "main.npz", {"weights": "new"}, True, state)
    main.add([3], [np.array([0.0, -1.0])])
    main.flush()
    stale = ResumableScores(tmp_path / "other.npz", {"weights": "old"}, True, state)
    stale.add([1, 2], [np.array([0.0, -1.0])] * 2)
    stale.flush()

    def broadcast(found):
        assert found == [None]
        found[0] = (None, {3: np.array([0.0, -1.0])})

    monkeypatch.setattr(resumable, "broadcast_object_list", broadcast)
    other = SimpleNamespace(is_main_process=False, num_processes=2)
    assert set(ResumableScores(tmp_path / "other.npz", {"weights": "new"}, True, other).done) == {3}
    assert set(ResumableScores(tmp_path / "main.npz", {"weights": "new"}, True, state).done) == {3}


SCRIPT = """
import os, signal, sys
from unittest import mock
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from hf_calib.inference import predict, resumable
from hf_calib.training.distributed import leave_process_group

folder, kill_after = sys.argv[1], int(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(f"{folder}/model")
passes = 0

def count(*_):
    global passes
    passes += 1
    if passes == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

model.base_model.register_forward_pre_hook(count)
with mock.patch.object(resumable, "SAVE_INTERVAL", 0):
    predictions = predict.predict_options(
        model, AutoTokenizer.from_pretrained(f"{folder}/model"), load_from_disk(f"{folder}/questions"),
        batch_size=1, output_path=f"{folder}/predictions.npz",
    )
assert len(predictions) == 40
print(f"rank {os.environ.get('RANK')}: {passes} passes")
leave_process_group()
"""


def test_two_processes_resume_a_killed_one(launch, tiny_tokenizers, tiny_llama, tmp_path):
    tokenizer, questions = tiny_tokenizers["qwen"], make_questions(40)
    model = tiny_llama(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    questions.save_to_disk(tmp_path / "questions")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"), "OMP_NUM_THREADS": "1"}
    settings = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    killed = subprocess.run([sys.executable, script, tmp_path, "12"], **settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = sum(len(np.load(shard)["index"]) for shard in (tmp_path / "predictions.npz.partial").glob("*.npz"))
    assert 0 < done < 40

    launched = launch("ddp", script, tmp_path, "0")
    assert launched.returncode == 0, launched.stderr
    assert "rank 0" in launched.stdout and "rank 1" in launched.stdout and "rank 1: 0" not in launched.stdout
    predictions = OptionPredictions.load(tmp_path / "predictions.npz")
    expected = predict_options(model, tokenizer, questions, progress=False)
    assert predictions.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(predictions.option_logits, expected.option_logits, atol=1e-5)
