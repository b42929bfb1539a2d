"""Chat completions with log-probabilities, from files as the batch APIs write them."""

import json
from math import exp, log

import numpy as np
import pytest

from hf_calib.prediction_files.answer_token import answer_position, likeliest_tokens, option_scores
from hf_calib.prediction_files.options import ReadOptions
from hf_calib.prediction_files.read import read_predictions


def position(token, **likeliest):
    """A position of a completion, with the probabilities of the likeliest tokens; `_A` stands for " A"."""
    top = [{"token": name.replace("_", " "), "logprob": log(p), "bytes": None} for name, p in likeliest.items()]
    logprob = next((each["logprob"] for each in top if each["token"] == token), -9.0)
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": top}


def batch(name, *positions, status=200):
    """A line of a batch's output, which OpenAI and vLLM write alike."""
    choice = {"index": 0, "message": {"role": "assistant"}, "logprobs": {"content": list(positions)}}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "tiny", "choices": [choice]}
    return {
        "id": f"batch_req_{name}",
        "custom_id": name,
        "response": {"status_code": status, "request_id": "1", "body": body},
        "error": None,
    }


ROWS = [
    batch("q-1", position("A", A=0.6, _A=0.1, B=0.2, x=0.04)),  # C and D share .06
    batch("q-2", position("B", B=0.5, C=0.25, A=0.125, D=0.0625)),
    batch("q-3", position(" D", _D=0.3, D=0.3, A=0.1, B=0.1, C=0.1)),
]
EXPECTED = np.array([[0.7, 0.2, 0.03, 0.03], [0.125, 0.5, 0.25, 0.0625], [0.1, 0.1, 0.1, 0.6]])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("custom_id,answer\nq-3,D\nq-2,A\nq-1,A\nq-0,B\n")
    return path


def read(path, rows, labels=None, **options):
    return read_predictions(write(path / "output.jsonl", rows), ReadOptions(labels=labels, **options))


def test_letters_add_up_and_missing_ones_share_the_rest(tmp_path, labels):
    predictions = read(tmp_path, ROWS, labels, num_options=4)
    np.testing.assert_allclose(np.exp(predictions.option_logits), EXPECTED)
    np.testing.assert_allclose(predictions.probabilities, EXPECTED / EXPECTED.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(predictions.option_mass, EXPECTED.sum(axis=1), rtol=1e-6)
    assert predictions.ids.tolist() == ["q-1", "q-2", "q-3"] and predictions.labels.tolist() == [0, 0, 3]
    assert predictions.metadata["model"] == "tiny" and predictions.metadata["format"] == "chat_completions"


def test_other_forms_of_completions(tmp_path, labels):
    chat = [{"key": row["custom_id"], **row["response"]["body"]} for row in ROWS]
    text, responses = [], []
    for row in ROWS:
        (place,) = row["response"]["body"]["choices"][0]["logprobs"]["content"]
        top = {each["token"]: each["logprob"] for each in place["top_logprobs"]}
        found = {"tokens": [place["token"]], "token_logprobs": [place["logprob"]], "top_logprobs": [top]}
        name = row["custom_id"]
        text.append(
            {"custom_id": name, "response": {"body": {"object": "text_completion", "choices": [{"logprobs": found}]}}}
        )
        output = [
            {"type": "reasoning"},
            {"type": "message", "content": [{"type": "output_text", "logprobs": [place]}]},
        ]
        responses.append({"custom_id": name, "response": {"body": {"object": "response", "output": output}}})
    for rows in (chat, text, responses):
        found = read(tmp_path, rows, labels, num_options=4)
        np.testing.assert_allclose(np.exp(found.option_logits), EXPECTED)


def test_the_number_of_options_is_from_the_labels_or_given(tmp_path, labels):
    with pytest.raises(ValueError, match="line 1: how many options .* --num_options 4"):
        read(tmp_path, ROWS, labels)
    questions = tmp_path / "questions.jsonl"
    rows = [("q-1", ["a", "b"], 0), ("q-2", ["a", "b", "c", "d"], 0), ("q-3", ["a", "b", "c", "d"], 3)]
    write(questions, [{"id": name, "question": "?", "choices": each, "answer": right} for name, each, right in rows])
    predictions = read(tmp_path, ROWS, questions)
    assert predictions.num_options.tolist() == [2, 4, 4] and predictions.labels.tolist() == [0, 0, 3]


def test_options_can_be_words(tmp_path):
    rows = [{**batch("1", position("yes", yes=0.7, _no=0.2)), "label": "B"}]
    predictions = read(tmp_path, rows, option_labels="yes,no")
    np.testing.assert_allclose(np.exp(predictions.option_logits), [[0.7, 0.2]])
    assert predictions.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("tokens", "place"),
    [
        (["B"], 0),
        ([" B", "."], 0),
        (["(", "B", ")"], 1),
        (["\n", "B", ")", " because", " A", " is", " wrong"], 1),
        (["ANSWER", ":", " B"], 2),
        (["A", " good", " answer", " is", " B"], 4),
        (["The", " answer", " is", ":", " (C", ")"], 4),
        (["<think>", "A", " or", " B", "</think>", "\n\n", "B"], 6),
        (["<think>", "A", " or", " B", "</", "think", ">\n", "B", ".", " Answer", ":", " C"], 11),
        (["The"], 0),
        (["\u0120A"], 0),
    ],
)
def test_position_of_the_answer(tokens, place):
    assert answer_position(tokens, ["A", "B", "C", "D"]) == place


def test_unclear_answers_are_errors():
    with pytest.raises(ValueError, match="2 of the tokens written can be the answer"):
        answer_position(["Either", " A", " or", " B"], ["A", "B"])
    with pytest.raises(ValueError, match="none of the tokens written is one of the options A, B"):
        answer_position(["I", " do", " not", " know"], ["A", "B"])
    with pytest.raises(ValueError, match="the text ends inside its thinking block: raise max_tokens"):
        answer_position(["<think>", "A", " is", " wrong"], ["A", "B"])
    with pytest.raises(ValueError, match="nothing is written behind the thinking block"):
        answer_position(["<think>", "A", "</think>", "\n"], ["A", "B"])


def test_missing_options_have_no_more_than_the_smallest_listed_token():
    # The written token comes first, and may be an unlikely one.
    scores = option_scores([("x", log(0.001)), ("The", log(0.7)), ("A", log(0.02)), ("I", log(0.01))], ["A", "B"])
    np.testing.assert_allclose(np.exp(scores), [0.02, 0.01])
    place = position("x", The=0.7, A=0.02)
    assert [token for token, _ in likeliest_tokens({**place, "logprob": -9.0})] == ["x", "The", "A"]
    assert [token for token, _ in likeliest_tokens({**place, "token": "A"})] == ["A", "The"]


def test_scores_are_never_of_probability_zero():
    scores = option_scores([("A", 0.0)], ["A", "B", "C"])
    assert scores[0] == 0 and 0 < exp(scores[1]) == exp(scores[2]) < 1e-8


def test_answers_without_any_option_are_counted(tmp_path, labels):
    rows = [*ROWS[:2], batch("q-3", position("The", The=0.9, I=0.02))]
    predictions = read(tmp_path, rows, labels, num_options=4)
    np.testing.assert_allclose(predictions.probabilities[2], 0.25)
    np.testing.assert_allclose(predictions.option_mass[2], 0.08, rtol=1e-5)
    assert "1 answers have none of the options" in predictions.metadata["notes"][0]


@pytest.mark.parametrize(
    ("likeliest", "expected"),
    [
        ([("A.", 0.5), ("A", 0.1), ("B.", 0.3)], [0.6, 0.3]),  # with punctuation
        ([("(A", 0.6), ("(B", 0.2), ("*B*", 0.1)], [0.6, 0.3]),
        ([("\u2581A", 0.6), ("\u0120B", 0.2), ("B\u010a", 0.1)], [0.6, 0.3]),  # spaces of tokenizers
        ([("\uff21", 0.6), ("B", 0.2), ("\uff22", 0.1)], [0.6, 0.3]),  # wide letters
        ([("A", 0.9), ("a", 0.05), ("An", 0.01)], [0.9, 0.01]),  # other words; B gets at most the least
    ],
)
def test_tokens_that_spell_an_option(likeliest, expected, tmp_path):
    top = [{"token": token, "logprob": log(p)} for token, p in likeliest]
    row = {
        **batch("1", {"token": likeliest[0][0], "logprob": log(likeliest[0][1]), "top_logprobs": top}),
        "label": "A",
    }
    predictions = read(tmp_path, [row], num_options=2)
    np.testing.assert_allclose(np.exp(predictions.option_logits), [expected])


def test_options_with_punctuation_in_their_names(tmp_path):
    top = [{"token": token, "logprob": log(p)} for token, p in (("(1)", 0.6), ("(2)", 0.3), ("1", 0.05))]
    row = {**batch("1", {"token": "(1)", "logprob": log(0.6), "top_logprobs": top}), "label": 0}
    predictions = read(tmp_path, [row], option_labels="(1),(2)")
    np.testing.assert_allclose(np.exp(predictions.option_logits), [[0.6, 0.3]])


def test_no_answer_with_an_option(tmp_path, labels):
    rows = [batch(f"q-{k}", position("a", a=0.6, b=0.3)) for k in (1, 2, 3)]
    with pytest.raises(ValueError, match="none of the 3 answers has an option among the likeliest tokens.*a,b,c,d"):
        read(tmp_path, rows, labels, num_options=4)
    found = read(tmp_path, [{**row, "label": 1} for row in rows], option_labels="a,b")
    np.testing.assert_allclose(np.exp(found.option_logits), [[0.6, 0.3]] * 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the log-probability of the token 'B' is None, not a number"),
        (float("nan"), "the log-probability of the token 'B' is nan, not a number"),
        (0.3, "add up to 2.25 .the log-probability of 'B' is 0.3.: these are no natural logarithms"),
        (log(0.5), "add up to 1.4 "),
    ],
)
def test_what_is_no_log_probability(value, message, tmp_path):
    place = position("A", A=0.9, B=0.05)
    place["top_logprobs"][1]["logprob"] = value
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        read(tmp_path, [{**batch("1", place), "label": 0}], num_options=2)


def test_minus_infinity_and_what_stands_for_it(tmp_path):
    for value in (float("-inf"), -9999.0):
        place = position("A", A=0.9, B=0.05)
        place["top_logprobs"][1]["logprob"] = value
        predictions = read(tmp_path, [{**batch("1", place), "label": 0}], num_options=2)
        np.testing.assert_allclose(predictions.probabilities, [[1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["response"]["body"]["choices"][0].pop("logprobs"), "no log-probabilities: request logprobs"),
        (
            lambda row: row["response"]["body"]["choices"][0]["logprobs"]["content"][0].pop("top_logprobs"),
            "there are no top_logprobs",
        ),
        (lambda row: row.update(response=None, error={"message": "too long"}), "the request failed .*too long"),
    ],
)
def test_faulty_lines(tmp_path, labels, change, message):
    rows = json.loads(json.dumps(ROWS))
    change(rows[1])
    with pytest.raises(ValueError, match=f"output.jsonl, line 2: .*{message}"):
        read(tmp_path, rows, labels, num_options=4)
    predictions = read(tmp_path, rows, labels, num_options=4, drop_invalid=True)
    assert predictions.ids.tolist() == ["q-1", "q-3"] and predictions.metadata["left_out"] == 1


def test_labels_in_the_rows_that_count_from_one(tmp_path):
    place = position("A", A=0.6, B=0.3)
    rows = [{**batch(str(number), place), "label": number} for number in (1, 2, 4)]
    with pytest.raises(ValueError, match="no answer is 0 and some equal the number of options"):
        read(tmp_path, rows, num_options=4, drop_invalid=True)
    assert read(tmp_path, rows, num_options=4, answers_from=1).labels.tolist() == [0, 1, 3]


def test_labels_are_joined_by_id(tmp_path):
    with pytest.raises(ValueError, match="completions hold no right options: give --labels FILE"):
        read(tmp_path, ROWS, num_options=4)
    path = tmp_path / "answers.csv"
    path.write_text("id,label\n1,A\n2,A\n")
    with pytest.raises(ValueError, match="no id is among those of the predictions"):
        read(tmp_path, ROWS, path, num_options=4)
    path.write_text("id,label\nq-1,A\nq-2,A\n")
    with pytest.raises(ValueError, match="1 of 3 questions have no right option, the first of them 'q-3'"):
        read(tmp_path, ROWS, path, num_options=4)
    assert len(read(tmp_path, ROWS, path, num_options=4, drop_invalid=True)) == 2
    path.write_text("id,label\nq-1,A\nq-1,B\n")
    with pytest.raises(ValueError, match="the id 'q-1' has the labels 'A' and 'B'"):
        read(tmp_path, ROWS, path, num_options=4)
    path.write_text("id,label\nq-1,1\nq-2,1\nq-3,4\n")
    with pytest.raises(ValueError, match="count from 1; .*--answers_from 1"):
        read(tmp_path, ROWS, path, num_options=4)
    assert read(tmp_path, ROWS, path, num_options=4, answers_from=1).labels.tolist() == [0, 0, 3]
    path.write_text("id,label\nq-1,A\nq-2,E\nq-3,A\n")
    with pytest.raises(ValueError, match="answers.csv, column 'label': 'E' is not one of the option labels"):
        read(tmp_path, ROWS, path, num_options=4)
    path.write_text("name,label\nq-1,A\n")
    with pytest.raises(ValueError, match="labels need the columns id and label; id is missing among name, label"):
        read(tmp_path, ROWS, path, num_options=4)
