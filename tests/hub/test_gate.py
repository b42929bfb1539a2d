"""A gate published with a model: on the card, loaded by anyone, verified; and `SelectiveAnswerer` in Python."""

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard
from loopback import read
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_calib import (
    Gate,
    OptionPredictions,
    SelectiveAnswerer,
    TemperatureScaling,
    load_questions,
    predict_options,
)
from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.hub.card import CalibrationCard


def run(command, *arguments) -> int:
    return main([command, *map(str, arguments)])


@pytest.fixture(scope="module")
def gates(example_source, tmp_path_factory):
    """Gates of the example's evaluation, as it is and calibrated, and predictions of other questions."""
    folder = tmp_path_factory.mktemp("gates")
    World().questions(60, seed=5).to_parquet(folder / "fit.parquet")
    raw = OptionPredictions.load(example_source / "after/predictions.npz")
    for temperature in (2.0, 3.0):
        calibrator = TemperatureScaling()
        calibrator.temperature = np.array([temperature])
        calibrator.save(folder / f"temperature-{temperature:g}")
        raw.recalibrated(calibrator).save(folder / f"calibrated-{temperature:g}.npz")
    target = ["--target_accuracy", 0.05, "--output_dir"]
    assert run("threshold", example_source / "after", *target, folder / "gate") == 0
    assert run("threshold", folder / "calibrated-2.npz", *target, folder / "calibrated-gate") == 0
    return folder


@pytest.fixture
def gated(example, gates):
    """The example, with the gates."""
    shutil.copytree(gates, example.folder, dirs_exist_ok=True)
    return example


def push(example, name, gate="gate", *more) -> int:
    return main(example.call(f"alice/{name}", "--gate", str(example.folder / gate), *more))


def verify(example, name, dataset="test") -> int:
    return run("verify", f"alice/{name}", "--dataset", example.folder / f"{dataset}.parquet")


def test_a_published_gate(hub, api, gated, tmp_path, capsys):
    assert push(gated, "gated") == 0
    assert "gate.json" in api.list_repo_files("alice/gated")
    results, mine = read(gated.folder / "model/results.json"), Gate.load(gated.folder / "gate")
    stated, (threshold,) = results["gate"], mine.thresholds.values()
    assert stated["threshold"] == threshold.threshold and stated["n"] == 60 and stated["of_evaluation"]
    assert stated["fingerprint"]["model"] == "alice/gated" and str(gated.folder) not in str(stated)
    card = ModelCard.load("alice/gated")
    row = f"| 0.05 | 0.95 | {threshold.threshold:.4f} | {threshold.coverage:.3f} [{threshold.coverage_low:.3f}, "
    assert "### When to answer" in card.text and row in card.text and "at least 5% of the answers" in card.text
    assert "SelectiveAnswerer.from_pretrained('alice/gated')" in card.text
    capsys.readouterr()
    assert verify(gated, "gated") == 0
    printed = capsys.readouterr().out
    assert "coverage, of the gate" in printed and "accuracy, of the gate" in printed
    assert verify(gated, "gated", "fit") == 0
    assert "The guarantee is not refuted" in capsys.readouterr().out

    questions = gated.folder / "fit.parquet"
    answers = SelectiveAnswerer.from_pretrained("alice/gated")(load_questions(questions))
    assert run("answer", "--model", "alice/gated", "--dataset", questions, "--output", tmp_path / "answers.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(row["id"], row["answer"]) for row in rows] == [(answer.id, answer.answer) for answer in answers]
    # A later publication without a gate deletes it.
    assert main(gated.call("alice/gated")) == 0
    assert "gate.json" not in api.list_repo_files("alice/gated")
    with pytest.raises(OSError, match=r"alice/gated has no gate.json: make one with `hf-calib threshold`"):
        SelectiveAnswerer.from_pretrained("alice/gated")
    assert "When to answer" not in ModelCard.load("alice/gated").text


def test_a_gate_with_its_calibrator(hub, gated, capsys):
    assert push(gated, "calibrated", "calibrated-gate") == 2
    assert "the gate is of predictions with the calibrator temperature: publish it too" in capsys.readouterr().err
    other = str(gated.folder / "temperature-3")
    assert push(gated, "calibrated", "calibrated-gate", "--calibrator", other) == 2
    assert "temperature with other parameters instead of temperature" in capsys.readouterr().err
    assert push(gated, "calibrated", "calibrated-gate", "--calibrator", str(gated.folder / "temperature-2")) == 0
    assert read(gated.folder / "model/results.json")["gate"]["of_evaluation"]
    assert "calibrated by temperature scaling, is at least the threshold" in ModelCard.load("alice/calibrated").text
    assert verify(gated, "calibrated") == 0
    answerer = SelectiveAnswerer.from_pretrained("alice/calibrated")
    assert isinstance(answerer.calibrator, TemperatureScaling)
    # A gate without a calibrator does not use the published one.
    assert SelectiveAnswerer.from_pretrained("alice/calibrated", gate=gated.folder / "gate").calibrator is None


def test_a_gate_by_subject(hub, gated, capsys):
    by_subject = ["--target_accuracy", 0.01, "--by", "subject", "--output_dir", gated.folder / "by-subject"]
    assert run("threshold", gated.folder / "after", *by_subject) == 0
    assert push(gated, "subjects", "by-subject") == 0
    text = ModelCard.load("alice/subjects").text
    assert (
        "| subject | target accuracy |" in text and "| none | 0.000 [0.000, 0.000] | – |" in text or "| song |" in text
    )
    assert '"subject": "physics"' in text
    answerer = SelectiveAnswerer.from_pretrained("alice/subjects")
    question = {"question": "the colour of bavo is", "choices": ["red", "green"]}
    (unknown,) = answerer([{**question, "subject": "physics"}])
    assert not unknown.answered and unknown.answer is None and unknown.confidence > 0
    with pytest.raises(ValueError, match="has no subject, and the gate has a threshold for each subject"):
        answerer([{**question, "subject": "colour"}, question])
    assert verify(gated, "subjects") == 0


def test_gates_that_are_not_published(hub, gated, tmp_path, capsys):
    gate = Gate.load(gated.folder / "gate")
    for changes, message in (
        ({"weights": "0", "model": "org/other"}, "and the gate is of org/other"),
        ({"prompt_digest": "0", "prompt_format": {"scoring": "letter"}}, "differs from the gate in its"),
        ({"option_normalization": "mean"}, "the evaluation differs from the gate in its option_normalization"),
        ({"prompt_format": None}, "does not state of which weights it is"),
    ):
        gate.fingerprint = {**Gate.load(gated.folder / "gate").fingerprint, **changes}
        gate.save(tmp_path / "gate.json")
        assert push(gated, "wrong", tmp_path) == 2
        assert message in capsys.readouterr().err
    assert push(gated, "wrong", "nowhere") == 2
    assert "there is no" in capsys.readouterr().err
    assert push(gated, "wrong", "gate", "--merge", "true") == 2
    assert "--gate is of the adapter" in capsys.readouterr().err
    card_alone = ["--evaluation", gated.folder / "after", "--dry_run", "true", "--gate", gated.folder / "gate"]
    assert run("push", *card_alone) == 2
    assert "--gate is published with its model" in capsys.readouterr().err
    assert run("push", "--what", "metric", "--repo_id", "alice/ece_regime", "--gate", "gate.json") == 2
    assert "--gate has no meaning with --what metric" in capsys.readouterr().err


def upload(api, name, gate) -> None:
    content = gate if isinstance(gate, bytes) else json.dumps(gate).encode()
    api.upload_file(path_or_fileobj=content, path_in_repo="gate.json", repo_id=f"alice/{name}")


def test_what_verify_finds(hub, api, gated, capsys):
    assert push(gated, "claimed") == 0
    gate = read(gated.folder / "model/gate.json")

    def problem() -> str:
        capsys.readouterr()
        assert verify(gated, "claimed") == 1
        return capsys.readouterr().err

    upload(api, "claimed", {**gate, "threshold": 0.1})
    assert "the gate of alice/claimed does not hold: gate.json is not the gate of the card" in problem()
    upload(api, "claimed", {**gate, "threshold": "0.1"})
    assert "is no gate of `hf-calib threshold` ('0.1' is no number)" in problem()
    upload(api, "claimed", b"{")
    assert "is no gate of `hf-calib threshold`" in problem()
    api.delete_file("gate.json", "alice/claimed")
    assert "the card shows a gate, and there is no gate.json" in problem()
    # A gate of other weights, on the card too.
    results = read(gated.folder / "model/results.json")
    for entry in (gate, results["gate"]):
        entry["fingerprint"] |= {"weights": "0"}
    upload(api, "claimed", gate)
    api.upload_file(path_or_fileobj=json.dumps(results).encode(), path_in_repo="results.json", repo_id="alice/claimed")
    assert "other weights" in problem()
    # A coverage that is not reproduced.
    for entry in (gate, results["gate"]):
        entry["fingerprint"] |= {"weights": results["weights"]}
        entry["n_answered"] = 1
    upload(api, "claimed", gate)
    api.upload_file(path_or_fileobj=json.dumps(results).encode(), path_in_repo="results.json", repo_id="alice/claimed")
    assert "gate/coverage" in problem()


def test_a_guarantee_that_is_refuted(hub, api, gated, capsys):
    assert push(gated, "refuted") == 0
    results, gate = read(gated.folder / "model/results.json"), read(gated.folder / "model/gate.json")
    for entry in (gate, results["gate"]):
        entry["target_accuracy"] = 0.95
    upload(api, "refuted", gate)
    api.upload_file(path_or_fileobj=json.dumps(results).encode(), path_in_repo="results.json", repo_id="alice/refuted")
    assert verify(gated, "refuted", "fit") == 1
    assert "the gate of alice/refuted does not hold" in (found := capsys.readouterr().err)
    assert "The guarantee is refuted" in found


@pytest.mark.parametrize("wrong", [{}, {"threshold": "0"}, {"subjects": 3}, {"fingerprint": {"calibrator": ["x"]}}])
def test_a_results_json_with_a_malformed_gate(hub, gated, wrong):
    assert push(gated, "malformed", "gate", "--dry_run", "true") == 0
    results = read(gated.folder / "model/results.json")
    assert CalibrationCard(results).section().count("### When to answer") == 1
    row = {name: value for name, value in results["gate"].items() if name not in ("fingerprint", "of_evaluation")}
    nasty = CalibrationCard(results | {"gate": {**results["gate"], "subjects": {"a|b <script>": row}}}).section()
    assert "| a\\|b &lt;script&gt; |" in nasty
    results["gate"] = {**results["gate"], **wrong} if wrong else {"level": 0.9}
    with pytest.raises(ValueError, match="gate: "):
        CalibrationCard(results)


@pytest.fixture
def loaded(gated):
    folder = gated.folder / "model"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), gated.folder


def test_in_python(loaded):
    model, tokenizer, folder = loaded
    answerer = SelectiveAnswerer(model, tokenizer, str(folder / "gate" / "gate.json"))
    questions = [{"question": "the colour of bavo is", "choices": ["red", "green", "blue"]}] * 2
    first, second = answerer(questions)
    assert first == second and first.correct is None and first.subject is None and 0 < first.confidence <= 1
    assert first.answered == (first.confidence >= answerer.gate.thresholds[""].threshold)
    assert (first.text in questions[0]["choices"] and first.answer in "ABC") if first.answered else first.text is None
    assert answerer([]) == []
    assert [answer.id for answer in answerer([{**questions[0], "id": 7}, questions[0]])][0] == "7"
    labelled = load_questions(folder / "test.parquet")
    assert all(answer.correct is None for answer in answerer(labelled))
    assert answerer.predict(labelled, progress=False).labels.tolist() == labelled["answer"][:]
    with pytest.raises(ValueError, match="not of these questions"):
        answerer([questions[0], {**questions[0], "question": "the colour " * 400}], max_length=64, drop_too_long=True)
    for wrong in (questions[0], "the colour of bavo is"):
        with pytest.raises(TypeError, match="give a list of questions"):
            answerer(wrong)
    with pytest.raises(ValueError, match="1 option"):
        answerer([{"question": "Ice is", "choices": ["cold"]}])


def test_saved_scores_are_calibrated_once(loaded, tmp_path):
    """A run that was killed between the last score and the calibration leaves scores that are not calibrated."""
    model, tokenizer, folder = loaded
    path, questions = tmp_path / "answers.npz", load_questions(folder / "test.parquet")
    options = {"output_path": path, "batch_size": 8, "progress": False}
    raw = predict_options(model, tokenizer, questions, scoring="text", **options)
    answerer = SelectiveAnswerer(model, tokenizer, folder / "calibrated-gate", folder / "temperature-2")
    expected = raw.recalibrated(answerer.calibrator).probabilities
    for _ in range(2):
        np.testing.assert_array_equal(answerer.predict(questions, **options).probabilities, expected)
        np.testing.assert_array_equal(OptionPredictions.load(path).probabilities, expected)
    plain = SelectiveAnswerer(model, tokenizer, folder / "gate")
    with pytest.raises(ValueError, match=r"holds predictions with another calibrator \(temperature\)"):
        plain.predict(questions, **options)
    np.testing.assert_array_equal(plain.predict(questions, resume=False, **options).option_logits, raw.option_logits)


def test_python_refuses_what_the_gate_is_not_of(loaded):
    model, tokenizer, folder = loaded
    gate = Gate.load(folder / "gate")
    with pytest.raises(ValueError, match="differs from the gate in its calibrator"):
        SelectiveAnswerer(model, tokenizer, gate, calibrator=folder / "temperature-2")
    with pytest.raises(ValueError, match="differs from the gate in its calibrator: None instead of temperature"):
        SelectiveAnswerer(model, tokenizer, folder / "calibrated-gate")
    model.model.norm.weight.data.mul_(2)
    with pytest.raises(
        ValueError, match="the answerer runs .*, and the gate is of .*, with other weights or in another dtype"
    ):
        SelectiveAnswerer(model, tokenizer, gate)
    with pytest.raises(OSError, match="has no gate.json"):
        SelectiveAnswerer.from_pretrained(folder / "start")
    with pytest.raises(OSError, match="the gate is of predictions with the calibrator temperature, and .* has none"):
        SelectiveAnswerer.from_pretrained(folder / "model", gate=folder / "calibrated-gate")
