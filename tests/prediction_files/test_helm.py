"""scenario_state.json of HELM."""

import json
from math import exp, log

import numpy as np
import pytest

from hf_calib.prediction_files.confidences import ConfidencePredictions
from hf_calib.prediction_files.options import ReadOptions
from hf_calib.prediction_files.read import read_predictions


REFERENCES = [("Rome", True), ("Oslo by night", False)]


def instance(name):
    references = [{"output": {"text": text}, "tags": ["correct"] if right else []} for text, right in REFERENCES]
    return {"input": {"text": "?"}, "references": references, "split": "test", "id": name}


def state(path, method, requests):
    content = {"adapter_spec": {"method": method, "model": "org/m"}, "request_states": requests}
    path.write_text(json.dumps(content, indent=2))
    return path


def separate(name, reference, mode, log_probabilities):
    """A request for one reference, with the prompt echoed before its tokens."""
    text = REFERENCES[reference][0]
    pieces = [f" {word}" for word in text.split()]
    tokens = [{"text": "Question?", "logprob": -50.0}]
    tokens += [{"text": piece, "logprob": value} for piece, value in zip(pieces, log_probabilities, strict=True)]
    result = {"success": True, "completions": [{"text": text, "logprob": -60.0, "tokens": tokens}]}
    return {
        "instance": instance(name),
        "reference_index": reference,
        "request_mode": mode,
        "train_trial_index": 0,
        "result": result,
    }


@pytest.mark.parametrize(
    ("method", "normalization", "expected"),
    [
        ("original", None, [[-2.0, -1.0]]),  # HELM's own choice: the mean over tokens
        ("original", "sum", [[-2.0, -3.0]]),
        ("original", "characters", [[-2.0 / 4, -3.0 / 13]]),
        ("calibrated", None, [[-2.0 + 1.0, -3.0 + 4.5]]),
    ],
)
def test_separate_methods(tmp_path, method, normalization, expected):
    requests = [separate("id1", 0, "original", [-2.0]), separate("id1", 1, "original", [-1.5, -1.0, -0.5])]
    if method == "calibrated":
        requests += [separate("id1", 0, "calibration", [-1.0]), separate("id1", 1, "calibration", [-1.5, -1.5, -1.5])]
    path = state(tmp_path / "scenario_state.json", f"multiple_choice_separate_{method}", requests)
    predictions = read_predictions(path, ReadOptions(option_normalization=normalization))
    np.testing.assert_allclose(predictions.option_logits, expected)
    assert predictions.labels.tolist() == [0] and predictions.ids.tolist() == ["id1"]
    assert predictions.metadata["model"] == "org/m"


def joint(name, text, logprob, top=None):
    token = {"text": f" {text}", "logprob": logprob, **({"top_logprobs": top} if top else {})}
    result = {"success": True, "completions": [{"text": f" {text}", "logprob": logprob, "tokens": [token]}]}
    mapping = {"A": "Rome", "B": "Oslo by night"}
    return {"instance": instance(name), "train_trial_index": 0, "output_mapping": mapping, "result": result}


def test_letters_are_those_of_the_prompt(tmp_path):
    """`output_mapping` says which letter a reference has in the prompt."""
    top = {" A": log(0.5), " B": log(0.25)}
    swapped = {**joint("id1", "A", log(0.5), top), "output_mapping": {"A": "Oslo by night", "B": "Rome"}}
    path = state(tmp_path / "s.json", "multiple_choice_joint", [swapped, joint("id2", "A", log(0.5), top)])
    assert read_predictions(path).labels.tolist() == [1, 0]
    swapped["output_mapping"]["B"] = "Lima"
    state(path, "multiple_choice_joint", [swapped])
    with pytest.raises(ValueError, match="instance id1: the right reference is not in output_mapping"):
        read_predictions(path)


def test_runs_in_a_folder_are_tasks(tmp_path):
    for subject, letter in (("anatomy", "A"), ("law", "B")):
        folder = tmp_path / "runs" / "v1" / f"mmlu:subject={subject},method=multiple_choice_joint,model=org_m"
        folder.mkdir(parents=True)
        requests = [joint("id1", letter, log(0.5), {f" {letter}": log(0.5), " C": log(0.25)})]
        state(folder / "scenario_state.json", "multiple_choice_joint", requests)
        (folder / "stats.json").write_text(json.dumps([{"name": {"name": "exact_match"}, "count": 1}]))
    predictions = read_predictions(tmp_path / "runs")
    names = [f"mmlu:subject={subject},method=multiple_choice_joint" for subject in ("anatomy", "law")]
    assert predictions.subjects.tolist() == names and predictions.ids.tolist() == [f"{name}/id1" for name in names]
    assert (predictions.probabilities.argmax(axis=1) == predictions.labels).tolist() == [True, False]


def test_joint_method(tmp_path):
    requests = [
        joint("id1", "A", log(0.5), {" A": log(0.5), "A": log(0.25), " B": log(0.125)}),
        joint("id2", "B", log(0.5), {" B": log(0.5), " The": log(0.25)}),
    ]
    predictions = read_predictions(state(tmp_path / "s.json", "multiple_choice_joint", requests))
    np.testing.assert_allclose(np.exp(predictions.option_logits), [[0.75, 0.125], [0.25, 0.5]])
    assert predictions.labels.tolist() == [0, 0]


def test_joint_method_without_likeliest_tokens_gives_confidences(tmp_path):
    requests = [joint("id1", "A", log(0.5)), joint("id2", "B", log(0.75)), joint("id3", "The", log(0.25))]
    predictions = read_predictions(state(tmp_path / "s.json", "multiple_choice_joint", requests))
    assert isinstance(predictions, ConfidencePredictions)
    np.testing.assert_allclose(predictions.confidences, [0.5, 0.75, 0.25])
    assert predictions.correct.tolist() == [1, 0, 0]


def test_what_cannot_be_measured(tmp_path):
    with pytest.raises(ValueError, match="the method is 'generation': only multiple choice"):
        read_predictions(state(tmp_path / "s.json", "generation", []))
    echoless = separate("id1", 0, "original", [-2.0])
    echoless["result"]["completions"][0]["tokens"][-1]["text"] = " Paris"
    with pytest.raises(ValueError, match="instance id1: the tokens do not end with the reference 'Rome'"):
        read_predictions(state(tmp_path / "s.json", "multiple_choice_separate_original", [echoless]))
    failed = {**joint("id1", "A", log(0.5)), "result": {"success": False, "error": "rate limit"}}
    requests = [joint("id0", "A", -exp(1)), failed]
    with pytest.raises(ValueError, match=r"instance id1: the request failed \(rate limit\)"):
        read_predictions(state(tmp_path / "s.json", "multiple_choice_joint", requests))
