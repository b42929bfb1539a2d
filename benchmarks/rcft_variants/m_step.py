"""Where and how RCFT takes its M-step: questions, weight, targets, tail and calibration map, on synthetic worlds.

    python benchmarks/rcft_variants/m_step.py --output_dir m-step --seeds 0 1 2

Worlds and aligned models are made in OUTPUT_DIR/seed-N, or taken from there. Every run is one line of
OUTPUT_DIR/runs-N.jsonl and is not repeated. Prints a table (mean and standard deviation over seeds) and, last, one
line of JSON: conf-ECE of each variant.
"""

import argparse
import itertools
import json
import logging
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.special import softmax

from hf_calib import (
    CalibratedSFTConfig,
    CalibratedSFTTrainer,
    TemperatureScaling,
    calibration_report,
    load_questions,
)
from hf_calib.inference.encoding import OptionEncoder
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.option_scorer import OptionScorer
from hf_calib.losses.em_calibrator import ESTIMATORS
from hf_calib.paths import recipe_path
from hf_calib.trainers.e_step import hold_out
from hf_calib.training.quickstart import PROMPT_FORMAT, STAGES, make_world, train_stage


EPOCHS = {100: 20, 500: 8}  # by the number of labels, as in the headline benchmark
NUM_UNLABELLED, NUM_TEST = 200, 10_000
MEASURES = ("ece", "nll", "accuracy", "confidence", "ece_noise_floor", "held_out_gap", "gap", "seconds")
SHOWN = ("ece", "nll", "accuracy", "held_out_gap", "gap")


@dataclass(frozen=True)
class Variant:
    """A run, but for its seed."""

    labels: int
    inputs: str = "held-out"  # questions of EM-ECE: "train", "held-out", "unlabelled", joined by " + "; or "cft", ...
    weight: float = 10.0
    targets: str = "fixed"
    tail: str = "temperature"
    estimator: str = "isotonic"
    learning_rate: float = 3e-4
    refresh: str = "10"

    @property
    def name(self) -> str:
        if self.inputs in ("as is", "TS"):
            return f"{self.labels} | {self.inputs}"
        values = asdict(self)
        if self.inputs == "cft":
            values = {name: values[name] for name in ("labels", "inputs", "learning_rate")}
        return " | ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values.values())


QUESTIONS = ("train", "held-out", "unlabelled", "held-out + unlabelled", "train + unlabelled")


def variants(labels: int) -> list[Variant]:
    """Questions x weights, and then one change at a time."""
    given = Variant(labels)
    result = [Variant(labels, name) for name in ("as is", "TS", "cft")]
    result += [replace(given, inputs=q, weight=w) for q, w in itertools.product(QUESTIONS, (2.0, 10.0, 30.0))]
    others = [pair for pair in itertools.product(("moving", "fixed"), ("paper", "temperature"))][:-1]
    result += [replace(given, inputs=q, targets=m, tail=t) for q in QUESTIONS[:3] for m, t in others]
    result += [replace(given, inputs=q, refresh="once") for q in QUESTIONS]
    result += [replace(given, inputs=q, estimator=e) for e in ESTIMATORS[1:] for q in QUESTIONS[:3:2]]
    for rate in (1e-4, 1e-3):
        result += [replace(given, inputs=q, learning_rate=rate) for q in ("cft", *QUESTIONS[:3])]
    return result


def world(folder: Path, seed: int) -> tuple[Path, datasets.Dataset, datasets.Dataset]:
    """Aligned model, training questions in an order of the seed, and test questions."""
    if not (folder / "dpo" / "config.json").exists():
        make_world(folder / "world", seed, NUM_TEST)
        for stage in STAGES[:2]:
            train_stage(stage, folder, seed)
    questions, test = (load_questions(folder / "world" / f"{name}.parquet") for name in ("train", "test"))
    return folder / "dpo", questions.shuffle(seed=seed), test.select(range(NUM_TEST))


def config(variant: Variant) -> type[CalibratedSFTConfig]:
    class Config(CalibratedSFTConfig):
        calibrates_labelled = "train" in variant.inputs
        fixes_targets = variant.targets == "fixed"
        em_tail = variant.tail

    return Config


def train(variant: Variant, model: Path, questions: datasets.Dataset, seed: int) -> CalibratedSFTTrainer:
    recipe = yaml.safe_load(recipe_path("quickstart/rcft.yaml").read_text())
    settings = {name: value for name, value in recipe.items() if name in CalibratedSFTConfig.__dataclass_fields__}
    settings |= {
        "objective": "cft" if variant.inputs == "cft" else "rcft",
        "num_train_epochs": EPOCHS[variant.labels],
        "lambda_ece": variant.weight,
        "em_estimator": variant.estimator,
        "learning_rate": variant.learning_rate,
        "em_refresh": variant.refresh,
        "closing_step": False,
    }
    settings |= {"seed": seed, "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
    settings.pop("output_dir")
    others = questions.select(range(1000, 1000 + NUM_UNLABELLED)) if "unlabelled" in variant.inputs else None
    labelled, held_out = questions.select(range(variant.labels)), None
    # As many steps, with as many labelled questions in each, whatever rows EM-ECE adds.
    added = len(others or ()) / variant.labels
    settings["per_device_train_batch_size"] = round(settings["per_device_train_batch_size"] * (1 + added))
    with tempfile.TemporaryDirectory() as output_dir:
        args = config(variant)(output_dir=output_dir, **settings)
        if "held-out" in variant.inputs:
            labelled, held_out = hold_out(labelled, labelled["question"], args, "questions")
            others = held_out if others is None else datasets.concatenate_datasets([held_out, others])
        trainer = CalibratedSFTTrainer(
            str(model), args, train_dataset=labelled, estep_dataset=held_out, unlabelled_dataset=others
        )
        trainer.train()
    return trainer


def measure(variant: Variant, model: Path, questions: datasets.Dataset, test: datasets.Dataset, seed: int) -> dict:
    start, held_out_gap = time.perf_counter(), float("nan")
    if variant.inputs in ("as is", "TS"):
        trained, tokenizer = load_model(str(model))
    else:
        trainer = train(variant, model, questions, seed)
        trained, tokenizer = trainer.model, trainer.processing_class
        if trainer.held_out_questions is not None and trainer.estep_dataset is not None:
            logits, labels = score(trained, tokenizer, trainer.held_out_questions)
            held_out_gap = gap(softmax(logits, axis=1), labels)
    seconds = time.perf_counter() - start
    logits, labels = score(trained, tokenizer, test)
    if variant.inputs == "TS":
        probabilities = TemperatureScaling().fit(*score(trained, tokenizer, questions.select(range(variant.labels))))
        probabilities = probabilities.transform(logits)
    else:
        probabilities = softmax(logits, axis=1)
    report = calibration_report(probabilities, labels, n_bootstrap=10)
    report |= {"held_out_gap": held_out_gap, "gap": gap(probabilities, labels)}
    return {name: round(float({**report, "seconds": seconds}[name]), 5) for name in MEASURES}


ENCODED = {}


def score(model, tokenizer, questions: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Option logits and labels; all questions have four options. The encoded questions are kept."""
    key = questions._fingerprint
    if key not in ENCODED:
        encoder = OptionEncoder(tokenizer, PROMPT_FORMAT)
        ENCODED[key] = [encoder.encode(question) for question in questions]
    features, scorer = ENCODED[key], OptionScorer(model.eval(), tokenizer)
    rows = [row for start in range(0, len(features), 500) for row in scorer(features[start : start + 500])]
    return np.array(rows, dtype=np.float64), np.array(questions["answer"])


def gap(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean confidence minus accuracy."""
    return probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == labels).mean()


def run(variants: list[Variant], seeds: list[int], output_dir: Path) -> dict[str, list[dict]]:
    """Every variant on every seed, but for those in runs.jsonl."""
    results = {variant.name: [] for variant in variants}
    for seed in seeds:
        path = output_dir / f"runs-{seed}.jsonl"
        done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        done = {line["variant"]: line for line in done}
        model, questions, test = world(output_dir / f"seed-{seed}", seed)
        for number, variant in enumerate(variants, 1):
            if variant.name not in done:
                line = {"variant": variant.name, "seed": seed, **measure(variant, model, questions, test, seed)}
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                done[variant.name] = line
                print(f"{number}/{len(variants)}", json.dumps(line), flush=True)
            results[variant.name].append(done[variant.name])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("m-step"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", choices=list(EPOCHS), default=[100, 500])
    args = parser.parse_args()
    logging.getLogger("hf_calib").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    results = run([v for labels in args.labels for v in variants(labels)], args.seeds, args.output_dir)

    table = Table(box=box.SIMPLE_HEAD, title=f"seeds {args.seeds}, N = {NUM_TEST:,}", title_justify="left")
    for heading in ("labels | questions | weight | targets | tail | map | rate | E-step", *SHOWN):
        table.add_column(heading, justify="right" if heading in SHOWN else "left", no_wrap=True)
    for name, runs in results.items():
        values = np.array([[line[measure] for measure in SHOWN] for line in runs])
        cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(values.mean(0), values.std(0), strict=True)]
        table.add_row(name, *cells)
    Console(width=160).print(table)
    print(json.dumps({name: round(float(np.mean([r["ece"] for r in runs])), 4) for name, runs in results.items()}))


if __name__ == "__main__":
    main()
