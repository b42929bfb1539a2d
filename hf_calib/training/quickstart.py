"""The quickstart: pre-train, align, repair and evaluate a small model on a synthetic world."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from rich.console import Console

from .. import __version__
from ..data.questions import PromptFormat, load_questions
from ..data.synthetic_world import World, WorldConfig
from ..evaluation.tables import evaluation_results, print_table, write_json, write_stage_report
from ..inference.model_loading import load_model
from ..inference.predict import predict_options
from ..inference.predictions import OptionPredictions
from ..paths import recipe_path
from ..posthoc import TemperatureIsotonic, TemperatureScaling


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A training run with the recipe of that name: its parent model, its data and its option questions."""

    name: str
    parent: str
    data: str
    options: str | None = None


STAGES = (
    Stage("pretrain", "untrained", "statements"),
    Stage("dpo", "pretrain", "pairs"),
    Stage("cft", "dpo", "train"),
    Stage("rcft", "dpo", "train"),
    Stage("dpo_calibrated", "pretrain", "pairs", options="train"),
)
# Names in the report: trained models, and post-hoc calibrators of the aligned model.
ROWS = {"pretrain": "base", "dpo": "dpo", "cft": "cft", "rcft": "rcft", "dpo_calibrated": "calibrated dpo"}
POST_HOC = {"dpo + TS": TemperatureScaling, "dpo + TS-IR": TemperatureIsotonic}

PROMPT_FORMAT = PromptFormat(scoring="text", prompt_template=World.prompt_template, use_chat_template=False)

NUM_STATEMENTS, NUM_PAIRS, NUM_TRAIN_QUESTIONS = 80_000, 9_600, 2_000


def make_world(folder: Path, seed: int, num_test_questions: int) -> None:
    """Write the data of a world (parquet) and its untrained model."""
    world = World(WorldConfig(seed=seed))
    tables = {
        "statements": world.pretraining_statements(NUM_STATEMENTS, seed),
        "pairs": world.preference_pairs(NUM_PAIRS, seed),
        "train": world.questions(NUM_TRAIN_QUESTIONS, seed, split="train"),
        "test": world.questions(num_test_questions, seed, split="test"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    world.model(seed).save_pretrained(folder / "untrained")
    world.tokenizer().save_pretrained(folder / "untrained")


def train_stage(stage: Stage, output_dir: Path, seed: int) -> float:
    """Run `accelerate launch recipes/train.py` with the recipe of a stage; return the seconds it took."""
    world = output_dir / "world"
    parent = world / "untrained" if stage.parent == "untrained" else output_dir / stage.parent
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(recipe_path("accelerate_configs/cpu.yaml")), str(recipe_path("train.py"))]
    command += ["--config", str(recipe_path(f"quickstart/{stage.name}.yaml"))]
    command += ["--model_name_or_path", str(parent), "--dataset_name", str(world / f"{stage.data}.parquet")]
    if stage.options:
        command += ["--option_dataset_name", str(world / f"{stage.options}.parquet")]
    command += ["--output_dir", str(output_dir / stage.name), "--seed", str(seed)]
    start = time.perf_counter()
    log = output_dir / f"{stage.name}.log"
    with log.open("w") as written:
        # The output goes to the log, the progress bars to the terminal.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=None, text=True)
        for line in process.stdout:
            written.write(line)
    if process.wait() != 0:
        raise RuntimeError(f"The stage {stage.name} failed with status {process.returncode}; {log} has its output.")
    return time.perf_counter() - start


def _recipe_digest(stage: Stage, seed: int, parent: str) -> str:
    """Compute a digest of the recipe, the seed and the digest of the parent."""
    recipe = recipe_path(f"quickstart/{stage.name}.yaml").read_text()
    return hashlib.sha256(json.dumps([recipe, seed, parent]).encode()).hexdigest()[:16]


def run_quickstart(output_dir: Path, seed: int = 0, num_test_questions: int = 10_000, resume: bool = True) -> None:
    """
    Run every stage and write the report.

    Args:
        output_dir (`Path`):
            Folder of the report (`report.md`, `results.json`, `reliability.png`), with a folder for each model.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the world and of every stage.
        num_test_questions (`int`, *optional*, defaults to `10_000`):
            Number of questions that every stage is evaluated on.
        resume (`bool`, *optional*, defaults to `True`):
            Whether to keep finished stages of an earlier run with the same recipe, seed and parent.
    """
    console = Console()
    output_dir = output_dir.resolve()
    start = time.perf_counter()
    make_world(output_dir / "world", seed, num_test_questions)
    test = load_questions(output_dir / "world" / "test.parquet")
    train = load_questions(output_dir / "world" / "train.parquet")
    digests = {"untrained": f"{__version__}-{seed}-{NUM_STATEMENTS}-{NUM_PAIRS}-{NUM_TRAIN_QUESTIONS}"}
    stages, predictions = [], {}
    for stage in STAGES:
        digests[stage.name] = _recipe_digest(stage, seed, digests[stage.parent])
        marker = output_dir / stage.name / "quickstart.json"
        if resume and marker.exists() and json.loads(marker.read_text())["digest"] == digests[stage.name]:
            console.print(f"[bold]{stage.name}[/bold]: kept from an earlier run")
        else:
            console.print(f"[bold]{stage.name}[/bold]: recipes/quickstart/{stage.name}.yaml")
            seconds = train_stage(stage, output_dir, seed)
            write_json(marker, {"digest": digests[stage.name], "seconds": round(seconds, 1)})
        row = ROWS[stage.name]
        predictions[row] = _predict(output_dir / stage.name, test, "test")
        if stage.name == "dpo":
            labelled = _predict(output_dir / stage.name, train, "train")
            for name, calibrator in POST_HOC.items():
                fitted = calibrator().fit(labelled.option_logits, labelled.labels)
                predictions[name] = predictions[row].recalibrated(fitted)
    for name, predicted in predictions.items():
        stages.append({"stage": name, **evaluation_results(predicted, seed=seed)})

    title = "Quickstart: restoring the calibration of an aligned model"
    notes = (
        f"Synthetic world, seed {seed}; {NUM_TRAIN_QUESTIONS:,} labelled questions for every repair and for "
        "calibrated DPO; "
        f"{num_test_questions:,} test questions; {time.perf_counter() - start:.0f} s in all.\n\n"
        "Made by `hf-calib quickstart`; the recipes are in recipes/quickstart/."
    )
    runs = [(ROWS[stage.parent], ROWS[stage.name]) for stage in STAGES if stage.parent in ROWS]
    report = write_stage_report(output_dir, stages, predictions, title, notes, runs)
    print_table(stages, title)
    console.print(f"report: {report}", soft_wrap=True)


def _predict(model_dir: Path, questions: Dataset, name: str) -> OptionPredictions:
    model, tokenizer = load_model(str(model_dir))
    return predict_options(
        model,
        tokenizer,
        questions,
        prompt_format=PROMPT_FORMAT,
        batch_size=256,
        output_path=model_dir / f"predictions-{name}.npz",
        resume=False,
    )
