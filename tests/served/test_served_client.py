"""The client of a served model: endpoints, the token, generation."""

import logging
import sys

import pytest

from hf_calib import extras
from hf_calib.served import client
from hf_calib.served.client import RequestSampling, ServedModel, ServedOptions
from hf_calib.served.errors import EndpointError, RequestRefusedError


MESSAGES = [{"role": "user", "content": "What is ice?"}]


@pytest.mark.parametrize(
    "endpoint",
    ["localhost:8000/v1", "ftp://host/v1", "http://", "http://me:hunter2@host/v1", "http://host/v1?key=hunter2"],
)
def test_endpoints_that_are_refused(endpoint):
    with pytest.raises(ValueError, match="must be a URL such as http://localhost:8000/v1") as refused:
        ServedModel(endpoint, "tiny")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "at least 1"),
        ({"top_logprobs": 1}, "at least 2"),
        ({"max_retries": -1}, "at least 0"),
        ({"timeout": 0.0}, "must be positive"),
        ({"extra_body": {"model": "x"}}, "which every request sets itself"),
        ({"extra_body": {"temperature": 0.5}}, "sets 'temperature', which every request sets itself"),
    ],
)
def test_options_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        ServedOptions(**options)


@pytest.mark.parametrize(
    ("endpoint", "environment", "token"),
    [
        ("http://localhost:8000/v1", {"OPENAI_API_KEY": "sk-1", "HF_TOKEN": "hf_1"}, "sk-1"),
        ("http://localhost:8000/v1", {"HF_TOKEN": "hf_1"}, None),
        ("https://huggingface.co.example.org/v1", {"HF_TOKEN": "hf_1"}, None),
        ("https://router.huggingface.co/v1", {"HF_TOKEN": "hf_1"}, "hf_1"),
        ("https://huggingface.co/v1", {"HF_TOKEN": "hf_1"}, "hf_1"),
        ("https://nothuggingface.co/v1", {"HF_TOKEN": "hf_1"}, None),
        ("https://someone-space.hf.space/v1", {"HF_TOKEN": "hf_1"}, None),
        ("https://a.us-east-1.aws.endpoints.huggingface.cloud/v1", {"HF_TOKEN": "hf_1"}, None),
        ("https://a.us-east-1.aws.endpoints.huggingface.cloud/v1", {"OPENAI_API_KEY": "hf_1"}, "hf_1"),
        ("http://router.huggingface.co/v1", {"HF_TOKEN": "hf_1"}, None),
        ("https://router.huggingface.co/v1", {}, None),
    ],
)
def test_the_token_of_the_hub_goes_to_hosts_that_hugging_face_owns(endpoint, environment, token, monkeypatch):
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert client._token(endpoint) == token


def test_the_token_is_sent_and_never_shown(server, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    server.token = "sk-secret-123"
    with caplog.at_level(logging.DEBUG):
        model = ServedModel(server.url, "tiny", ServedOptions(top_logprobs=5, max_retries=0))
        assert len(model.likeliest(MESSAGES)) in (5, 6)
        assert server.tokens_seen == {"sk-secret-123"}
        server.token = "another"  # the server repeats the token that it refuses
        with pytest.raises(EndpointError, match=r"Incorrect API key provided: \*\*\*") as refused:
            model.likeliest(MESSAGES)
        server.failures.append("<p>sk-secret-123</p>")
        server.token = None
        server.failures.extend(["<p>sk-secret-123</p>" + "x" * 90 + "sk-secret-123"] * 2)
        with pytest.raises(EndpointError, match=r"<p>\*\*\*</p>") as garbage:
            model.likeliest(MESSAGES)
    assert "sk-secret" not in f"{refused.value}{garbage.value}{caplog.text}{model!r}{vars(model.options)}"
    for error in (refused.value, garbage.value):
        assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)


def test_written_answers_have_log_probabilities(server, tokenizer):
    model = ServedModel(server.url, "tiny", ServedOptions())
    written = model.generate(MESSAGES, RequestSampling(temperature=0.7, top_p=0.9, max_tokens=4, seed=3, stop=("\n",)))
    assert written.text == "".join(written.tokens) and len(written.log_probabilities) == len(written.tokens) == 1
    assert written.log_probabilities[0] < 0 and not written.finished
    sent = server.requests[-1]
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"], sent["seed"]) == (0.7, 0.9, 4, 3)
    assert sent["stop"] == ["\n"] and sent["model"] == "tiny"
    server.failures.append("empty")
    nothing = model.generate("Ice is", RequestSampling(max_tokens=4))
    assert nothing.text == "" and nothing.tokens == [] and nothing.finished
    server.sent_logprobs = 0
    with pytest.raises(EndpointError, match="sends no log-probabilities"):
        model.generate(MESSAGES, RequestSampling())


def test_requests_at_the_same_time_end_with_the_first_that_fails(server):
    model = ServedModel(server.url, "tiny", ServedOptions(concurrency=2, max_retries=0, top_logprobs=2))
    server.on_request = lambda count: server.failures.extend(["cut"] * 100) if count == 5 else None
    done = []
    with pytest.raises(EndpointError, match="cannot be reached"):
        for item, answer in model.concurrently(lambda i: model.likeliest(MESSAGES), range(50)):
            done.append(item)
            assert len(answer) >= 2
    assert 3 <= len(done) <= 5 and len(server.requests) < 10


def test_an_interrupt_ends_at_once(server):
    model = ServedModel(server.url, "tiny", ServedOptions(concurrency=2, max_retries=0, top_logprobs=2))
    answers = model.concurrently(lambda i: model.likeliest(MESSAGES), range(50))
    next(answers)
    with pytest.raises(KeyboardInterrupt):
        answers.throw(KeyboardInterrupt)
    assert len(server.requests) < 10


@pytest.mark.parametrize(
    ("words", "too_long"),
    [
        ("This model's maximum context length is 4096 tokens. However, you requested 5001 tokens", True),  # vLLM
        (
            "request (6031 tokens) exceeds the available context size (2048 tokens), try increasing it",
            True,
        ),  # llama.cpp
        ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", True),  # SGLang
        ("`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 1", True),  # TGI
        ("`top_n_tokens` must be >= 0 and <= 5. Given: 20", False),
        ("Prompt contains invalid tokens", False),
    ],
)
def test_words_of_servers_for_a_question_that_is_too_long(words, too_long):
    assert RequestRefusedError(words).too_long is too_long


def test_without_the_package_openai(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError) as error:
        ServedModel("http://localhost:8000/v1", "tiny")
    assert 'pip install "hf_calib[served]"' in str(extras.with_advice(error.value))
