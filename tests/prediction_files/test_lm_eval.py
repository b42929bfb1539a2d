"""samples_*.jsonl of lm-evaluation-harness."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from hf_calib.prediction_files.options import ReadOptions
from hf_calib.prediction_files.read import read_predictions


TEXTS = [["Rome", "Oslo", "Lima"], ["cold", "very hot", "wet"], ["7", "8", "9"], ["Curaçao", "Malta", "Crete"]]
SUMS = np.array([[-1.0, -2.5, -3.25], [-4.0, -3.0, -6.0], [-2.0, -0.5, -9.0], [-3.0, -2.0, -1.0]])
LABELS = np.array([0, 2, 1, 0])


def sample(row, target, older=False, options=None, unconditional=None, **more):
    """A sample as the tool writes it; `older` with lists and numbers, else with texts."""
    sums = [*SUMS[row], *(unconditional if unconditional is not None else [])]
    texts = [f" {text}" for text in options or TEXTS[row]] * (2 if unconditional is not None else 1)
    prompts = [f"Question {row}\nAnswer:"] * 3 + [""] * (len(texts) - 3)
    pairs = list(zip(prompts, texts, strict=True))
    if older:
        arguments, responses = [list(pair) for pair in pairs], [[value, False] for value in sums]
    else:
        arguments = {f"gen_args_{k}": {"arg_0": pair[0], "arg_1": pair[1]} for k, pair in enumerate(pairs)}
        responses = [[str(value), "False"] for value in sums]
    return {
        "doc_id": row,
        "doc": {"question": f"Question {row}", "subject": "places"},
        "target": target,
        "arguments": arguments,
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": "none",
        "acc": float(SUMS[row].argmax() == LABELS[row]),
        **more,
    }


def write(path, samples):
    path.write_text("\n".join(map(json.dumps, samples)) + "\n")
    return path


def read(path, samples, **options):
    return read_predictions(write(path / "samples_task_2026-01-31T00-00-00.1.jsonl", samples), ReadOptions(**options))


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("target", ["index", "text", "list", "letter of one"])
def test_targets_in_every_form(tmp_path, target, older):
    forms = {
        "index": lambda row: str(LABELS[row]),
        "text": lambda row: TEXTS[row][LABELS[row]],
        "list": lambda row: f"[{LABELS[row]}]",
        "letter of one": lambda row: [TEXTS[row][LABELS[row]]],
    }
    predictions = read(tmp_path, [sample(row, forms[target](row), older) for row in range(4)])
    np.testing.assert_array_equal(predictions.labels, LABELS)
    np.testing.assert_allclose(predictions.option_logits, SUMS)
    np.testing.assert_allclose(predictions.probabilities, softmax(SUMS, axis=1), rtol=1e-6)
    assert predictions.ids.tolist() == ["0", "1", "2", "3"] and set(predictions.subjects) == {"places"}
    assert predictions.metadata["task"] == "task" and predictions.metadata["option_normalization"] == "sum"


def test_options_that_are_digits_are_told_from_indices_by_the_accuracy(tmp_path):
    digits = [["0", "1", "2"], ["2", "0", "1"], ["1", "2", "0"]]
    predicted = SUMS[:3].argmax(axis=1)
    # The target 1 is the second, third and first option as a text, and always the second as an index.
    for right in ([1, 2, 0], [1, 1, 1]):
        samples = [sample(row, "1", options=digits[row], acc=float(predicted[row] == right[row])) for row in range(3)]
        assert read(tmp_path, samples).labels.tolist() == right


@pytest.mark.parametrize(
    ("normalization", "lengths"),
    [
        ("characters", [[4, 4, 4], [4, 8, 3], [1, 1, 1], [7, 5, 5]]),
        ("bytes", [[4, 4, 4], [4, 8, 3], [1, 1, 1], [8, 5, 5]]),
    ],
)
def test_normalization_by_length(tmp_path, normalization, lengths):
    samples = [sample(row, str(LABELS[row])) for row in range(4)]
    predictions = read(tmp_path, samples, option_normalization=normalization)
    np.testing.assert_allclose(predictions.option_logits, SUMS / np.array(lengths))
    assert np.isnan(predictions.option_mass).all()


def test_mutual_information_has_a_second_half(tmp_path):
    prior = np.array([[-2.0, -1.0, -1.5]] * 4)
    samples = [sample(row, str(LABELS[row]), unconditional=prior[row], acc_mutual_info=0.0) for row in range(4)]
    np.testing.assert_allclose(read(tmp_path, samples).option_logits, SUMS)
    found = read(tmp_path, samples, option_normalization="mutual_information")
    np.testing.assert_allclose(found.option_logits, SUMS - prior)
    plain = [sample(row, str(LABELS[row])) for row in range(4)]
    with pytest.raises(ValueError, match="line 1: there are no unconditional log-likelihoods"):
        read(tmp_path, plain, option_normalization="mutual_information")


def test_empty_prompts_are_no_second_half(tmp_path):
    samples = []
    for row in range(4):
        each = sample(row, "0", options=["a", "b", "c"])
        for pair in each["arguments"].values():
            pair["arg_0"] = ""
        each["arguments"]["gen_args_3"] = {"arg_0": "", "arg_1": " d"}
        each["filtered_resps"].append(["-7.0", "False"])
        samples.append(each)
    assert read(tmp_path, samples).num_options.tolist() == [4] * 4


def test_several_filters_are_chosen_from(tmp_path):
    samples = [sample(row, str(LABELS[row]), filter=name) for name in ("first", "last") for row in range(4)]
    with pytest.raises(ValueError, match="the filters first, last: choose with --filter first"):
        read(tmp_path, samples)
    assert len(read(tmp_path, samples, filter="last")) == 4
    with pytest.raises(ValueError, match="the filters are first, last; there is no 'none'"):
        read(tmp_path, samples, filter="none")


def test_options_inside_the_prompts(tmp_path):
    """As in WinoGrande: the target is the same text for both, and the accuracy tells which option is right."""
    samples = []
    for row, accuracy in enumerate([1.0, 0.0]):
        each = sample(row, "is big.", acc=accuracy)
        pairs = [("Rome", " is big."), ("Oslo", " is big.")]
        each["arguments"] = {f"gen_args_{k}": {"arg_0": pair[0], "arg_1": pair[1]} for k, pair in enumerate(pairs)}
        each["filtered_resps"] = each["filtered_resps"][:2]
        samples.append(each)
    assert read(tmp_path, samples).labels.tolist() == [0, 0]


def test_several_right_options_are_noted(tmp_path):
    samples = [sample(row, "[0, 1]", acc=float(SUMS[row].argmax() < 2)) for row in range(4)]
    predictions = read(tmp_path, samples)
    accuracy = (predictions.probabilities.argmax(axis=1) == predictions.labels).mean()
    assert accuracy == np.mean([each["acc"] for each in samples])
    assert "several right options" in predictions.metadata["notes"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "Bonn"}, "line 2: the target 'Bonn' is none of the options: give the answers with --labels"),
        ({"filtered_resps": ["It is Rome."] * 3}, "line 2: it holds a generated text"),
        ({"filtered_resps": [["-1.0", "False"]]}, "line 2: it has 1 log-likelihood"),
        ({"filtered_resps": [["nan", "False"]] * 3}, "line 2: the score of an option is NaN"),
        ({"acc": 0.43}, "line 2: acc is 0.43: this task has no single right option"),
        ({"target": None, "doc_id": None}, "line 2: the target 'None' is none of the options"),
    ],
)
def test_faults_name_file_and_line(tmp_path, change, message):
    samples = [sample(0, "0"), {**sample(1, "2", acc=0.0), **change}, sample(2, "1")]
    with pytest.raises(ValueError, match=f"samples_task.*jsonl, {message}"):
        read(tmp_path, samples)
    predictions = read(tmp_path, samples, drop_invalid=True)
    assert predictions.ids.tolist() == ["0", "2"] and predictions.labels.tolist() == [0, 1]
    assert predictions.metadata["left_out"] == 1


def test_a_missing_field_and_a_broken_line(tmp_path):
    incomplete = sample(1, "2")
    del incomplete["arguments"]
    with pytest.raises(ValueError, match="line 2: the field 'arguments' is missing"):
        read(tmp_path, [sample(0, "0"), incomplete])
    path = write(tmp_path / "samples_t.jsonl", [sample(0, "0"), sample(1, "2")])
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match="samples_t.jsonl, line 2: broken JSON: .*is the file complete"):
        read_predictions(path)


def test_numbers_that_json_does_not_know(tmp_path):
    samples = [sample(row, str(LABELS[row]), acc_norm=float("nan")) for row in range(4)]
    samples[0]["filtered_resps"][2] = ["-inf", "False"]
    predictions = read(tmp_path, samples)
    assert predictions.num_options.tolist() == [3] * 4  # an impossible option is still an option
    assert predictions.probabilities[0, 2] == 0


def test_an_accuracy_that_differs_is_noted(tmp_path):
    samples = [sample(row, str(LABELS[row]), acc=1.0) for row in range(4)]
    assert "differs for 2 questions" in read(tmp_path, samples).metadata["notes"][0]


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([], "it has 0 log-likelihood.s.: only multiple-choice tasks have several"),
        ([[None, False], ["-1.0", "False"], ["-2.0", "False"]], "the log-likelihood of an option is null"),
        ([["nan", "False"], ["-1.0", "False"], ["-2.0", "False"]], "the score of an option is NaN"),
        ([["inf", "False"], ["-1.0", "False"], ["-2.0", "False"]], "the score of an option is infinite"),
        ([["-inf", "False"]] * 3, "the score of every option is -inf"),
    ],
)
def test_log_likelihoods_that_are_none(tmp_path, responses, message):
    with pytest.raises(ValueError, match=f"line 2: {message}"):
        read(tmp_path, [sample(0, "0"), sample(1, "2", filtered_resps=responses)])


def test_long_options_keep_their_differences(tmp_path):
    """Log-likelihoods far below that of the smallest float64."""
    sums = [-900.0, -901.5, float("-inf")]
    rows = [sample(0, "0", filtered_resps=[[str(value), "False"] for value in sums])]
    predictions = read(tmp_path, rows)
    np.testing.assert_allclose(predictions.probabilities, softmax([sums], axis=1), rtol=1e-6)
    assert predictions.num_options.tolist() == [3]


def test_the_name_of_the_task(tmp_path):
    for name in (
        "samples_mmlu_v1.1_2026-01-31T00-00-00.1.jsonl",
        "samples_mmlu_v1.1.ndjson",
        "samples_mmlu_v1.1.json",
    ):
        assert (
            read_predictions(write(tmp_path / name, [sample(0, "0"), sample(1, "2")])).metadata["task"] == "mmlu_v1.1"
        )
