"""Predictions as a data set, the metric as a Space: published, loaded by name, scored again."""

import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import load_dataset
from loopback import read

from hf_calib import calibration_report
from hf_calib.cli.main import main
from hf_calib.data import files
from hf_calib.data.questions import load_questions
from hf_calib.hub.prediction_dataset import as_dataset
from hf_calib.hub.saved_predictions import from_dataset, load_predictions
from hf_calib.inference.predictions import OptionPredictions


def test_predictions_are_scored_again_by_others(hub, api, example, tmp_path, capsys):
    call = [
        "push",
        "--what",
        "predictions",
        "--evaluation",
        str(example.folder / "after"),
        "--repo_id",
        "alice/answers",
    ]
    assert main(call) == 0
    assert str(example.folder) not in str([open(path).read() for path in _texts(api)])
    rows = load_dataset("alice/answers", split="test")
    report, stated = (
        calibration_report(rows["probabilities"][:], rows["label"][:]),
        read(example.folder / "after" / "results.json"),
    )
    for key in ("n", "accuracy", "ece", "cw_ece", "nll", "brier"):
        assert report[key] == pytest.approx(stated[key], abs=1e-6), key
    saved = OptionPredictions.load(example.folder / "after" / "predictions.npz")
    fetched = load_predictions("alice/answers")
    np.testing.assert_array_equal(fetched.option_logits, saved.option_logits)
    assert fetched.ids.tolist() == saved.ids.tolist()
    assert fetched.metadata["prompt_format"] == saved.metadata["prompt_format"]
    calibrate = ["calibrate", "--predictions", "alice/answers", "--method", "isotonic", "--n_bootstrap", "20"]
    assert main([*calibrate, "--output_dir", str(tmp_path / "calibration")]) == 0
    diagnose = [
        "diagnose",
        "--reference_predictions",
        str(example.folder / "before"),
        "--predictions",
        "alice/answers",
    ]
    assert main([*diagnose, "--output_dir", str(tmp_path / "diagnosis"), "--n_bootstrap", "20"]) == 0
    capsys.readouterr()
    assert main(["calibrate", "--predictions", "alice/nothing", "--output_dir", str(tmp_path / "out")]) == 2
    assert "alice/nothing: no such repository" in capsys.readouterr().err


def _texts(api):
    for name in api.list_repo_files("alice/answers", repo_type="dataset"):
        if name.endswith((".json", ".md")):
            yield api.hf_hub_download("alice/answers", name, repo_type="dataset")


def test_rows_of_different_lengths_come_back():
    logits = np.array([[-1, -2, -np.inf], [-3, -1, -2]], np.float32)
    target = np.array([[0.4, 0.6, 0], [0.2, 0.3, 0.5]], np.float32)
    predictions = OptionPredictions(logits, np.array([1, 2]), np.array(["a", "b"]), target, np.array(["x", "y"]))
    again = from_dataset(as_dataset(predictions))
    np.testing.assert_array_equal(again.option_logits, logits)
    np.testing.assert_allclose(again.target_probabilities, target)
    assert again.subjects.tolist() == ["x", "y"] and again.labels.tolist() == [1, 2]
    with pytest.raises(ValueError, match="they lack option_logits"):
        from_dataset(as_dataset(predictions).remove_columns("option_logits"))


def test_the_metric_is_loaded_by_name(hub, api, tmp_path, capsys):
    assert main(["push", "--what", "metric", "--repo_id", "alice/metric"]) == 2
    assert "ORG/ece_regime" in capsys.readouterr().err
    assert main(["push", "--what", "metric", "--repo_id", "alice/ece_regime"]) == 0
    held = set(api.list_repo_files("alice/ece_regime", repo_type="space"))
    assert {"README.md", "app.py", "ece_regime.py", "requirements.txt"} <= held
    code = "import evaluate; print(evaluate.load('alice/ece_regime').compute(predictions=[[0.9, 0.1]] * 30, references=[0] * 24 + [1] * 6)['ece'])"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(0.1)
    api.create_repo("lab/ece_regime", repo_type="space", space_sdk="gradio")
    api.upload_file(path_or_fileobj=b"other", path_in_repo="app.py", repo_id="lab/ece_regime", repo_type="space")
    assert main(["push", "--what", "metric", "--repo_id", "lab/ece_regime"]) == 2
    assert "lab/ece_regime is taken: it holds app.py and no ece_regime.py" in capsys.readouterr().err


def test_text_files_on_the_hub_are_read_as_text(api, tmp_path, monkeypatch):
    rows = "question,A,B,answer,subject\nIs it?,007,NA,B,None\n"
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "test.csv").write_text(rows)
    (folder / "train.csv").write_text(rows + "Was it?,1.50,null,A,x\n")
    api.create_repo("alice/texts", repo_type="dataset")
    api.upload_folder(repo_id="alice/texts", repo_type="dataset", folder_path=folder)
    expected = [["007", "NA"], ["1.50", "null"]]
    assert load_questions("alice/texts", split="train")["choices"][:] == expected
    assert load_questions("alice/texts", split="test")["subject"][:] == ["None"]
    with pytest.raises(ValueError, match="choose `split` among train, test|choose `split` among test, train"):
        load_questions("alice/texts", split="validation")

    def offline(path, *more, original=files.load_dataset_builder, **options):
        if path == "alice/texts":
            raise ConnectionError("no connection")
        return original(path, *more, **options)

    monkeypatch.setattr(files, "load_dataset_builder", offline)
    assert load_questions("alice/texts", split="train")["choices"][:] == expected
