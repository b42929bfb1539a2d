"""`hf-calib calibrate` on a sharpened model of the synthetic world, and when called wrongly."""

import json
import shutil

import numpy as np
import pytest
from adapters import with_lora
from samples import save_world_model
from scipy.special import softmax
from transformers import AutoModelForCausalLM

from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predict import predict_options
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.posthoc import METHODS, PostHocCalibrator


def predict(model, questions, path):
    return predict_options(*load_model(str(model)), questions, scoring="text", output_path=path, progress=False)


def drawn(probabilities):
    return (probabilities.cumsum(axis=1) > np.random.default_rng(0).random((len(probabilities), 1))).argmax(axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Predictions of a model and of one that is three times too sure, whose labels the first one draws."""
    folder = tmp_path_factory.mktemp("calibrate")
    save_world_model(folder / "base")
    save_world_model(folder / "aligned", sharpness=3)
    world = World()
    for split, questions in (("train", world.questions(300, split="train")), ("test", world.questions(400))):
        base, aligned = (predict(folder / name, questions, None) for name in ("base", "aligned"))
        base.labels = aligned.labels = drawn(base.probabilities)
        base.save(folder / f"base-{split}.npz")
        aligned.save(folder / f"aligned-{split}.npz")
    return folder


def call(folder, *arguments):
    return main(["calibrate", "--n_bootstrap", "30", *(argument.format(folder=folder) for argument in arguments)])


def test_all_methods_fitted_measured_and_kept(folder, tmp_path, capsys):
    out = tmp_path / "out"
    files = ["--predictions", "{folder}/aligned-train.npz", "--apply_to", "{folder}/aligned-test.npz"]
    assert call(folder, *files, "--reference_predictions", "{folder}/base-train.npz", "--output_dir", str(out)) == 0
    stages = {stage["method"]: stage for stage in json.loads((out / "results.json").read_text())}
    assert list(stages) == ["as is", *METHODS]
    chosen = [name for name, stage in stages.items() if stage["chosen"]]
    assert chosen in (["agreement"], ["temperature"], ["subject_temperature"])
    assert stages[chosen[0]]["ece"] < stages["as is"]["ece"] / 2 and stages[chosen[0]]["n"] == 400
    test = OptionPredictions.load(folder / "aligned-test.npz")
    for name in METHODS:
        after = PostHocCalibrator.load(out / "calibrators" / name).transform(test.option_logits, groups=test.subjects)
        accuracy = (after.argmax(axis=1) == test.labels).mean()
        assert stages[name]["accuracy"] == pytest.approx(accuracy)
        if METHODS[name].keeps_order:
            assert accuracy == pytest.approx(stages["as is"]["accuracy"])
    assert PostHocCalibrator.load(out / "calibrators/agreement").temperature[0] == pytest.approx(3, rel=1e-3)
    written = OptionPredictions.load(out / "predictions.npz")
    calibrator = PostHocCalibrator.load(out / "calibrators" / chosen[0])
    np.testing.assert_allclose(
        written.probabilities, calibrator.transform(test.option_logits, groups=test.subjects), atol=1e-6
    )
    report = (out / "report.md").read_text()
    assert "## The choice" in report and f'"calibrators/{chosen[0]}"' in report and "400" in report
    assert (out / "reliability.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "Chosen: " in printed and "0.000" in printed and "…" not in printed  # no column is cut off


def test_without_other_questions_each_is_measured_under_fits_without_it(folder, tmp_path):
    arguments = ["--predictions", "{folder}/aligned-train.npz", "--method", "temperature", "histogram"]
    assert call(folder, *arguments, "--output_dir", str(tmp_path)) == 0
    stages = json.loads((tmp_path / "results.json").read_text())
    assert [stage["stage"] for stage in stages] == ["as is", "temperature scaling", "histogram binning"]
    assert all(stage["n"] == 300 for stage in stages)
    assert stages[1]["nll"] == pytest.approx(stages[1]["cv_nll"], rel=1e-4)
    assert "calibrators fitted without it" in (tmp_path / "report.md").read_text()


def test_predictions_of_another_prompt_are_refused(folder, tmp_path, capsys):
    test = OptionPredictions.load(folder / "aligned-test.npz")
    test.metadata["prompt_format"] = {**test.metadata["prompt_format"], "prompt_template": "Q: {question}"}
    test.save(tmp_path / "other.npz")
    arguments = ["--predictions", "{folder}/aligned-train.npz", "--apply_to", str(tmp_path / "other.npz")]
    assert call(folder, *arguments, "--output_dir", str(tmp_path / "out")) == 2
    assert "prompt_template" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_calibrated_model_is_left_as_it_is(folder, tmp_path, capsys):
    arguments = ["--predictions", "{folder}/base-train.npz", "--method", "isotonic"]
    assert call(folder, *arguments, "--output_dir", str(tmp_path)) == 0
    assert "Chosen: as is" in capsys.readouterr().out
    base = OptionPredictions.load(folder / "base-train.npz")
    written = OptionPredictions.load(tmp_path / "predictions.npz")
    np.testing.assert_array_equal(written.option_logits, base.option_logits)


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_folded_checkpoint_gives_the_calibrated_options(folder, tmp_path, kind):
    source, predictions = folder / "aligned", folder / "aligned-train.npz"
    questions = World().questions(300, split="train")
    if kind == "adapter":
        adapted = with_lora(AutoModelForCausalLM.from_pretrained(source))
        source = folder / "adapter"
        adapted.save_pretrained(source)
        World().tokenizer().save_pretrained(source)
        predictions = folder / "adapter-train.npz"
        predicted = predict(source, questions, None)
        predicted.labels = drawn(softmax(predicted.option_logits / 2, axis=-1))
        predicted.save(predictions)
    arguments = ["--predictions", str(predictions), "--method", "temperature", "--fold_into", str(source)]
    assert call(folder, *arguments, "--output_dir", str(tmp_path / "out")) == 0
    folded = predict(tmp_path / "out" / "model", questions, None)
    temperature = PostHocCalibrator.load(tmp_path / "out/calibrators/temperature").temperature
    logits = OptionPredictions.load(predictions).option_logits
    np.testing.assert_allclose(folded.probabilities, softmax(logits / temperature, axis=-1), atol=1e-4)
    config = json.loads((tmp_path / "out/model/config.json").read_text())
    assert config["calibration_temperature"] == pytest.approx(temperature.item())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions", "nowhere.npz"], "nowhere.npz"),
        (["--predictions", "{folder}/aligned-train.npz", "--method", "platt"], "'platt' is not known; choose among agreement"),
        (["--predictions", "{folder}/aligned-train.npz", "--method", "agreement"], "needs the reference"),
        (["--predictions", "{folder}/aligned-train.npz", "--reference_predictions", "{folder}/base-test.npz"], "300 of 300 questions are not"),
        (["--predictions", "{folder}/aligned-test.npz", "--apply_to", "{folder}/aligned-test.npz"], "400 of 400 test questions"),
        (["--predictions", "{folder}/aligned-train.npz", "--n_folds", "200"], "300 questions are too few for 200 folds"),
        (["--predictions", "{folder}/aligned-train.npz", "--method", "beta", "--fold_into", "{folder}/base"], "add temperature"),
        (["--predictions", "{folder}/aligned-train.npz", "--fold_into", "{folder}"], "config.json"),
        (["--predictions", "{folder}/several.npz", "--fold_into", "{folder}/base"], "options of one token each"),
        (["--predictions", "{folder}/aligned-train.npz", "--alpha", "2"], "alpha"),
        ([], "--predictions"),
    ],
)  # fmt: skip
def test_wrong_calls_are_named_and_leave_with_two(folder, tmp_path, capsys, arguments, message):
    several = OptionPredictions.load(folder / "aligned-train.npz")
    several.metadata["single_tokens"] = False
    several.save(folder / "several.npz")
    assert call(folder, *arguments, "--output_dir", str(tmp_path)) == 2
    assert message in capsys.readouterr().err


def test_matrix_scaling_is_left_out_where_questions_differ(folder, tmp_path, capsys):
    ragged = OptionPredictions.load(folder / "aligned-train.npz")
    rows = ragged.labels != ragged.option_logits.shape[1] - 1
    ragged.option_logits[np.flatnonzero(rows)[0], -1] = -np.inf
    ragged.target_probabilities = None  # it knows of the option
    ragged.save(tmp_path / "ragged.npz")
    arguments = ["--predictions", str(tmp_path / "ragged.npz"), "--output_dir", str(tmp_path / "out")]
    assert call(folder, *arguments) == 0
    assert "matrix left out: Matrix scaling needs the same number" in capsys.readouterr().out
    assert not (tmp_path / "out/calibrators/matrix").exists()
    assert call(folder, *arguments, "--method", "matrix") == 2


def test_a_temperature_per_subject_where_there_are_subjects(folder, tmp_path, capsys):
    arguments = ["--predictions", "{folder}/aligned-train.npz", "--method", "temperature", "subject_temperature"]
    out = tmp_path / "out"
    assert call(folder, *arguments, "--apply_to", "{folder}/aligned-test.npz", "--output_dir", str(out)) == 0
    assert "temperature per subject" in capsys.readouterr().out
    calibrator = PostHocCalibrator.load(out / "calibrators/subject_temperature")
    test = OptionPredictions.load(folder / "aligned-test.npz")
    assert set(calibrator.subjects) == set(test.subjects.tolist())

    without = tmp_path / "without.npz"
    test.subjects = None
    test.save(without)
    assert call(folder, *arguments, "--apply_to", str(without), "--output_dir", str(out)) == 2
    assert "needs the subject of every question" in capsys.readouterr().err
    train = ["--predictions", "{folder}/aligned-train.npz", "--apply_to", str(without)]
    assert call(folder, *train, "--output_dir", str(out)) == 0
    assert "subject_temperature left out: " in capsys.readouterr().out
    assert call(folder, "--predictions", str(without), "--output_dir", str(tmp_path / "other")) == 0
    methods = {stage["method"] for stage in json.loads((tmp_path / "other/results.json").read_text())}
    assert "temperature" in methods and "subject_temperature" not in methods
    assert call(folder, "--predictions", str(without), "--method", "subject_temperature") == 2
    assert "'subject_temperature' needs the subjects" in capsys.readouterr().err


def test_help_teaches_by_example(capsys):
    assert main(["calibrate", "--help"]) == 0
    out = capsys.readouterr().out
    assert "hf-calib calibrate --predictions fit --apply_to before" in out
    for method in METHODS:
        assert method in out


@pytest.mark.parametrize("named", ["", "predictions.npz"])
def test_predictions_that_are_read_are_not_overwritten(folder, tmp_path, capsys, named):
    shutil.copy(folder / "aligned-train.npz", tmp_path / "predictions.npz")
    shutil.copy(folder / "base-train.npz", tmp_path / "base.npz")
    kept, given, base = (tmp_path / "predictions.npz").read_bytes(), str(tmp_path / named), str(tmp_path / "base.npz")
    for arguments in (
        ["calibrate", "--predictions", given],
        ["calibrate", "--predictions", base, "--reference_predictions", given],
        ["diagnose", "--reference_predictions", base, "--predictions", given],
        ["measure", given],
    ):
        assert main([*arguments, "--output_dir", f"{tmp_path}/"]) == 2
        assert "which would be overwritten; choose another" in capsys.readouterr().err
    assert (tmp_path / "predictions.npz").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.npz", "predictions.npz"]
