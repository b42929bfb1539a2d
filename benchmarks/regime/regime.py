"""How often is the regime's verdict wrong? Models placed exactly on the border, where each verdict is an error.

    python benchmarks/regime/regime.py --runs 1000

Prints the rate of each verdict at level 0.05, and, last, one line of JSON: the largest rate of each wrong verdict. A
verdict that is no error in a scenario is bracketed.
"""

import argparse
import json
import zlib

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib.regime.classify import classify_confidences, classify_regime


OPTIONS = 4
CERTAINTY = 3.0  # spread of the logits of the sharp target
POPULATION = 1_000_000  # questions that stand for all, where a number of the population is needed


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def questions(n: int, rng: np.random.Generator, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """True option probabilities of `n` questions, and labels that follow them."""
    target = softmax(spread * rng.standard_normal((n, OPTIONS)))
    return target, (target.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


def knowing(labels: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Probabilities of a model that has learnt a share of the labels, the easy and the hard alike."""
    wrong = (labels + rng.integers(1, OPTIONS, len(labels))) % OPTIONS
    prediction = np.where(rng.random(len(labels)) < rate, labels, wrong)
    probabilities = np.full((len(labels), OPTIONS), 0.05)
    probabilities[np.arange(len(labels)), prediction] = 0.85
    return probabilities


def weak(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Probabilities of a model that guesses: its accuracy is what the target gives to its predictions."""
    return knowing(rng.integers(0, OPTIONS, len(labels)), 1.0, rng)


def sharpened(target: np.ndarray) -> np.ndarray:
    """An overconfident reference: the truth squared, so that an isotonic map repairs it."""
    return target**2 / (target**2).sum(axis=1, keepdims=True)


_target, _ = questions(POPULATION, np.random.default_rng(0))
CRITICAL = float(_target.max(axis=1).mean())
CRITICAL_SHARP = float(questions(POPULATION, np.random.default_rng(0), CERTAINTY)[0].max(axis=1).mean())
OVERCONFIDENCE = float(sharpened(_target).max(axis=1).mean())  # mean confidence of the overconfident reference
_weights = _target.max(axis=1)
CRITICAL_WEIGHTED = float(_weights @ _weights / _weights.sum())  # hard questions weigh less


def bayes(n, rng, spread=1.0):
    target, labels = questions(n, rng, spread)
    return classify_regime(target, labels, target)


def learnt(n, rng, spread=1.0, rate=CRITICAL):
    target, labels = questions(n, rng, spread)
    return classify_regime(knowing(labels, rate, rng), labels, target)


def guesses(n, rng, weighted=False):
    target, labels = questions(n, rng)
    weights = target.max(axis=1) if weighted else None
    return classify_regime(weak(labels, rng), labels, target, sample_weight=weights)


def guesses_by_reference(n, rng, bend=None):
    """A model that guesses on a third of the questions and agrees with the reference on the others."""
    target, labels = questions(n, rng)
    model = np.where(rng.random((n, 1)) < 1 / 3, weak(labels, rng), target)
    return classify_regime(model, labels, reference_probabilities=target if bend is None else bend(target))


def bayes_weighted(n, rng):
    target, labels = questions(n, rng)
    return classify_regime(target, labels, target, sample_weight=target.max(axis=1))


def learnt_weighted(n, rng):
    target, labels = questions(n, rng)
    model = knowing(labels, CRITICAL_WEIGHTED, rng)
    return classify_regime(model, labels, target, sample_weight=target.max(axis=1))


def known_number(n, rng):
    return classify_confidences(np.full(n, 0.85), rng.random(n) < CRITICAL, critical_accuracy=CRITICAL)


def known_number_weighted(n, rng):
    weights = rng.gamma(1.0, size=n)
    return classify_confidences(np.full(n, 0.85), rng.random(n) < 0.8, critical_accuracy=0.8, sample_weight=weights)


def reference(n, rng, bend=None, rate=CRITICAL, weighted=False):
    target, labels = questions(n, rng)
    other = target if bend is None else bend(target)
    weights = target.max(axis=1) if weighted else None
    return classify_regime(knowing(labels, rate, rng), labels, reference_probabilities=other, sample_weight=weights)


def no_target(n, rng, accuracy, weighted=False):
    """Confidences over [.25, 1], and the accuracy that belongs to each."""
    confidences = 0.25 + 0.75 * rng.random(n)
    weights = rng.gamma(2.0, size=n) if weighted else None
    correct = rng.random(n) < accuracy(confidences)
    return classify_confidences(confidences, correct, num_options=OPTIONS, sample_weight=weights)


ABOVE, BELOW, OFF = "non-calibratable", "calibratable", "target-contradicted"
VERDICTS = (ABOVE, BELOW, OFF)
BORDER = (ABOVE, BELOW)  # errors where ACC = ACC*

# What is simulated: the verdicts that are wrong, and a function of the number of questions and a generator.
SCENARIOS = {
    "target; Bayes model": (VERDICTS, bayes),
    "target; labels partly learnt": (BORDER, learnt),
    "target; guessing": ((ABOVE, OFF), guesses),
    "sharp target; Bayes model": (VERDICTS, lambda n, rng: bayes(n, rng, CERTAINTY)),
    "sharp target; labels partly learnt": (BORDER, lambda n, rng: learnt(n, rng, CERTAINTY, CRITICAL_SHARP)),
    "target, weights; Bayes model": (VERDICTS, bayes_weighted),
    "target, weights; labels partly learnt": (BORDER, learnt_weighted),
    "target, weights; guessing": ((ABOVE, OFF), lambda n, rng: guesses(n, rng, weighted=True)),
    "critical accuracy": (BORDER, known_number),
    "critical accuracy, weights": (BORDER, known_number_weighted),
    "reference, calibrated": (BORDER, reference),
    "reference, calibrated, weights": (
        BORDER,
        lambda n, rng: reference(n, rng, rate=CRITICAL_WEIGHTED, weighted=True),
    ),
    "reference, calibrated; guessing": ((ABOVE, OFF), guesses_by_reference),
    "reference, overconfident; at its accuracy": (BORDER, lambda n, rng: reference(n, rng, sharpened)),
    "reference, overconfident; at its confidence": (
        BORDER,
        lambda n, rng: reference(n, rng, sharpened, OVERCONFIDENCE),
    ),
    "reference, overconfident; guessing": (
        (ABOVE, OFF),
        lambda n, rng: guesses_by_reference(n, rng, sharpened),
    ),
    "no target; overconfident": ((ABOVE,), lambda n, rng: no_target(n, rng, lambda c: 0.25 + 0.6 * (c - 0.25))),
    "no target; right as often as by guessing": ((ABOVE,), lambda n, rng: no_target(n, rng, lambda c: 0.25)),
    "no target, weights; as often as by guessing": (
        (ABOVE,),
        lambda n, rng: no_target(n, rng, lambda c: 0.25, weighted=True),
    ),
    "no target; the sure and the unsure swapped": (
        (ABOVE,),
        lambda n, rng: no_target(n, rng, lambda c: np.where(c < 0.625, 0.45, 0.05)),
    ),
    "no target; the unsure worse than guessing": (
        BORDER,
        lambda n, rng: no_target(n, rng, lambda c: np.where(c < 0.625, 0.05, 0.8)),
    ),
    "no target; worse than guessing by 0.1": ((BELOW,), lambda n, rng: no_target(n, rng, lambda c: 0.15)),
}


def rates(name: str, n: int, runs: int) -> dict[str, float]:
    """Share of the runs that end in each verdict."""
    _, simulate = SCENARIOS[name]
    rng = np.random.default_rng([zlib.crc32(name.encode()), n])
    verdicts = [simulate(n, rng).regime for _ in range(runs)]
    return {verdict: verdicts.count(verdict) / runs for verdict in VERDICTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--scenarios", default="", help="only those whose name begins so, such as 'target'")
    args = parser.parse_args()

    table = Table(title=f"Verdicts at level 0.05, {args.runs:,} runs", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("what is simulated", no_wrap=True)
    for n in args.sizes:
        for verdict in VERDICTS:
            table.add_column(f"{verdict}, N = {n:,}", justify="right")
    largest = {f"{verdict.replace('-', '_')}_{n}": 0.0 for n in args.sizes for verdict in VERDICTS}
    for name, (errors, _) in SCENARIOS.items():
        if not name.startswith(args.scenarios):
            continue
        row = []
        for n in args.sizes:
            for verdict, rate in rates(name, n, args.runs).items():
                row.append(f"{rate:.3f}" if verdict in errors else f"({rate:.3f})")
                key = f"{verdict.replace('-', '_')}_{n}"
                largest[key] = max(largest[key], rate if verdict in errors else 0.0)
        table.add_row(name, *row)
    Console(width=200).print(table)
    print(json.dumps(largest))


if __name__ == "__main__":
    main()
