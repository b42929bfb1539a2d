"""The quickstart's stages: every recipe is a stage, trained from its parent on data of the world."""

import json
from dataclasses import replace

import pytest

from hf_calib.paths import recipe_path
from hf_calib.training import quickstart
from hf_calib.training.quickstart import ROWS, STAGES


def test_every_recipe_of_the_quickstart_is_a_stage():
    names = [stage.name for stage in STAGES]
    assert {path.stem for path in recipe_path("quickstart").glob("*.yaml")} == set(names) == set(ROWS)
    for place, stage in enumerate(STAGES):
        assert stage.parent in ("untrained", *names[:place])


@pytest.fixture
def small(monkeypatch):
    """A world with few rows: every stage takes seconds."""
    monkeypatch.setattr(quickstart, "NUM_STATEMENTS", 256)
    monkeypatch.setattr(quickstart, "NUM_PAIRS", 128)
    monkeypatch.setattr(quickstart, "NUM_TRAIN_QUESTIONS", 200)


def test_calibrated_dpo_joins_the_report(small, tmp_path, monkeypatch):
    """From the untrained model: one training run tells as much here as two, in half the time."""
    monkeypatch.setattr(quickstart, "STAGES", (replace(STAGES[-1], parent="untrained"),))
    quickstart.run_quickstart(tmp_path, num_test_questions=100)
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["stage"] == "calibrated dpo" and row["n"] == 100
    before, after = (tmp_path / name / "model.safetensors" for name in ("world/untrained", "dpo_calibrated"))
    assert before.read_bytes() != after.read_bytes()
    # Its own questions were interleaved, not those that stand in the recipe.
    assert "option_loss" in (tmp_path / "dpo_calibrated.log").read_text()
