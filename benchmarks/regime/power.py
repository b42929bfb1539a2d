"""How small a distance does the verdict of the regime find? Power at distances of .02 to .05.

    python benchmarks/regime/power.py --runs 500 --figure docs/results/regime_power.png

Prints the share of simulated data sets with the right verdict at level 0.05, for each distance and number of
questions, and the share at the distance that the report calls detectable, which should be near .8. Last, one line of
JSON: for each situation the smallest N with a power of at least .8 at each distance.
"""

import argparse
import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from regime import ABOVE, BELOW, CRITICAL, OFF, OPTIONS, knowing, questions
from rich import box
from rich.console import Console
from rich.table import Table

from hf_calib.regime.accuracy_tests import discordance_test, intersection_union, paired_test, rate_test
from hf_calib.regime.classify import classify_confidences, classify_regime


ALPHA = 0.05
# 1 - E[target probability of the label]: what a known label adds to ACC - T
NOT_EXPECTED = 1 - float((questions(1_000_000, np.random.default_rng(0))[0] ** 2).sum(axis=1).mean())


def known_number(n, rng, distance):
    return classify_confidences(np.full(n, 0.85), rng.random(n) < CRITICAL + distance, critical_accuracy=CRITICAL)


def by_guessing(n, rng, accuracy):
    """Without a target. The verdict is that of the binomial test, called here without the slower recalibration."""
    test = rate_test((rng.random(n) < accuracy).astype(float), 1 / OPTIONS, ALPHA)
    regime = ABOVE if test.p_below < ALPHA else "other"
    return SimpleNamespace(regime=regime, border_distance_detectable=test.detectable)


def by_reference(n, rng, distance):
    """With a calibrated reference: the two tests that must agree, without the ECE of the reference."""
    target, labels = questions(n, rng)
    correct = (knowing(labels, CRITICAL + distance, rng).argmax(axis=1) == labels).astype(float)
    other = (target.argmax(axis=1) == labels).astype(float)
    test = intersection_union(paired_test(correct, target.max(axis=1), ALPHA), discordance_test(correct, other, ALPHA))
    regime = ABOVE if test.p_above < ALPHA else "other"
    return SimpleNamespace(regime=regime, border_distance_detectable=test.detectable)


def above_target(n, rng, distance):
    target, labels = questions(n, rng)
    return classify_regime(knowing(labels, CRITICAL + distance, rng), labels, target)


def below_expected(n, rng, distance):
    """The model predicts the target's first option, T = ACC*, and some of the labels do not follow the target."""
    target, labels = questions(n, rng)
    other = (labels + rng.integers(1, OPTIONS, n)) % OPTIONS
    wrong = (labels == target.argmax(axis=1)) & (rng.random(n) < distance / CRITICAL)
    return classify_regime(target, np.where(wrong, other, labels), target)


def above_expected(n, rng, distance):
    """The model guesses, except for some labels that it knows."""
    target, labels = questions(n, rng)
    known = rng.random(n) < distance / NOT_EXPECTED
    prediction = np.where(known, labels, rng.integers(0, OPTIONS, n))
    return classify_regime(knowing(prediction, 1.0, rng), labels, target)


# Situation: verdict that is right, simulation, and the field with the detectable distance.
BORDER, EXPECTED = "border_distance_detectable", "expected_accuracy_detectable"
SITUATIONS = {
    "critical accuracy known: ACC = ACC* + d": (ABOVE, known_number, BORDER),
    "critical accuracy known: ACC = ACC* − d": (BELOW, lambda n, rng, d: known_number(n, rng, -d), BORDER),
    "target: ACC = ACC* + d": (ABOVE, above_target, BORDER),
    "target: ACC = T − d": (OFF, below_expected, EXPECTED),
    "target: ACC = T + d, below ACC*": (OFF, above_expected, EXPECTED),
    "reference: ACC = ACC* + d": (ABOVE, by_reference, BORDER),
    "no target: ACC = 1/K − d": (ABOVE, lambda n, rng, d: by_guessing(n, rng, 1 / OPTIONS - d), BORDER),
    "no target: ACC = ACC* + d": (ABOVE, lambda n, rng, d: by_guessing(n, rng, CRITICAL + d), None),
}


def power(name: str, n: int, distance: float, runs: int) -> float:
    """Share of the runs with the right verdict."""
    right, simulate, _ = SITUATIONS[name]
    rng = np.random.default_rng([zlib.crc32(name.encode()), n, round(1e4 * distance)])
    return sum(simulate(n, rng, distance).regime == right for _ in range(runs)) / runs


def detectable(name: str, n: int) -> float | None:
    """Distance that the report calls detectable on N questions: the mean of 20 data sets."""
    _, simulate, field = SITUATIONS[name]
    if field is None:
        return None
    rng = np.random.default_rng([zlib.crc32(name.encode()), n])
    return float(np.mean([getattr(simulate(n, rng, 0.03), field) for _ in range(20)]))


def draw(found: dict, sizes: list[int], distances: list[float], path: Path) -> None:
    """Draw a panel for each situation, with a curve for each distance."""
    import matplotlib as mpl

    from hf_calib.plots.style import BLACK, BLUE, GREY, GRID, PURPLE, STYLE, VERMILLION, new_figure

    with mpl.rc_context(STYLE):
        figure = new_figure(9.5, 4.8)
        panels = figure.subplots(2, 4, sharex=True, sharey=True).ravel()
        for axes, (name, curves) in zip(panels, found.items(), strict=True):
            for distance, colour, marker in zip(distances, (BLUE, PURPLE, VERMILLION, BLACK), "os^D", strict=False):
                rates = [curves[distance][n] for n in sizes]
                axes.plot(sizes, rates, marker, linestyle="-", color=colour, markersize=4, label=f"d = {distance:g}")
            axes.axhline(0.8, color=GREY, linewidth=0.8, linestyle=(0, (4, 2.5)))
            axes.set(xscale="log", ylim=(-0.03, 1.05))
            axes.set_title(name.replace(": ", "\n"), fontsize=9, loc="left")
            axes.grid(**GRID)
        for axes in panels[4:]:
            axes.set_xlabel("questions")
        for axes in panels[::4]:
            axes.set_ylabel("power")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(distances))
        figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000])
    parser.add_argument("--distances", type=float, nargs="+", default=[0.02, 0.03, 0.04, 0.05])
    parser.add_argument("--figure", type=Path, help="file of the figure")
    args = parser.parse_args()

    table = Table(title=f"Power at level 0.05, {args.runs:,} runs", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("situation", "d", *(f"N = {n:,}" for n in args.sizes)):
        table.add_column(column, justify="left" if column == "situation" else "right", no_wrap=True)
    found: dict[str, dict] = {}
    smallest: dict[str, dict] = {}
    for name in SITUATIONS:
        found[name] = {d: {n: power(name, n, d, args.runs) for n in args.sizes} for d in args.distances}
        smallest[name] = {
            d: next((n for n in args.sizes if curve[n] >= 0.8), None) for d, curve in found[name].items()
        }
        for distance, curve in found[name].items():
            table.add_row(name, f"{distance:g}", *(f"{rate:.2f}" for rate in curve.values()))
        least = {n: detectable(name, n) for n in args.sizes}
        if None not in least.values():
            rates = (f"{d:.3f}: {power(name, n, d, args.runs):.2f}" for n, d in least.items())
            table.add_row("", "detectable", *rates)
    Console(width=140).print(table)
    if args.figure:
        draw(found, args.sizes, args.distances, args.figure)
    print(json.dumps(smallest))


if __name__ == "__main__":
    main()
