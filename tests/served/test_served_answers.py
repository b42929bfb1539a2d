"""Short answers of a served model beside those of the same model here."""

import json
import time

import numpy as np
import pytest
from datasets import Dataset

from hf_calib.cli.main import main
from hf_calib.data.prompts import PromptFormat
from hf_calib.data.short_answers import short_questions
from hf_calib.inference.answer_confidence import predict_answers
from hf_calib.inference.written_answers import WrittenAnswer
from hf_calib.served.answers import ServedAnswers, predict_served_answers
from hf_calib.served.client import Generation, ServedModel, ServedOptions
from hf_calib.served.errors import EndpointError


PLAIN = PromptFormat("text", "{question}", use_chat_template=False)


@pytest.fixture
def served(server):
    return ServedModel(server.url, "tiny", ServedOptions(concurrency=2, top_logprobs=400, max_retries=0))


@pytest.fixture
def short():
    rows = [{"question": f"What is {i} + {i}?", "answers": [str(2 * i)]} for i in range(8)]
    return short_questions(Dataset.from_list(rows))


def test_they_are_those_of_the_local_model(served, tiny_model, tokenizer, short, tmp_path):
    options = {"prompt_format": PLAIN, "max_new_tokens": 1, "num_samples": 2, "progress": False}
    there = predict_served_answers(served, short, output_dir=tmp_path, **options)
    here = predict_answers(tiny_model, tokenizer, short, confidences=("likelihood", "p_true"), **options)
    assert there.answers == here.answers
    found, expected = (each.predictions["likelihood"].outcomes[0] for each in (there, here))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert list(there.predictions) == ["likelihood", "agreement", "p_true"]
    assert all(predictions.metadata["answer_confidence"] == name for name, predictions in there.predictions.items())
    # The server's letters are counted with and without a space.
    assert there.predictions["p_true"].option_mass.min() >= here.predictions["p_true"].option_mass.min() - 1e-3


def test_a_server_that_dies_loses_no_answer(served, server, short, tmp_path):
    def options(**more):
        return {"prompt_format": PLAIN, "max_new_tokens": 1, "confidences": ("likelihood",), "progress": False, **more}

    server.on_request = lambda count: server.failures.extend([500] * 20) if count == 11 else None
    with pytest.raises(ValueError, match="so far are saved"):
        predict_served_answers(served, short, output_dir=tmp_path, **options(batch_size=8))
    saved = len((tmp_path / "answers.jsonl").read_text().splitlines())
    assert 0 < saved < 8
    server.on_request = lambda count: None
    server.failures.clear()
    before = len(server.requests)
    found = predict_served_answers(served, short, output_dir=tmp_path, **options())
    assert len(found.answers) == 8
    # What is saved needs neither a request nor a probe.
    sent_before = len(server.requests)
    again = predict_served_answers(served, short, output_dir=tmp_path, **options())
    assert again.answers == found.answers
    assert len(server.requests) == sent_before
    sent = [request["prompt"] for request in server.requests[before:]]
    assert len(set(sent)) <= 8 - saved + 1  # those that were missing, and the prompt of the probe


def test_a_judgement_that_is_too_long_is_left_out(served, server, tokenizer, tmp_path):
    # The question fits into the context once, not twice.
    words = "ice " * (server.model.config.max_position_embeddings * 2 // 3)
    length = len(tokenizer(words)["input_ids"])
    words = words[: 4 * (len(words) // 4 * server.model.config.max_position_embeddings * 2 // 3 // length)]
    rows = [{"question": text, "answers": ["2"]} for text in ("What is 1 + 1?", words, "What is ice?")]
    options = {"prompt_format": PLAIN, "judgement_template": "{question} {question} {answer}", "max_new_tokens": 1}
    options |= {"confidences": ("likelihood", "p_true"), "output_dir": tmp_path, "progress": False}
    with pytest.raises(ValueError, match="--drop_too_long true"):
        predict_served_answers(served, Dataset.from_list(rows), **options)
    found = predict_served_answers(served, Dataset.from_list(rows), drop_too_long=True, **options)
    assert len(found.answers) == len(found.predictions["likelihood"]) == 3
    judged = found.predictions["p_true"]
    assert judged.metadata["too_long"] == 1
    assert judged.ids.tolist() == [found.questions["id"][0], found.questions["id"][2]]


def test_likelihoods_from_after_sampling_are_refused(served, server, short):
    server.processed = True
    with pytest.raises(EndpointError, match="from before sampling"):
        predict_served_answers(served, short, prompt_format=PLAIN, confidences=("likelihood",), progress=False)


def test_answers_that_were_saved_without_a_probe_have_no_likelihood(served, server, short, tmp_path):
    options = {"prompt_format": PLAIN, "max_new_tokens": 1, "num_samples": 1, "progress": False}
    server.processed = True
    predict_served_answers(served, short, confidences=("agreement",), output_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="has no log-probabilities: .*--no_resume"):
        predict_served_answers(served, short, confidences=("likelihood",), output_dir=tmp_path, **options)
    server.processed = False
    options |= {"confidences": ("likelihood",), "output_dir": tmp_path, "resume": False}
    assert predict_served_answers(served, short, **options).predictions["likelihood"].outcomes[0].min() > 1e-6


def test_a_judgement_that_no_server_can_score_is_refused_before_the_answers(served, server, short):
    with pytest.raises(ValueError, match="scored by the letters"):
        predict_served_answers(served, short, judgement_format=PromptFormat("text"), progress=False)
    assert not server.requests


@pytest.mark.parametrize(
    ("generation", "answer"),
    [
        (Generation("Paris", [" Par", "is", "<eos>"], [-1.0, -2.0, -3.0], True), WrittenAnswer("Paris", (-1.0, -2.0))),
        (Generation(" red\nblue", [" red", "\n", "blue"], [-1.0, -2.0, -3.0], True), WrittenAnswer("red", (-1.0,))),
        (Generation("é\nb", ["\ufffd", "\ufffd", "\n", "b"], [-1.0] * 4, True), WrittenAnswer("é", (-1.0, -1.0))),
        (Generation("", [], [], True), WrittenAnswer("")),
        # the end is listed beside tokens that are not spelled as the text
        (
            Generation("é", ["\ufffd", "\ufffd", "<|im_end|>"], [-1.0, -2.0, -3.0], True),
            WrittenAnswer("é", (-1.0, -2.0)),
        ),
        (Generation("é", ["", "", "</s>"], [-1.0, -2.0, -3.0], True), WrittenAnswer("é", (-1.0, -2.0))),
        (Generation("red", ["▁red", "</s>"], [-1.0, -2.0], True), WrittenAnswer("red", (-1.0,))),
        # no end is listed
        (Generation("é", ["<0xC3>", "<0xA9>"], [-1.0, -2.0], True), WrittenAnswer("é", (-1.0, -2.0))),
        (Generation("▁ <br>", ["\ufffd", "<br>"], [-1.0, -2.0], True), WrittenAnswer("▁ <br>", (-1.0, -2.0))),
    ],
)
def test_the_first_line_is_the_answer(generation, answer):
    assert ServedAnswers._answer(generation) == answer


def test_the_command(server, tmp_path, capsys):
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(6)]
    (tmp_path / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
    call = ["evaluate", "--endpoint", server.url, "--model", "tiny", "--dataset", str(tmp_path / "short.jsonl")]
    call += ["--top_logprobs", "400", "--n_bootstrap", "20", "--num_samples", "2", "--max_new_tokens", "1"]
    assert main([*call, "--output_dir", str(tmp_path / "out")]) == 0
    for name in ("likelihood", "agreement", "p_true"):
        assert json.loads((tmp_path / "out" / name / "results.json").read_text())["n"] == 6
    assert "6 answers" in capsys.readouterr().out


def test_with_the_tokenizer_the_prompts_are_those_of_the_local_model(served, server, tiny_model, tokenizer, short):
    options = {"max_new_tokens": 1, "confidences": ("likelihood", "p_true"), "progress": False}
    there = predict_served_answers(served, short, tokenizer, **options)
    here = predict_answers(tiny_model, tokenizer, short, **options)
    assert there.answers == here.answers
    assert all(isinstance(request["prompt"][0], int) for request in server.requests[-8:])
    for name in options["confidences"]:
        stated = [each.predictions[name].metadata for each in (there, here)]
        assert stated[0]["prompt_digest"] == stated[1]["prompt_digest"]
        assert stated[0]["answering"] == stated[1]["answering"]


def test_a_batch_has_as_many_questions_as_there_may_be_requests(server, short):
    served = ServedModel(server.url, "tiny", ServedOptions(concurrency=6, top_logprobs=400, max_retries=0))
    server.on_request = lambda count: time.sleep(0.05)
    options = {"prompt_format": PLAIN, "max_new_tokens": 1, "confidences": ("likelihood",), "progress": False}
    predict_served_answers(served, short, batch_size=2, **options)
    assert server.most_running > 3
