"""Whether prediction sets hold the right option as often as promised: simulated questions.

    python benchmarks/thresholds/prediction_sets.py
    python benchmarks/thresholds/prediction_sets.py --num_rows 60 --num_draws 5000

The model is overconfident: its logits are 2 or 40 times those of the truth. N questions calibrate the sets; 100,000
others measure their coverage. Prints the mean coverage, which is at least the level in expectation, the share of the
draws whose coverage is below `coverage_least` (at most .05 is promised), and the mean number of options. The last line
is JSON.
"""

import argparse
import json

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib import OptionPredictions, PredictionSets
from hf_calib.evaluation.prediction_sets import METHODS


# fewest and most options, and the scale of the model's logits
KINDS = {
    "2 options": (2, 2, 2),
    "4 options": (4, 4, 2),
    "2 to 6 options": (2, 6, 2),
    "4 options, very sure": (4, 4, 40),
}
NEW = 100_000


def draw(n: int, fewest: int, most: int, scale: float, rng: np.random.Generator) -> OptionPredictions:
    """Predictions for n questions of `fewest` to `most` options."""
    logits = 1.5 * rng.normal(size=(n, most))
    logits[np.arange(most) >= rng.integers(fewest, most + 1, n)[:, None]] = -np.inf
    truth = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    labels = (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return OptionPredictions((scale * logits).astype(np.float32), labels, np.arange(n).astype(str))


def simulate(kind: str, n: int, level: float, method: str, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Mean over draws: coverage, whether it is below `coverage_least`, number of options."""
    rows, new = np.empty((num_draws, 3)), draw(NEW, *KINDS[kind], rng)
    for row in rows:
        rule = PredictionSets.fit(draw(n, *KINDS[kind], rng), level, method, folds=0)
        sets = rule.apply(new)
        coverage = sets[np.arange(NEW), new.labels].mean()
        row[:] = coverage, coverage < rule.coverage_least, sets.sum(axis=1).mean()
    return rows.mean(axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, nargs="+", default=[60, 300, 2000])
    parser.add_argument("--levels", type=float, nargs="+", default=[0.9])
    parser.add_argument("--num_draws", type=int, default=300)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng, figures = np.random.default_rng(args.seed), {}
    table = Table("questions", "method", "level", "N", "coverage", "below", "options", box=box.SIMPLE_HEAD)
    for kind in args.kinds:
        for method in METHODS:
            for level in args.levels:
                for n in args.num_rows:
                    result = simulate(kind, n, level, method, args.num_draws, rng)
                    table.add_row(kind, method, f"{level:g}", f"{n:,}", *(f"{value:.3f}" for value in result))
                    name = f"{kind}/{method}/{level:g}/{n}"
                    figures |= {f"coverage/{name}": float(result[0]), f"below/{name}": float(result[1])}
    Console(width=140).print(table)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
