"""The quickstart: its stages, its report, and the resumption of a finished run."""

import json

import pytest

from hf_calib import calibration_report
from hf_calib.cli.main import main
from hf_calib.paths import recipe_path
from hf_calib.training import quickstart, restore_recipe
from hf_calib.training.quickstart import STAGES


RIVALS = ["TS", "ensemble TS", "TS-IR", "temperature per subject"]


def test_every_stage_has_a_recipe():
    names = [stage.name for stage in STAGES]
    for place, stage in enumerate(STAGES):
        assert recipe_path(f"quickstart/{stage.name}.yaml").is_file()
        assert stage.parent in ("untrained", *names[:place])


def test_too_few_test_questions_are_refused_before_the_work(tmp_path, capsys):
    assert main(["quickstart", "--limit", "5", "--output_dir", str(tmp_path)]) == 2
    assert "limit must be at least 20" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A quickstart in a world with few rows."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "NUM_STATEMENTS", 2048)
        patch.setattr(quickstart, "NUM_PAIRS", 128)
        patch.setattr(quickstart, "NUM_TRAIN_QUESTIONS", 100)
        patch.setattr(restore_recipe, "CLOSING_STEPS", {"full": 1, "lora": 1})
        quickstart.run_quickstart(folder, num_test_questions=100)
        before = {path: path.stat().st_mtime_ns for path in folder.glob("**/model.safetensors")}
        quickstart.run_quickstart(folder, num_test_questions=100)
    kept = {path: path.stat().st_mtime_ns for path in before}
    assert len(before) == 5 and {path for path in before if before[path] != kept[path]} == {
        folder / "world" / "untrained" / "model.safetensors"
    }
    return folder


def test_results(folder):
    rows = json.loads((folder / "results.json").read_text())
    names = [row["stage"] for row in rows]
    assert names[:2] == ["base", "dpo"] and names[-2:] == ["restored", "memorised"]
    assert sorted(names[2:-2]) == sorted(f"dpo + {rival}" for rival in RIVALS)
    measures = calibration_report([[0.6, 0.4], [0.3, 0.7]], [0, 1]).keys()
    for row in rows:
        assert row["n"] == 100 and row["seconds"] >= 0 and measures <= row.keys()
    by_name = {row["stage"]: row for row in rows}
    assert by_name["memorised"]["regime"] == "non-calibratable"
    assert by_name["base"]["seconds"] > 0 and by_name["restored"]["seconds"] > 0


def test_report(folder):
    report = (folder / "report.md").read_text()
    rows = {row["stage"]: row for row in json.loads((folder / "results.json").read_text())}
    repairs = [name for name in rows if name == "restored" or name.startswith("dpo +")]
    for measure, name in (("ece", "conf-ECE"), ("nll", "NLL")):
        best = min(repairs, key=lambda stage: rows[stage][measure])
        assert f"Best repair by {name}: {best}, {rows[best][measure]:.3f}" in report
    assert f"by {rows['restored']['alignment_kl_per_token']:.3f} nats a token" in report
    assert "noise floor" in report and "Its regime is non-calibratable" in report
    for name in ("reliability.png", "regime.png", "restore/report.md", "restore/model/model.safetensors"):
        assert (folder / name).is_file()
