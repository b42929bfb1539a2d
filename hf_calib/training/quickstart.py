"""The quickstart: pre-train and align a small model on a synthetic world, and restore its calibration."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from rich.console import Console

from .. import __version__
from ..data.questions import PromptFormat, load_questions
from ..data.synthetic_world import World, WorldConfig
from ..evaluation.tables import write_json
from ..hub.recipe import read_recipe
from ..inference.model_loading import load_model
from ..inference.predict import predict_options
from ..inference.predictions import OptionPredictions
from ..paths import recipe_path
from .quickstart_report import MEMORISED, QuickstartReport, write_quickstart_report
from .restore import run_restore
from .restore_options import RestoreOptions
from .restore_recipe import parse_recipe
from .run import build_trainer, train_and_save


@dataclass(frozen=True)
class Stage:
    """A training run with the recipe of that name: its parent model and its data."""

    name: str
    parent: str
    data: str


STAGES = (Stage("pretrain", "untrained", "statements"), Stage("dpo", "pretrain", "pairs"))

PROMPT_FORMAT = PromptFormat(scoring="text", prompt_template=World.prompt_template, use_chat_template=False)

NUM_STATEMENTS, NUM_PAIRS, NUM_TRAIN_QUESTIONS = 80_000, 9_600, 2_000
NUM_STYLE_PAIRS = 2_000  # of a world with a style
NUM_MEMORISED = 200  # labels of the model that is trained too long
BATCH_SIZE = 256


def make_world(folder: Path, seed: int, num_test_questions: int, style_agreement: float = 0.0) -> None:
    """Write the data of a world (parquet) and its untrained model; see [`WorldConfig`] for `style_agreement`."""
    world = World(WorldConfig(seed=seed, style_agreement=style_agreement))
    tables = {
        "statements": world.pretraining_statements(NUM_STATEMENTS, seed),
        "pairs": world.preference_pairs(NUM_PAIRS, seed),
        "train": world.questions(NUM_TRAIN_QUESTIONS, seed, split="train"),
        "test": world.questions(num_test_questions, seed, split="test"),
    }
    if style_agreement:
        tables["style_pairs"] = world.style_pairs(NUM_STYLE_PAIRS, seed)
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


def run_quickstart(output_dir: Path, seed: int = 0, num_test_questions: int = 10_000, resume: bool = True) -> None:
    """
    Run every stage and write the report.

    The stages are the world, its pre-trained model, DPO, [`~hf_calib.training.restore.run_restore`] of the DPO model,
    and a model that is trained on few labels for too long.

    Args:
        output_dir (`Path`):
            Folder of the report (`report.md`, `results.json`, `reliability.png`, `regime.png`), with a folder for
            each stage.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the world and of every stage.
        num_test_questions (`int`, *optional*, defaults to `10_000`):
            Number of test questions.
        resume (`bool`, *optional*, defaults to `True`):
            Whether to keep finished stages of an earlier run with the same recipe, seed and parent.
    """
    run = _Run(output_dir.resolve(), seed, resume, Console())
    start = time.perf_counter()
    make_world(run.world, seed, num_test_questions)
    run.seconds["world"] = time.perf_counter() - start
    run.digests["untrained"] = f"{__version__}-{seed}-{NUM_STATEMENTS}-{NUM_PAIRS}-{NUM_TRAIN_QUESTIONS}"
    for stage in STAGES:
        run.stage(stage.name, stage.parent, lambda stage=stage: train_stage(stage, run.output_dir, seed))
    predictions = {"base": run.predict("pretrain", load_questions(run.world / "test.parquet"))}
    restored = _restore(run)
    few = load_questions(run.world / "train.parquet").select(range(min(NUM_MEMORISED, NUM_TRAIN_QUESTIONS)))
    run.stage(MEMORISED, "dpo", lambda: _memorise(run, few))
    predictions[MEMORISED] = run.predict(MEMORISED, few)
    run.seconds["all"] = time.perf_counter() - start
    report = QuickstartReport(run.output_dir, seed, restored, predictions, run.seconds, NUM_TRAIN_QUESTIONS)
    path = write_quickstart_report(report)
    run.console.print(f"report: {path}", soft_wrap=True)


@dataclass
class _Run:
    """What the stages of a quickstart share, and the seconds that they took."""

    output_dir: Path
    seed: int
    resume: bool
    console: Console

    def __post_init__(self):
        self.world = self.output_dir / "world"
        self.seconds: dict[str, float] = {}
        self.digests: dict[str, str] = {}

    def stage(self, name: str, parent: str, work: Callable[[], float]) -> None:
        """Train with a recipe of that name, unless an earlier run did so. `work` returns the seconds it took."""
        recipe = recipe_path(f"quickstart/{name}.yaml").read_text()
        made_of = json.dumps([recipe, self.seed, self.digests[parent]])
        digest = self.digests[name] = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        marker = self.output_dir / name / "quickstart.json"
        known = json.loads(marker.read_text()) if self.resume and marker.exists() else {}
        if known.get("digest") == digest:
            self.console.print(f"[bold]{name}[/bold]: kept from an earlier run")
            self.seconds[name] = known["seconds"]
            return
        self.console.print(f"[bold]{name}[/bold]: recipes/quickstart/{name}.yaml")
        self.seconds[name] = work()
        write_json(marker, {"digest": digest, "seconds": round(self.seconds[name], 1)})

    def predict(self, name: str, questions: Dataset) -> OptionPredictions:
        """Predictions of the model of a stage."""
        start, folder = time.perf_counter(), self.output_dir / name
        model, tokenizer = load_model(str(folder))
        options = {"prompt_format": PROMPT_FORMAT, "batch_size": BATCH_SIZE, "resume": False}
        found = predict_options(model, tokenizer, questions, output_path=folder / "predictions.npz", **options)
        self.seconds[name] += time.perf_counter() - start
        return found


def _restore(run: _Run) -> list[dict]:
    """Restore the DPO model without its parent; return the rows of the report. Its output is in `restore.log`."""
    options = RestoreOptions(
        model=str(run.output_dir / "dpo"),
        dataset=str(run.world / "train.parquet"),
        test=str(run.world / "test.parquet"),
        output_dir=str(run.output_dir / "restore"),
        config=str(recipe_path("quickstart/rcft.yaml")),
        scoring=PROMPT_FORMAT.scoring,
        prompt_template=PROMPT_FORMAT.prompt_template,
        use_chat_template=PROMPT_FORMAT.use_chat_template,
        batch_size=BATCH_SIZE,
        seed=run.seed,
        no_resume=not run.resume,
    )
    run.console.print("[bold]restore[/bold]: hf-calib restore with recipes/quickstart/rcft.yaml")
    start = time.perf_counter()
    with (run.output_dir / "restore.log").open("w") as log, redirect_stdout(log):
        rows = run_restore(options)
    run.seconds["restore"] = time.perf_counter() - start
    return rows


def _memorise(run: _Run, few: Dataset) -> float:
    """Train the DPO model on few labels for too long; return the seconds it took."""
    start, folder = time.perf_counter(), run.output_dir / MEMORISED
    folder.mkdir(exist_ok=True)
    few.to_parquet(folder / "questions.parquet")
    path = recipe_path(f"quickstart/{MEMORISED}.yaml")
    data = {"model_name_or_path": str(run.output_dir / "dpo"), "dataset_name": str(folder / "questions.parquet")}
    content = {**read_recipe(path), **data, "output_dir": str(folder), "seed": run.seed}
    with (run.output_dir / f"{MEMORISED}.log").open("w") as log, redirect_stdout(log):
        train_and_save(build_trainer(*parse_recipe(path, content)))
    return time.perf_counter() - start
