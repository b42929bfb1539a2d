"""RCFT's checkpoint alone, after the closing step, beside post-hoc calibrators with the same labels.

    python benchmarks/closing_step/closing_step.py --output_dir closing-step --seeds 10 11 12 13

Each seed is another synthetic world with its own aligned model (DPO), made by the recipes of the quickstart. All
methods get the same labels. SFT + TS trains on four fifths of them and fits its temperature on the rest. Prints a
table, means over the seeds, and one line of JSON last. A world that exists in OUTPUT_DIR is kept.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from scipy.stats import t as student

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, calibration_report, load_questions, predict_options
from hf_calib.hub.recipe import read_recipe
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.paths import recipe_path
from hf_calib.posthoc import fit_calibrator
from hf_calib.training.quickstart import PROMPT_FORMAT, STAGES, make_world, train_stage


RIVALS = ("temperature", "temperature_isotonic", "ensemble_temperature", "subject_temperature")
MEASURES = ("ece", "nll", "accuracy", "ece_noise_floor")
EPOCHS = {100: 20, 500: 8, 2000: 4}


def make_models(folder: Path, seed: int, num_test: int) -> None:
    """The world of a seed, its parent and its aligned model."""
    if not (folder / "world").is_dir():
        make_world(folder / "world", seed, num_test)
    for stage in STAGES[:2]:
        if not (folder / stage.name / "model.safetensors").is_file():
            train_stage(stage, folder, seed)


def predict(model, tokenizer, questions: Dataset) -> OptionPredictions:
    return predict_options(model, tokenizer, questions, prompt_format=PROMPT_FORMAT, batch_size=256, progress=False)


def train(model_dir: Path, labels: Dataset, seed: int, **changes):
    """RCFT or SFT by the recipe of the quickstart; the trainer, and the seconds it took."""
    recipe = read_recipe(recipe_path("quickstart/rcft.yaml"))
    recipe = {k: v for k, v in recipe.items() if k not in ("model_name_or_path", "dataset_name", "output_dir")}
    recipe |= {"seed": seed, "disable_tqdm": True, "logging_strategy": "no"}
    model, tokenizer = load_model(str(model_dir))
    with tempfile.TemporaryDirectory() as folder:
        use_cpu = not torch.cuda.is_available()
        args = CalibratedSFTConfig(folder, **{**recipe, **changes}, use_cpu=use_cpu)
        trainer = CalibratedSFTTrainer(model, args, train_dataset=labels, processing_class=tokenizer)
        start = time.perf_counter()
        trainer.train()
        return trainer, time.perf_counter() - start


def compare(folder: Path, seed: int, budget: int) -> dict[str, dict[str, float]]:
    """Measures of every method on the test questions."""
    model, tokenizer = load_model(str(folder / "dpo"))
    test = load_questions(folder / "world" / "test.parquet")
    labels = load_questions(folder / "world" / "train.parquet").shuffle(seed=seed).select(range(budget))
    aligned, known = predict(model, tokenizer, test), predict(model, tokenizer, labels)
    found = {"aligned": aligned}
    for method in RIVALS:
        fitted = fit_calibrator(method, known.option_logits, known.labels, groups=known.subjects)
        found[method] = aligned.recalibrated(fitted)
    num_kept = budget * 4 // 5
    changes = {"objective": "cft", "closing_step": False, "num_train_epochs": EPOCHS[budget]}
    sft, _ = train(folder / "dpo", labels.select(range(num_kept)), seed, **changes)
    held_out = predict(sft.model, tokenizer, labels.select(range(num_kept, budget)))
    fitted = fit_calibrator("temperature", held_out.option_logits, held_out.labels)
    found["SFT + temperature"] = predict(sft.model, tokenizer, test).recalibrated(fitted)
    for name, changes in (("RCFT without the closing step", {"closing_step": False}), ("RCFT", {})):
        trainer, seconds = train(folder / "dpo", labels, seed, num_train_epochs=EPOCHS[budget], **changes)
        found[name] = predict(trainer.model, tokenizer, test)
        found[name].metadata["seconds"] = seconds
    rows = {}
    for name, predictions in found.items():
        report = calibration_report(predictions.probabilities, predictions.labels, n_bootstrap=100)
        rows[name] = {key: report[key] for key in MEASURES}
        rows[name]["seconds"] = predictions.metadata.get("seconds", 0.0)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13])
    parser.add_argument("--budgets", type=int, nargs="+", default=list(EPOCHS), choices=EPOCHS)
    parser.add_argument("--num_test", type=int, default=20_000, help="test questions of a world (default: 20,000)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bars()
    found = defaultdict(lambda: defaultdict(list))
    for seed in args.seeds:
        folder = (args.output_dir / f"w{seed}").resolve()
        make_models(folder, seed, args.num_test)
        for budget in args.budgets:
            for name, row in compare(folder, seed, budget).items():
                found[budget][name].append(row)
                print(seed, budget, name, {key: round(value, 4) for key, value in row.items()}, flush=True)
    results = {}
    for budget, methods in found.items():
        best = min(np.mean([row["ece"] for row in methods[name]]) for name in (*RIVALS, "SFT + temperature"))
        print(f"\n| {budget} labels | conf-ECE | NLL | accuracy | seconds |\n|---|---|---|---|---|")
        for name, rows in methods.items():
            mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
            spread = np.std([row["ece"] for row in rows], ddof=1) if len(rows) > 1 else np.nan
            half = student.ppf(0.975, max(len(rows) - 1, 1)) * spread / np.sqrt(len(rows))
            cells = [f"{mean['ece']:.4f} ± {half:.4f}", *(f"{mean[key]:.4f}" for key in ("nll", "accuracy"))]
            print(f"| {name} | {' | '.join(cells)} | {mean['seconds']:.0f} |")
            results[f"{budget}/{name}"] = mean | {"ece_half": float(half), "ratio": mean["ece"] / best}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
