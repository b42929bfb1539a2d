"""Calibrated DPO beside DPO, soft-label DPO, cDPO, rDPO and IPO on the synthetic world, each read by its own link.

    # the figures: the settings that were chosen, on worlds that no setting was chosen on
    python benchmarks/calibrated_dpo/calibrated_dpo.py --seeds 10 11 12 --output_dir calibrated-dpo

    # the choice of the settings
    python benchmarks/calibrated_dpo/calibrated_dpo.py --tune --seeds 0 --output_dir calibrated-dpo-tuning

Every method aligns the pre-trained model of recipes/quickstart on 9,600 pairs. Some are given one vote for each pair,
the others the probability that annotators prefer the chosen completion. The last two also have 2,000 option questions.
Preferences are read from the margins by the link of the loss that a method minimises. `--tune` measures every entry of
GRID and names the one of the least pair-ECE plus option conf-ECE on validation pairs and questions; CHOSEN holds these
names. The figures are of test pairs and questions. A run that was cut off goes on where it stopped. Prints tables with
intervals over the seeds and, last, one line of JSON.
"""

import argparse
import itertools
import json
import logging
import math
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student
from world_runs import Setting

from hf_calib.evaluation.tables import write_json


SOFT = "soft-label DPO"
# A larger beta needs a smaller learning rate: what counts is beta times the change of a margin.
RECIPE = {"beta": 0.1, "learning_rate": 2e-4}
B1 = {"beta": 1.0, "learning_rate": 2e-4}
B10, B30, B100 = ({"beta": beta, "learning_rate": rate} for beta, rate in ((10.0, 2e-4), (30.0, 5e-5), (100.0, 2e-5)))
OPTIONS = {"lambda_options": 1.0, "option_likelihood_weight": 0.3, "em_holdout": 0.2, "em_refresh": "15"}
OPTIONS |= {"em_estimator": "temperature"}
IPO = {"loss_type": ["ipo"]}
# By method: the labels of its pairs, and its settings by name.
GRID = {
    "DPO": ("votes", {"beta 10": B10, "beta 30": B30, "beta 100": B100}),
    "calibrated DPO, votes": ("votes", {"beta 30": B30 | {"lambda_pref": 1.0}}),
    f"{SOFT}, beta 30": ("agreement", {"beta 30": B30}),
    SOFT: ("agreement", {"beta 1": B1, "beta 10": B10, "beta 30": B30, "beta 100": B100}),
    "IPO": ("votes", {"beta 10": IPO | B10 | {"learning_rate": 5e-5}, "beta 30": IPO | B30 | {"learning_rate": 2e-5}}),
    "cDPO": ("votes", {f"smoothing {e}": B30 | {"cdpo_smoothing": e} for e in (0.03, 0.1)}),
    "rDPO": (
        "votes",
        {f"smoothing {e}": B30 | {"loss_type": ["robust"], "label_smoothing": e} for e in (0.03, 0.1)},
    ),
    "calibrated DPO": (
        "agreement",
        {f"options {w:g}": B30 | OPTIONS | {"lambda_options": w} for w in (1.0, 3.0)}
        | {"beta 1": B1 | OPTIONS | {"lambda_options": 3.0}},
    ),
    f"{SOFT} + likelihood": (
        "agreement",
        {
            "beta 1": B1 | OPTIONS | {"lambda_options": 3.0, "option_em_weight": 0.0},
            "beta 30": B30 | OPTIONS | {"option_em_weight": 0.0},
        },
    ),
    "DPO, its recipe": ("votes", {"beta 0.1": RECIPE}),
}
CHOSEN = {
    "DPO, its recipe": "beta 0.1",
    "DPO": "beta 30",
    "cDPO": "smoothing 0.03",
    "rDPO": "smoothing 0.03",
    "IPO": "beta 30",
    "calibrated DPO, votes": "beta 30",
    SOFT: "beta 100",
    f"{SOFT}, beta 30": "beta 30",
    f"{SOFT} + likelihood": "beta 30",
    "calibrated DPO": "options 1",
}
WITH_TEMPERATURE = ("DPO, its recipe", "DPO", SOFT)
BEFORE = "before alignment"
# What is added by soft labels, by EM-ECE on pairs, by the likelihood of option questions, and by EM-ECE on them: a
# method, and the one without it at the same beta.
PAIRED = (
    (f"{SOFT}, beta 30", "DPO"),
    ("calibrated DPO, votes", "DPO"),
    (f"{SOFT} + likelihood", f"{SOFT}, beta 30"),
    ("calibrated DPO", f"{SOFT} + likelihood"),
    ("calibrated DPO", SOFT),
)
MEASURES = {
    "pair_accuracy": "pair accuracy", "pair_ece": "pair-ECE", "pair_tce": "pair TCE", "pair_nll": "pair NLL",
    "option_accuracy": "accuracy", "option_ece": "conf-ECE", "option_tce": "TCE", "option_nll": "NLL",
}  # fmt: skip


def run(args: argparse.Namespace) -> dict[int, dict[str, dict]]:
    """Results by seed and name of the run; `"before"` holds the measures before alignment."""
    names = [("before", None)]
    for method in args.only:
        _, settings = GRID[method]
        names += [(method, key) for key in (settings if args.tune else (CHOSEN[method],))]
    worlds, runs = {}, {seed: {} for seed in args.seeds}
    for (method, key), seed in itertools.product(names, args.seeds):
        name = method if key is None else f"{method}, {key}"
        folder = args.output_dir.resolve() / f"seed-{seed}"
        path = folder / f"{name.replace(', ', '_').replace(' ', '-')}.json"
        if not path.exists():
            if seed not in worlds:
                worlds[seed] = Setting(folder, seed)
            labels, settings = GRID.get(method, (None, None))
            write_json(path, worlds[seed].before() if key is None else worlds[seed].run(settings[key], labels))
        runs[seed][name] = json.loads(path.read_text())
        shown = runs[seed][name]["test"]
        print(seed, name, *(f"{m} {shown[m]:.3f}" for m in MEASURES if m in shown), flush=True)
    return runs


def cell(values: list[float], sign: str = "") -> str:
    """Mean over the seeds, with half of the 95% t interval."""
    half = math.nan
    if len(values) > 1:
        half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):{sign}.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else "")


def print_table(title: str, rows: dict[str, list[dict[str, float]]], sign: str = "") -> None:
    """Print the measures of rows of one result for each seed."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("", *MEASURES.values()):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, seeds in rows.items():
        known = [m for m in MEASURES if m in seeds[0]]
        table.add_row(name, *(cell([of[m] for of in seeds], sign) if m in known else "" for m in MEASURES))
    Console(width=200).print(table)


def tune(runs: dict[int, dict[str, dict]]) -> dict[str, str]:
    """Print every run's mean on the validation data, and choose a setting for each method."""
    chosen, rows = {}, {}
    for method, (_, settings) in GRID.items():
        merits = {}
        for key in (key for key in settings if f"{method}, {key}" in next(iter(runs.values()))):
            rows[f"{method}, {key}"] = seeds = [of[f"{method}, {key}"]["validation"] for of in runs.values()]
            merits[key] = np.mean([of["pair_ece"] + of["option_ece"] for of in seeds])
        if merits:
            chosen[method] = min(merits, key=merits.get)
    print_table(f"validation, mean over {len(runs)} seeds", rows)
    return chosen


def report(runs: dict[int, dict[str, dict]]) -> dict[str, float]:
    """Print the figures of the chosen settings and their differences; return their means."""
    rows = {BEFORE: [of["before"]["test"] for of in runs.values()]}
    for method, key in CHOSEN.items():
        if f"{method}, {key}" not in next(iter(runs.values())):
            continue
        rows[method] = [of[f"{method}, {key}"]["test"] for of in runs.values()]
        if method in WITH_TEMPERATURE:
            rows[f"{method} + temperature"] = [of[f"{method}, {key}"]["test + TS"] for of in runs.values()]
    print_table(f"test, mean over {len(runs)} seeds ± half a 95% t interval", rows)
    changes = {}
    for method, other in (pair for pair in PAIRED if rows.keys() >= set(pair)):
        pairs = zip(rows[method], rows[other], strict=True)
        changes[f"{method} less {other}"] = [{m: a[m] - b[m] for m in MEASURES} for a, b in pairs]
    print_table("differences, seed by seed", changes, "+")
    for kind in ("pair", "option"):
        floors = [of[f"{kind}_ece_noise_floor"] for of in list(rows.values())[-1]]
        print(f"noise floor of the ECE, {kind}s: {np.mean(floors):.3f}")
    return {
        f"{name} {m}": float(np.mean([of[m] for of in seeds]))
        for name, seeds in rows.items()
        for m in MEASURES
        if m in seeds[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--tune", action="store_true", help="measure the whole grid and choose the settings")
    parser.add_argument("--only", nargs="+", choices=GRID, default=list(GRID), metavar="METHOD")
    parser.add_argument("--output_dir", type=Path, default=Path("calibrated-dpo"))
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    runs = run(args)
    found = tune(runs) if args.tune else report(runs)
    print(json.dumps({name: value if isinstance(value, str) else round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
