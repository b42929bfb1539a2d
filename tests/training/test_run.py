"""From a recipe to calibrated DPO: the data that it names, pairs made of questions, collapse measured on the way."""

import json
import pickle
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file

from hf_calib.cli.main import main
from hf_calib.data.questions import PromptFormat
from hf_calib.evaluation.diagnose import repair_command
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.measures.preference_collapse import MEANINGS
from hf_calib.paths import recipe_path
from hf_calib.training import run
from hf_calib.training.arguments import RecipeDPOConfig, TrainArguments
from hf_calib.training.datasets import DataSources


@pytest.fixture
def files(world, tmp_path):
    pairs = world.preference_pairs(40)
    broken = pairs.select([0]).map(lambda row: {"rejected": row["chosen"]})
    concatenate_datasets([pairs, broken]).to_parquet(tmp_path / "pairs.parquet")
    world.questions(30, split="train").to_parquet(tmp_path / "questions.parquet")
    return {name: str(tmp_path / f"{name}.parquet") for name in ("pairs", "questions")}


@pytest.fixture
def start(world_model, tmp_path):
    return ["--model_name_or_path", world_model, "--output_dir", str(tmp_path / "out"), "--max_steps", "2"]


@pytest.fixture
def call(start, files):
    arguments = ["train", "--config", str(recipe_path("quickstart/dpo_calibrated.yaml")), *start]
    arguments += ["--dataset_name", files["pairs"], "--option_dataset_name", files["questions"]]
    arguments += ["--eval_dataset_name", files["pairs"], "--eval_option_dataset_name", files["questions"]]
    return arguments


def test_a_recipe_trains_and_evaluates_pairs_and_options(call, tmp_path, capsys):
    assert main(call) == 2
    assert "train pairs, row 40:" in capsys.readouterr().err
    assert main([*call, "--drop_invalid", "true", "--eval_limit", "20"]) == 0
    measured = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert measured["eval_pair_n"] == 20 and measured["eval_option_n"] == 20
    assert {"eval_pair_ece", "eval_pair_tce", "eval_option_ece"} <= measured.keys()


def test_what_an_earlier_run_left(tmp_path):
    """Its predictions of held-out questions go; a model of another kind beside it would hide it."""
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), is_world_process_zero=lambda: True)
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "predictions.npz").touch()
    run._predict_held_out(trainer)
    assert not list((tmp_path / "held_out").iterdir())

    for adapter in (False, True):
        run.refuse_other_kind(tmp_path, adapter)
    (tmp_path / "adapter_config.json").touch()
    run.refuse_other_kind(tmp_path, adapter=True)
    with pytest.raises(ValueError, match="holds an adapter .* and a whole model is trained"):
        run.refuse_other_kind(tmp_path, adapter=False)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ValueError, match="holds a whole model .* and an adapter is trained"):
        run.refuse_other_kind(tmp_path, adapter=True)


def test_a_recipe_pretrains_on_texts(world, world_model, start, tmp_path):
    world.pretraining_statements(70).to_parquet(tmp_path / "statements.parquet")
    recipe = ["train", "--config", str(recipe_path("quickstart/pretrain.yaml")), *start]
    assert main([*recipe, "--dataset_name", str(tmp_path / "statements.parquet")]) == 0
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (world_model, tmp_path / "out"))
    assert not all(before[name].equal(after[name]) for name in before)


def test_a_recipe_takes_questions_without_answers(start, files, world_model, tmp_path, capsys):
    """A few labels, many questions, and the model from before: what somebody with a folder of questions has."""
    questions = Dataset.from_parquet(files["questions"]).select_columns(["question", "choices"])
    questions.to_json(tmp_path / "questions.jsonl")
    unlabelled = ["--unlabelled_dataset_name", str(tmp_path / "questions.jsonl"), "--unlabelled_limit", "20"]
    recipe = ["train", "--config", str(recipe_path("quickstart/cft.yaml")), "--dataset_name", files["questions"]]
    recipe += ["--limit", "10", "--logging_steps", "1", *start]
    assert main([*recipe, *unlabelled, "--reference_model_name_or_path", world_model]) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "reference_kl" in entry] == [1, 2]
    assert main([*recipe, *unlabelled]) == 2
    assert "Nothing in this objective learns from unlabelled questions" in capsys.readouterr().err
    recipe[2] = str(recipe_path("quickstart/dpo.yaml"))
    assert main([*recipe, *unlabelled]) == 2
    assert "unlabelled_dataset_name is for trainer: calibrated_sft, not dpo" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_card_and_record_name_the_method_and_no_local_path(objective, start, files, world_model, tmp_path):
    call = ["train", "--config", str(recipe_path("quickstart/rcft.yaml")), "--dataset_name", files["questions"]]
    assert main([*call, "--objective", objective, "--closing_step", "false", *start]) == 0
    card, text = ((tmp_path / "out" / name).read_text() for name in ("README.md", "training.json"))
    assert f"trained with {objective.upper()}." in card
    assert str(tmp_path) not in card + text and world_model not in card + text
    record = json.loads(text)
    assert record["base_model"] is None and yaml.safe_load(record["recipe"])["dataset_name"] == ["questions.parquet"]
    assert record["command"].endswith("--model_name_or_path model") and "30 labelled questions of questions" in text


@pytest.mark.parametrize("name", ["rcft", "dpo_calibrated"])
def test_what_was_held_out_is_there_to_calibrate_on(name, start, files, tmp_path, capsys):
    """The answers of the trained model, as `evaluate` would give them, to questions that no gradient has seen."""
    recipe = ["train", "--config", str(recipe_path(f"quickstart/{name}.yaml"))]
    if name == "rcft":
        recipe += ["--dataset_name", files["questions"]]
    else:
        recipe += [
            "--dataset_name",
            files["pairs"],
            "--drop_invalid",
            "true",
            "--option_dataset_name",
            files["questions"],
        ]
    assert main([*recipe, *start, "--em_holdout", "0.5"]) == 0
    out = tmp_path / "out"
    held_out = OptionPredictions.load(out / "held_out" / "predictions.npz")
    assert len(held_out) == 15
    accuracy, confidence = (
        (held_out.probabilities.argmax(1) == held_out.labels).mean(),
        held_out.probabilities.max(1).mean(),
    )
    said = f"Held out: 15 questions, accuracy {accuracy:.3f}, mean confidence {confidence:.3f}."
    assert said in capsys.readouterr().out
    budget = json.loads((out / "training.json").read_text())["budget"]
    assert budget[-1].startswith("15 of the labelled questions were held out for the E-step")
    assert ("not trained on" in budget[-1]) == (name == "rcft")
    asking = ["--scoring", "text", "--prompt_template", "{question}", "--output_dir", str(tmp_path / "evaluation")]
    assert main(["evaluate", "--model", str(out), "--dataset", files["questions"], *asking]) == 0
    asked = OptionPredictions.load(tmp_path / "evaluation" / "predictions.npz").select(held_out.ids)
    np.testing.assert_allclose(held_out.option_logits, asked.option_logits, rtol=1e-4, atol=1e-4)
    assert held_out.metadata["prompt_format"] == asked.metadata["prompt_format"]
    calibrate = ["calibrate", "--predictions", str(out / "held_out"), "--method", "temperature"]
    calibrate += ["--output_dir", str(tmp_path / "calibration")]
    assert main(calibrate) == 0
    assert (tmp_path / "calibration" / "calibrators" / "temperature" / "calibrator.json").exists()
    again = [*recipe, *start[:2], "--output_dir", str(tmp_path / "paper"), "--max_steps", "1", "--em_preset", "paper"]
    assert main(again) == 0
    assert not (tmp_path / "paper" / "held_out").exists()  # its E-step questions are those it trains on


def test_options_are_for_calibrated_dpo(start, files, capsys):
    recipe = ["train", "--config", str(recipe_path("quickstart/dpo.yaml")), "--dataset_name", files["questions"]]
    assert main([*recipe, *start, "--option_dataset_name", files["questions"]]) == 2
    assert "option_dataset_name is for trainer: calibrated_dpo, not dpo" in capsys.readouterr().err


def test_options_are_evaluated_beside_pairs(start, files, capsys):
    recipe = [
        "train",
        "--config",
        str(recipe_path("quickstart/dpo_calibrated.yaml")),
        *start,
        "--drop_invalid",
        "true",
    ]
    names = {
        "dataset": files["pairs"],
        "option_dataset": files["questions"],
        "eval_option_dataset": files["questions"],
    }
    assert main([*recipe, *(part for name, file in names.items() for part in (f"--{name}_name", file))]) == 2
    assert "name these with eval_dataset_name" in capsys.readouterr().err


def test_questions_become_pairs_and_join_real_ones(call, files, tmp_path):
    split = ["--dataset_train_split", "train[:20]", "--dataset_test_split", "train[:20]"]
    assert main([*call, "--dataset_name", files["questions"], files["pairs"], *split, "--eval_limit", "15"]) == 0
    measured = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert measured["eval_pair_n"] == 15 and measured["eval_option_n"] == 15


def test_plain_dpo_takes_questions_and_is_watched(world, start, files, tmp_path):
    recipe = yaml.safe_load(recipe_path("quickstart/dpo.yaml").read_text())
    recipe |= {"dataset_name": [files["questions"]], "collapse_dataset_name": files["questions"], "collapse_steps": 2}
    recipe |= {"scoring": "text", "prompt_template": world.prompt_template, "collapse_limit": 12}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", str(tmp_path / "recipe.yaml"), *start, "--max_steps", "3"]) == 0
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    measured = [entry for entry in log if "collapse/ece" in entry]
    assert [entry["step"] for entry in measured] == [0, 2, 3]
    assert {f"collapse/{name}" for name in MEANINGS} <= measured[0].keys()
    predictions = OptionPredictions.load(tmp_path / "out" / "collapse" / "step-000003.npz")
    # Asked as the recipe says.
    assert len(predictions.labels) == 12 and predictions.metadata["prompt_format"]["scoring"] == "text"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--collapse_steps", "0", "--collapse_dataset_name", "x.parquet"], "collapse_steps must be at least 1, got 0"),
        (["--collapse_limit", "0"], "collapse_limit must be at least 1, got 0"),
        (["--collapse_dataset_name", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["--collapse_dataset_name", "nowhere.parquet:ARC"], "nowhere.parquet: no such file"),
        (["--dataset_name", "{questions}", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["--dataset_name", "{texts}"], "texts.jsonl holds neither preference pairs (columns `chosen`"),
        (["--dataset_name", "{questions}", "{chats}"], "chats.jsonl holds messages"),
        (["--collapse_dataset_name", "{questions}", "--scoring", "letter", "--prompt_template", "{{question}}{{options}}"],
         "Letter scoring needs every letter"),
    ],
)  # fmt: skip
def test_wrong_data_are_named_before_any_training(change, named, call, files, chats, tmp_path, capsys):
    Dataset.from_dict({"text": ["a", "b"]}).to_json(tmp_path / "texts.jsonl")
    places = {**files, "texts": tmp_path / "texts.jsonl", "chats": chats}
    assert main([*call, "--drop_invalid", "true", *(part.format(**places) for part in change)]) == 2
    assert named in capsys.readouterr().err


@pytest.fixture
def chats(tmp_path):
    """Pairs as in trl-lib/ultrafeedback_binarized: both sides begin with the prompt, and have scores."""
    ask = {"content": "What colour is the sky?", "role": "user"}
    rows = [
        {side: [ask, {"content": f"{side} {n}", "role": "assistant"}] for side in ("chosen", "rejected")}
        | {"score_chosen": 7.0}
        for n in range(30)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "chats.jsonl")
    return str(tmp_path / "chats.jsonl")


def test_conversations_and_questions_are_mixed(chats, files, tiny_tokenizers):
    sources = DataSources(seed=0, drop_invalid=True)
    names, tokenizer = [files["questions"], chats], tiny_tokenizers["qwen"]
    pairs = sources.pairs(names, "train[:20]", None, tokenizer, PromptFormat("text"))
    assert pairs.column_names == ["prompt", "chosen", "rejected"] and len(pairs) == 40
    assert pairs[39]["prompt"] == [{"role": "user", "content": "What colour is the sky?"}]
    assert pairs[0]["chosen"][0]["role"] == pairs[39]["chosen"][0]["role"] == "assistant"
    drawn = sources.pairs(names, "train[:20]", 15, tokenizer, PromptFormat("text"))
    assert len(drawn) == 15 and {len(row["prompt"]) for row in drawn} == {1}


def test_the_questions_of_the_pairs_are_the_option_questions(files, tiny_tokenizers):
    """One seed draws the same ones of the same data: calibrated DPO needs no more labels than DPO."""
    sources, names = DataSources(seed=3, drop_invalid=False), [files["questions"]] * 2
    questions = sources.questions(names, "train", 10)
    pairs = sources.pairs(names, "train", 10, tiny_tokenizers["word_level"], PromptFormat("text"))
    assert pairs["prompt"] == questions["question"]


def test_one_name_needs_no_list_and_the_configuration_of_plain_trainers_can_be_saved(tmp_path):
    assert TrainArguments(dataset_name="a", option_dataset_name=["b", "c"]).dataset_name == ["a"]
    config = RecipeDPOConfig(str(tmp_path), scoring="text", use_cpu=True, bf16=False)
    assert pickle.loads(pickle.dumps(config)).prompt_format() == PromptFormat("text")


def test_the_seed_decides_an_adapters_first_weights(call, tmp_path):
    lora = [
        "--use_peft",
        "true",
        "--lora_target_modules",
        "all-linear",
        "--learning_rate",
        "0",
        "--drop_invalid",
        "true",
    ]
    weights = []
    for seed in (1, 1, 2):
        out = tmp_path / f"adapter-{len(weights)}"
        assert main([*call, *lora, "--seed", str(seed), "--output_dir", str(out)]) == 0
        weights.append(load_file(out / "adapter_model.safetensors"))
    name = next(name for name in weights[0] if "lora_A" in name)
    assert weights[0][name].equal(weights[1][name]) and not weights[0][name].equal(weights[2][name])


def test_the_way_from_an_adapter_to_a_model_is_told(call, tmp_path, monkeypatch, capsys):
    """It can be run as it stands; the diagnosis of an adapter begins its repair with it."""
    monkeypatch.chdir(tmp_path)
    lora = ["--use_peft", "true", "--lora_target_modules", "all-linear", "--drop_invalid", "true"]
    assert main([*call, *lora, "--output_dir", "tuned", "--max_steps", "1"]) == 0
    assert main([*call, "--model_name_or_path", "tuned"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    program, _, code = shlex.split(told)
    assert program == "python"
    exec(code)
    assert main([*call, "--model_name_or_path", "tuned-merged", "--drop_invalid", "true", "--max_steps", "1"]) == 0
    merge, repair = repair_command({"recommended_method": "cft"}, "tuned").splitlines()
    assert merge == told and "--model_name_or_path tuned-merged" in repair and repair.endswith("tuned-cft")
