"""Every objective in two processes, plain and under ZeRO: the losses, weights, maps and measures of one process."""

import json
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_calib import calibration_report
from hf_calib.cli.main import main


pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="compares processes on CPUs")

RECIPE = {
    "scoring": "text",
    "em_refresh": "2",
    "em_holdout": 0.25,
    # Adam blows rounding errors of gradients near 0 up to whole steps, unless it is told how small is small.
    "adam_epsilon": 1e-3,
    "learning_rate": 2e-2,
    "num_train_epochs": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 1,
    "disable_tqdm": True,
}
OBJECTIVES = {
    "cft": {"objective": "cft", "limit": 48},
    "rcft": {"objective": "rcft", "lambda_ece": 5.0, "option_loss_weight": 0.5, "limit": 64},
    "dpo": {
        "trainer": "calibrated_dpo",
        "lambda_pref": 2.0,
        "lambda_options": 1.0,
        "option_likelihood_weight": 0.5,
        "beta": 0.3,
        "max_length": 32,
    },
}
LOGGED = {
    "cft": ("loss",),
    "rcft": ("loss", "em_ece", "option_loss", "option_confidence", "closing_kl"),
    "dpo": ("loss", "pair_em_ece", "em_ece", "option_loss", "rewards/margins"),
}
TUNING = {
    "full": [],
    "lora": ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "all-linear", "--lora_dropout", "0"],
}
CASES = [(objective, tuning) for objective in OBJECTIVES for tuning in TUNING]
# DeepSpeed changes how weights and gradients are kept, which has nothing to do with the objective.
ZERO_CASES = [("rcft", "lora"), ("dpo", "full")]
CONFIGS = {"ddp": CASES, "deepspeed_zero2": ZERO_CASES, "deepspeed_zero3": ZERO_CASES}
STEPS, CLOSING_STEPS = 6, 3


def _steps(objective, name):
    """How often a number is logged: in the training, in the closing step of RCFT, or in both."""
    closing = CLOSING_STEPS if objective == "rcft" else 0
    return {"loss": STEPS + closing, "closing_kl": closing}.get(name, STEPS)


MEASURES = calibration_report(np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0, 1]), n_bootstrap=10).keys() - {
    "entropy"
}


@pytest.fixture(scope="module")
def folder(world, world_model, tmp_path_factory):
    """Recipes and data, of which no evaluation set divides by two processes."""
    folder = tmp_path_factory.mktemp("distributed")
    pairs = world.preference_pairs(83).remove_columns("preference_probability")
    data = {
        "pairs": pairs.select(range(64)),
        "eval_pairs": pairs.select(range(64, 83)),
        "questions": world.questions(64, split="train"),
        "eval_questions": world.questions(21),
    }
    for name, dataset in data.items():
        dataset.to_parquet(folder / f"{name}.parquet")
    asked = {"dataset_name": "questions", "eval_dataset_name": "eval_questions"}
    compared = {
        "dataset_name": "pairs",
        "eval_dataset_name": "eval_pairs",
        "option_dataset_name": "questions",
        "eval_option_dataset_name": "eval_questions",
    }
    for objective, settings in OBJECTIVES.items():
        names = compared if objective == "dpo" else asked
        files = {argument: str(folder / f"{name}.parquet") for argument, name in names.items()}
        recipe = {"model_name_or_path": world_model, **RECIPE, **settings, **files}
        (folder / f"{objective}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def call(folder, objective, tuning, output_dir, processes, *more):
    """`hf-calib train` with eight rows a step in all."""
    batch = ["--per_device_train_batch_size", str(8 // processes), "--output_dir", str(output_dir)]
    return ["--config", str(folder / f"{objective}.yaml"), *TUNING[tuning], *batch, *more]


def train(launch, config, arguments, processes):
    if config != "ddp":
        pytest.importorskip("deepspeed")
    done = launch(config, "hf_calib.cli", "train", *arguments, module=True, processes=processes)
    assert done.returncode == 0, done.stderr[-6000:]


def weights(output_dir):
    names = ("adapter_model.safetensors", "model.safetensors")
    return load_file(next(output_dir / name for name in names if (output_dir / name).exists()))


def log(output_dir):
    return json.loads((output_dir / "trainer_state.json").read_text())["log_history"]


def assert_close(ours, theirs, rtol=1e-4, atol=1e-5):
    assert ours.keys() - theirs.keys() <= {"lm_head.weight"}  # DeepSpeed saves tied weights twice
    for name, weight in theirs.items():
        torch.testing.assert_close(
            ours[name].float(), weight.float(), rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.fixture(scope="module")
def one_process(folder):
    """Function from a case to the folder of its run in one process."""

    @cache
    def run(objective, tuning):
        out = folder / f"one-{objective}-{tuning}"
        assert main(["train", *call(folder, objective, tuning, out, 1)]) == 0
        return out

    return run


@pytest.fixture(scope="module")
def two_processes(folder, launch):
    """Function from an accelerate configuration and a case to the folder of its run in two processes."""

    @cache
    def run(config, objective, tuning):
        out = folder / f"{config}-{objective}-{tuning}"
        train(launch, config, call(folder, objective, tuning, out, 2), 2)
        return out

    return run


@pytest.mark.parametrize(
    ("config", "objective", "tuning"), [(config, *case) for config, cases in CONFIGS.items() for case in cases]
)
def test_two_processes_train_as_one(two_processes, one_process, world_model, config, objective, tuning):
    """The same rows in every step, and the same E-steps, whoever computes them; every row of an evaluation counts once."""
    ours, theirs = two_processes(config, objective, tuning), one_process(objective, tuning)
    for name in LOGGED[objective]:
        curve, expected = ([entry[name] for entry in log(out) if name in entry] for out in (ours, theirs))
        assert len(expected) == _steps(objective, name) and any(expected)
        np.testing.assert_allclose(curve, expected, rtol=1e-3, atol=1e-5, err_msg=name)
    before = load_file(f"{world_model}/model.safetensors") if tuning == "full" else None
    trained = weights(theirs)
    moved = [(before[name] - w if before else w).abs().max() for name, w in trained.items() if "lora_A" not in name]
    assert min(moved) > 1e-3  # all of them, so that something is compared
    assert_close(weights(ours), trained)
    maps = [out / f"checkpoint-{STEPS}" / "em_state.json" for out in (ours, theirs)]
    if objective != "cft":
        state, expected = (json.loads(path.read_text()) for path in maps)
        assert state["last_estep"] == expected["last_estep"] == 4
        for kind, calibrator in expected["calibrators"].items():
            for name, value in calibrator.items():
                if isinstance(value, list):
                    np.testing.assert_allclose(state["calibrators"][kind][name], value, atol=1e-4, err_msg=name)
    if objective == "rcft":
        tables = [
            load_file(out / f"checkpoint-{STEPS}" / "em_targets.safetensors")["options"] for out in (ours, theirs)
        ]
        torch.testing.assert_close(*tables, rtol=0, atol=1e-4)
    metrics, expected = (json.loads((out / "eval_results.json").read_text()) for out in (ours, theirs))
    counts = {"eval_pair_n": 19, "eval_option_n": 21} if objective == "dpo" else {"eval_n": 21}
    assert counts.items() <= metrics.items()
    # The loss and what TRL logs beside it are means over batches, whichever rows those hold.
    for prefix in ("eval_pair_", "eval_option_") if objective == "dpo" else ("eval_",):
        for name in MEASURES:
            assert metrics[prefix + name] == pytest.approx(expected[prefix + name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    ("config", "objective", "tuning"),
    [
        ("ddp", "rcft", "full"),
        ("ddp", "dpo", "lora"),
        ("deepspeed_zero2", "dpo", "full"),
        ("deepspeed_zero3", "dpo", "full"),
    ],
)
def test_a_checkpoint_of_two_processes_goes_on_in_one(
    launch, two_processes, one_process, folder, config, objective, tuning
):
    """As if there had been one from the beginning; those of ZeRO are cut into as many parts as there were processes."""
    out = folder / f"resumed-{config}-{objective}-{tuning}"
    checkpoint = two_processes(config, objective, tuning) / "checkpoint-3"
    arguments = call(folder, objective, tuning, out, 1, "--resume_from_checkpoint", str(checkpoint))
    if config == "ddp":
        assert main(["train", *arguments]) == 0
    else:
        train(launch, config, arguments, 1)
    assert_close(weights(out), weights(one_process(objective, tuning)))
    assert [entry["step"] for entry in log(out) if "loss" in entry] == list(range(1, _steps(objective, "loss") + 1))


def test_what_zero3_saves_is_loaded_by_transformers(two_processes, one_process):
    """No gathering by hand, whatever part of the weights each process had."""
    saved = two_processes("deepspeed_zero3", "dpo", "full")
    model, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_close(model.state_dict(), weights(one_process("dpo", "full")))
