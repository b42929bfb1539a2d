"""Cells of benchmarks/headline, on predictions and measures made by hand: comparisons, floors, bars."""

import numpy as np
import pytest
from headline_cells import Place, compare, measure, over_seeds, read_bar
from headline_config import Bar

from hf_calib import calibration_report
from hf_calib.inference.predictions import OptionPredictions


# Comparisons, on predictions made by hand


def predictions(n: int, temperature: float, seed: int = 0, options: int = 4) -> OptionPredictions:
    """Calibrated at temperature 1; some questions have an option less."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, options))
    logits[::7, -1] = -np.inf
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return OptionPredictions((logits / temperature).astype(np.float32), labels, np.arange(n).astype(str))


def test_paired_differences_are_those_of_the_measures():
    ours, other = predictions(600, 1.0), predictions(600, 0.5)
    differences = compare([ours], [other])
    reports = [measure([p]) for p in (ours, other)]
    for name, estimate in differences.items():
        assert estimate.value == pytest.approx(reports[0][name] - reports[1][name], abs=1e-6)
        assert estimate.low <= estimate.value <= estimate.high
    assert differences["ece"].high < 0 and differences["nll"].high < 0
    # The labels are the same: a temperature moves no answer, and the same predictions differ by nothing.
    assert differences["accuracy"] == (0, 0, 0)
    assert all(estimate == (0, 0, 0) for estimate in compare([ours], [ours]).values())


def test_paired_intervals_cover_what_so_many_questions_show():
    names, runs = ("ece", "one_vs_rest", "nll"), []
    for seed in range(60):
        found = compare([predictions(500, 1.0, seed)], [predictions(500, 0.8, seed)], n_bootstrap=200)
        runs.append([found[name] for name in names])
    expected = np.mean([[estimate.value for estimate in run] for run in runs], axis=0)
    covered = np.sum(
        [[e.low <= mean <= e.high for e, mean in zip(run, expected, strict=True)] for run in runs], axis=0
    )
    assert covered.min() >= 51  # 57 on average, less three and a half standard errors


def test_orders_of_the_options_are_averaged():
    views = [predictions(300, 1.0, seed) for seed in (0, 1)]
    reports = [calibration_report(p.probabilities, p.labels) for p in views]
    assert measure(views)["ece"] == pytest.approx(np.mean([report["ece"] for report in reports]))
    # Differences, too: those of the mean over both orders.
    others = [predictions(300, 0.5, seed) for seed in (0, 1)]
    assert compare(views, others)["one_vs_rest"].value == pytest.approx(
        measure(views)["one_vs_rest"] - measure(others)["one_vs_rest"], abs=1e-6
    )


def test_one_vs_rest_floor_is_what_calibrated_predictions_show():
    """Labels drawn from the probabilities, or from flatter ones, among questions of three and of four options."""
    for temperature, calibrated in ((1.0, True), (0.5, False)):
        found = [measure([predictions(400, temperature, seed)]) for seed in range(16)]
        shown, floor = (np.mean([m[name] for m in found]) for name in ("one_vs_rest", "one_vs_rest_noise_floor"))
        assert (shown == pytest.approx(floor, rel=0.15)) == calibrated
        assert calibrated or shown > 2 * floor


def test_different_questions_are_refused():
    other = predictions(300, 1.0)
    other.ids = other.ids[::-1]
    with pytest.raises(ValueError, match="different questions"):
        compare([predictions(300, 1.0)], [other])


# Bars, by hand


def cell(ece, accuracy=0.5, nll=1.0, brier=0.5):
    return {"ece": ece, "accuracy": accuracy, "nll": nll, "brier": brier}


RESULTS = {
    Place("m", "a", 100, "a", 0): {"ours": cell(0.02, 0.6, 0.8), "x": cell(0.04), "y": cell(0.05), "as is": cell(0.2)},
    Place("m", "a", 100, "b", 0): {"ours": cell(0.03), "x": cell(0.01), "y": cell(0.05), "as is": cell(0.2)},
    Place("m", "a", 100, "a", 1): {
        "ours": cell(0.04, 0.5, 0.9, 0.4), "x": cell(0.1), "y": cell(0.08), "as is": cell(0.2, 0.52)
    },
}  # fmt: skip


def bar(**asked):
    return read_bar(Bar("bar", at_most=0.6, **asked), RESULTS, "ours", ["x", "y"], "as is")


def test_ratio_is_of_the_means_over_all_cells_to_the_better_baseline_of_each():
    read = bar(measure="ece", statistic="ratio", where={"domain": "in"})
    assert read["value"] == pytest.approx((0.02 / 0.04 + 0.04 / 0.08) / 2) and read["met"] and read["cells"] == 2
    # Of seed 0 there are two cells, one with a small error.
    read = bar(measure="ece", statistic="ratio")
    assert read["value"] == pytest.approx(((0.02 + 0.03) / (0.04 + 0.01) + 0.04 / 0.08) / 2) and not read["met"]
    assert bar(measure="ece", statistic="ratio", where={"budget": [500]}) is None


def test_share_below_wants_every_baseline_and_measure():
    assert bar(measure="nll", statistic="share_below")["value"] == pytest.approx((0.5 + 1) / 2)
    assert bar(measure=["nll", "brier"], statistic="share_below")["value"] == pytest.approx((0 + 1) / 2)


def test_difference_is_to_the_original():
    read = bar(measure="accuracy", statistic="difference")
    assert read["value"] == pytest.approx(((0.1 + 0) / 2 - 0.02) / 2)
    assert bar(measure="accuracy", statistic="difference", where={"domain": "out"})["value"] == 0


def test_seeds_count_alike_and_give_the_interval():
    values = {
        Place("m", "a", 1, test, seed): value for test, seed, value in (("a", 0, 1.0), ("b", 0, 3.0), ("a", 1, 5.0))
    }
    mean, half = over_seeds(values)
    assert mean == 3.5 and half == pytest.approx(12.706 * np.std([2, 5], ddof=1) / np.sqrt(2), rel=1e-3)
    assert np.isnan(over_seeds({Place("m", "a", 1, "a", 0): 1.0})[1])
