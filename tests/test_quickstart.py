"""The quickstart's stages: every recipe is a stage, trained from its parent on data of the world."""

import json

import pytest

from hf_calib import quickstart
from hf_calib.paths import recipe_path
from hf_calib.quickstart import ROWS, STAGES


def test_every_recipe_of_the_quickstart_is_a_stage():
    names = [stage.name for stage in STAGES]
    assert {path.stem for path in recipe_path("quickstart").glob("*.yaml")} == set(names) == set(ROWS)
    for place, stage in enumerate(STAGES):
        assert stage.parent in ("untrained", *names[:place])


@pytest.fixture
def small(monkeypatch):
    """A world with few rows, and the base trained on them for as long as that takes: some seconds."""
    monkeypatch.setattr(quickstart, "NUM_STATEMENTS", 256)
    monkeypatch.setattr(quickstart, "NUM_PAIRS", 128)
    monkeypatch.setattr(quickstart, "NUM_TRAIN_QUESTIONS", 200)


def test_calibrated_dpo_joins_the_report(small, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "STAGES", (STAGES[0], STAGES[-1]))
    quickstart.run_quickstart(tmp_path, num_test_questions=100)
    rows = {row["stage"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(rows) == ["base", "calibrated dpo"]
    assert rows["base"]["nll"] != rows["calibrated dpo"]["nll"]
    # Its own questions were interleaved, not those that stand in the recipe.
    assert "option_loss" in (tmp_path / "dpo_calibrated.log").read_text()
