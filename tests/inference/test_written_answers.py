"""Answers that a model writes, and their confidences."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_calib.data.prompts import PromptFormat
from hf_calib.data.short_answers import short_questions
from hf_calib.inference.answer_confidence import predict_answers
from hf_calib.inference.answer_files import write_answers
from hf_calib.inference.encoding import QuestionTooLongError
from hf_calib.inference.written_answers import (
    AnswerWriter,
    ModelAnswers,
    Sampling,
    WrittenAnswer,
    agreement,
    first_line,
    likelihood,
)


PLAIN = PromptFormat("text", "{question}")


@pytest.fixture
def questions():
    asked = ["What colour is the sky?", "Ice is", "The largest planet of the solar system is", "helium or oxygen?"]
    return short_questions(Dataset.from_list([{"question": text, "answers": ["blue", "cold"]} for text in asked]))


@pytest.fixture
def source(models, tokenizer):
    return ModelAnswers(models[0], tokenizer, PLAIN, max_new_tokens=6)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(3, 0.5, seed=1)])
def test_log_probs_are_those_of_the_model(source, models, questions, sampling, monkeypatch):
    written = []
    monkeypatch.setattr(source, "_answer", lambda tokens, log_probs, ends: written.append((tokens, log_probs)))
    source(list(questions), sampling)
    assert len(written) == len(questions) * sampling.num_samples
    for place, (tokens, log_probs) in enumerate(written):
        prompt = source.prompt(questions[place // sampling.num_samples])
        length = next((n for n, token in enumerate(tokens, 1) if token == models[0].config.eos_token_id), len(tokens))
        with torch.no_grad():
            logits = models[0](torch.tensor([prompt + tokens[:length]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(length), tokens[:length]]
        np.testing.assert_allclose(log_probs[:length], expected.numpy(), rtol=1e-3, atol=1e-3)
        if not sampling.temperature:
            assert logits.argmax(-1).tolist() == tokens[:length]


def test_a_batch_is_answered_as_alone(source, questions):
    together = source(list(questions), Sampling())
    for row, answers in zip(questions, together, strict=True):
        (alone,) = source([row], Sampling())[0]
        assert alone.text == answers[0].text
        np.testing.assert_allclose(alone.log_probs, answers[0].log_probs, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "line"), [("\n\n Paris \nLyon", "Paris"), ("", ""), (" \n ", ""), ("a\r\nb", "a"), ("Paris", "Paris")]
)
def test_the_answer_is_the_first_line(text, line):
    assert first_line(text) == line


def test_the_line_break_and_the_end_are_not_part_of_the_answer(source, tokenizer):
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    words = tokenizer("cold", add_special_tokens=False)["input_ids"]
    ends = [tokenizer.eos_token_id]
    log_probs = [-1.0] * 50
    for tokens in (words + newline + words, words + ends + words, newline + words + newline):
        answer = source._answer(tokens, log_probs, ends)
        assert answer.text == "cold"
        assert len(answer.log_probs) == len(words) + (tokens[0] == newline[0])
    assert source._answer(ends + words, log_probs, ends) == WrittenAnswer("")


def test_confidences_of_an_answer():
    answer = WrittenAnswer("red", (np.log(0.5), np.log(0.125)))
    assert likelihood(answer) == pytest.approx(0.25)
    assert likelihood(answer, mean=False) == pytest.approx(1 / 16)
    samples = [WrittenAnswer(text) for text in ("Red.", "the red", "blue", "")]
    assert agreement("red", samples) == pytest.approx(2.5 / 5)
    assert agreement("?", [WrittenAnswer("!")]) == pytest.approx(0.5 / 2)
    assert likelihood(WrittenAnswer("")) == agreement("", samples) == 0.0


def test_answers_are_kept(source, questions, tmp_path):
    path, calls = tmp_path / "answers.jsonl", []
    writer = source.writer()

    def counted(rows, sampling):
        calls.extend(row["id"] for row in rows)
        return source(rows, sampling)

    counting = AnswerWriter(counted, writer.fingerprint)
    first = write_answers(counting, questions, Sampling(), path, batch_size=2, progress=False)
    assert len(calls) == 4
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:20])  # killed while it wrote the third
    again = write_answers(counting, questions, Sampling(), path, batch_size=2, progress=False)
    assert len(calls) == 6
    assert [[a.text for a in answers] for answers in again] == [[a.text for a in answers] for answers in first]
    assert len(path.read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="answers with other sampling"):
        write_answers(counting, questions, Sampling(2, 1.0), path, progress=False)
    write_answers(counting, questions, Sampling(2, 1.0), path, resume=False, progress=False)
    assert len(json.loads(path.read_text().splitlines()[0])["written"]) == 2


def test_a_file_of_others_is_not_overwritten(source, questions, tmp_path):
    """Such as the questions themselves, in a file of that name."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question": "?", "answers": ["!"]}\n')
    with pytest.raises(ValueError, match="answers.jsonl exists .*hf-calib did not write it"):
        write_answers(source.writer(), questions, Sampling(), path, progress=False)
    assert path.read_text() == '{"question": "?", "answers": ["!"]}\n'
    write_answers(source.writer(), questions, Sampling(), path, resume=False, progress=False)
    assert len(path.read_text().splitlines()) == 4


def test_a_question_with_another_subject_is_answered_again(tmp_path):
    def write(rows, sampling):
        return [[WrittenAnswer(f"about {row['subject']}", (-1.0,))] for row in rows]

    def answers(*subjects):
        rows = Dataset.from_list([{"id": str(i), "question": "?", "subject": each} for i, each in enumerate(subjects)])
        written = write_answers(
            AnswerWriter(write, {}), rows, Sampling(), tmp_path / "answers.jsonl", batch_size=1, progress=False
        )
        return [each.text for (each,) in written]

    assert answers("physics", "law") == ["about physics", "about law"]
    assert answers("history", "law") == ["about history", "about law"]
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3


def test_a_line_that_ends_inside_a_character(questions, tmp_path):
    path = tmp_path / "answers.jsonl"
    writer = AnswerWriter(lambda rows, sampling: [[WrittenAnswer("é", (-1.0,))] for _ in rows], {})
    write_answers(writer, questions, Sampling(), path, progress=False)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex("é".encode()) + 1])
    write_answers(writer, questions, Sampling(), path, progress=False)
    assert path.read_bytes() == content


def test_nan_is_named_and_what_was_written_is_kept(questions, tmp_path):
    def write(rows, sampling):
        return [[WrittenAnswer("x", (float("nan") if row["question"] == "Ice is" else -1.0,))] for row in rows]

    path = tmp_path / "answers.jsonl"
    with pytest.raises(ValueError, match="not finite"):
        write_answers(AnswerWriter(write, {}), questions, Sampling(), path, batch_size=1, progress=False)
    assert len(path.read_text().splitlines()) == 3


def test_all_confidences(models, tokenizer, questions, tmp_path):
    found = predict_answers(
        models[0],
        tokenizer,
        questions,
        confidences=("likelihood", "sequence_likelihood", "agreement", "p_true"),
        prompt_format=PLAIN,
        max_new_tokens=4,
        num_samples=3,
        output_dir=tmp_path,
        progress=False,
    )
    assert len(found.answers) == 4
    assert set(found.predictions) == {"likelihood", "sequence_likelihood", "agreement", "p_true"}
    for name, predictions in found.predictions.items():
        assert predictions.of_answers
        assert predictions.metadata["answer_confidence"] == name
        assert (predictions.labels == np.where(found.correct, 0, 1)).all()
        confidences, correct = predictions.outcomes
        assert ((confidences > 0) & (confidences < 1)).all()
        assert (correct == found.correct).all()
        assert (tmp_path / name / "predictions.npz").exists()
    mean, total = (found.predictions[name].outcomes[0] for name in ("likelihood", "sequence_likelihood"))
    assert (total <= mean + 1e-6).all()
    shares = found.predictions["agreement"].outcomes[0] * 4 - 0.5
    np.testing.assert_allclose(shares, shares.round(), atol=1e-5)


def test_without_accepted_texts_nothing_is_graded(models, tokenizer):
    rows = short_questions(Dataset.from_list([{"question": "Ice is", "answers": ["x"]}]), labelled=False)
    found = predict_answers(
        models[0],
        tokenizer,
        rows,
        prompt_format=PLAIN,
        confidences=("likelihood", "p_true"),
        labelled=False,
        progress=False,
    )
    assert found.correct is None
    assert all((predictions.labels == -100).all() for predictions in found.predictions.values())


def test_questions_that_are_too_long(models, tokenizer, questions):
    options = {"prompt_format": PLAIN, "confidences": ("likelihood",), "max_new_tokens": 4, "progress": False}
    lengths = [len(ModelAnswers(models[0], tokenizer, PLAIN, 4).prompt(row)) for row in questions]
    limit = max(lengths) + 3
    with pytest.raises(QuestionTooLongError, match="drop_too_long"):
        predict_answers(models[0], tokenizer, questions, max_length=limit, **options)
    found = predict_answers(models[0], tokenizer, questions, max_length=limit, drop_too_long=True, **options)
    assert len(found.answers) == sum(length < max(lengths) for length in lengths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidences": ("certainty",)}, "choose among"),
        ({"confidences": ()}, "at least one"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"temperature": 0.0}, "above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_wrong_options(models, tokenizer, questions, changes, message):
    with pytest.raises(ValueError, match=message):
        predict_answers(models[0], tokenizer, questions, **changes)
