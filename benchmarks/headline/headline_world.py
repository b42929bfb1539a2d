"""The headline on synthetic worlds: every method with the same labels, and how much alignment is left.

    python benchmarks/headline/headline_world.py --output_dir headline-world --seeds 10 11 12 13 14 15 16

Each seed is another world with its own parent, aligned model (DPO) and labels. Annotators like a style that has
nothing to do with the truth: the parent is calibrated and not aligned, the aligned model is aligned and not
calibrated. Models and outcomes are kept in OUTPUT_DIR, and the same command goes on where an earlier run stopped.
Prints a table for each number of labels and, last, one line of JSON.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars
from scipy.stats import t as student

from hf_calib import calibration_report, one_vs_rest_error


sys.path.append(str(Path(__file__).parents[1] / "rivals"))

from world_methods import (  # noqa: E402
    EPOCHS,
    LEAST_MARGIN,
    Method,
    Outcome,
    WorldData,
    adaptive,
    agreement,
    as_is,
    batch_calibration,
    posthoc,
    probability_average,
    trained,
    weight_average,
)


OPEN = {"closing_step": False}
# Every text of this world is a question and its answer, then a style: what the closing step has to keep.
CLOSING = {"closing_step": {"learning_rate": 1.0e-3, "num_texts": 0, "num_continuations": 64}}
# A loss over the options alone: the likelihood of an answer and its end teaches answers without the style.
OPTIONS = {"likelihood_weight": 0.0, "option_loss_weight": 1.0}
ANCHOR = {"reference_model_name_or_path": "parent", "reference_weight": 10.0, "learning_rate": 3.0e-4}
NO_LABELS = {"objective": "cft", "likelihood_weight": 0.0, "reference_pseudo_count": np.inf}

METHODS = {
    "aligned": Method(as_is, ""),
    "temperature": Method(posthoc, "labels", {"method": "temperature"}),
    "TS-IR": Method(posthoc, "labels", {"method": "temperature_isotonic"}),
    "ensemble temperature": Method(posthoc, "labels", {"method": "ensemble_temperature"}),
    "beta calibration": Method(posthoc, "labels", {"method": "beta"}),
    "temperature per subject": Method(posthoc, "labels", {"method": "subject_temperature"}),
    "adaptive temperature": Method(adaptive, "labels"),
    "batch calibration": Method(batch_calibration, "labels, questions"),
    "SFT + temperature": Method(trained, "labels", {"changes": {"objective": "cft", **OPEN}, "temperature": True}),
    "SFT over options + temperature": Method(
        trained, "labels", {"changes": {"objective": "cft", **OPTIONS, **OPEN}, "temperature": True}
    ),
    "RCFT without the closing step": Method(trained, "labels", {"changes": OPEN}),
    "RCFT": Method(trained, "labels", {"changes": CLOSING}),
    "parent": Method(as_is, "parent", {"share": 1.0}),
    "DACA": Method(agreement, "questions, parent"),
    "anchor alone": Method(trained, "questions, parent", {"changes": {**NO_LABELS, **ANCHOR, **OPEN}}),
    "parent + temperature": Method(posthoc, "labels, parent", {"method": "temperature", "share": 1.0}),
    "average of weights": Method(weight_average, "labels, parent"),
    "average of weights, margin kept": Method(weight_average, "labels, parent", {"keeps_margin": True}),
    "average of probabilities": Method(probability_average, "labels, parent"),
    "RCFT + parent": Method(
        trained,
        "labels, questions, parent",
        {"changes": {**ANCHOR, **OPTIONS, **OPEN}, "epochs": {100: 4, 500: 4, 2000: 2}, "unlabelled": True},
    ),
}
OURS = ("RCFT", "RCFT + parent")

Cell = dict[str, float]


def outcome(world: WorldData, name: str, budget: int) -> Outcome:
    """The outcome of a method, from an earlier run if there is one."""
    method = METHODS[name]
    path = world.folder / "outcomes" / str(budget if method.uses_labels else 0) / f"{name.replace(' ', '-')}.npz"
    if path.is_file():
        with np.load(path) as kept:
            return Outcome(kept["probabilities"], kept["scores"], float(kept["seconds"]), str(kept["chosen"]))
    found = method(world, budget if method.uses_labels else 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **(asdict(found) | {"probabilities": found.probabilities.astype(np.float32)}))
    return found


def measure(world: WorldData, found: Outcome) -> Cell:
    """Measures of an outcome on the test questions and on the style pairs."""
    labels, probabilities = np.array(world.test["answer"]), found.probabilities.astype(np.float64)
    report = calibration_report(probabilities, labels, world.test["target_probabilities"], n_bootstrap=100)
    rest = one_vs_rest_error(probabilities, labels, n_simulations=50)
    names = ("ece", "ece_noise_floor", "debiased_ece", "tce", "nll", "brier", "accuracy")
    return {name: float(report[name]) for name in names} | {
        "one_vs_rest": rest.error,
        "one_vs_rest_debiased": rest.debiased,
        "one_vs_rest_noise_floor": rest.floor.mean,
        "margin": world.retained(found.scores),
        "style_accuracy": float((found.scores @ [1.0, -1.0] > 0).mean()),
        "seconds": found.seconds,
    }


def half_width(values: Sequence[float]) -> float:
    """Half the 95% t interval of a mean over seeds."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def ratio_of_means(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean of ours over mean of the others, and half its 95% interval (jackknife over the seeds)."""
    ours, others = np.asarray(ours), np.asarray(others)
    ratio, n = float(ours.mean() / others.mean()), len(ours)
    if n < 2:
        return ratio, float("nan")
    left_out = (ours.sum() - ours) / (others.sum() - others)
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return ratio, float(student.ppf(0.975, n - 1) * error)


def rivals_of(ours: str, means: dict[str, Cell]) -> list[str]:
    """Methods that see no more than ours does and keep the margin."""
    seen = set(METHODS[ours].sees.split(", "))
    return [
        name
        for name, mean in means.items()
        if not name.startswith("RCFT") and set(METHODS[name].sees.split(", ")) - {""} <= seen
        and mean["margin"] >= LEAST_MARGIN
    ]  # fmt: skip


def compare(cells: dict[tuple[int, str], list[Cell]], budgets: Sequence[int]) -> list[dict]:
    """Ratios of ours to the best rival with the same information, for each number of labels and over all cells."""
    rows = []
    for ours in OURS:
        for chosen in [[budget] for budget in budgets] + [list(budgets)] * (len(budgets) > 1):
            by_name = {
                name: [
                    {key: float(np.mean([cell[key] for cell in same])) for key in same[0]}
                    for same in zip(*(cells[budget, name] for budget in chosen), strict=True)
                ]
                for name in METHODS
                if all((budget, name) in cells for budget in chosen)
            }
            means = {n: {k: float(np.mean([s[k] for s in seeds])) for k in seeds[0]} for n, seeds in by_name.items()}
            if ours not in means or not (rivals := rivals_of(ours, means)):
                continue
            row = {"ours": ours, "labels": chosen, "margin": means[ours]["margin"]}
            for measure_name in ("ece", "one_vs_rest_debiased", "nll"):
                best = min(rivals, key=lambda name: means[name][measure_name])
                sides = ([seed[measure_name] for seed in by_name[name]] for name in (ours, best))
                row[measure_name] = [best, *ratio_of_means(*sides)]
            rows.append(row)
    return rows


def print_tables(cells: dict[tuple[int, str], list[Cell]], budgets: Sequence[int]) -> None:
    """One table for each number of labels, means over the seeds, and the ratios."""
    for budget in budgets:
        print(f"\n| {budget} labels | besides the model | conf-ECE | one-vs-rest | NLL | accuracy | margin | s |")
        print("|---|---|---|---|---|---|---|---|")
        for name, method in METHODS.items():
            if not (found := cells.get((budget, name))):
                continue
            columns = {key: [cell[key] for cell in found] for key in found[0]}
            mean = {key: float(np.mean(values)) for key, values in columns.items()}
            row = [f"{mean['ece']:.4f} ± {half_width(columns['ece']):.4f}", f"{mean['one_vs_rest_debiased']:.4f}"]
            row += [f"{mean['nll']:.4f}", f"{mean['accuracy']:.4f}"]
            row += [f"{mean['margin']:.3f} ± {half_width(columns['margin']):.3f}", f"{mean['seconds']:.0f}"]
            print(f"| {name} | {method.sees or 'nothing'} | {' | '.join(row)} |")
    print("\n| ours | labels | conf-ECE | one-vs-rest | NLL | margin |\n|---|---|---|---|---|---|")
    for row in compare(cells, budgets):
        ratios = [f"{row[k][1]:.2f} ± {row[k][2]:.2f} ({row[k][0]})" for k in ("ece", "one_vs_rest_debiased", "nll")]
        print(f"| {row['ours']} | {', '.join(map(str, row['labels']))} | {' | '.join(ratios)} | {row['margin']:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10, 17)))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(EPOCHS), choices=EPOCHS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--num_test", type=int, default=20_000, help="test questions of a world (default: 20,000)")
    parser.add_argument("--num_pairs", type=int, default=1_000, help="style pairs (default: 1,000; at most 2,000)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bars()
    cells: dict[tuple[int, str], list[Cell]] = {}
    for seed in args.seeds:
        world = WorldData((args.output_dir / f"w{seed}").resolve(), seed, args.num_test, args.num_pairs)
        for budget in args.budgets:
            for name in args.methods:
                found = outcome(world, name, budget)
                cell = measure(world, found)
                cells.setdefault((budget, name), []).append(cell)
                print(seed, budget, name, found.chosen, {k: round(v, 4) for k, v in cell.items()}, flush=True)
    print_tables(cells, args.budgets)
    means = {
        f"{budget}/{name}": {key: float(np.mean([cell[key] for cell in found])) for key in found[0]}
        | {"ece_half": half_width([cell["ece"] for cell in found]), "n_seeds": len(found)}
        for (budget, name), found in cells.items()
    }
    print(json.dumps({"means": means, "ratios": compare(cells, args.budgets)}))


if __name__ == "__main__":
    main()
