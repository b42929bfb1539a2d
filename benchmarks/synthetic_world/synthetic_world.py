"""The quickstart over several seeds: each seed another world, another model, other questions.

    python benchmarks/synthetic_world/synthetic_world.py --seeds 0 1 2 --output_dir synthetic-world

A run that was cut off goes on where it stopped. Prints a table (mean over seeds, and the extremes) and, last, one line
of JSON.
"""

import argparse
import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib.training.quickstart import run_quickstart


MEASURES = ("accuracy", "confidence", "ece", "ece_noise_floor", "cw_ece", "tce", "nll", "brier", "auroc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_test_questions", type=int, default=10_000)
    parser.add_argument("--output_dir", type=Path, default=Path("synthetic-world"))
    args = parser.parse_args()

    runs = []
    for seed in args.seeds:
        folder = args.output_dir / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        run_quickstart(folder, seed, args.num_test_questions)
        runs.append({stage["stage"]: stage for stage in json.loads((folder / "results.json").read_text())})

    table = Table(box=box.SIMPLE_HEAD, title=f"{len(runs)} seeds: mean (least to most)", title_justify="left")
    table.add_column("stage", no_wrap=True)
    for measure in MEASURES:
        table.add_column(measure, justify="right", no_wrap=True)
    for stage in runs[0]:
        values = {measure: [run[stage][measure] for run in runs] for measure in MEASURES}
        cells = (f"{sum(v) / len(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in values.values())
        table.add_row(stage, *cells)
    Console(width=260).print(table)

    def gap(stage: str, other: str) -> list[float]:
        return [run[stage]["accuracy"] - run[other]["accuracy"] for run in runs]

    def rivals(run: dict) -> list[str]:
        return [stage for stage in run if stage.startswith("dpo + ")]

    figures = {
        "seeds": len(runs),
        "dpo_ece_least": min(run["dpo"]["ece"] for run in runs),
        "dpo_minus_base_accuracy_least": min(gap("dpo", "base")),
        "restored_ece_most": max(run["restored"]["ece"] for run in runs),
        "restored_minus_dpo_accuracy_least": min(gap("restored", "dpo")),
        "memorised_non_calibratable": sum(run["memorised"]["regime"] == "non-calibratable" for run in runs),
    }
    for measure in ("ece", "nll"):
        # Ratio of the means, as the rival with the best mean could be chosen once for all seeds.
        of_rivals = [sum(run[rival][measure] for run in runs) for rival in rivals(runs[0])]
        figures[f"restored_over_best_rival_{measure}"] = sum(run["restored"][measure] for run in runs) / min(of_rivals)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
