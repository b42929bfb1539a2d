"""benchmarks/regime_map/regime_map.py: a run cut off begins again, one that is done is kept; the map of predictions made by hand."""

import json

import numpy as np
import pytest
import regime_map
import yaml
from samples import save_world_model

from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.inference.predictions import OptionPredictions


def say(confidence: float, accuracy: float, target: float, n: int = 200) -> np.ndarray:
    """Logits of four options, labels and targets, with that confidence and accuracy; the truth gives each first option `target`."""
    rest = (1 - confidence) / 3
    labels = (np.arange(n) >= round(accuracy * n)).astype(int)
    logits = np.tile(np.log([confidence, rest, rest, rest]), (n, 1))
    return logits, labels, np.tile([target, *[(1 - target) / 3] * 3], (n, 1))


@pytest.fixture
def folder(tmp_path):
    """CFT is sure of what it has learnt, RCFT is not; both reach accuracy .9 on the training questions, where .6 is the most."""
    for run, confidences in (("cft", (0.7, 0.8, 0.9)), ("rcft", (0.7, 0.6, 0.5))):
        (tmp_path / run / "collapse").mkdir(parents=True)
        for step, (confidence, accuracy) in enumerate(zip(confidences, (0.5, 0.7, 0.9), strict=True)):
            parts = [say(confidence, accuracy, 0.6), say(confidence, 0.5, 0.6)]
            logits, labels, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            ids = np.array([f"{part}-{i}" for part in regime_map.PARTS for i in range(200)])
            predictions = OptionPredictions(logits.astype(np.float32), labels, ids, target_probabilities=targets)
            predictions.save(tmp_path / run / "collapse" / f"step-{step:06d}.npz")
    return tmp_path


def test_the_map_compares_at_the_same_training_accuracy(folder):
    points = [point for run in regime_map.RUNS for point in regime_map.measure(run, folder)]
    first, last = points[0], points[4]
    assert (first["run"], first["step"], first["questions"]) == ("cft", 0, "train")
    assert first["regime"] == "target-contradicted"  # accuracy .5, expected accuracy .6
    assert last["regime"] == "non-calibratable" and last["sum_lower_bound"] == pytest.approx(0.3)
    accuracies, errors = regime_map.at_same_accuracy(points)
    np.testing.assert_allclose(accuracies, [0.66, 0.72, 0.78, 0.84, 0.9])
    np.testing.assert_allclose(errors["cft"], 0.3 + 0.5 * (accuracies - 0.7), atol=1e-6)
    np.testing.assert_allclose(errors["rcft"], 0.1 - 0.5 * (accuracies - 0.7), atol=1e-6)
    ratios = regime_map.write_map(folder, "A map", points)
    assert ratios["0.900"] == 0.0 and ratios["0.660"] == pytest.approx(0.12 / 0.28, abs=1e-3)
    text = (folder / "map.md").read_text()
    assert text.count("\n| cft | ") == 6 + 1 and "| rcft / cft | 0.429 |" in text
    assert (folder / "map.png").stat().st_size > 10_000


def test_questions_held_out_are_not_trained_on(folder):
    whole = regime_map.measure("rcft", folder)
    first = OptionPredictions.load(folder / "rcft" / "collapse" / "step-000000.npz")
    first.select([f"train-{i}" for i in range(100)]).save(folder / "rcft" / "held_out" / "predictions.npz")
    left = regime_map.measure("rcft", folder)
    assert [point["n"] for point in left] == [100, 200] * 3
    # Those right stand first, so that of the half that is left none is right at first, and 80% are at last.
    assert [point["accuracy"] for point in left[::2]] == pytest.approx([0.0, 0.4, 0.8])
    assert [point["accuracy"] for point in left[1::2]] == [point["accuracy"] for point in whole[1::2]]


def test_without_a_truth_there_is_no_border(folder):
    for file in folder.glob("*/collapse/*.npz"):
        predictions = OptionPredictions.load(file)
        OptionPredictions(predictions.option_logits, predictions.labels, predictions.ids).save(file)
    points = [point for run in regime_map.RUNS for point in regime_map.measure(run, folder)]
    accuracies, _ = regime_map.at_same_accuracy(points)
    np.testing.assert_allclose(accuracies, np.linspace(0.5, 0.9, 6)[1:])
    regime_map.write_map(folder, "A map", points)


def test_a_run_that_was_cut_off_begins_again(tmp_path, monkeypatch):
    world = World(WorldConfig())
    save_world_model(tmp_path / "model")
    for name in ("train", "asked"):
        questions = world.questions(40).remove_columns("id")
        ids = [f"{'train' if row < 20 else 'test'}-{row}" for row in range(40)]
        questions.add_column("id", ids).to_parquet(tmp_path / f"{name}.parquet")
    settings = {"num_train_epochs": 1, "max_steps": 2, "em_holdout": 0.2}
    monkeypatch.setitem(regime_map.FAR, "world", ("quickstart", settings, (40, 0), 1))
    (tmp_path / "rcft").mkdir()
    (tmp_path / "rcft" / "left-behind").touch()
    regime_map.train_far("world", "rcft", str(tmp_path / "model"), tmp_path, 0, (40, 0), lambda_ece=3.0)
    assert not (tmp_path / "rcft" / "left-behind").exists()
    state = tmp_path / "rcft" / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == 2
    assert yaml.safe_load((tmp_path / "rcft" / "recipe.yaml").read_text())["lambda_ece"] == 3.0
    assert (tmp_path / "rcft" / "held_out" / "predictions.npz").exists()
    before = state.stat().st_mtime_ns
    regime_map.train_far("world", "rcft", "nowhere", tmp_path, 0, (40, 0))
    assert state.stat().st_mtime_ns == before
    assert {point["step"] for point in regime_map.measure("rcft", tmp_path)} == {0, 1, 2}
