"""Letters scored by a server: the same figures as here, what is missing, the probe, and resuming."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import make_questions

from hf_calib.data.prompts import ONE_TURN_TEMPLATE, PromptFormat
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.served.client import ServedModel, ServedOptions
from hf_calib.served.errors import EndpointError
from hf_calib.served.predict import predict_served_options


CHECKS = 4 + 6  # requests before the first question: the probe, and the identity of the model


def predict(server, questions, tokenizer=None, served=None, **options):
    fields = {"top_logprobs": len(server.tokenizer), "max_retries": 2, **(served or {})}
    model = ServedModel(server.url, "tiny", ServedOptions(**fields))
    return predict_served_options(model, questions, tokenizer, progress=False, **options)


def letter_masses(model, tokenizer, questions, prompt_format):
    """Probability of each letter with and without a space, by transformers."""
    rows, vocabulary = [], tokenizer.get_vocab()
    for row in questions:
        prompt, _, _ = prompt_format.render(tokenizer, row["question"], row["choices"])
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].float()
        found = logits.softmax(-1)
        letters = prompt_format.letters(len(row["choices"]))
        rows.append([sum(float(found[vocabulary[t]]) for t in (x, f"Ġ{x}") if t in vocabulary) for x in letters])
    return rows


@pytest.mark.parametrize("kind", ["chat", "token ids", "text"])
def test_figures_are_those_of_transformers(kind, server, questions, tiny_model, tokenizer):
    prompt_format = PromptFormat(use_chat_template=False if kind == "text" else None, system_prompt="Letters.")
    given = tokenizer if kind == "token ids" else None
    predictions = predict(server, questions, given, prompt_format=prompt_format)
    if kind == "chat":  # the server begins the assistant's turn itself
        prompt_format = replace(prompt_format, prompt_template=ONE_TURN_TEMPLATE)
    expected = letter_masses(tiny_model, tokenizer, questions, prompt_format)
    for row, masses in zip(predictions.option_logits, expected, strict=True):
        np.testing.assert_allclose(np.exp(row[np.isfinite(row)]), masses, rtol=1e-4)
    assert predictions.ids.tolist() == questions["id"] and predictions.labels.tolist() == questions["answer"]
    np.testing.assert_allclose(predictions.option_mass, [sum(masses) for masses in expected], rtol=1e-4)
    served = predictions.metadata["served"]
    assert served["api"] == ("chat/completions" if kind == "chat" else "completions")
    assert served["missing_letters"] == 0 and served["sampling"] == "untouched"
    assert served["listed_mass"] == pytest.approx(np.mean([sum(masses) for masses in expected]), rel=1e-4)
    # Requests are made at temperature 0 where it makes no difference.
    assert {request["temperature"] for request in server.requests[-len(questions) :]} == {0}


def test_missing_letters_share_what_is_left(server, questions):
    every = predict(server, questions)
    some = predict(server, questions, served={"top_logprobs": 60})
    assert 0 < some.metadata["served"]["missing_letters"] <= len(questions)
    assert some.metadata["served"]["listed_mass"] < every.metadata["served"]["listed_mass"]
    listed = np.isclose(some.option_logits, every.option_logits, atol=1e-3)
    assert listed.mean() > 0.1 and not listed.all()
    finite = np.isfinite(every.option_logits)
    assert (np.isfinite(some.option_logits) == finite).all()
    # A spelling that is not listed has no more than the smallest listed token, and a letter has two spellings.
    assert (some.option_logits[finite & ~listed] > every.option_logits[finite & ~listed] - np.log(2) - 1e-3).all()


def test_sampling_that_changes_log_probabilities_is_found(server, questions, caplog):
    expected = predict(server, questions)
    server.processed = True
    with caplog.at_level(logging.WARNING):
        predictions = predict(server, questions)
    assert "sampling changes the log-probabilities" in caplog.text and "raw_logprobs" in caplog.text
    assert predictions.metadata["served"]["sampling"] == "touched"
    assert predictions.metadata["served"]["sampling_difference"] > 0.5
    # At temperature 1 and top_p 1 they are those of the model all the same.
    np.testing.assert_allclose(predictions.option_logits, expected.option_logits, atol=1e-4)
    server.processed, server.refused_temperatures = False, (0.0, 2.0)
    with caplog.at_level(logging.WARNING):
        assert predict(server, questions).metadata["served"]["sampling"] == "unknown"
    assert "is not known" in caplog.text


def test_failures_that_pass_are_repeated(server, questions):
    expected = predict(server, questions)
    server.failures.extend([429, 500, "no json", "cut", "empty", "part of a character", 503, '{"choices": 7}', "cut"])
    found = predict(server, questions, served={"max_retries": 4})
    np.testing.assert_array_equal(found.option_logits, expected.option_logits)
    assert not server.failures


def test_so_many_requests_at_a_time(server, questions):
    server.on_request = lambda count: torch.arange(10**6).double().sort()
    predict(server, questions, served={"concurrency": 3})
    assert 1 < server.most_running <= 3


def test_a_server_that_dies_is_resumed_from(server, questions, tmp_path):
    path = tmp_path / "new" / "predictions.npz"
    expected = predict(server, questions)
    server.requests.clear()

    def die(count):
        if count == CHECKS + 8:
            server.failures.extend(["cut"] * 1000)

    server.on_request = die
    settings = {"served": {"max_retries": 0, "concurrency": 2}, "output_path": path}
    with pytest.raises(
        EndpointError, match=r"cannot be reached .*is the server running\? \(\d+ of 24 answers are saved"
    ):
        predict(server, questions, **settings)
    log = path.with_name("predictions.npz.partial") / "answers.jsonl"
    saved = [key for line in log.read_text().splitlines() for key in json.loads(line) if key != "probe"]
    assert 8 - 2 <= len(saved) < 8 + 2  # at most two were under way
    server.stop()
    with pytest.raises(EndpointError, match="cannot be reached"):
        predict(server, questions, **settings)
    server.start()
    server.on_request = lambda count: None
    server.failures.clear()
    server.requests.clear()
    # A line that was cut short by a crash is requested again.
    log.write_text(log.read_text() + '{"23": [["A", -0.')
    with pytest.raises(ValueError, match="holds predictions with other questions and prompts"):
        predict(server, questions.select(range(20)), **settings)
    with pytest.raises(ValueError, match="holds predictions with other requests"):
        predict(server, questions, output_path=path, served={"top_logprobs": 100})
    resumed = predict(server, questions, **settings)
    assert len(server.requests) == CHECKS + len(questions) - len(saved)
    np.testing.assert_array_equal(resumed.option_logits, expected.option_logits)
    assert [each.name for each in path.parent.iterdir()] == ["predictions.npz"]
    # What is finished needs no server.
    server.stop()
    again = predict(server, questions, **settings)
    np.testing.assert_array_equal(again.option_logits, OptionPredictions.load(path).option_logits)
    server.start()


def test_answers_before_a_refused_question_are_saved(server, questions, tmp_path):
    path = tmp_path / "predictions.npz"
    long = make_questions(3).to_list()
    long[1] |= {"question": "long " * 600}
    rows = questions.from_list([{**row, "id": f"more-{i}"} for i, row in enumerate(long)] + questions.to_list())
    with pytest.raises(ValueError, match="question 'more-1': .*maximum context length .*--drop_too_long true"):
        predict(server, rows, output_path=path, served={"concurrency": 1})
    server.requests.clear()
    found = predict(server, rows, output_path=path, drop_too_long=True, served={"concurrency": 1})
    assert len(found) == len(rows) - 1 and found.metadata["too_long"] == 1
    assert len(server.requests) == CHECKS + len(rows) - 1  # the first question was answered before


def test_empty_answers(server, questions, tmp_path):
    def empty(count):
        if count == 10:
            server.failures.extend(["empty"] * 4)

    server.on_request = empty
    with pytest.raises(ValueError, match="the answer is empty; --drop_unanswered true"):
        predict(server, questions, served={"concurrency": 1})
    server.requests.clear()
    found = predict(server, questions, served={"concurrency": 1, "drop_unanswered": True})
    assert len(found) == len(questions) - 1 and found.metadata["served"]["unanswered"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sent_logprobs": 0},
            "without log-probabilities: .*does the server support `logprobs`|tiny .*must support `logprobs`",
        ),
        ({"sent_logprobs": 3}, "sends the 3 likeliest tokens, fewer than the 5 options .*--max-logprobs"),
        ({"most_logprobs": 20}, "Requested logprobs of .* Set --top_logprobs to what this server allows"),
        ({"name": "other"}, "does not serve 'tiny' but 'other'|serves 'other'"),
        ({"token": "right"}, "refuses the token .*OPENAI_API_KEY, or HF_TOKEN"),
        ({"failures": ["<html>Welcome</html>"] * 3}, "something else than a completion, '<html>.*ends in /v1"),
        ({"failures": ["empty"] * 9}, "answers the first question with nothing"),
        ({"failures": ['{"choices": [7]}'] * 9}, "answers the first question with nothing"),
        ({"failures": [500] * 9}, r"fails \(status 500\): failure 500"),
        ({"failures": [429] * 9}, "limits the rate of requests .*lower the concurrency"),
        ({"failures": [400]}, r"refuses a request \(status 400\): failure 400"),
    ],
)
def test_servers_that_cannot_be_used(change, message, server, questions):
    for name, value in change.items():
        setattr(server, name, type(server.failures)(value) if name == "failures" else value)
    with pytest.raises((EndpointError, ValueError), match=message):
        predict(server, questions)


def test_letters_in_no_answer(server, questions, monkeypatch):
    answer = server.answer

    def written_out(*arguments):
        written, likeliest = answer(*arguments)
        return written, [(f"{token}.", value) for token, value in likeliest]

    monkeypatch.setattr(server, "answer", written_out)
    with pytest.raises(ValueError, match="none of the first 20 answers lists a letter .*starts its answers otherwise"):
        predict(server, questions, served={"concurrency": 1})
    assert len(server.requests) < CHECKS + 24


def test_another_tokenizer(server, questions, tiny_tokenizers):
    plain = PromptFormat(use_chat_template=False)
    with pytest.raises(ValueError, match="tokens, the server into .*give the tokenizer of the served model"):
        predict(server, questions, tiny_tokenizers["llama"], prompt_format=plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_format": PromptFormat("text")}, "scored by the letters"),
        ({"option_normalization": "mean"}, "scored by the letters"),
        ({"max_length": 5}, "max_length needs the tokenizer"),
        ({"served": {"top_logprobs": 4}}, "a question has 5 options"),
    ],
)
def test_calls_that_make_no_sense(options, message, server, questions):
    with pytest.raises(ValueError, match=message):
        predict(server, questions, **options)
    assert not server.requests
