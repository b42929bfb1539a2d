"""Level and power of tests of calibration, and coverage of the intervals of SKCE and calibration loss.

    python benchmarks/coverage/calibration_tests.py --num_rows 200 1000 --num_draws 400

Every model states probabilities of four options. The labels are drawn from others: the same for a calibrated model.
The tests are those of the package: noise floor of the ECE, CORP miscalibration, kernel test of the confidence and of
all options. Prints a table for each N (rejections at level .05 in percent, coverage in percent) and, last, one line of
JSON.
"""

import argparse
import json

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.special import log_softmax

from hf_calib.measures.corp import corp_curve
from hf_calib.measures.kernel_test import kernel_calibration_test
from hf_calib.measures.noise_floor import noise_floor
from hf_calib.posthoc import recalibration_gain
from hf_calib.posthoc.scaling import best_log_temperature


BANDWIDTH = 0.3  # the true SKCE depends on it


def stated_and_true(kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities that a model states, and those from which the labels are drawn, `(n, 4)` each."""
    logits = rng.normal(0, 1.5, (n, 4))
    true = log_softmax(logits, axis=1)
    if kind == "saturated, calibrated":
        return (log_softmax(4 * logits, axis=1),) * 2
    if kind == "overconfident, T = 1.3":
        return log_softmax(1.3 * logits, axis=1), true
    if kind == "underconfident, T = 1.3":
        return log_softmax(logits / 1.3, axis=1), true
    if kind == "prefers the first option":
        return log_softmax(logits + np.array([0.4, 0, 0, 0]), axis=1), true
    if kind == "wrong beside the answer":  # the confidence is right, the shares of the other options are not
        order = np.argsort(-logits, axis=1)
        stated = true.copy()
        rows = np.arange(n)
        stated[rows, order[:, 1]], stated[rows, order[:, 2]] = true[rows, order[:, 2]], true[rows, order[:, 1]]
        kept = stated.max(axis=1) == true.max(axis=1)
        return np.where(kept[:, None], stated, true), true
    return true, true


KINDS = (
    "calibrated",
    "saturated, calibrated",
    "overconfident, T = 1.3",
    "underconfident, T = 1.3",
    "prefers the first option",
    "wrong beside the answer",
)


def true_skce(kind: str) -> float:
    """SKCE of all options of the population, from 4,000 rows and true probabilities in place of labels."""
    stated, true = (np.exp(values) for values in stated_and_true(kind, 4000, np.random.default_rng(99)))
    distance = sum(np.abs(stated[:, k, None] - stated[:, k]) for k in range(4)) / 2
    terms = np.exp(-distance / BANDWIDTH) * ((true - stated) @ (true - stated).T)
    return float((terms.sum() - np.trace(terms)) / (4000 * 3999))


def true_gain(kind: str) -> float:
    """What the best temperature gains on the population, from 20,000 rows and true probabilities."""
    stated, true = stated_and_true(kind, 20_000, np.random.default_rng(99))
    targets = np.exp(true)
    recalibrated = log_softmax(stated / np.exp(best_log_temperature(stated, targets)), axis=1)
    return float((targets * (recalibrated - stated)).sum(axis=1).mean())


def one_draw(kind: str, n: int, draw: int, truth: tuple[float, float]) -> list[bool]:
    """Whether each test rejects, and whether the intervals of SKCE and gain hold the truth."""
    rng = np.random.default_rng([n, draw])
    stated, true = stated_and_true(kind, n, rng)
    labels = (np.exp(true).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    probabilities = np.exp(stated)
    confidences, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    options = {"n_bootstrap": 199, "seed": draw}
    of_options = kernel_calibration_test(probabilities, labels, bandwidth=BANDWIDTH, **options)
    p_values = (
        noise_floor(confidences, correct, n_simulations=199, seed=draw).p_value,
        corp_curve(confidences, correct, **options).p_value,
        kernel_calibration_test(confidences, correct, **options).p_value,
        of_options.p_value,
    )
    gain = recalibration_gain(stated, labels, ["temperature"], seed=draw)
    covered = [found.low <= value <= found.high for found, value in zip((of_options, gain), truth, strict=True)]
    return [p_value <= 0.05 for p_value in p_values] + covered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--num_draws", type=int, default=400)
    args = parser.parse_args()
    columns = ("ECE", "CORP", "kernel, confidence", "kernel, all options", "SKCE covered", "gain covered")
    figures = {}
    for n in args.num_rows:
        table = Table("kind", *columns, title=f"N = {n:,}", box=box.SIMPLE_HEAD)
        for kind in KINDS:
            truth = true_skce(kind), true_gain(kind)
            shares = 100 * np.mean([one_draw(kind, n, draw, truth) for draw in range(args.num_draws)], axis=0)
            table.add_row(kind, *(f"{share:.1f}" for share in shares))
            figures |= {f"{kind}/{name}/{n}": round(share, 1) for name, share in zip(columns, shares, strict=True)}
        Console(width=140).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
