"""`hf-calib evaluate --endpoint`, and the commands after it."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from samples import make_questions

from hf_calib.cli.main import main
from hf_calib.inference.predictions import OptionPredictions


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "questions.parquet"
    make_questions(60).to_parquet(path)
    return path


def call(server, dataset, output_dir, *more):
    return [
        *("evaluate", "--endpoint", server.url, "--model", "tiny", "--dataset", str(dataset)),
        *("--top_logprobs", "400", "--n_bootstrap", "50", "--max_retries", "0", "--output_dir", str(output_dir)),
        *more,
    ]


def test_evaluate_and_everything_after_it(server, dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    out = tmp_path / "served"
    assert main(call(server, dataset, out, "--system_prompt", "Answer with a letter.")) == 0
    printed = capsys.readouterr()
    assert "chat/completions: sampling does not change the log-probabilities" in printed.out
    assert "0 of 60 questions lack some among the 400 likeliest tokens" in printed.out
    assert "warning: the model mostly starts its answers with something else" in printed.out  # it is a random model
    assert [message["role"] for message in server.requests[-1]["messages"]] == ["system", "user"]
    results = json.loads((out / "results.json").read_text())
    assert results["model"] == "tiny" and results["n"] == 60 and results["served/sampling"] == "untouched"
    assert results["served/api"] == "chat/completions" and 0 < results["served/listed_mass"] < 0.5
    predictions = OptionPredictions.load(out / "predictions.npz")
    assert set(predictions.metadata["fingerprint"]) == {"model", "questions", "prompts", "requests"}
    # The commands that work on predictions alone.
    assert main(["calibrate", "--predictions", str(out), "--output_dir", str(tmp_path / "calibrated")]) == 0
    assert (tmp_path / "calibrated" / "results.json").exists()
    gate = [
        "threshold",
        str(out),
        "--target_accuracy",
        "0.05",
        "--output_dir",
        str(tmp_path / "gate"),
    ]
    assert main(gate) == 0
    assert main(["measure", str(out), "--output_dir", str(tmp_path / "measured"), "--n_bootstrap", "50"]) == 0
    measured = json.loads((tmp_path / "measured" / "results.json").read_text())
    assert measured["ece"] == pytest.approx(results["ece"]) and measured["nll"] == pytest.approx(results["nll"])
    # Neither address nor token is in any file or message.
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    shown = "".join(printed) + "".join(capsys.readouterr())
    for secret in ("sk-secret-123", server.url):
        assert secret.encode() not in written and secret not in shown.replace(f"{server.url}: sampling", "")


def test_the_local_model_as_reference(server, dataset, tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    local = ["evaluate", "--model", str(folder), "--dataset", str(dataset), "--n_bootstrap", "50"]
    assert main([*local, "--output_dir", str(tmp_path / "local")]) == 0
    served = ["--tokenizer", str(folder), "--reference_predictions", str(tmp_path / "local")]
    assert main(call(server, dataset, tmp_path / "served", *served)) == 0
    assert isinstance(server.requests[-1]["prompt"][0], int)
    here, there = (OptionPredictions.load(tmp_path / name / "predictions.npz") for name in ("local", "served"))
    # The same prompts; the server's letters are those with a space, too.
    finite = np.isfinite(here.option_logits)
    assert (there.option_logits[finite] >= here.option_logits[finite] - 1e-4).all()


def test_a_killed_command_is_resumed(server, dataset, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = call(server, dataset, tmp_path / "out", "--concurrency", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_calib.cli", *arguments], env=environment, stderr=subprocess.DEVNULL
    )
    server.on_request = lambda count: process.send_signal(signal.SIGKILL) if count == 30 else None
    assert process.wait(timeout=120) == -signal.SIGKILL
    server.on_request = lambda count: None
    server.requests.clear()
    assert main(arguments) == 0
    # Of 30 requests ten were the probe's and the identity's, and the last had no answer.
    assert len(server.requests) == 10 + 60 - 19


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scoring", "text"], "scored by the letters"),
        (["--extra_body", "{"], "extra_body is no JSON"),
        (["--extra_body", "[1]"], "must be a JSON object"),
        (["--top_logprobs", "0"], "at least 2"),
        (["--tokenizer", "./nowhere"], "no folder ./nowhere"),
        (["--model", "other"], "knows no such model or address .*serves 'tiny'"),
    ],
)
def test_wrong_calls(more, message, server, dataset, tmp_path, capsys):
    assert main(call(server, dataset, tmp_path / "out", *more)) in (1, 2)
    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
