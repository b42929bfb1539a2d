"""How often the interval of a measured ECE holds the true one: simulated models of many kinds, known truth.

    python benchmarks/coverage/coverage.py --num_rows 500 5000
    python benchmarks/coverage/coverage.py --num_rows 5000 --n_bins 15 --binning equal_mass
    python benchmarks/coverage/coverage.py --num_rows 500 2000 --kinds "sine .06" "sine .12"

Every model is a population of confidences with a probability of being right each; N rows are drawn from it and given
to `bootstrap_interval`, as a user would. The truth is the error of the population in the same bins. Four other
intervals are computed from the same rows, if these are not weighted. Prints a table for each N (coverage in percent;
for the interval that is shipped also misses on either side, as "truth below / above", and mean width) and, last, one
line of JSON.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib.measures.binning import BINNINGS, BinSums, bin_edges, reliability_bins
from hf_calib.measures.ece_interval import draw_errors
from hf_calib.measures.noise_floor import bootstrap_interval, group_cells, noise_floor


POPULATION = 4000
WORDS = np.array([0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0])  # confidences that models like to name


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def option_logits(rng: np.random.Generator, scale: float, head_start: float) -> np.ndarray:
    logits = rng.normal(0, scale, (POPULATION, rng.choice([2, 4, 4])))
    logits[:, 0] += head_start
    return logits


def tempered(low: float, high: float) -> Callable:
    """Calibrated option probabilities, shown at another temperature."""

    def model(rng, num_rows):
        logits = option_logits(rng, rng.uniform(0.7, 3.5), rng.uniform(0, 2))
        return softmax(logits / rng.uniform(low, high)).max(axis=1), softmax(logits).max(axis=1)

    return model


def calibrated(rng, num_rows):
    return tempered(1, 1)(rng, num_rows)


def shifted(rng, num_rows):
    confidence, right = calibrated(rng, num_rows)
    return confidence, right - rng.choice([-1, 1]) * rng.uniform(0.02, 0.3)


def wavy(rng, num_rows):
    """Over- and underconfident in turn, with a sign that changes from bin to bin or within a bin."""
    confidence, right = calibrated(rng, num_rows)
    wave = np.sin(2 * np.pi * (rng.uniform(1.5, 5) * confidence + rng.random()))
    return confidence, right + rng.uniform(0.03, 0.25) * wave


def one_bin_off(rng, num_rows):
    confidence, right = calibrated(rng, num_rows)
    bins = (confidence * 10).astype(int)
    return confidence, right - rng.choice([-1, 1]) * rng.uniform(0.05, 0.5) * (bins == rng.choice(bins))


def saturated_calibrated(rng, num_rows):
    """Half of the confidences above .95, as language models have them."""
    scale = rng.uniform(3, 9)
    confidence = np.minimum(softmax(option_logits(rng, scale, rng.uniform(0, scale))).max(axis=1), 1 - 1e-6)
    if np.median(confidence) < 0.95:
        confidence = 1 - (1 - confidence) * rng.uniform(0.1, 0.5)
    return confidence, confidence


def saturated(rng, num_rows):
    confidence, _ = saturated_calibrated(rng, num_rows)
    log_odds = rng.uniform(0.3, 0.9) * np.log(confidence / (1 - confidence))
    return confidence, 1 / (1 + np.exp(-log_odds)) - rng.uniform(0, 0.1)


def spoken(rng, num_rows):
    """Ten round confidences, each off by an amount of its own."""
    index = rng.choice(len(WORDS), POPULATION, p=rng.dirichlet([0.3, 0.3, 0.5, 0.5, 2, 2, 3, 4, 1, 1]))
    gaps = rng.uniform(-0.1, 0.4) * rng.random() + rng.normal(0, 0.05, len(WORDS))
    return WORDS[index], (WORDS - gaps)[index]


def alternating(rng, num_rows):
    """The hardest found: gaps of one size in every bin, with a sign that changes from each bin to the next."""
    confidence = rng.uniform(0.2, 1, POPULATION)
    return confidence, confidence + rng.uniform(0.02, 0.2) * (1 - 2 * ((confidence * 10).astype(int) % 2))


def near_noise(rng, num_rows):
    """One of the miscalibrated kinds, shrunk until its error is .2 to 2 times the noise floor."""
    kinds = [tempered(0.3, 0.8), tempered(1.25, 3), shifted, wavy, one_bin_off, saturated]
    confidence, right = kinds[rng.integers(len(kinds))](rng, num_rows)
    right = np.clip(right, 0, 1)
    variance = np.bincount((confidence * 10).astype(int), confidence * (1 - confidence)) / POPULATION
    floor = np.sqrt(2 / np.pi * variance / num_rows).sum()
    truth = max(reliability_bins(confidence, right).error, 1e-9)
    return confidence, confidence + (right - confidence) * min(1, rng.uniform(0.2, 2) * floor / truth)


def sine(amplitude: float) -> Callable:
    """One model, the same every time: ten gaps of about one size, with a sign that alternates."""

    def model(rng, num_rows):
        confidence = 0.25 + 0.75 * (np.arange(POPULATION) + 0.5) / POPULATION
        return confidence, confidence + amplitude * np.sin(20 * confidence)

    return model


KINDS = {
    "calibrated": calibrated,
    "calibrated, saturated": saturated_calibrated,
    "overconfident": tempered(0.3, 0.8),
    "underconfident": tempered(1.25, 3),
    "shifted": shifted,
    "wavy": wavy,
    "one bin off": one_bin_off,
    "saturated": saturated,
    "spoken": spoken,
    "near the noise": near_noise,
    "alternating": alternating,
}
SINGLE_MODELS = {"sine .06": sine(0.06), "sine .12": sine(0.12)}


def other_intervals(rows: tuple, bin_options: tuple, p_value: float, num_draws: int, rng: np.random.Generator) -> dict:
    """What else one might do, at level 95%."""
    cells = group_cells(*rows, *bin_options)
    bins, num_rows = cells.bins, cells.n
    # the bootstrap of the rows, bin by bin: masses are multinomial, hits binomial
    counts = rng.multinomial(num_rows, bins.shares, size=num_draws)
    hits = rng.binomial(counts, np.clip(bins.accuracy, 0, 1))
    resampled = np.abs(counts * bins.confidence - hits).sum(axis=1) / num_rows
    debiased, margin = max(0.0, cells.measured - cells.bias), 1.96 * resampled.std()
    ends = {
        "percentile bootstrap": np.quantile(resampled, [0.025, 0.975]),
        "debiased ± 1.96 sd": (debiased - margin if p_value <= 0.025 else 0.0, max(debiased + margin, cells.measured)),
    }
    for name, sparse in (("all bins may be off", False), ("some bins are off", True)):
        errors = draw_errors(bins, num_draws, rng, sparse)
        low, high = np.quantile(errors, [0.025, 0.975])
        ends[name] = (low if p_value <= 0.05 else 0.0, high)
    return ends


def simulate(model: Callable, num_rows: int, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The truth, `(num_models,)`, and for each interval its ends, `(num_models, 2)`."""
    rng = np.random.default_rng(args.seed)
    bin_options = args.n_bins, args.binning
    results: dict[str, list] = {"truth": [], "hf_calib": []}
    for _ in range(args.num_models):
        confidence, right = model(rng, num_rows)
        right = np.clip(right, 0, 1)
        weight = confidence * rng.uniform(0.5, 1.5, POPULATION) if args.weights else None
        index = rng.integers(POPULATION, size=num_rows)
        rows = confidence[index], (rng.random(num_rows) < right[index]).astype(float)
        drawn_weight = None if weight is None else weight[index]
        population = BinSums(
            bin_edges(rows[0], *bin_options, drawn_weight)
        )  # equal-mass borders are those of the data
        population.add(confidence, right, weight)
        truth = population.bins().error
        results["truth"].append(truth if truth > 1e-12 else 0.0)
        ends = bootstrap_interval(*rows, *bin_options, n_bootstrap=args.num_draws, sample_weight=drawn_weight)
        results["hf_calib"].append(ends)
        if weight is None:
            p_value = noise_floor(*rows, *bin_options, n_simulations=100).p_value
            for name, ends in other_intervals(rows, bin_options, p_value, args.num_draws, rng).items():
                results.setdefault(name, []).append(ends)
    return {name: np.array(values) for name, values in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--num_models", type=int, default=1000, help="models of each kind")
    models = KINDS | SINGLE_MODELS
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(models), metavar="KIND")
    parser.add_argument("--n_bins", type=int, default=10)
    parser.add_argument("--binning", default=BINNINGS[0], choices=BINNINGS)
    parser.add_argument("--weights", action="store_true", help="weight rows by their confidence times U(.5, 1.5)")
    parser.add_argument("--num_draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    figures = {}
    for num_rows in args.num_rows:
        title = f"N = {num_rows:,}, {args.num_models:,} models of each kind"
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        coverage = {}
        for kind in args.kinds:
            results = simulate(models[kind], num_rows, args)
            truth = results.pop("truth")
            below, above = (
                {name: 100 * miss.mean() for name, miss in misses.items()}
                for misses in (
                    {name: truth < ends[:, 0] for name, ends in results.items()},
                    {name: truth > ends[:, 1] for name, ends in results.items()},
                )
            )
            coverage[kind] = {name: 100 - below[name] - above[name] for name in results}
            if not table.columns:
                for column in ("kind", "hf_calib", "below / above", "width", *list(results)[1:]):
                    table.add_column(column, justify="left" if column == "kind" else "right")
            ours, *others = (f"{value:.1f}" for value in coverage[kind].values())
            width = (results["hf_calib"][:, 1] - results["hf_calib"][:, 0]).mean()
            sides = f"{below['hf_calib']:.1f} / {above['hf_calib']:.1f}"
            table.add_row(kind, ours, sides, f"{width:.4f}", *others)
        pooled = {name: np.mean([row[name] for row in coverage.values()]) for name in results}
        ours, *others = (f"{value:.1f}" for value in pooled.values())
        table.add_row("all", ours, "", "", *others)
        Console(width=150).print(table)
        by_kind = [row["hf_calib"] for row in coverage.values()]
        figures[f"coverage_{num_rows}"] = pooled["hf_calib"]
        figures[f"coverage_{num_rows}_least"] = min(by_kind)
        figures[f"coverage_{num_rows}_most"] = max(by_kind)
    print(json.dumps({name: round(float(value) / 100, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
