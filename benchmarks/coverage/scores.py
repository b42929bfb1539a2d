"""How often do the intervals of NLL, Brier score, AUROC and AURC cover the truth? Models of five kinds.

    python benchmarks/coverage/scores.py
    python benchmarks/coverage/scores.py --weights --num_rows 500

Each model is a population of option probabilities with a known chance of every option, from which rows are drawn.
Prints tables of coverage in percent, with the misses (truth below / above the interval) and mean widths, and, last,
one line of JSON: coverage of each measure over all kinds, and of the worst kind.
"""

import argparse
import json
import zlib
from collections.abc import Callable

import numpy as np
from coverage import POPULATION, softmax
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib.measures.calibration_error import calibration_report
from hf_calib.measures.chunks import Rows
from hf_calib.measures.proper_scores import ScoreSums
from hf_calib.measures.selective import TieGroups


MEASURES = ("nll", "brier", "auroc", "aurc")


def tempered(low: float, high: float, lead: float = 0.0, digits: int | None = None) -> Callable:
    """True option probabilities at another temperature; `lead` nats more for one option, rounded to `digits`."""

    def model(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        logits = rng.normal(0, rng.uniform(0.7, 3.5), (POPULATION, rng.choice([2, 4, 4])))
        logits[:, 0] += rng.uniform(0, 2) + lead
        shown = softmax(logits / rng.uniform(low, high))
        if digits is not None:
            shown = np.round(shown, digits) + 1e-3
            shown /= shown.sum(axis=1, keepdims=True)
        return shown, softmax(logits)

    return model


KINDS = {
    "calibrated": tempered(1, 1),
    "overconfident": tempered(0.3, 0.8),
    "far overconfident": tempered(0.1, 0.3),
    "underconfident": tempered(1.25, 3),
    "round confidences": tempered(0.3, 1, digits=1),
    "few errors": tempered(0.5, 1, lead=4.0),
}


def truth_of(shown: np.ndarray, right: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Population values: expectations over the labels."""
    scores = ScoreSums()
    for option in range(shown.shape[1]):
        labels = np.full(len(shown), option)
        scores.add(Rows(shown.T, labels, weights * np.maximum(right[:, option], 1e-300)))
    confidence, predicted = shown.max(axis=1), shown.argmax(axis=1)
    order = np.argsort(confidence, kind="stable")
    starts = np.flatnonzero(np.diff(confidence[order], prepend=-1))
    mass = np.add.reduceat(weights[order], starts) / weights.sum()
    hits = weights * right[np.arange(len(shown)), predicted]
    hits = np.add.reduceat(hits[order], starts) / weights.sum()
    above = np.append(np.cumsum(mass[::-1])[::-1], 0.0)
    above[:-1] = np.minimum(above[:-1], 1)
    entropy = above * np.log(np.maximum(above, 1e-300))
    mean_log = 1 - (entropy[:-1] - entropy[1:]) / mass  # mean of -log(share at least as confident)
    return {
        "nll": scores.negative_log_likelihood,
        "brier": scores.brier,
        "auroc": TieGroups(mass, mass, hits, mass).auroc(),
        "aurc": float((mass - hits) @ mean_log),
    }


def simulate(kind: str, num_rows: int, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """For each measure the truth and the ends of the interval, `(num_models, 3)`."""
    rng, model = np.random.default_rng([args.seed, num_rows, zlib.crc32(kind.encode())]), KINDS[kind]
    results = {name: [] for name in MEASURES}
    while len(results["nll"]) < args.num_models:
        shown, right = model(rng)
        weights = shown.max(axis=1) * rng.uniform(0.5, 1.5, POPULATION) if args.weights else np.ones(POPULATION)
        index = rng.integers(POPULATION, size=num_rows)
        labels = (right[index].cumsum(axis=1) > rng.random((num_rows, 1))).argmax(axis=1)
        sample_weight = weights[index] if args.weights else None
        report = calibration_report(shown[index], labels, sample_weight=sample_weight, n_bootstrap=1)
        for name, truth in truth_of(shown, right, weights).items():
            results[name].append((truth, report[f"{name}_low"], report[f"{name}_high"]))
    return {name: np.array(values) for name, values in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, nargs="+", default=[100, 500, 5000])
    parser.add_argument("--num_models", type=int, default=1000, help="models of each kind")
    parser.add_argument("--weights", action="store_true", help="weight rows by their confidence times U(.5, 1.5)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    figures: dict[str, float] = {}
    for num_rows in args.num_rows:
        title = f"N = {num_rows:,}, {args.num_models:,} models of each kind: coverage (below / above, width)"
        table = Table("kind", *MEASURES, box=box.SIMPLE_HEAD, title=title, title_justify="left")
        coverage: dict[str, list[float]] = {name: [] for name in MEASURES}
        for kind in KINDS:
            cells = []
            for name, values in simulate(kind, num_rows, args).items():
                truth, low, high = values[~np.isnan(values).any(axis=1)].T
                below, above = 100 * (truth < low).mean(), 100 * (truth > high).mean()
                coverage[name].append(100 - below - above)
                cells.append(f"{100 - below - above:.1f} ({below:.1f} / {above:.1f}, {(high - low).mean():.3f})")
            table.add_row(kind, *cells)
        table.add_row("all", *(f"{np.mean(values):.1f}" for values in coverage.values()))
        Console(width=150).print(table)
        for name, values in coverage.items():
            figures[f"{name}_{num_rows}"] = round(float(np.mean(values)) / 100, 4)
            figures[f"{name}_{num_rows}_least"] = round(min(values) / 100, 4)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
