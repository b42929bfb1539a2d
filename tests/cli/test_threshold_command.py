"""`hf-calib threshold`: gates, their check on new predictions, and calls that are wrong."""

import json

import numpy as np
import pandas as pd
import pytest

from hf_calib import (
    OptionPredictions,
    PredictionSets,
    TemperatureScaling,
    accuracy_threshold,
    accuracy_thresholds,
    load_predictions,
)
from hf_calib.cli.main import main
from hf_calib.evaluation.gate import Gate


def threshold(*arguments):
    return main(["threshold", *map(str, arguments)])


def predictions(n=1500, power=0.3, seed=0, labelled=True, **metadata):
    """Predictions of four options, right with probability confidence ** power, of two subjects."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1, n)
    rest = (1 - confidence)[:, None] * rng.dirichlet([5, 5, 5], n)
    rest = np.minimum(rest, 0.9 * confidence[:, None])
    probabilities = np.column_stack([1 - rest.sum(axis=1), rest])
    labels = np.where(rng.random(n) < probabilities[:, 0] ** power, 0, 1) if labelled else np.full(n, -100)
    ids = np.array([f"{seed}-{row}" for row in range(n)])
    known = {"model": "org/aligned", "prompt_format": {"scoring": "letter"}, "fingerprint": {"weights": "w1"}}
    known["option_normalization"] = "sum"
    subjects = np.array(["law", "physics"])[np.arange(n) % 2]
    return OptionPredictions(
        np.log(probabilities).astype(np.float32), labels, ids, subjects=subjects, metadata={**known, **metadata}
    )


def folder(path, **options):
    predictions(**options).save(path / "predictions.npz")
    return path


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    root = tmp_path_factory.mktemp("gate")
    assert threshold(folder(root / "after"), "--target_accuracy", 0.9, "--output_dir", root / "gate") == 0
    return root / "gate" / "gate.json"


def test_gate_is_the_threshold_of_the_measures(gate, capsys, tmp_path):
    saved = load_predictions(gate.parents[1] / "after")
    confidences, correct = saved.probabilities.max(axis=1), saved.probabilities.argmax(axis=1) == saved.labels
    expected = accuracy_threshold(confidences, correct, 0.9)
    content = json.loads(gate.read_text())
    for name in (
        "threshold",
        "n",
        "n_answered",
        "coverage",
        "coverage_low",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
    ):
        assert content[name] == getattr(expected, name)
    assert content["target_accuracy"] == 0.9 and content["level"] == 0.95
    assert content["fingerprint"]["model"] == "org/aligned" and content["fingerprint"]["weights"] == "w1"
    assert (confidences >= content["threshold"]).sum() == content["n_answered"]
    assert (gate.parent / "risk_coverage.png").stat().st_size > 10_000
    assert Gate.load(gate.parent).thresholds[""] == expected
    assert threshold(gate.parents[1] / "after/predictions.npz", "--target_risk", 0.1, "--output_dir", tmp_path) == 0
    assert json.loads((tmp_path / "gate.json").read_text()) == content
    assert "an accuracy of at least 0.9 is guaranteed" in capsys.readouterr().out


def test_by_subject(tmp_path, capsys):
    path = folder(tmp_path / "after")
    assert threshold(path, "--target_accuracy", 0.9, "--by", "subject", "--output_dir", tmp_path) == 0
    saved = load_predictions(path)
    correct = saved.probabilities.argmax(axis=1) == saved.labels
    expected = accuracy_thresholds(saved.probabilities.max(axis=1), correct, saved.subjects, 0.9)
    content = json.loads((tmp_path / "gate.json").read_text())
    assert {name: part["threshold"] for name, part in content["subjects"].items()} == {
        name: part.threshold for name, part in expected.items()
    }
    assert Gate.load(tmp_path).thresholds == expected
    out = capsys.readouterr().out
    assert "law: Answer where" in out and "physics: Answer where" in out
    assert threshold("--check", tmp_path, folder(tmp_path / "new", seed=1)) == 0
    assert threshold("--check", tmp_path, folder(tmp_path / "bad", seed=1, power=3)) == 1
    assert "refuted for law, physics" in capsys.readouterr().err


def test_a_subject_without_a_name(tmp_path):
    predictions = load_predictions(folder(tmp_path / "after"))
    predictions.subjects = np.where(predictions.subjects == "law", "", predictions.subjects)
    with pytest.raises(ValueError, match="the subject of a question is empty"):
        Gate.fit(predictions, 0.9, by_subject=True)


def test_no_threshold_reaches_the_target(tmp_path, capsys):
    path = folder(tmp_path / "after", power=1.2, n=300)
    assert threshold(path, "--target_accuracy", 0.97, "--output_dir", tmp_path) == 1
    found = capsys.readouterr()
    assert "no threshold reaches an accuracy of 97.0%" in found.err
    assert "No threshold" in found.out
    assert json.loads((tmp_path / "gate.json").read_text())["threshold"] is None
    assert threshold("--check", tmp_path, folder(tmp_path / "new", seed=1)) == 2
    assert "the gate has no threshold" in capsys.readouterr().err


@pytest.mark.parametrize("right", [0, 1])
def test_answers_that_are_all_right_or_all_wrong(tmp_path, capsys, right):
    frame = pd.DataFrame({"confidence": np.linspace(0.3, 1, 200), "correct": right})
    frame.to_csv(tmp_path / "all.csv", index=False)
    assert threshold(tmp_path / "all.csv", "--target_accuracy", 0.9, "--output_dir", tmp_path) == 1 - right
    expected = "Answer everything" if right else "so more questions alone would not help"
    assert expected in capsys.readouterr().out
    assert json.loads((tmp_path / "gate.json").read_text())["threshold"] == (0 if right else None)


def test_predictions_of_another_tool(tmp_path, capsys):
    rng = np.random.default_rng(0)
    confidence = rng.random(600)
    frame = pd.DataFrame({"confidence": confidence, "correct": (rng.random(600) < confidence**0.2).astype(int)})
    frame[:400].to_csv(tmp_path / "old.csv", index=False)
    frame[400:].to_csv(tmp_path / "new.csv", index=False)
    assert threshold(tmp_path / "old.csv", "--target_accuracy", 0.85, "--output_dir", tmp_path) == 0
    assert threshold("--check", tmp_path, tmp_path / "new.csv", "--output_dir", tmp_path) == 0
    assert "whether it is the same was not checked" in capsys.readouterr().out
    check = json.loads((tmp_path / "check.json").read_text())
    assert check["kind"] == "accuracy" and check["holds"] and check["n"] == 200


def test_check_with_labels(gate, tmp_path, capsys):
    good = [folder(tmp_path / f"week{seed}", seed=seed, n=300) for seed in (1, 2)]
    assert threshold("--check", gate, *good) == 0
    assert "The guarantee is not refuted" in capsys.readouterr().out
    assert threshold("--check", gate, *good, folder(tmp_path / "week3", seed=3, power=2, n=400)) == 1
    found = capsys.readouterr()
    assert "The guarantee is refuted" in found.err and "answers are right" in found.out
    # Once refuted, later answers do not help.
    assert threshold("--check", gate, tmp_path / "week3", folder(tmp_path / "week4", seed=4, power=0.01, n=3000)) == 1


def test_check_without_labels(gate, tmp_path, capsys):
    assert threshold("--check", gate, folder(tmp_path / "same", seed=5, labelled=False)) == 0
    assert "Kolmogorov-Smirnov" in capsys.readouterr().out
    shifted = predictions(seed=6, labelled=False)
    shifted.option_logits /= 2
    shifted.save(tmp_path / "shifted.npz")
    assert threshold("--check", gate, tmp_path / "shifted.npz") == 1
    assert "The confidences have shifted" in capsys.readouterr().err
    frame = pd.DataFrame(predictions(seed=7, labelled=False).probabilities, columns=[f"p_{k}" for k in range(4)])
    frame.to_csv(tmp_path / "new.csv", index=False)
    assert threshold("--check", gate, tmp_path / "new.csv") == 0


@pytest.mark.parametrize(
    "metadata, message",
    [
        (
            {"fingerprint": {"weights": "w2"}},
            "org/aligned, and the gate is of org/aligned, with other weights or in another dtype",
        ),
        ({"fingerprint": {}, "model": "org/other"}, "predictions of org/other, and the gate is of org/aligned"),
        ({"prompt_format": {"scoring": "text"}}, "differs from the gate in its prompt format"),
        ({"calibrator": "temperature"}, "differs from the gate in its calibrator: temperature instead of None"),
        (
            {"answer_confidence": "p_true"},
            "differs from the gate in its kind of confidence: p_true instead of option probability",
        ),
        ({"option_normalization": "mean"}, "differs from the gate in its option_normalization: mean instead of sum"),
    ],
)
def test_another_model_than_the_gates(gate, tmp_path, capsys, metadata, message):
    assert threshold("--check", gate, folder(tmp_path, seed=1, **metadata)) == 2
    assert message in capsys.readouterr().err


def calibrated_folder(path, temperature, **options):
    calibrator = TemperatureScaling()
    calibrator.temperature = np.array([temperature])
    predictions(**options).recalibrated(calibrator).save(path / "predictions.npz")
    return path


def test_the_calibrators_content_is_compared(tmp_path, capsys):
    call = [calibrated_folder(tmp_path / "after", 0.9), "--target_accuracy", 0.9, "--output_dir", tmp_path]
    assert threshold(*call) == 0
    assert threshold("--check", tmp_path, calibrated_folder(tmp_path / "new", 0.9, seed=1)) == 0
    assert threshold("--check", tmp_path, calibrated_folder(tmp_path / "other", 0.8, seed=1)) == 2
    found = capsys.readouterr().err
    assert "differs from the gate in its calibrator: temperature with other parameters instead of temperature" in found
    cross_validated = {"calibrator": "temperature", "calibrator_digest": None}
    assert threshold("--check", tmp_path, folder(tmp_path / "folds", seed=1, **cross_validated)) == 2
    assert "no one calibrator made them" in capsys.readouterr().err
    assert threshold(tmp_path / "folds", "--target_accuracy", 0.9, "--output_dir", tmp_path / "gate") == 2
    assert "calibrated by cross-validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    "now, message",
    [
        (({"scoring": "letter", "prompt_template": "{question}\n{options}\nAnswer:"}, "p1"), None),
        (({"scoring": "letter"}, "p2"), "differs from the gate in its chat template or tokenizer"),
        (({"scoring": "text"}, "p2"), "differs from the gate in its prompt format: {'scoring': 'text'}"),
    ],
)
def test_prompts_are_compared_by_their_digest(tmp_path, capsys, now, message):
    path = folder(tmp_path / "after", prompt_digest="p1")
    assert threshold(path, "--target_accuracy", 0.9, "--output_dir", tmp_path) == 0
    new = folder(tmp_path / "new", seed=1, prompt_format=now[0], prompt_digest=now[1])
    assert threshold("--check", tmp_path, new) == (2 if message else 0)
    assert (message or "") in capsys.readouterr().err


def test_the_questions_of_the_gate_are_no_check(gate, capsys):
    assert threshold("--check", gate, gate.parents[1] / "after") == 2
    assert "the questions on which the gate was made" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target_accuracy", "1.5"], "target_accuracy must lie in (0, 1), got 1.5"),
        (["--target_risk", "0"], "target_risk must lie in (0, 1), got 0"),
        (["--target_accuracy", "0.9", "--level", "1"], "level must lie in (0, 1), got 1"),
        (["--target_accuracy", "0.9", "--target_risk", "0.1"], "either --target_accuracy, --target_risk or --sets"),
        ([], "either --target_accuracy, --target_risk or --sets"),
        (
            ["--target_accuracy", "0.999"],
            "there are 40 questions; a guarantee of an accuracy of 0.999 at level 0.95 needs at least 2995",
        ),
        (["--target_accuracy", "0.9", "--check", "gate"], "--check takes target and subjects from the gate"),
        (["--target_accuracy", "0.99", "--by", "subject"], "the largest of 2 groups has 20 questions"),
    ],
)
def test_wrong_calls(tmp_path, capsys, arguments, message):
    assert threshold(folder(tmp_path / "after", n=40), "--output_dir", tmp_path / "gate", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "gate/gate.json").exists()


def test_predictions_without_labels_or_subjects(tmp_path, capsys):
    path = folder(tmp_path / "after", labelled=False)
    assert threshold(path, "--target_accuracy", 0.9, "--output_dir", tmp_path) == 2
    assert "1500 of 1500 questions have no right option" in capsys.readouterr().err
    saved = predictions()
    saved.subjects = None
    saved.save(tmp_path / "plain.npz")
    assert (
        threshold(tmp_path / "plain.npz", "--target_accuracy", 0.9, "--by", "subject", "--output_dir", tmp_path) == 2
    )
    assert "the predictions have no subjects" in capsys.readouterr().err


def test_predictions_named_twice(gate, tmp_path, capsys):
    week = folder(tmp_path / "week", seed=1)
    assert threshold("--check", gate, week, week / "predictions.npz") == 2
    assert "holds the same predictions as" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"threshold": 0.5}', '{"subjects": 3}'])
def test_no_gate(tmp_path, capsys, content):
    (tmp_path / "gate.json").write_text(content)
    assert threshold("--check", tmp_path / "gate.json", folder(tmp_path)) == 2
    assert "is no gate of `hf-calib threshold`" in capsys.readouterr().err


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    assert threshold(folder(root / "after", power=1), "--sets", 0.9, "--output_dir", root / "sets") == 0
    return root / "sets/sets.json"


def test_sets_are_those_of_python(sets, capsys):
    saved = load_predictions(sets.parents[1] / "after")
    rule = PredictionSets.fit(saved, 0.9)
    assert PredictionSets.load(sets) == rule
    assert threshold(sets.parents[1] / "after", "--sets", 0.9, "--output_dir", sets.parent) == 0
    out = capsys.readouterr().out
    assert f"at least {rule.coverage_least:.3f} for these sets" in out and "options on average" in out


def test_sets_of_new_predictions(sets, tmp_path, capsys):
    new = folder(tmp_path / "new", power=1, seed=1, n=400)
    assert threshold("--check", sets, new, "--output_dir", tmp_path) == 0
    assert "The guarantee is not refuted" in capsys.readouterr().out
    saved, table = load_predictions(new), pd.read_csv(tmp_path / "sets.csv", dtype=str, keep_default_na=False)
    chosen = PredictionSets.load(sets).apply(saved)
    assert table["id"].tolist() == saved.ids.tolist()
    assert table["options"].tolist() == [" ".join(map(str, np.flatnonzero(row))) for row in chosen]
    check = json.loads((tmp_path / "check.json").read_text())
    assert check["kind"] == "sets" and check["coverage"] == chosen[np.arange(400), saved.labels].mean()
    assert threshold("--check", sets.parent, folder(tmp_path / "bare", power=1, seed=2, labelled=False)) == 0
    assert "was not tested" in capsys.readouterr().out
    assert threshold("--check", sets, new, folder(tmp_path / "bad", power=9, seed=3)) == 1
    assert "The guarantee is refuted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sets", "1"], "sets must lie in (0, 1), got 1"),
        (["--sets", "0.9", "--target_accuracy", "0.9"], "either --target_accuracy, --target_risk or --sets"),
        (["--sets", "0.9", "--by", "subject"], "leave out --by and --level"),
        (["--sets", "0.99"], "there are 40 questions; prediction sets of level 0.99 need at least 100"),
        (["--sets", "0.9", "--check", "gate"], "leave out --target_..., --sets and --by"),
    ],
)
def test_wrong_calls_of_sets(tmp_path, capsys, arguments, message):
    assert threshold(folder(tmp_path / "after", n=40), "--output_dir", tmp_path / "sets", *arguments) == 2
    assert message in capsys.readouterr().err


def test_sets_of_another_model_or_of_confidences(sets, tmp_path, capsys):
    assert threshold("--check", sets, folder(tmp_path / "other", seed=1, fingerprint={"weights": "w2"})) == 2
    assert "with other weights" in capsys.readouterr().err
    pd.DataFrame({"confidence": [0.5] * 40, "correct": [0, 1] * 20}).to_csv(tmp_path / "new.csv", index=False)
    assert threshold("--check", sets, tmp_path / "new.csv") == 2
    assert "these are confidences alone" in capsys.readouterr().err
    assert threshold(tmp_path / "new.csv", "--sets", 0.9, "--output_dir", tmp_path) == 2
    assert "these are confidences alone" in capsys.readouterr().err


def test_predictions_of_sets_named_twice(sets, tmp_path, capsys):
    new = folder(tmp_path / "new", power=1, seed=1)
    assert threshold("--check", sets, new, new / "predictions.npz") == 2
    assert "holds the same predictions as" in capsys.readouterr().err


def test_weights_of_another_mix_of_questions(tmp_path, capsys):
    """Half of the sample is easy, of the questions to come nine tenths are hard."""
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.5, 1, 3000)
    hard = rng.random(3000) < 0.5
    correct = (rng.random(3000) < np.where(hard, confidences - 0.1, confidences)).astype(float)
    weights = np.where(hard, 1.8, 0.2)
    expected = accuracy_threshold(confidences, correct, 0.75, sample_weight=weights, max_weight=1.8)
    frame = pd.DataFrame({"confidence": confidences, "correct": correct.astype(int), "weight": weights})
    frame.to_csv(tmp_path / "weighted.csv", index=False)
    np.savez(tmp_path / "weighted.npz", confidences=confidences, correct=correct, weights=weights)
    for name in ("weighted.csv", "weighted.npz"):
        call = ["threshold", str(tmp_path / name), "--target_accuracy", "0.75", "--output_dir", str(tmp_path / "gate")]
        assert main([*call, "--max_weight", "1.8"]) == 0
        gate = json.loads((tmp_path / "gate" / "gate.json").read_text())
        assert gate["threshold"] == pytest.approx(expected.threshold) and gate["n"] == expected.n
        assert f"{expected.n} of 3000 questions are drawn by their weights" in capsys.readouterr().out
    assert main(call) == 0
    assert "weights of the questions are not used: give --max_weight" in capsys.readouterr().out
    plain = accuracy_threshold(confidences, correct, 0.75)
    gate = json.loads((tmp_path / "gate" / "gate.json").read_text())
    assert gate["threshold"] == pytest.approx(plain.threshold) and plain.threshold < expected.threshold

    assert main([*call, "--max_weight", "1.5"]) == 2
    assert "and `max_weight` is 1.5" in capsys.readouterr().err
    frame.drop(columns="weight").to_csv(tmp_path / "weighted.csv", index=False)
    assert main([call[0], str(tmp_path / "weighted.csv"), *call[2:], "--max_weight", "1.8"]) == 2
    assert "max_weight needs a weight of each question: a column `weight`" in capsys.readouterr().err
    frame.assign(weight=[-1.0, *weights[1:]]).to_csv(tmp_path / "weighted.csv", index=False)
    assert main([call[0], str(tmp_path / "weighted.csv"), *call[2:], "--max_weight", "1.8"]) == 2
    assert "line 2: weight is -1; a weight is a number of at least 0" in capsys.readouterr().err
