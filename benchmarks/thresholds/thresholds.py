"""Whether the guarantee of `hf-calib threshold` holds: simulated questions of many kinds, known accuracy.

    python benchmarks/thresholds/thresholds.py
    python benchmarks/thresholds/thresholds.py --num_rows 60 --num_draws 10000
    python benchmarks/thresholds/thresholds.py --num_rows 60 300 --kinds "one confidence" --random 100

A population is a list of confidences, from the highest to the lowest, with a probability of being right, a mass and
an importance weight each. N rows are drawn from it and given to `accuracy_threshold`. The returned threshold is wrong
if the population's (weighted) accuracy above it is below the target. Prints a table for each N: the share of draws
with a wrong threshold (at most .05 is promised), the share with a threshold, the mean coverage, and the largest
coverage at which the population reaches the target. Then come thresholds by subject, the sequential test of `--check`
and, last, one line of JSON.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib.measures.sequential_test import accuracy_evidence
from hf_calib.measures.threshold import accuracy_threshold, accuracy_thresholds


Population = tuple[np.ndarray, ...]  # confidences, probabilities of being right, masses, weights
POINTS = 20_000
LEVEL = 0.95
WEIGHTS, SHARES = np.array([0.25, 1.0, 4.0]), np.array([0.5, 0.3, 0.2])
COLUMNS = ("kind", "target", "wrong", "found", "coverage", "possible")


def smooth(right: Callable[[np.ndarray, float], np.ndarray]) -> Callable[[float], Population]:
    """Different confidences; `right` gives the probability of being right at each coverage."""

    def population(target: float) -> Population:
        coverage = (np.arange(POINTS) + 0.5) / POINTS
        return 1 - coverage, np.clip(right(coverage, target), 0, 1), np.full(POINTS, 1 / POINTS), np.ones(POINTS)

    return population


def tied(confidences: list, right: Callable[[float], list], masses: list) -> Callable[[float], Population]:
    """A few confidences that many questions share."""
    masses, ones = np.array(masses, float), np.ones(len(masses))
    return lambda target: (np.array(confidences), np.clip(right(target), 0, 1), masses, ones)


def weighted(confidences: list, right: Callable[[float], np.ndarray]) -> Callable[[float], Population]:
    """Confidences of questions of three weights; `right` gives a row of three probabilities for each."""
    size = len(confidences)
    masses, weights = np.tile(SHARES / size, size), np.tile(WEIGHTS, size)
    return lambda target: (np.repeat(confidences, 3), np.clip(right(target), 0, 1).ravel(), masses, weights)


def random_ties(target: float, rng: np.random.Generator) -> Population:
    """Two to six confidences; the accuracy down to each is just below the target, or a little above it."""
    size = rng.integers(2, 7)
    masses = rng.dirichlet(np.ones(size))
    accuracy = target + np.where(rng.random(size) < 0.6, -1e-9, rng.uniform(0, 1 - target, size))
    covered = np.cumsum(masses)
    right = np.diff(accuracy * covered, prepend=0) / masses
    return 1 - np.arange(size) / 10, np.clip(right, 0, 1), masses, np.ones(size)


def wave(coverage: np.ndarray, target: float) -> np.ndarray:
    """Probability of being right where the selective accuracy is `target + size * sin(4 pi coverage)`."""
    size, angle = 0.15 * (1 - target), 4 * np.pi * coverage
    return target + size * (np.sin(angle) + angle * np.cos(angle))


KINDS = {
    "falling": smooth(lambda u, t: 1 - 2 * (1 - t) * u**0.8),
    "steep at the target": smooth(lambda u, t: np.where(u < 0.4, t + 0.5 * (1 - t), t - 0.3)),
    "at the target": smooth(lambda u, t: np.full_like(u, t)),
    "just below the target": smooth(lambda u, t: np.full_like(u, t - 0.002)),
    "half at the target, then below": smooth(lambda u, t: np.where(u < 0.5, t, t - 0.05)),
    "rising": smooth(lambda u, t: t - 0.1 + 0.18 * u),
    "crossing twice": smooth(wave),
    "one confidence": tied([1.0], lambda t: [t - 1e-9], [1]),
    "two, the lower one too low": tied(
        [0.99, 0.9], lambda t: [t + 0.4 * (1 - t), t - 0.4 * (1 - t) - 1e-9], [0.5, 0.5]
    ),
    "most at 1.0": tied([1.0, 0.9, 0.8, 0.7], lambda t: [t - 1e-9, t - 0.05, t - 0.1, t - 0.3], [0.7, 0.1, 0.1, 0.1]),
    "round numbers": tied(
        np.arange(0.95, 0.45, -0.05).tolist(), lambda t: t + (1 - t) * np.linspace(0.9, -1.3, 10), [0.1] * 10
    ),
    "ties that rise and fall": tied(
        [0.9, 0.8, 0.7, 0.6], lambda t: [t - 0.02, t + 0.02 - 2e-9, t - 0.02, t + 0.02 - 2e-9], [0.25] * 4
    ),
    "two, the upper one too low": tied([0.9, 0.8], lambda t: [t - 0.1, t + 0.025 - 1e-9], [0.2, 0.8]),
    "weights, one confidence": weighted([0.9], lambda t: np.full((1, 3), t - 1e-9)),
    "weights, the heavy too hard": weighted([0.9], lambda t: t + 0.05 * np.array([[1.882, 1.882, -1]]) - 1e-9),
    "weights, round numbers": weighted(
        np.arange(0.95, 0.45, -0.05).tolist(),
        lambda t: t + (1 - t) * np.linspace(0.9, -1.3, 10)[:, None] + [[0.01, 0, -0.01]],
    ),
}  # fmt: skip


def selective_accuracy(population: Population) -> np.ndarray:
    """Accuracy of the population at and above each of its confidences."""
    _, right, masses, weights = population
    return np.cumsum(masses * weights * right) / np.cumsum(masses * weights)


def simulate(
    population: Population, n: int, target: float, num_draws: int, rng: np.random.Generator
) -> dict[str, float]:
    """Share of draws with a wrong threshold and with any, mean coverage, and the largest possible coverage."""
    confidences, right, masses, weights = population
    truth, covered = selective_accuracy(population), np.cumsum(masses * weights) / (masses @ weights)
    ends = np.cumsum(masses) / masses.sum()
    most = None if weights.min() == weights.max() else weights.max()
    wrong, found, coverage = 0, 0, 0.0
    for _ in range(num_draws):
        rows = np.searchsorted(ends, rng.random(n))
        correct = rng.random(n) < right[rows]
        try:
            result = accuracy_threshold(confidences[rows], correct, target, LEVEL, most and weights[rows], most)
        except ValueError:  # the weights left too few questions for any threshold
            continue
        if result.found:
            last = np.searchsorted(-confidences, -result.threshold, side="right") - 1
            found += 1
            wrong += truth[last] < target - 1e-10
            coverage += covered[last]
    possible = covered[truth >= target - 1e-10]
    best = float(possible[-1]) if len(possible) else 0.0
    return {"wrong": wrong / num_draws, "found": found / num_draws, "coverage": coverage / num_draws, "best": best}


def simulate_subjects(n: int, target: float, num_draws: int, rng: np.random.Generator) -> float:
    """Share of draws in which any of ten subjects has a wrong threshold; all are just below the target."""
    wrong = 0
    for _ in range(num_draws):
        correct, subjects = rng.random(n) < target - 1e-9, np.arange(n) % 10
        found = accuracy_thresholds(rng.random(n), correct, subjects, target, LEVEL)
        wrong += any(threshold.found for threshold in found.values())
    return wrong / num_draws


def simulate_check(accuracy: float, target: float, n: int, num_draws: int, rng: np.random.Generator) -> float:
    """Share of sequences of n answers in which the sequential test ever refutes the target."""
    draws = (accuracy_evidence(rng.random(n) < accuracy, target).largest for _ in range(num_draws))
    return sum(largest >= 1 / (1 - LEVEL) - 1e-9 for largest in draws) / num_draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, nargs="+", default=[60, 300, 2000])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--num_draws", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--random", type=int, default=0, help="number of random populations with ties for each target")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng, console, figures = np.random.default_rng(args.seed), Console(width=140), {}
    for n in args.num_rows:
        table = Table(
            "kind", "target", "wrong", "found", "coverage", "possible", title=f"N = {n:,}", box=box.SIMPLE_HEAD
        )
        rates = []
        for kind in args.kinds:
            for target in args.targets:
                result = simulate(KINDS[kind](target), n, target, args.num_draws, rng)
                rates.append(result["wrong"])
                shown = (f"{result[key]:.3f}" for key in ("wrong", "found", "coverage", "best"))
                table.add_row(kind, f"{target:g}", *shown)
        console.print(table)
        figures |= {f"wrong_mean_{n}": float(np.mean(rates)), f"wrong_most_{n}": float(max(rates))}
    for n in args.num_rows if args.random else ():
        drawn = [
            simulate(random_ties(t, rng), n, t, args.num_draws, rng) for t in args.targets for _ in range(args.random)
        ]
        rates = [result["wrong"] for result in drawn]
        figures |= {f"random_mean_{n}": float(np.mean(rates)), f"random_most_{n}": float(max(rates))}
    target = args.targets[-1]
    figures["wrong_any_of_10_subjects"] = simulate_subjects(10 * max(args.num_rows), target, args.num_draws // 4, rng)
    for accuracy in (target, target - 0.02, target - 0.05, target - 0.1):
        share = simulate_check(accuracy, target, 2000, args.num_draws, rng)
        console.print(
            f"--check, accuracy {accuracy:.2f}, target {target:g}: refuted within 2,000 answers in {share:.3f}"
        )
        figures[f"refuted_at_{accuracy:.2f}"] = share
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
