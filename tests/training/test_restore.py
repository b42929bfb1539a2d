"""`restore` on a small world: from an overconfident model to a checkpoint, stopped and resumed, and its choices."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from datasets import Dataset
from runs import StopAt
from samples import save_world_model
from transformers import AutoModelForCausalLM

from hf_calib import CalibratedSFTTrainer
from hf_calib.cli.main import main
from hf_calib.data.synthetic_world import World
from hf_calib.evaluation.alignment_report import AlignmentReport
from hf_calib.evaluation.protocol import EvaluationProtocol
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predict import predict_options
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.training import restore_plan, restore_recipe
from hf_calib.training.restore import run_restore
from hf_calib.training.restore_data import load_restore_questions
from hf_calib.training.restore_method import choose_objective
from hf_calib.training.restore_options import RestoreOptions
from hf_calib.training.restore_plan import Plan, fit_budget
from hf_calib.training.restore_recipe import closing_options, default_recipe, parse_recipe, read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, one three times too sure, and questions that the first one answers at random by its probabilities."""
    folder = tmp_path_factory.mktemp("restore")
    save_world_model(folder / "base")
    save_world_model(folder / "aligned", sharpness=3)
    base, world = load_model(str(folder / "base")), World()
    for name, questions in (("labels", world.questions(160, split="train")), ("test", world.questions(200))):
        questions = questions.remove_columns(["target_probabilities", "subject"])
        probabilities = predict_options(*base, questions, scoring="text", progress=False).probabilities
        draws = np.random.default_rng(0).random((len(questions), 1))
        answers = (probabilities.cumsum(axis=1) > draws).argmax(axis=1)
        rows = [{**row, "answer": int(answer)} for row, answer in zip(questions, answers, strict=True)]
        Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(autouse=True)
def short_closing_step(monkeypatch):
    monkeypatch.setattr(restore_recipe, "CLOSING_STEPS", {"full": 1, "lora": 1})


@pytest.fixture
def options(folder, tmp_path):
    def make(**changes):
        given = {"model": "aligned", "dataset": "labels.parquet", "test": "test.parquet", **changes}
        for name in ("model", "dataset", "test", "reference", "unlabelled"):
            if given.get(name) is not None:
                given[name] = str(folder / given[name])
        return RestoreOptions(**{"output_dir": str(tmp_path / "out"), "scoring": "text", "batch_size": 64, **given})

    return make


def stages(out):
    return json.loads((out / "stages.json").read_text())


def test_a_stopped_restoration_resumes_and_leaves_a_checkpoint_to_push(options, tmp_path, monkeypatch, capsys):
    out, train = tmp_path / "out", CalibratedSFTTrainer.train
    World().preference_pairs(20, seed=9).to_parquet(tmp_path / "pairs.parquet")
    (tmp_path / "prompts.txt").write_text("the colour of bavo is\nthe food of lila is\n")
    measured = {"pairs": str(tmp_path / "pairs.parquet"), "prompts": str(tmp_path / "prompts.txt")}
    given = options(reference="base", unlabelled="test.parquet", test=None, **measured)

    def stopped(trainer, *args, **kwargs):
        trainer.add_callback(StopAt(trainer.args.save_steps + 1))
        return train(trainer, *args, **kwargs)

    monkeypatch.setattr(CalibratedSFTTrainer, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_restore(given)
    assert stages(out)["aligned"]["finished"] and not stages(out)["training"]["finished"]
    spent = stages(out)["training"]["seconds"]
    monkeypatch.setattr(CalibratedSFTTrainer, "train", train)
    capsys.readouterr()
    rows = run_restore(given, "hf-calib restore --model aligned")
    printed = capsys.readouterr().out
    assert "aligned: kept" in printed and "Resuming from" in printed and "questions without answers" in printed

    assert [row["stage"] for row in rows] == [
        "reference", "aligned", "aligned + agreement temperature", "aligned + temperature scaling",
        "aligned + ensemble temperature scaling", "aligned + TS-IR", "restored",
    ]  # fmt: skip
    assert rows == json.loads((out / "results.json").read_text())
    aligned, restored = rows[1], rows[-1]
    assert restored["nll"] < aligned["nll"] and restored["seconds"] > 0
    assert restored["no_harm_labels_n"] == 21 and restored["no_harm_test_n"] == 53
    report = (out / "report.md").read_text()
    assert "held-out labels, the trained model" in report and "Method: " in report and "| training |" in report
    alignment = AlignmentReport.load(out / "model" / "evaluation")
    assert alignment.n_pairs == 20 and list(alignment.models) == ["reference", "aligned", "restored"]
    assert alignment.section() in report and alignment.lines()[0] in report and alignment.lines()[0] in printed
    for row in (rows[0], aligned, restored):
        for measure, estimate in alignment.models[row["stage"]].items():
            assert row.get(f"alignment_{measure}") == (None if np.isnan(estimate.value) else estimate.value)
    assert restored["alignment_kl_per_token"] > 0 and "alignment_reward_accuracy" in restored
    assert (out / "confidence_shift.png").exists() and not list((out / "model").glob("checkpoint-*"))

    # The test questions are none of the labels, and the checkpoint is the one that was evaluated.
    parts = [Dataset.from_parquet(str(out / "data" / f"{name}.parquet")) for name in ("labels", "test")]
    assert [len(part) for part in parts] == [107, 53] and not set(parts[0]["id"]) & set(parts[1]["id"])
    again = predict_options(*load_model(str(out / "model")), parts[1], scoring="text", progress=False)
    evaluated = OptionPredictions.load(out / "model/evaluation/predictions.npz")
    np.testing.assert_allclose(again.option_logits, evaluated.option_logits, rtol=1e-4, atol=1e-4)
    card = (out / "model" / "README.md").read_text()
    assert "### Alignment" in card and "| reward_accuracy |" in card
    assert main(["push", "--model", str(out / "model"), "--dry_run", "true"]) == 0
    assert "hf-calib restore --model aligned" in card and "### Alignment" in (out / "model" / "README.md").read_text()

    before = stages(out)
    assert before["training"]["seconds"] > spent > 0
    run_restore(given)
    assert stages(out) == before  # everything was kept
    restored = run_restore(replace(given, pairs=None))[-1]
    changed = {name for name, stage in stages(out).items() if stage["key"] != before[name]["key"]}
    assert changed == {"alignment"} and "alignment_margin" not in restored and "alignment_end_rate" in restored


def test_an_adapter_is_merged_and_a_changed_argument_redoes_what_depends_on_it(options, tmp_path):
    out, recipe = tmp_path / "out", tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"objective": "cft", "use_peft": True, "lora_r": 4, "num_train_epochs": 1}))
    run_restore(options(config=str(recipe)))
    first = stages(out)
    assert (out / "adapter" / "adapter_config.json").exists()
    assert (
        AutoModelForCausalLM.from_pretrained(out / "model").num_parameters()
        == first["plan"]["result"]["num_parameters"]
    )
    assert len(OptionPredictions.load(out / "adapter/held_out/predictions.npz")) == 32  # CFT holds labels out, too
    settings = json.loads((out / "model" / "training.json").read_text())["settings"]
    assert settings["objective"] == "cft" and settings["LoRA rank"] == 4
    recipe.write_text(recipe.read_text().replace("lora_r: 4", "lora_r: 2"))
    run_restore(options(config=str(recipe)))
    second = stages(out)
    assert second["aligned"] == first["aligned"] and second["training"]["key"] != first["training"]["key"]
    assert second["restored"]["key"] != first["restored"]["key"]


def test_cft_closes_with_questions_without_answers(options, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"objective": "cft", "num_train_epochs": 1}))
    restored = run_restore(options(config=str(recipe), unlabelled="test.parquet", test=None))[-1]
    plan = stages(tmp_path / "out")["plan"]["result"]["plan"]
    assert plan["unlabelled"] > 100
    assert restored["closing_untrained"] == plan["unlabelled"] + restored["closing_no_harm_n"]


def test_a_calibrated_model_is_not_trained(options, tmp_path, capsys):
    rows = run_restore(options(model="base"))
    assert rows[0]["stage"] == "aligned" and rows[-1]["stage"] == "aligned + TS-IR"
    assert not (tmp_path / "out" / "model").exists()
    printed = capsys.readouterr().out
    assert "Nothing to repair: conf-ECE" in printed and "can be used as it is" in printed


def test_letters_that_are_no_tokens_leave_the_texts(options, capsys):
    run_restore(options(model="base", scoring=None))
    assert "Scoring: the texts of the options, because letters are not possible" in capsys.readouterr().out


def test_two_processes_restore_together(launch, options, tmp_path):
    given = options()
    call = ["restore", "--model", given.model, "--dataset", given.dataset, "--test", given.test]
    call += ["--scoring", "text", "--output_dir", given.output_dir, "--batch_size", "64"]
    done = launch("ddp", "hf_calib.cli", *call, module=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("held-out labels, the trained model") == 1
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert rows[-1]["stage"] == "restored" and rows[-1]["n"] == 200


# Choice of the method


def method_for(options, share, model, reference=None, target=None):
    """
    Choose the method on 600 questions of two options, of which a share has the answer 0.

    `model`, `reference` and `target` are the probabilities of option 0 in all questions.
    """
    n = 600
    labels = (np.arange(n) >= n * share).astype(int)

    def predictions(first, target=None):
        rows = None if target is None else np.tile([target, 1 - target], (n, 1))
        return OptionPredictions(np.log(np.tile([first, 1 - first], (n, 1))), labels, np.arange(n).astype(str), rows)

    protocol = EvaluationProtocol(dataset="labels.parquet", n_bootstrap=20)
    work = SimpleNamespace(protocol=protocol, config={}, options=options)
    return choose_objective(work, predictions(model, target), reference and predictions(reference))


def test_a_reference_that_the_labels_contradict_is_warned_of(options):
    given = options(reference="base")
    anchored = f"The training is anchored to the reference {given.reference}"
    # The model predicts option 0, and the reference expects it to be right in .3 of the questions.
    below, within, above = (method_for(given, share, 0.9, reference=0.3) for share in (0.1, 0.3, 0.5))
    regimes = [method["labels"]["regime"] for method in (below, within, above)]
    assert regimes == ["target-contradicted", "calibratable", "target-contradicted"]
    assert below["sentence"].endswith(f"{anchored}, which these labels contradict: check it, or leave it out.")
    assert within["sentence"].endswith(f"{anchored}.") and above["sentence"].endswith(f"{anchored}.")
    assert "anchored" not in method_for(options(), 0.1, 0.9)["sentence"]


def test_a_target_that_the_labels_contradict_is_not_taken_for_the_reference(options):
    method = method_for(options(reference="base"), 0.1, 0.9, target=0.3)
    assert method["labels"]["regime"] == "target-contradicted" and "target is wrong" in method["sentence"]
    assert "anchored" in method["sentence"] and "labels contradict" not in method["sentence"]


# Questions


def test_test_questions_are_left_out_of_the_labels(options, folder, tmp_path):
    labels, test = (Dataset.from_parquet(str(folder / f"{name}.parquet")) for name in ("labels", "test"))
    shared = [{**row, "choices": row["choices"][::-1], "answer": len(row["choices"]) - 1 - row["answer"]}
              for row in test.select(range(10))]  # fmt: skip
    Dataset.from_list([*labels, *shared, labels[0]]).to_parquet(tmp_path / "mixed.parquet")
    given = options()
    given.dataset = str(tmp_path / "mixed.parquet")
    questions = load_restore_questions(given)
    assert len(questions.labels) == 160 and len(questions.test) == 200
    assert "1 questions of mixed.parquet are duplicates" in questions.notes[0] and "10 labelled" in questions.notes[1]


# Plan


def test_the_budget_reduces_epochs_then_test_questions_then_labels():
    plan = Plan(400, 1000, 800, 4, 0.1, 3, 0, False, False)
    assert fit_budget(plan, None) == plan
    seen = [fit_budget(plan, minutes) for minutes in (30, 12, 8, 5, 2)]
    assert [p.epochs for p in seen] == sorted((p.epochs for p in seen), reverse=True)
    for reduced, minutes in zip(seen, (30, 12, 8, 5, 2), strict=True):
        assert reduced.seconds <= 60 * minutes
    assert seen[-1].epochs == 1 and seen[-1].labels < 400
    assert fit_budget(plan, 30, fixed_epochs=True).epochs == 4
    with pytest.raises(ValueError, match=r"--budget [\d.]+ or more"):
        fit_budget(plan, 0.1)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_default_recipe_is_one_that_train_takes(kind, tmp_path):
    plan = Plan(100, 100, 0, 3, 0.1, 4, 0, False, False)
    recipe = default_recipe(1e8, kind, plan, single_tokens=False, processes=2)
    script_args, training_args, model_args = parse_recipe("recipe", {**recipe, "scoring": "text"})
    batch = {"lora": 8, "full": 32}[kind]
    assert training_args.per_device_train_batch_size == batch // 2 and model_args.use_peft == (kind == "lora")


@pytest.mark.parametrize(
    ("kind", "steps", "share"), [("lora", 10, 2.0), ("lora", 100, 0.5), ("full", 75, 2.0), ("full", 600, 0.5)]
)
def test_a_short_training_has_a_longer_closing_step(kind, steps, share, monkeypatch):
    monkeypatch.setattr(restore_recipe, "CLOSING_STEPS", restore_plan.CLOSING_STEPS)
    assert closing_options(kind, steps)["steps"] == share


def test_a_recipe_overrides_the_training_and_not_the_data(options, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    content = {"learning_rate": 3e-4, "scoring": "text", "dataset_name": "other", "limit": 3, "em_refresh": 7}
    content |= {"columns": "answer=Gold", "answers_from": 1}
    recipe.write_text(yaml.safe_dump(content))
    assert read_config(options(config=str(recipe))) == {"learning_rate": 3e-4, "em_refresh": 7}
