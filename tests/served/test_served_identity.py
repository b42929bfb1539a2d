"""Another model under the same name is not taken for the first: when a run resumes, and behind a gate."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from samples import make_questions

from hf_calib import Gate, SelectiveAnswerer
from hf_calib.cli.main import main
from hf_calib.data.short_answers import short_questions
from hf_calib.served.answers import predict_served_answers
from hf_calib.served.client import RequestSampling, ServedModel, ServedOptions
from hf_calib.served.errors import EndpointError
from hf_calib.served.identity import ServedIdentity
from hf_calib.served.predict import predict_served_options


REQUESTS = ["--top_logprobs", "400", "--max_retries", "0"]


def connect(server):
    return ServedModel(server.url, "tiny", ServedOptions(concurrency=1, top_logprobs=400, max_retries=0))


@pytest.fixture
def other(tiny_model):
    """The same model in other weights."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    return model


@pytest.fixture
def short():
    rows = [{"question": f"What is {i} + {i}?", "answers": [str(2 * i)]} for i in range(6)]
    return short_questions(Dataset.from_list(rows))


def stop_after(server, count):
    server.on_request = lambda sent: server.failures.extend([500] * 50) if sent == count else None


def resume_with(server, model):
    server.on_request, server.model = (lambda count: None), model
    server.failures.clear()


@pytest.mark.parametrize("kind", ["options", "answers"])
def test_a_run_is_not_resumed_with_another_model(server, other, tmp_path, short, kind):
    def run(**more):
        options = {"progress": False, **more}
        if kind == "options":
            return predict_served_options(
                connect(server), make_questions(12), output_path=tmp_path / "found.npz", **options
            )
        options |= {"output_dir": tmp_path, "max_new_tokens": 1, "confidences": ("agreement",), "num_samples": 1}
        return predict_served_answers(connect(server), short, batch_size=1, **options)

    model = server.model
    stop_after(server, 15 if kind == "options" else 10)
    with pytest.raises((EndpointError, ValueError), match="saved"):
        run()
    resume_with(server, other)
    with pytest.raises(EndpointError, match="serves another model as 'tiny' .* nats on average; choose another"):
        run()
    resume_with(server, model)
    found = run()
    # What is finished is taken as it is; to start over is possible with any model.
    resume_with(server, other)
    assert len(run().ids if kind == "options" else run().answers) == (12 if kind == "options" else 6)
    assert run(resume=False) is not None and found is not None


def test_what_the_server_states(server, caplog):
    server.stated = {"owned_by": "llamacpp", "created": 1, "meta": {"n_params": 7, "size": 4}}
    first = ServedIdentity.request(connect(server), chat=True)
    assert first.stated == {"owned_by": "llamacpp", "n_params": 7, "size": 4} and first.repeat_difference == 0
    assert ServedIdentity.of(json.loads(json.dumps(first.as_dict()))) == first
    server.stated["owned_by"] = "vllm"
    assert first.difference(ServedIdentity.request(connect(server), chat=True)) is None
    assert "states owned_by 'vllm' instead of 'llamacpp'; its log-probabilities agree" in caplog.text
    server.stated["meta"] = {"n_params": 7, "size": 8}
    found = first.difference(ServedIdentity.request(connect(server), chat=True))
    assert found == "the server states size 8 instead of 4"


@pytest.mark.parametrize("prompt", [[{"role": "user", "content": "Ice is"}], "Ice is"])
def test_a_server_that_wants_another_name_of_the_limit(server, prompt):
    server.limit_name = "max_completion_tokens"
    served = connect(server)
    for _ in range(3):
        assert served.likeliest(prompt)
    names = [name for request in server.requests for name in request if name.startswith("max_")]
    chat = isinstance(prompt, list)
    assert names == (["max_tokens"] + ["max_completion_tokens"] * 3 if chat else ["max_tokens"] * 3)
    server.limit_name = "max_output_tokens"
    if chat:  # a third name is not guessed
        with pytest.raises(ValueError, match="Use 'max_output_tokens' instead"):
            served.likeliest(prompt, RequestSampling())


@pytest.fixture
def gated(server, tmp_path):
    """Evaluations of a served model and their gates."""
    make_questions(60).to_parquet(tmp_path / "labelled.parquet")
    make_questions(20, seed=1).to_parquet(tmp_path / "new.parquet")
    rows = [{"question": f"What is {i} + {i}?", "answers": ["x", str(2 * i)]} for i in range(40)]
    (tmp_path / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ["evaluate", "--endpoint", server.url, "--model", "tiny", *REQUESTS, "--n_bootstrap", "10"]
    target = ["--target_accuracy", "0.001", "--level", "0.2"]
    options, short = str(tmp_path / "options"), str(tmp_path / "short")
    assert main([*asked, "--dataset", str(tmp_path / "labelled.parquet"), "--output_dir", options]) == 0
    assert main(["threshold", options, *target, "--output_dir", str(tmp_path / "options-gate")]) == 0
    asked += ["--max_new_tokens", "1", "--confidence", "p_true"]
    assert main([*asked, "--dataset", str(tmp_path / "short.jsonl"), "--output_dir", short]) == 0
    gate = Gate.load(tmp_path / "options-gate")
    gate.fingerprint = Gate.fit(with_right(short), 0.1, 0.5).fingerprint
    gate.save(tmp_path / "short-gate.json")
    return tmp_path


def with_right(folder):
    from hf_calib import OptionPredictions

    predictions = OptionPredictions.load(f"{folder}/p_true/predictions.npz")
    predictions.labels[:] = 0
    return predictions


@pytest.mark.parametrize(("gate", "dataset"), [("options-gate", "new.parquet"), ("short-gate.json", "short.jsonl")])
def test_answers_behind_a_gate(server, other, gated, gate, dataset, capsys):
    call = ["answer", "--endpoint", server.url, "--model", "tiny", *REQUESTS, "--gate", str(gated / gate)]
    call += ["--dataset", str(gated / dataset), "--output", str(gated / "answers.jsonl")]
    assert main(call) == 0
    rows = [json.loads(line) for line in (gated / "answers.jsonl").read_text().splitlines()]
    threshold = Gate.load(gated / gate).thresholds[""].threshold
    assert all(row["answered"] == (row["confidence"] >= threshold) for row in rows)
    assert main(["threshold", "--check", str(gated / gate), str(gated / "answers.npz")]) in (0, 1)
    question = {"question": "1 + 1", **({"choices": ["1", "2"]} if gate == "options-gate" else {})}
    assert len(SelectiveAnswerer(connect(server), None, gated / gate)([question])) == 1
    capsys.readouterr()
    assert main([*call, "--extra_body", '{"top_k": 1}']) == 2
    assert "differs from the gate in its requests to the server (extra_body)" in capsys.readouterr().err
    server.model = other
    assert main(call) == 2
    assert "runs another model than the gate, under the same name: its log-prob" in capsys.readouterr().err
    place = call.index("--gate")
    assert main([*call[:place], *call[place + 2 :]]) == 2
    assert "give --gate: none is published" in capsys.readouterr().err


def test_verify(server, other, gated, capsys):
    call = ["verify", str(gated / "options"), "--endpoint", server.url, *REQUESTS]
    call += ["--dataset", str(gated / "labelled.parquet"), "--gate", str(gated / "options-gate")]
    assert main(call) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "60 of its 60 questions" in printed and "The gate is of this model" in printed
    assert "coverage, of the gate" in printed and "figures hold" in printed
    server.model = other
    assert main(call) == 1
    assert "does not hold: " in (found := capsys.readouterr().err) and "another model than the gate" in found
