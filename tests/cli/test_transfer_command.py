"""`hf-calib transfer` on models of the synthetic world: what it writes, what it reads, and when it is called wrongly."""

import json

import numpy as np
import pytest
from datasets import Dataset
from samples import save_world_model

from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predict import predict_options
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.posthoc import PostHocCalibrator, TransferredTemperature


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and a surer one, labelled questions, others with and without their answers."""
    folder = tmp_path_factory.mktemp("transfer")
    save_world_model(folder / "before")
    save_world_model(folder / "model", sharpness=3)
    world = World()
    world.questions(120, split="train").to_parquet(folder / "labelled.parquet")
    others = world.questions(200)  # every tenth is longer than the rest
    others = others.map(lambda row, i: {"question": f"{row['question']}{' is' * (i % 10 == 0)}"}, with_indices=True)
    others.to_parquet(folder / "answered.parquet")
    others.remove_columns(["answer", "target_probabilities"]).to_parquet(folder / "others.parquet")
    held_out = predict_options(*load_model(str(folder / "model")), world.questions(60), scoring="text", progress=False)
    held_out.save(folder / "held_out.npz")
    return folder


def call(folder, out, *arguments, dataset="others"):
    given = [
        "--labelled_dataset",
        "{folder}/labelled.parquet",
        "--dataset",
        f"{{folder}}/{dataset}.parquet",
        "--scoring",
        "text",
    ]
    given = [*given, "--n_bootstrap", "30", "--output_dir", str(out), *arguments]
    return main(["transfer", *(argument.format(folder=folder) for argument in given)])


def test_questions_without_answers(folder, tmp_path, capsys):
    assert call(folder, tmp_path, "--model", "{folder}/model") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["n_labels"] == 120 and results["n"] == 200 and "measured" not in results
    after = OptionPredictions.load(tmp_path / "predictions.npz")
    assert (after.labels == -100).all()
    assert after.probabilities.max(axis=1).mean() == pytest.approx(results["expected_accuracy"], abs=1e-3)
    asked = {
        name: OptionPredictions.load(tmp_path / "uncalibrated" / f"original-{name}.npz")
        for name in ("labelled", "unlabelled")
    }
    expected = TransferredTemperature().fit(
        asked["labelled"].option_logits, asked["labelled"].labels, asked["labelled"].votes,
        asked["unlabelled"].option_logits, asked["unlabelled"].votes,
    )  # fmt: skip
    calibrator = PostHocCalibrator.load(tmp_path / "calibrator")
    np.testing.assert_allclose(calibrator.temperature, expected.temperature)
    np.testing.assert_allclose(calibrator.transform(asked["unlabelled"].option_logits), after.probabilities, atol=1e-6)
    assert f"{results['expected_accuracy']:.3f}" in capsys.readouterr().out


def test_the_model_before_votes_and_the_other_is_calibrated(folder, tmp_path):
    out = tmp_path / "own"
    assert call(folder, out, "--model", "{folder}/model", "--original_model", "{folder}/before") == 0
    results = json.loads((out / "results.json").read_text())
    assert {file.name for file in (out / "uncalibrated").iterdir()} == {
        "original-labelled.npz", "original-unlabelled.npz", "labelled.npz", "unlabelled.npz"
    }  # fmt: skip
    before, others = (
        OptionPredictions.load(out / "uncalibrated" / f"{name}.npz") for name in ("original-unlabelled", "unlabelled")
    )
    assert before.votes is not None and others.votes is None
    assert results["confidence_before"] == pytest.approx(others.probabilities.max(axis=1).mean(), abs=1e-4)
    # Held out from training: other labels, the same votes.
    out, given = (
        tmp_path / "held-out",
        ["--original_model", "{folder}/before", "--held_out_predictions", "{folder}/held_out.npz"],
    )
    assert call(folder, out, "--model", "{folder}/model", *given) == 0
    held_out = json.loads((out / "results.json").read_text())
    assert held_out["n_labels"] == 60 and held_out["agreed"] == results["agreed"]
    assert not (out / "uncalibrated" / "labelled.npz").exists()


def test_answers_are_for_the_report_alone(folder, tmp_path, capsys):
    assert call(folder, tmp_path / "without", "--model", "{folder}/model") == 0
    assert (
        call(
            folder, tmp_path / "with", "--model", "{folder}/model", "--dataset_is_labelled", "true", dataset="answered"
        )
        == 0
    )
    without, measured = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("without", "with"))
    assert without["temperature"] == pytest.approx(measured["temperature"], rel=1e-6)
    stages = measured["measured"]
    assert [stage["stage"] for stage in stages] == ["as it is", "transferred temperature"]
    assert stages[0]["accuracy"] == stages[1]["accuracy"] and stages[1]["ece"] < stages[0]["ece"]
    assert (tmp_path / "with" / "reliability.png").exists() and "Accuracy expected" in (
        tmp_path / "with" / "report.md"
    ).read_text()


def test_a_second_call_asks_nothing_again(folder, tmp_path):
    assert call(folder, tmp_path, "--model", "{folder}/model") == 0
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "uncalibrated").iterdir()}
    assert call(folder, tmp_path, "--model", "{folder}/model") == 0
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "uncalibrated").iterdir()}


@pytest.mark.parametrize(
    "more", [[], ["--original_model", "{folder}/before", "--max_length", "7", "--drop_too_long", "true"]]
)
def test_answers_come_and_go_in_one_folder(folder, tmp_path, more):
    """Each call leaves what it would leave in a folder of its own, and the models are not asked again."""

    def left(out, answered):
        arguments = ["--model", "{folder}/model", "--dataset_is_labelled", answered, *more]
        assert call(folder, out, *arguments, dataset="answered") == 0
        names = {str(file.relative_to(out)) for file in out.rglob("*")}
        return names, json.loads((out / "results.json").read_text()), OptionPredictions.load(out / "predictions.npz")

    expected = {answered: left(tmp_path / answered, answered) for answered in ("true", "false")}
    assert "report.md" in expected["true"][0] and "report.md" not in expected["false"][0]
    times = set()
    for answered in ("false", "true", "false"):
        names, results, predictions = left(tmp_path / "both", answered)
        assert (names, results) == expected[answered][:2]
        np.testing.assert_array_equal(predictions.labels, expected[answered][2].labels)
        times.add(tuple(file.stat().st_mtime_ns for file in sorted((tmp_path / "both" / "uncalibrated").iterdir())))
    assert len(times) == 1
    answers = Dataset.from_parquet(str(folder / "answered.parquet"))
    answers = dict(zip(answers["id"], answers["answer"], strict=True))
    predictions = expected["true"][2]
    assert predictions.labels.tolist() == [answers[name] for name in predictions.ids]
    assert len(predictions) == (180 if more else 200)


@pytest.mark.parametrize(
    ("arguments", "dataset", "message"),
    [
        (
            ["--held_out_predictions", "{folder}/held_out.npz", "--option_normalization", "mean"],
            "others",
            "--option_normalization sum, this call has mean",
        ),
        (
            ["--held_out_predictions", "{folder}/held_out.npz", "--prompt_template", "Q: {{question}}"],
            "others",
            "--prompt_template None, this call has Q: {question}",
        ),
        (
            ["--original_model", "{folder}/before", "--model", "{folder}/nowhere"],
            "others",
            "nowhere",
        ),
        (
            ["--dataset_is_labelled", "true"],
            "others",
            "the columns id, question, choices, subject are of no known layout",
        ),
        (["--held_out_predictions", "{folder}/nothing"], "others", "nothing: no such file"),
    ],
)
def test_called_wrongly(folder, tmp_path, capsys, arguments, dataset, message):
    assert call(folder, tmp_path, "--model", "{folder}/model", *arguments, dataset=dataset) == 2
    assert message in capsys.readouterr().err
