"""Logs of inspect_ai, as json and as `.eval` files with each compression that it uses."""

import io
import json
import zipfile
from math import log

import numpy as np
import pyarrow as pa
import pytest

from hf_calib.prediction_files.read import read_predictions


LIKELIEST = [
    {" A": 0.5, "A": 0.125, " B": 0.25},
    {"\u0120C": 0.5, "B": 0.25, "A": 0.125, "D": 0.0625},
]
EXPECTED = [[0.625, 0.25, 0.0625, 0.0625], [0.125, 0.25, 0.5, 0.0625]]


def sample(row, epoch=1, target="A", **more):
    top = [{"token": token, "logprob": log(p)} for token, p in LIKELIEST[row].items()]
    tokens = [
        {"token": token, "logprob": -0.1, "top_logprobs": [{"token": token, "logprob": -0.1}]}
        for token in ("ANSWER", ":")
    ]
    content = [*tokens, {**top[0], "top_logprobs": top}]
    return {
        "id": f"q{row}",
        "epoch": epoch,
        "input": "?",
        "choices": ["one", "two", "three", "four"],
        "target": target,
        "output": {"model": "m", "choices": [{"message": {"content": "ANSWER: A"}, "logprobs": {"content": content}}]},
        "scores": {"choice": {"value": "C", "answer": "AC"[row]}},
        **more,
    }


def write_json(path, samples):
    log_file = {"version": 2, "status": "success", "eval": {"task": "arc", "model": "openai/m"}, "samples": samples}
    path.write_text(json.dumps(log_file, indent=2))
    return path


def write_eval(path, samples, compression):
    """A `.eval` file. Zstandard, which zipfile cannot write on Python 3.11, is stored and then declared."""
    stored = {f"samples/{each['id']}_epoch_{each['epoch']}.json": json.dumps(each).encode() for each in samples}
    stored["header.json"] = json.dumps({"version": 2, "eval": {"task": "arc", "model": "openai/m"}}).encode()
    if compression != "zstd":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in stored.items():
                archive.writestr(name, content)
        return path
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in stored.items():
            packed = pa.BufferOutputStream()
            with pa.CompressedOutputStream(packed, "zstd") as stream:
                stream.write(content)
            archive.writestr(name, packed.getvalue().to_pybytes())
        for member in archive.infolist():
            member.compress_type = 93
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("kind", ["json", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, "zstd"])
def test_probabilities_of_letters_behind_the_announced_answer(tmp_path, kind):
    samples = [sample(0), sample(1, target="C")]
    path = (
        write_json(tmp_path / "log.json", samples)
        if kind == "json"
        else write_eval(tmp_path / "log.eval", samples, kind)
    )
    predictions = read_predictions(path)
    np.testing.assert_allclose(np.exp(predictions.option_logits), EXPECTED)
    assert predictions.labels.tolist() == [0, 2] and predictions.ids.tolist() == ["q0", "q1"]
    assert predictions.metadata["model"] == "openai/m" and predictions.metadata["task"] == "arc"
    assert "notes" not in predictions.metadata


def test_epochs_and_scores_that_differ_are_noted(tmp_path):
    samples = [sample(0), sample(0, epoch=2, scores={"choice": {"value": "I"}})]
    predictions = read_predictions(write_json(tmp_path / "log.json", samples))
    assert predictions.ids.tolist() == ["q0_epoch_1", "q0_epoch_2"]
    assert ["2 epochs" in note or "1 of 2 samples" in note for note in predictions.metadata["notes"]] == [True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "the sample has no choices"),
        ({"error": {"message": "timeout"}}, r"the sample failed \(timeout\)"),
        ({"output": {"choices": [{"logprobs": None}]}}, "evaluate with --logprobs --top-logprobs 20"),
        ({"target": ["A", "B"]}, "2 right options"),
        ({"scores": {"choice": {"value": "C", "answer": "B"}}}, "the solver shuffled the options"),
    ],
)
def test_faulty_samples(tmp_path, change, message):
    path = write_json(tmp_path / "log.json", [sample(0), sample(1, **change)])
    with pytest.raises(ValueError, match=f"log.json: sample 2: .*{message}"):
        read_predictions(path)


def test_samples_without_a_target(tmp_path):
    path = write_json(tmp_path / "log.json", [sample(0), sample(1, target="")])
    with pytest.raises(ValueError, match="1 of 2 questions have no right option, the first of them 'q1'"):
        read_predictions(path)
