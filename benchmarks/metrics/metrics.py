"""Speed and memory of the measures, next to torchmetrics, netcal, relplot and scikit-learn on the same arrays.

    python benchmarks/metrics/metrics.py
    python benchmarks/metrics/metrics.py --sizes 1000000 --repeats 3

Contestants take turns and the median counts. Every library takes as many threads as it takes by itself (torch: all
cores; NumPy: one here). Prints tables and, last, one line of JSON: ratios (peer's time over ours), seconds and
megabytes.
"""

import argparse
import json
import tracemalloc
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time

import numpy as np
import torch
from netcal.metrics import ECE
from relplot import smECE
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from hf_calib.evaluation.details import probability_details
from hf_calib.measures.calibration_error import (
    StreamingCalibration,
    calibration_report,
    confidence_auroc,
    expected_calibration_error,
    smooth_calibration_error,
    top_label,
)
from hf_calib.measures.checked import check_predictions
from hf_calib.measures.corp import corp_curve
from hf_calib.measures.kernel_test import kernel_calibration_test
from hf_calib.measures.options import MeasureOptions
from hf_calib.measures.paired import comparison_report


N_BINS = 15  # torchmetrics' default
BATCH = 65_536


def make(n: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """An overconfident model with four options, a third of its confidences above .95."""
    rng = np.random.default_rng(0)
    probabilities, labels = np.empty((n, 4), dtype), np.empty(n, np.int64)
    for start in range(0, n, 100_000):
        logits = 2.5 * rng.normal(size=(min(100_000, n - start), 4))
        part = slice(start, start + len(logits))
        target = np.exp(logits)
        target /= target.sum(axis=1, keepdims=True)
        stated = target**1.4
        probabilities[part] = stated / stated.sum(axis=1, keepdims=True)
        labels[part] = (target.cumsum(axis=1) > rng.random((len(logits), 1))).argmax(axis=1)
    return probabilities, labels


def race(contestants: dict[str, Callable[[], float]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds and result of each."""
    times, results = {name: [] for name in contestants}, {}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = perf_counter()
            results[name] = float(run())
            times[name].append(perf_counter() - start)
    return {name: (median(times[name]), results[name]) for name in contestants}


def seconds_and_peak(run: Callable[[], object], clock: Callable[[], float] = perf_counter) -> tuple[float, float]:
    """Seconds, and megabytes allocated at the worst moment in a second run."""
    start = clock()
    run()
    seconds = clock() - start
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return seconds, peak


def stream(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    calibration = StreamingCalibration()
    for start in range(0, len(labels), BATCH):
        calibration.update(probabilities[start : start + BATCH], labels[start : start + BATCH])
    return calibration.report()


def further(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """The measures that a report does not hold, with their default numbers of draws, and those of an evaluation."""
    confidences, correct = top_label(probabilities, labels)
    other = probabilities**0.7
    other /= other.sum(axis=1, keepdims=True)
    return {
        "skce_confidences": lambda: kernel_calibration_test(confidences, correct),
        "skce_options": lambda: kernel_calibration_test(probabilities, labels),
        "corp_curve": lambda: corp_curve(confidences, correct),
        "comparison": lambda: comparison_report((other, labels), (probabilities, labels)),
        "details": lambda: probability_details(check_predictions(probabilities, labels), MeasureOptions()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    console = Console(width=140)
    speed = Table("measure", "N", "dtype", "library", "seconds", "peer / ours", "value", box=box.SIMPLE_HEAD)
    cost = Table("", "N", "dtype", "seconds", "peak MB", "peak / input", box=box.SIMPLE_HEAD)
    figures: dict[str, float] = {}

    def show(measure: str, n: int, dtype: str, results: dict[str, tuple[float, float]]) -> dict[str, float]:
        ours = results["hf_calib"][0]
        for name, (seconds, value) in results.items():
            speed.add_row(measure, f"{n:,}", dtype, name, f"{seconds:.4f}", f"{seconds / ours:.1f}", f"{value:.7f}")
        return {name: seconds / ours for name, (seconds, _) in results.items()}

    for n in args.sizes:
        size = f"1e{round(np.log10(n))}"
        for dtype in ("float32", "float64"):
            probabilities, labels = make(n, dtype)
            tensors = torch.from_numpy(probabilities), torch.from_numpy(labels)
            contestants = {
                "hf_calib": lambda p=probabilities, y=labels: expected_calibration_error(p, y, N_BINS),
                "torchmetrics": lambda t=tensors: multiclass_calibration_error(*t, num_classes=4),
                "netcal": lambda p=probabilities, y=labels: ECE(N_BINS).measure(p, y),
            }
            ratios = show("conf-ECE", n, dtype, race(contestants, args.repeats))
            for peer in ("netcal", "torchmetrics"):  # the worse of the two types counts
                key = f"ece_speed_vs_{peer}_{size}"
                figures[key] = min(ratios[peer], figures.get(key, np.inf))
            for name, run in (("report", calibration_report), ("streaming", stream)):
                seconds, peak = seconds_and_peak(lambda run=run, p=probabilities, y=labels: run(p, y))
                share = peak * 1e6 / (probabilities.nbytes + labels.nbytes)
                cost.add_row(name, f"{n:,}", dtype, f"{seconds:.2f}", f"{peak:.0f}", f"{share:.2f}")
                for unit, value in (("seconds", seconds), ("peak_mb", peak)):
                    key = f"{name}_{unit}_{size}"
                    figures[key] = max(value, figures.get(key, 0))
            if dtype == "float64" and n <= 1_000_000:
                confidences, correct = top_label(probabilities, labels)
                smooth = {
                    "hf_calib": lambda p=probabilities, y=labels: smooth_calibration_error(p, y),
                    "relplot": lambda c=confidences, h=correct: smECE(c, h),
                }
                figures[f"smooth_speed_vs_relplot_{size}"] = show("smooth ECE", n, dtype, race(smooth, 3))["relplot"]
                auroc = {
                    "hf_calib": lambda c=confidences, h=correct: confidence_auroc(c, h),
                    "scikit-learn": lambda c=confidences, h=correct: roc_auc_score(h, c),
                }
                ratio = show("AUROC", n, dtype, race(auroc, args.repeats))["scikit-learn"]
                figures[f"auroc_speed_vs_sklearn_{size}"] = ratio
                for name, run in further(probabilities, labels).items():
                    seconds, peak = seconds_and_peak(run, process_time)
                    share = peak * 1e6 / (probabilities.nbytes + labels.nbytes)
                    cost.add_row(name, f"{n:,}", dtype, f"{seconds:.2f}", f"{peak:.0f}", f"{share:.2f}")
                    figures[f"{name}_cpu_seconds_{size}"] = seconds
    console.print(speed)
    console.print("All measures of a report, with 1,000 bootstrap resamples; streaming in batches of 65,536.")
    console.print("Below these the other measures, in processor seconds:")
    console.print(cost)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
