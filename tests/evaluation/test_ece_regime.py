"""The `evaluate` metric: inputs, batches, processes, `evaluate.combine` and errors."""

import doctest
import json
import multiprocessing
import re
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss

import hf_calib
from hf_calib import (
    calibration_report,
    classify_regime,
)
from hf_calib.evaluation import ece_regime


pytestmark = pytest.mark.usefixtures("evaluate_cache")


# Results


def test_is_the_report_and_the_regime(metric, data):
    probabilities, labels, truth = data
    results = metric.compute(predictions=probabilities, references=labels, target_probs=truth, n_bootstrap=200)
    expected = calibration_report(probabilities, labels, truth, n_bootstrap=200)
    assert {key: results[key] for key in expected} == pytest.approx(expected)
    regime = classify_regime(probabilities, labels, truth).to_dict()
    assert {key: results[key] for key in ("regime", "p_value", "test")} == {
        key: regime[key] for key in ("regime", "p_value", "test")
    }
    assert results["ece_upper_bound"] == pytest.approx(regime["ece_upper_bound"])
    assert all(isinstance(value, (int, float, str)) for value in results.values())


def test_options_are_passed_on(metric, data):
    probabilities, labels, truth = data
    plain = metric.compute(predictions=probabilities, references=labels, n_bootstrap=50)
    assert "tce" not in plain and "critical_accuracy" not in plain
    given = {"predictions": probabilities, "references": labels, "n_bootstrap": 50}
    assert metric.compute(**given, n_bins=3)["ece"] == pytest.approx(
        calibration_report(probabilities, labels, n_bins=3)["ece"]
    )
    assert metric.compute(**given, binning="equal_mass")["ece"] == pytest.approx(plain["ece_equal_mass"])
    assert metric.compute(**given, critical_accuracy=0.2)["regime"] == "non-calibratable"
    assert metric.compute(**given, reference_probs=truth)["test"] == "reference"
    assert metric.compute(**given, seed=1)["ece_high"] != plain["ece_high"]
    half = metric.compute(**given, sample_weight=[1.0, 0.0] * 300)
    assert half["ece"] == pytest.approx(calibration_report(probabilities[::2], labels[::2])["ece"])


def test_kinds_of_input_agree(metric, data):
    probabilities, labels, _ = data
    expected = metric.compute(predictions=probabilities, references=labels, n_bootstrap=20)
    table = datasets.Dataset.from_dict({"predictions": probabilities.tolist(), "references": labels.tolist()})
    kinds = (
        {"predictions": probabilities.tolist(), "references": labels.tolist()},
        {"predictions": torch.tensor(probabilities), "references": torch.tensor(labels)},
        table.with_format("numpy")[:],
        table.to_pandas(),
        {"predictions": torch.tensor(probabilities).requires_grad_(), "references": labels.astype(float)},
        table[:],
    )
    for given in kinds:
        assert metric.compute(**dict(given), n_bootstrap=20) == pytest.approx(expected)
    tensors = [torch.tensor(row, requires_grad=True) for row in probabilities]
    results = metric.compute(predictions=tensors, references=iter(labels), target_probs=tensors, n_bootstrap=20)
    assert {key: results[key] for key in ("ece", "nll", "cw_ece")} == pytest.approx(
        {key: expected[key] for key in ("ece", "nll", "cw_ece")}
    )
    rows = list(torch.tensor(probabilities).bfloat16())
    assert metric.compute(predictions=rows, references=labels)["ece"] == pytest.approx(expected["ece"], abs=1e-2)
    half = metric.compute(predictions=torch.tensor(probabilities).bfloat16(), references=labels, n_bootstrap=20)
    assert half["confidence"] == pytest.approx(expected["confidence"], abs=1e-3)


def test_one_class_only(metric):
    results = metric.compute(predictions=[[0.9, 0.1]] * 5, references=[0] * 5)
    assert "auroc" not in results and results["accuracy"] == 1.0


def test_mixed_numbers_of_options(metric):
    rows = [[0.5, 0.5], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4]]
    padded = [[0.5, 0.5, 0, 0], [0.2, 0.5, 0.3, 0], [0.1, 0.2, 0.3, 0.4]]
    given = {"references": [1, 1, 3], "n_bootstrap": 20}
    expected = metric.compute(predictions=np.array(padded), **given)
    results = metric.compute(predictions=rows, **given)
    # padded rows count as rows with the most options in the test of guessing
    assert results.pop("p_value") < expected.pop("p_value")
    for key in ("border_distance_detectable", "explanation"):
        assert results.pop(key) != expected.pop(key)
    assert results == pytest.approx(expected)


def test_confidences(metric, data):
    probabilities, labels, _ = data
    confidences, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = metric.compute(predictions=probabilities, references=labels, n_bootstrap=20)
    results = metric.compute(predictions=confidences, correct=correct, n_bootstrap=20)
    assert results == metric.compute(predictions=confidences.tolist(), references=correct.tolist(), n_bootstrap=20)
    # a wrapper may pass every option, also those that are None
    for given in (
        {"predictions": confidences, "correct": iter(correct)},
        {"predictions": list(torch.tensor(confidences))},
    ):
        without = {"target_probs": None, "reference_probs": None, "num_options": None, "groups": None}
        assert results == metric.compute(**{"references": None, "correct": correct} | given, n_bootstrap=20, **without)
    with_options = metric.compute(predictions=probabilities, references=labels, num_options=None, n_bootstrap=20)
    assert with_options == expected
    assert not {"cw_ece", "nll", "brier", "brier_calibration", "brier_refinement"} & set(results)
    shared = set(calibration_report(probabilities, labels, n_bootstrap=20)) & set(results)
    assert {key: results[key] for key in shared} == pytest.approx({key: expected[key] for key in shared})


def test_groups(metric, data):
    probabilities, labels, _ = data
    subjects = np.array(["law", "logic", "physics"])[np.arange(600) % 3]
    results = metric.compute(predictions=probabilities, references=labels, groups=subjects.tolist(), n_bootstrap=100)
    assert results["n_groups"] == 3
    law = subjects == "law"
    expected = calibration_report(probabilities[law], labels[law], n_bootstrap=100)
    for key in ("n", "accuracy", "ece", "ece_low", "ece_high", "debiased_ece"):
        assert results[f"group/law/{key}"] == pytest.approx(expected[key])
    assert results["group/law/ece_p_value_holm"] >= results["group/law/ece_p_value"]
    json.dumps(results)


# Batches, processes, evaluate.combine


def test_batches(metric, data):
    probabilities, labels, _ = data
    expected = metric.compute(predictions=probabilities, references=labels, n_bootstrap=20)
    for rows in np.array_split(np.arange(600), 7):
        metric.add_batch(predictions=probabilities[rows], references=labels[rows])
    metric.add_batch(predictions=[], references=[])  # the last batch of a process may be empty
    assert metric.compute(n_bootstrap=20) == pytest.approx(expected)
    for row, label in zip(probabilities[:9], labels[:9], strict=True):
        metric.add(prediction=row, reference=label)
    metric.add_batch(predictions=probabilities[9:300].tolist(), references=labels[9:300].tolist())  # lists
    metric.add_batch(predictions=probabilities[300:], references=labels[300:])  # after arrays
    assert metric.compute(n_bootstrap=20) == pytest.approx(expected)


def _process(rank, cache_dir, queue):
    metric = evaluate.load(
        hf_calib.metric_path(), num_process=3, process_id=rank, experiment_id="three", cache_dir=cache_dir
    )
    for predictions, references in _shares(rank):
        metric.add_batch(predictions=predictions, references=references)
    queue.put((rank, metric.compute(n_bootstrap=20)))


def _shares(rank):
    """Batches of a process; the last process has none."""
    rng = np.random.default_rng(rank)
    size = 20 + rank
    return [(rng.dirichlet([1.0] * 3, size), rng.integers(3, size=size)) for _ in range(3)] if rank < 2 else []


def test_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_process, args=(rank, str(tmp_path), queue)) for rank in range(3)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert results[1] is None and results[2] is None
    probabilities, labels = map(np.concatenate, zip(*_shares(0), *_shares(1), strict=True))
    assert results[0]["n"] == 123
    assert results[0]["ece"] == pytest.approx(calibration_report(probabilities, labels)["ece"])


class Accuracy(evaluate.Metric):
    """Stands in for evaluate's own metric, which needs a download."""

    def _info(self):
        inputs = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(inputs)
        )

    def _compute(self, predictions, references):
        return {"accuracy": accuracy_score(references, predictions)}


class BrierScore(Accuracy):
    def _info(self):
        inputs = {"predictions": datasets.Value("float"), "references": datasets.Value("float")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=[datasets.Features(inputs)]
        )

    def _compute(self, predictions, references):
        return {"brier_score": brier_score_loss(references, predictions)}


def test_combine(metric, data):
    probabilities, labels, _ = data
    confidences, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    results = evaluate.combine([metric, BrierScore()]).compute(predictions=confidences, references=correct.astype(int))
    assert results["brier_score"] == pytest.approx(np.mean((confidences - correct) ** 2))
    assert results["ece"] == pytest.approx(calibration_report(probabilities, labels)["ece"])

    scores = evaluate.load(hf_calib.metric_path(), "prediction_scores")
    both = evaluate.combine({"calibration": scores, "plain": Accuracy()})
    for rows in (slice(0, 250), slice(250, None)):
        both.add_batch(
            predictions=probabilities[rows].argmax(axis=1),
            references=labels[rows],
            prediction_scores=probabilities[rows],
        )
    results = both.compute()
    assert results["plain_accuracy"] == results["calibration_accuracy"] == pytest.approx(correct.mean())
    assert results["ece"] == pytest.approx(calibration_report(probabilities, labels)["ece"])


def test_combine_one_by_one(metric):
    confidences, correct = [0.9, 0.8, 0.6], [1, 0, 1]
    both = evaluate.combine([metric, BrierScore()])
    for confidence, right in zip(confidences, correct, strict=True):
        both.add(prediction=confidence, reference=right)
    results = both.compute()
    assert results["n"] == 3 and results["brier_score"] == pytest.approx(0.27)
    metric.add(predictions=[0.9, 0.1], references=0)  # as in evaluate's documentation
    assert metric.compute()["confidence"] == 0.9

    scores = evaluate.load(hf_calib.metric_path(), "prediction_scores")
    both = evaluate.combine([scores, Accuracy()])
    both.add(prediction=0, reference=0, prediction_scores=[0.7, 0.3])
    results = both.compute()
    assert results["confidence"] == 0.7 and results["ece_regime_accuracy"] == 1.0
    with pytest.raises(TypeError, match="prediction_scores"):  # raised by evaluate, as the card says
        both.compute(predictions=[0], references=[0], prediction_scores=[[0.7, 0.3]])


def test_save(metric, data, tmp_path):
    results = metric.compute(predictions=data[0], references=data[1], n_bootstrap=20)
    path = evaluate.save(tmp_path / "results.json", model="mine", **results)
    assert json.loads(path.read_text())["ece"] == results["ece"]


# Bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"predictions": [[3.0, -1.0]], "references": [0]}, "logits"),
        ({"predictions": np.array([[3.0, -1.0]]), "references": np.array([0])}, "logits"),
        ({"predictions": [[0.5, 0.6]], "references": [0]}, "row 0"),
        ({"predictions": [[0.5, float("nan")]], "references": [0]}, "row 0, option 1"),
        ({"predictions": [[0.5, 0.5]], "references": [2]}, "`references` row 0"),
        ({"predictions": [[0.5, 0.5], [0.2, 0.3, 0.5]], "references": [2, 2]}, "`references` row 0"),
        ({"predictions": [[0.5, 0.5]], "references": [0, 1]}, "`references`"),
        ({"predictions": [[1.0]], "references": [0]}, "two options"),
        ({"predictions": np.zeros((2, 2, 2)), "references": [0, 0]}, "shape"),
        ({"predictions": np.array([[0.5, 0.5]]), "references": np.array([0.5])}, "`references`"),
        ({"predictions": [[0.5, 0.5]], "references": [0.5]}, "`references`"),
        ({"predictions": [[0.5, 0.5]], "references": ["0"]}, "`references`"),
        ({"predictions": [["0.5", "half"]], "references": [0]}, "`predictions` row 0, option 1 is .half."),
        ({"predictions": [None, [0.5, 0.5]], "references": [0, 0]}, "row 0 .*None"),
        ({"predictions": [[50.0, 50.0]], "references": [0]}, "percentages"),
        ({"predictions": [[0.9, 0.1]], "correct": [True]}, "`correct`"),
        ({"predictions": [[0.9, 0.1]], "references": [True]}, "`references`"),
        ({"predictions": [[0.9, 0.1]], "references": [0], "nbins": 5}, "nbins"),
        ({"predictions": [[0.9, 0.1]], "references": [0], "num_options": 4}, "`num_options`"),
        ({"predictions": [1.2], "references": [1]}, "`predictions` row 0"),
        ({"predictions": [1.2], "correct": [True]}, "`predictions` row 0"),
        ({"predictions": [0.9], "references": [3]}, "`references` row 0"),
        ({"predictions": [0.9, 0.8], "correct": [1, 2]}, "`correct` row 1"),
        ({"predictions": [0.9, 0.8], "correct": [1]}, "`predictions` .*`correct`"),
        ({"predictions": [0.9, 0.8, 0.7], "references": [0, 1, None]}, "`references` row 2"),
        ({"predictions": [0.9, [0.9, 0.1]], "references": [1, 0]}, "`predictions` row 1"),
        ({"predictions": [[0.9, 0.1], 0.9], "references": [1, 0]}, "`predictions` row 1"),
        ({"predictions": 0.9, "references": 1}, "`predictions`.* 0.9"),
        ({"predictions": [0.9], "correct": True}, "`correct`.* True"),
        ({"predictions": [[0.9, 0.1], [1.0]], "references": [0, 0]}, "`predictions` row 1"),
        ({"predictions": [[0.9, 0.1]] * 3, "references": [0, 1, float("nan")]}, "`references` .* row 2"),
        ({"predictions": [[0.9, 0.1]] * 3, "references": [0, None, 1]}, "`references` .* row 1"),
        ({"predictions": [[0.9, 0.1]] * 2, "references": [0, 1e30]}, "`references` .* row 1"),
        ({"predictions": [[0.9, 0.1]] * 2, "references": [[0], [0, 1]]}, "`references` row 0"),
        ({"predictions": [0.9], "references": [1], "target_probs": [[0.5, 0.5]]}, "`target_probs`"),
        ({"predictions": [0.9], "references": [1], "correct": [True]}, "`correct` and `references`"),
        ({"references": [1]}, "`predictions` and `references`"),
        ({"predictions": [[0.5, 0.5]]}, "`predictions` and `references`"),
        ({"predictions": [], "references": []}, "predictions"),
        ({}, "predictions"),
        (
            {"predictions": [[0.5, 0.5]], "references": [0], "target_probs": [[0.5, 0.5]] * 2},
            "`target_probs`.* shape",
        ),
        ({"predictions": [[0.5, 0.5]], "references": [0], "reference_probs": [[0.6, 0.5]]}, "`reference_probs` row 0"),
        (
            {"predictions": [[0.5, 0.5]], "references": [0], "target_probs": [[1, 0]], "reference_probs": [[1, 0]]},
            "`target_probs` and `reference_probs`",
        ),
        ({"predictions": [[0.5, 0.5]], "references": [0], "groups": ["a", "b"]}, "groups"),
        ({"predictions": [[0.5, 0.5]], "references": [0], "sample_weight": [0.0]}, "sample_weight"),
        ({"predictions": [[0.5, 0.5]], "references": [0], "n_bins": 0}, "n_bins"),
        ({"predictions": [[0.5, 0.5]], "references": [0], "alpha": 2}, "alpha"),
        ({"predictions": [0.5], "references": [0], "other_predictions": [0.5]}, "need `other_correct`"),
        ({"predictions": [0.5], "references": [0], "other_correct": [True]}, "needs `other_predictions`"),
        ({"predictions": [[0.5, 0.5]], "references": [0], "other_correct": [True]}, "`other_correct` is for"),
        ({"predictions": [[0.5, 0.5]], "references": [0], "other_predictions": [0.5]}, "as the predictions are"),
        (
            {"predictions": [[0.5, 0.5]], "references": [0], "other_predictions": [[0.5, 0.6]]},
            "`other_predictions` row 0",
        ),
        ({"predictions": [[0.5, 0.5]], "references": [0], "other_predictions": [[0.5, 0.5]] * 2}, "`references`"),
        (
            {"predictions": [0.5], "correct": [1], "other_predictions": [0.5], "other_correct": [2]},
            "`other_correct` row 0",
        ),
    ],
)
def test_bad_input(metric, given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        metric.compute(**given)
    assert not list(Path(metric.data_dir).glob("*.arrow"))
    # the metric still works after the error
    assert metric.compute(predictions=[[0.9, 0.1]], references=[0])["n"] == 1
    assert metric.compute(predictions=[0.9], references=[0])["n"] == 1


def test_batches_survive_a_wrong_option(metric):
    metric.add_batch(predictions=[[0.9, 0.1], [0.2, 0.5, 0.3]], references=[0, 1])
    with pytest.raises(ValueError, match="row 0"):
        metric.add_batch(predictions=[[0.9, 0.3]], references=[0])  # a bad batch is not counted
    with pytest.raises(ValueError, match="confidences"):
        metric.add_batch(predictions=[0.9], references=[1])
    with pytest.raises(ValueError, match="row 1"):
        metric.add_batch(predictions=[[0.9, 0.1], [1.0]], references=[0, 0])
    for wrong in ({"groups": ["a"]}, {"sample_weight": [1.0]}, {"foo": 1}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            metric.add_batch(predictions=[[0.9, 0.1]], references=[0], **wrong)
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            metric.add(prediction=[0.9, 0.1], reference=0, **wrong)
    with pytest.raises(ValueError, match="`prediction` and `reference`"):
        metric.add(prediction=[0.9, 0.1])
    for wrong in ({"nbins": 3}, {"n_bins": 0}, {"groups": ["a"]}):
        with pytest.raises(ValueError):
            metric.compute(**wrong)
    with pytest.raises(ValueError):
        metric.compute(predictions=[[0.6, 0.4]], references=[1], n_bins=0)
    assert metric.compute()["n"] == 2


def test_unknown_configuration():
    with pytest.raises(ValueError, match="prediction_scores"):
        evaluate.load(hf_calib.metric_path(), "scores")


# Documentation


def test_examples_run():
    examples = {"evaluate": evaluate, "hf_calib": hf_calib}
    hf_calib.register()
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    card = Path(hf_calib.metric_path(), "README.md").read_text()
    card = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    for name, text in (("docstring", ece_regime._KWARGS_DESCRIPTION), ("card", card)):
        result = runner.run(parser.get_doctest(text, dict(examples), name, None, None))
        assert result.attempted > 1 and result.failed == 0


def test_card_names_every_key(metric, data):
    probabilities, labels, truth = data
    card = Path(hf_calib.metric_path(), "README.md").read_text()
    given = {"predictions": probabilities, "references": labels, "n_bootstrap": 20}
    keys = set()
    for knowledge in (
        {"details": True},
        {"target_probs": truth},
        {"reference_probs": truth},
        {"critical_accuracy": 0.5},
    ):
        keys |= set(metric.compute(**given, **knowledge))
    assert not [key for key in keys if f"`{key}`" not in card]
    assert keys >= set(re.findall(r"`(ece_\w*|\w+_ece\w*|tce\w*|\w+_bound)`", card)) - {
        "ece_regime",
        "ece_p_value_holm",
    }
