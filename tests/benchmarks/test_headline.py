"""benchmarks/headline/headline.py: killed and resumed it says the same; its stages, labels and configurations."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import headline
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from headline_cells import Place
from headline_config import Method, read_config
from headline_plan import Plan
from headline_stages import means
from samples import save_world_model

from hf_calib import predict_options
from hf_calib.data.prompts import PromptFormat
from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.paths import recipe_path
from hf_calib.posthoc import SubjectTemperature, TransferredTemperature


BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "headline"


# A run, whole


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two subjects of a world, as sources and tests of each other, and an untrained model."""
    folder = tmp_path_factory.mktemp("world")
    world = World(WorldConfig())
    for name, seed in (("model", 0), ("reference", 1)):
        save_world_model(folder / name, seed)
    model, tokenizer = load_model(str(folder / "model"))
    for name in ("train", "test"):
        questions = world.questions(400, split=name)
        asked = {"prompt_format": PromptFormat("text", "{question}"), "batch_size": 64, "progress": False}
        says = predict_options(model, tokenizer, questions, **asked).option_logits.argmax(1)
        # It knows every second answer, so that there is something to calibrate.
        answers = np.where(np.arange(len(says)) % 2, says, questions["answer"]).tolist()
        questions.remove_columns("answer").add_column("answer", answers).to_parquet(folder / f"{name}.parquet")
    files = {"train": str(folder / "train.parquet"), "test": str(folder / "test.parquet")}
    steps = {"max_steps": 2, "per_device_train_batch_size": 8}
    anchor = {"unlabelled_dataset_name": "{unlabelled}", "reference_model_name_or_path": str(folder / "reference")}
    settings = {
        "title": "Two subjects",
        "seeds": [0],
        "budgets": [40],
        "asking": {"scoring": "text", "prompt_template": "{question}"},
        "batch_size": 64,
        "models": {"tiny": {"path": str(folder / "model"), "reference": str(folder / "reference")}},
        "datasets": {
            "taste": {**files, "subject": ["colour", "food"], "num_test": 60},
            "fact": {**files, "subject": ["home", "craft", "metal"], "num_test": 60},
        },
        "original": "as is",
        "baselines": ["TS", "TS-IR"],
        "ours": "RCFT + TS",
        "methods": {
            "as is": {},
            "TS": {"calibrator": "temperature"},
            "TS-IR": {"calibrator": "temperature_isotonic"},
            "DACA": {"calibrator": "agreement"},
            "RCFT": {"recipe": "quickstart/rcft.yaml", "set": {**steps, "closing_step": False}},
            "RCFT + TS": {"of": "RCFT", "calibrator": "temperature"},
            "anchored": {"recipe": "quickstart/cft.yaml", "set": {**steps, **anchor}},
            "CFT + TS": {"recipe": "quickstart/cft.yaml", "set": steps, "hold_out": 0.25, "calibrator": "temperature"},
            "folded": {"recipe": "quickstart/rcft.yaml", "set": {**steps, "closing_step": False}, "folds": 2},
            "folded + TS": {"of": "folded", "calibrator": "temperature"},
        },
        "bars": [{"name": "ratio", "measure": "ece", "statistic": "ratio", "at_most": 0.5}],
    }
    path = folder / "headline.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["headline.py", *map(str, args)])
    headline.main()


def test_questions_without_answers_are_all_that_labels_are_drawn_from(config, tmp_path, monkeypatch):
    run(monkeypatch, "--config", config, "--only", "anchored", "--output_dir", tmp_path)
    pools = Plan(read_config(config), tmp_path)
    for name in ("taste", "fact"):
        (model,) = tmp_path.rglob(f"{name}-40/anchored/model")
        unlabelled, labels = (
            Dataset.from_parquet(str(model / f"{part}.parquet")) for part in ("unlabelled", "labels")
        )
        assert "answer" not in unlabelled.column_names and len(labels) == 40
        assert unlabelled["id"] == pools._pools(name)[0]["id"] and set(labels["id"]) <= set(unlabelled["id"])
        assert "reference_kl" in (model / "train.log").read_text()


def test_an_untrained_model_is_asked_once_for_sum_and_mean(tiny_tokenizers, tiny_llama):
    tokenizer = tiny_tokenizers["gpt2"]
    rows = [(["ice", "carbon dioxide or water"], 0), (["Mars", "Jupiter, the largest", "blue"], 2)]
    questions = Dataset.from_list(
        [
            {"id": str(n), "question": "Which is it?", "choices": choices, "answer": answer}
            for n, (choices, answer) in enumerate(rows)
        ]
    )
    asked = {"prompt_format": PromptFormat("text", use_chat_template=False), "progress": False}
    summed, expected = (
        predict_options(
            tiny_llama(tokenizer), tokenizer, questions, option_normalization=option_normalization, **asked
        )
        for option_normalization in ("sum", "mean")
    )
    derived = means(summed, tokenizer, questions, asked["prompt_format"])
    assert not np.allclose(summed.probabilities, expected.probabilities, atol=0.05)
    np.testing.assert_allclose(derived.option_logits, expected.option_logits, rtol=1e-5)
    np.testing.assert_array_equal(derived.option_mass, expected.option_mass)


def test_killed_and_resumed_it_says_the_same(config, tmp_path, monkeypatch, capsys):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    methods = ["as is", "TS", "TS-IR", "RCFT", "RCFT + TS"]
    settings = ["--config", str(config), "--only", *methods]
    command = [sys.executable, str(BENCHMARKS / "headline.py"), *settings, "--output_dir", str(killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        # In the middle: a model is trained, and what follows is on its way.
        while not list(killed.rglob("rcft/model/stage.json")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in killed.rglob("stage.json")}
    assert done and not (killed / "results.json").exists()

    run(monkeypatch, *settings, "--output_dir", killed, "--report_only")
    assert json.loads((killed / "results.json").read_text())["missing_cells"] > 0
    run(monkeypatch, *settings, "--output_dir", killed)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    run(monkeypatch, *settings, "--output_dir", whole)
    results = [json.loads((folder / "results.json").read_text()) for folder in (killed, whole)]
    assert results[0]["cells"] == [pytest.approx(cell, nan_ok=True) for cell in results[1]["cells"]]
    assert results[0]["comparisons"] == results[1]["comparisons"]

    # 2 sources x 2 tests x 5 methods, ours against two baselines.
    cells = results[1]["cells"]
    assert len(cells) == 20 and len(results[1]["comparisons"]) == 8 and results[1]["missing_cells"] == 0
    of = {(cell["source"], cell["test"], cell["method"]): cell for cell in cells}
    assert of["taste", "fact", "TS"]["accuracy"] == of["taste", "fact", "as is"]["accuracy"]
    assert of["taste", "fact", "TS"]["nll"] != of["fact", "fact", "TS"]["nll"]
    assert of["taste", "fact", "RCFT"]["nll"] != of["taste", "fact", "as is"]["nll"]
    assert all((whole / name).exists() for name in ("report.md", "cells.md", "methods-tiny-in.png"))
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["ratio"]["at_most"] == 0.5 and last["ratio"]["met"] == (last["ratio"]["value"] <= 0.5)

    # Nothing is left to do, until something changes: then that alone, and what builds on it.
    run(monkeypatch, *settings, "--output_dir", whole, "--dry_run")
    assert "0.0 minutes" in capsys.readouterr().out
    changed = ["methods.RCFT.set.learning_rate=1.0e-3"]
    stages = Plan(read_config(config, changed), whole).cells(methods)[Place("tiny", "taste", 40, "fact", 0)]
    for name, measured in stages.items():
        assert measured.done == (not name.startswith("RCFT"))
    # Fewer test questions are a matter of the test alone.
    changed = Plan(read_config(config, ["datasets.fact.num_test=50"]), whole).cells(methods)
    stages = [changed[Place("tiny", "taste", 40, test, 0)]["RCFT"] for test in ("fact", "taste")]
    assert [stage.done for stage in stages] == [False, True]
    assert all(stage.done for stage in stages[0].chain() if stage.kind.startswith("train"))


def test_transferred_temperature_is_that_of_each_test(config, tmp_path):
    changes = ["methods.moved={calibrator: transferred_temperature}", "ours=moved"]
    plan = Plan(read_config(config, changes), tmp_path)
    measured = {
        test: plan.cells(["moved"])[Place("tiny", "taste", 40, test, 0)]["moved"] for test in ("taste", "fact")
    }
    for stage in measured.values():
        for needed in stage.chain():
            needed.make()
    folder = tmp_path / "seed-0/tiny/taste-40/moved/calibrated"
    found = {}
    for test in measured:
        calibrator, predictions = (
            TransferredTemperature.load(folder / test),
            OptionPredictions.load(folder / test / "0.npz"),
        )
        before = OptionPredictions.load(tmp_path / f"tiny/sum/{test}-test/0.npz")
        np.testing.assert_allclose(calibrator.transform(before.option_logits), predictions.probabilities, atol=1e-5)
        found[test] = calibrator.temperature.item()
    assert found["taste"] != found["fact"]


def test_temperature_per_subject_is_fitted_and_applied_by_subject(config, tmp_path):
    changes = ["methods.subjects={calibrator: subject_temperature}", "ours=subjects"]
    cells = Plan(read_config(config, changes), tmp_path).cells(["subjects"])
    stage = cells[Place("tiny", "taste", 40, "taste", 0)]["subjects"]
    for needed in stage.chain():
        needed.make()
    folder = tmp_path / "seed-0/tiny/taste-40/subjects/calibrated"
    calibrator = SubjectTemperature.load(folder)
    assert calibrator.subjects == ["colour", "food"]
    after = OptionPredictions.load(folder / "taste" / "0.npz")
    before = OptionPredictions.load(tmp_path / "tiny/sum/taste-test/0.npz")
    expected = calibrator.transform(before.option_logits, groups=before.subjects)
    np.testing.assert_allclose(after.probabilities, expected, atol=1e-5)


def test_of_a_cross_fit_every_label_trains_and_calibrates(config, tmp_path, monkeypatch):
    run(monkeypatch, "--config", config, "--only", "folded", "folded + TS", "--output_dir", tmp_path)
    folder = tmp_path / "seed-0/tiny/taste-40/folded"
    labels = set(Dataset.from_parquet(str(folder / "fold-0" / "labels.parquet"))["id"])
    parts = [set(OptionPredictions.load(folder / f"fold-{n}/held_out/predictions.npz").ids.tolist()) for n in (0, 1)]
    assert len(labels) == 40 and not parts[0] & parts[1]
    held_out = OptionPredictions.load(folder / "sum/held-out/0.npz")
    assert set(held_out.ids.tolist()) == parts[0] | parts[1] <= labels and len(held_out) >= 36
    chosen = json.loads((tmp_path / "seed-0/tiny/taste-40/folded-+-ts/calibrated/chosen.json").read_text())
    assert chosen["n"] == len(held_out)
    weights = [load_model(str(folder / part))[0].state_dict() for part in ("fold-0", "fold-1", "model")]
    for name, value in weights[2].items():
        torch.testing.assert_close(value, (weights[0][name] + weights[1][name]) / 2)
    assert any((value != weights[0][name]).any() for name, value in weights[2].items())


def test_calibrator_gets_the_rows_of_the_e_step(config, tmp_path):
    from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer
    from hf_calib.training.datasets import DataSources

    plan = Plan(read_config(config), tmp_path)
    labels, held_out = plan._divided(plan.config.methods["RCFT"], 3, "taste", 40)
    labels.to_parquet(tmp_path / "labels.parquet")
    questions = DataSources(3).questions([str(tmp_path / "labels.parquet")], "train")
    args = CalibratedSFTConfig(str(tmp_path), em_holdout=0.2, seed=3, use_cpu=True, bf16=False)
    assert len(labels) == 40 and 4 <= len(held_out) <= 8
    assert CalibratedSFTTrainer._split_estep(questions, args)[1]["id"] == held_out["id"]
    # A recipe without an E-step leaves some out altogether.
    kept, held_out = plan._divided(plan.config.methods["CFT + TS"], 3, "taste", 40)
    assert len(kept) + len(held_out) == 40 and not set(kept["id"]) & set(held_out["id"])


def test_labels_are_the_same_for_all_and_nested(config, tmp_path):
    plan = Plan(read_config(config), tmp_path)
    assert plan._labels(0, "taste", 40)["id"][:20] == plan._labels(0, "taste", 20)["id"]
    assert plan._labels(0, "taste", 40)["id"] != plan._labels(1, "taste", 40)["id"]
    assert set(plan._labels(0, "taste", 40)["subject"]) == {"colour", "food"}
    with pytest.raises(ValueError, match="taste has .* fewer than the budget of 4000"):
        plan._labels(0, "taste", 4000)


def test_questions_set_aside_for_labels_are_not_tested(config, tmp_path):
    changes = ["datasets.taste.train=null", "datasets.taste.num_train=50", "datasets.taste.num_test=null"]
    train, test = Plan(read_config(config, changes), tmp_path)._pools("taste")
    assert len(train) == 50 and len(test) > 20 and not set(train["id"]) & set(test["id"])


def test_the_configuration_of_the_project(tmp_path):
    config = read_config(BENCHMARKS / "headline_smollm2.yaml")
    for method in config.methods.values():
        if method.recipe:
            assert recipe_path(method.recipe).exists()
    places = Plan(config, tmp_path).cells([config.original, config.ours])
    assert len(places) == len(config.seeds) * len(config.budgets) * len(config.datasets) ** 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("methods.RCFT.recipes=a", "methods.RCFT: there is no recipes; there are budgets"),
        ("methods.RCFT.option_normalization=mean", "methods.RCFT: option_normalization='mean': sum or mean is wanted"),
        ("methods.TS.calibrator=plat", "methods.TS: calibrator 'plat' is none of agreement, temperature"),
        ("ours=CCFT", "there is no 'CCFT' among as is, TS"),
        ("methods.RCFT.set.objective=cft", "RCFT \\+ TS has no labels .* give hold_out"),
        ("methods.folded.folds=1", "methods.folded: folds=1: at least 2"),
        ("methods.folded.set.objective=cft", "models of folded would be the same"),
        ("methods.TS-IR={of: TS, calibrator: temperature}", "takes the model of TS, which has no recipe"),
        ("datasets.fact.num_train=3", "datasets.fact: give either train"),
        ("asking.template=a", "asking: no template; there are prompt_template"),
        ("bars=[{name: b, measure: ece, statistic: rate, at_most: 1}]", "bars.b: statistic 'rate'"),
        ("models.Tiny={path: a}", "models: tiny and Tiny would share the folder tiny"),
        ("bars=[{name: b, measure: [ece, nll], statistic: ratio, at_most: 1}]", "bars.b: a ratio is of one measure"),
        ("bars=[{name: b, measure: ece, statistic: ratio, at_most: 1, where: {floor: 1}}]", "where has no floor"),
        ("seeds", "KEY=VALUE"),
    ],
)
def test_errors_name_the_entry(config, change, message):
    with pytest.raises(ValueError, match=message):
        read_config(config, [change])


def test_a_stage_that_fails_stops_only_what_builds_on_it(tmp_path, capsys):
    def fail(folder):
        raise ValueError("cannot be applied")

    first = headline.Stage(tmp_path / "first", "first", [], lambda folder: None)
    broken = headline.Stage(tmp_path / "broken", "broken", [], fail, (first,))
    after = headline.Stage(tmp_path / "after", "after", [], lambda folder: None, (broken,))
    beside = headline.Stage(tmp_path / "beside", "beside", [], lambda folder: None, (first,))
    assert headline.work([first, broken, after, beside], tmp_path) == {broken, after}
    assert first.done and beside.done and not broken.done and not after.folder.exists()
    assert f"{broken.folder}: cannot be applied" in capsys.readouterr().err


def test_recipe_loses_its_own_counts_and_takes_the_budgets_changes():
    method = Method("smollm2-135m/rcft.yaml", {"lambda_ece": 3.0}, {100: {"num_train_epochs": 4}})
    assert "limit" not in method.arguments(100) and "dataset_config" not in method.arguments(100)
    assert method.arguments(100)["num_train_epochs"] == 4 and method.arguments(500)["num_train_epochs"] == 1
    assert method.arguments(500, seed=7)["seed"] == 7 and method.arguments(500)["lambda_ece"] == 3.0
