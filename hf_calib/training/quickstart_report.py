"""Report of the quickstart: report.md, results.json and figures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.compare import stage_name
from ..evaluation.tables import evaluation_results, print_table, write_stage_report
from ..inference.predictions import OptionPredictions
from ..posthoc import METHODS, fit_calibrator
from ..regime.report import NON_CALIBRATABLE
from .restore_report import ALIGNED, RESTORED


BASE, DPO, MEMORISED = "base", "dpo", "memorised"
_RUNS = [(BASE, DPO, RESTORED), (DPO, MEMORISED)]


@dataclass
class QuickstartReport:
    """
    Content of the report.

    Args:
        output_dir (`Path`):
            Folder of the quickstart, with the folder `restore`.
        seed (`int`):
            Seed of the quickstart.
        restored (`list[dict]`):
            Result of [`~hf_calib.training.restore.run_restore`].
        predictions (`dict[str, OptionPredictions]`):
            Predictions of the pre-trained model for the test questions, and of the memorising one for its labels.
        seconds (`dict[str, float]`):
            Time of each stage.
        num_labels (`int`):
            Number of labels.
    """

    output_dir: Path
    seed: int
    restored: list[dict[str, Any]]
    predictions: dict[str, OptionPredictions]
    seconds: dict[str, float]
    num_labels: int

    def __post_init__(self):
        folder = self.output_dir / "restore"
        labels, test = (OptionPredictions.load(folder / ALIGNED / f"{part}.npz") for part in ("labels", "test"))
        given = {row["stage"]: row for row in self.restored}
        measured = {BASE: self._measure(BASE, self.seconds["pretrain"])}
        measured[DPO] = {**given[ALIGNED], "seconds": self.seconds["dpo"] + given[ALIGNED]["seconds"]}
        found = {BASE: self.predictions[BASE], DPO: test}
        for method in METHODS:
            if (row := given.get(f"{ALIGNED} + {stage_name(method)}")) is not None:
                short = stage_name(method).replace("temperature scaling", "TS")
                name, start = f"{DPO} + {short}", time.perf_counter()
                fitted = fit_calibrator(method, labels.option_logits, labels.labels, groups=labels.subjects)
                measured[name] = {**row, "seconds": time.perf_counter() - start}
                found[name] = test.recalibrated(fitted)
        measured[RESTORED] = given[RESTORED]
        found[RESTORED] = OptionPredictions.load(folder / "model" / "evaluation" / "predictions.npz")
        measured[MEMORISED] = self._measure(MEMORISED, self.seconds[MEMORISED])
        self.predictions = {**found, MEMORISED: self.predictions[MEMORISED]}
        self.by_name = {
            name: {**row, "stage": name, "seconds": round(row["seconds"], 3)} for name, row in measured.items()
        }

    def _measure(self, name: str, seconds: float) -> dict[str, Any]:
        results = evaluation_results(self.predictions[name], seed=self.seed)
        return {"stage": name, **results, "seconds": seconds}

    @cached_property
    def repairs(self) -> list[str]:
        """Rows that repair the aligned model, on the same test questions."""
        return [name for name in self.by_name if name == RESTORED or name.startswith(f"{DPO} +")]

    def ranked(self, measure: str) -> list[str]:
        """The repairs, the best by a measure first."""
        return sorted(self.repairs, key=lambda name: self.by_name[name][measure])


def write_quickstart_report(report: QuickstartReport) -> Path:
    """Write and print the report; returns the path of `report.md`."""
    rows = list(report.by_name.values())
    title = "Quickstart: restoring the calibration of an aligned model"
    lines = [*_before(report), *_best(report)]
    summary = "\n".join(f"- {line}" for line in lines)
    shown = {name: report.predictions[name] for name in (BASE, DPO, RESTORED, MEMORISED)}
    path = write_stage_report(report.output_dir, rows, shown, title, _notes(report), _RUNS, summary)
    print_table(rows, title)
    print("\n".join(lines))
    return path


def _before(report: QuickstartReport) -> list[str]:
    """What alignment did, and what restoring did, in sentences."""
    base, dpo, restored = (report.by_name[name] for name in (BASE, DPO, RESTORED))
    figures = "conf-ECE {ece:.3f} (noise floor {ece_noise_floor:.3f}), NLL {nll:.3f}, accuracy {accuracy:.3f}"
    return [
        f"DPO made the model overconfident: {figures.format(**dpo)}, mean confidence {dpo['confidence']:.3f}. Its "
        f"parent has {figures.format(**base)}; no repair uses it.",
        f"`hf-calib restore` with {report.num_labels:,} labels: {figures.format(**restored)}. The checkpoint "
        "`restore/model` needs no calibrator. On texts of the aligned model it diverges from that model by "
        f"{restored['alignment_kl_per_token']:.3f} nats a token; see `restore/report.md`.",
    ]


def _best(report: QuickstartReport) -> list[str]:
    """Which repair is the best by conf-ECE and by NLL, against the restored model or the second."""
    by_ece, by_nll = report.ranked("ece"), report.ranked("nll")
    pairs = [(ranked[0], ranked[1] if ranked[0] == RESTORED else RESTORED) for ranked in (by_ece, by_nll)]
    ece, nll = ([report.by_name[name] for name in pair] for pair in pairs)
    text = "{stage}, {ece:.3f} [{ece_low:.3f}, {ece_high:.3f}] (noise floor {ece_noise_floor:.3f})"
    overlap = ece[0]["ece_high"] >= ece[1]["ece_low"] and ece[1]["ece_high"] >= ece[0]["ece_low"]
    mean, error = _nll_difference(*(report.predictions[name] for name in pairs[1]))
    chance = ", within chance" if abs(mean) < 2 * error else ""
    return [
        f"Best repair by conf-ECE: {text.format(**ece[0])}; against {text.format(**ece[1])}. Their 95% intervals "
        f"{'overlap' if overlap else 'do not overlap'}.",
        f"Best repair by NLL: {nll[0]['stage']}, {nll[0]['nll']:.3f}; against {nll[1]['stage']}, {nll[1]['nll']:.3f} "
        f"(difference {mean:+.3f} ± {error:.3f}{chance}).",
    ]


def _nll_difference(first: OptionPredictions, second: OptionPredictions) -> tuple[float, float]:
    """Mean and standard error of the paired difference in the negative log-likelihood."""
    losses = []
    for predictions in (first, second.select(first.ids)):
        chosen = predictions.probabilities[np.arange(len(predictions)), predictions.labels]
        losses.append(-np.log(np.maximum(chosen, 1e-12)))
    difference = losses[0] - losses[1]
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def _notes(report: QuickstartReport) -> str:
    """The sections under the figures."""
    seconds = [f"| {name} | {value:.1f} |" for name, value in report.seconds.items()]
    return "\n\n".join(
        [
            "## What the regime means",
            _regime(report.by_name[MEMORISED]),
            "## Time",
            "\n".join(["| stage | seconds |", "|---|---:|", *seconds]),
            f"Synthetic world, seed {report.seed}; every repair has the same {report.num_labels:,} labels. Made by "
            "`hf-calib quickstart`; the recipes are in recipes/quickstart.",
        ]
    )


def _regime(row: dict[str, Any]) -> str:
    """What the row of the memorising model shows."""
    text = (
        f"`{MEMORISED}` is the DPO model, trained too long on {row['n']:,.0f} labels and evaluated on them. Its "
        f"regime is {row['regime']}. {row['explanation']}"
    )
    if row["regime"] != NON_CALIBRATABLE:
        return text
    return (
        f"{text}\n\nNo model that has not seen the answers is right more often than the critical accuracy "
        f"{row['critical_accuracy']:.3f}, so a confidence that matches the accuracy {row['accuracy']:.3f} on these "
        f"labels is wrong for the true distribution: conf-ECE and TCE sum to at least {row['sum_lower_bound']:.3f} "
        "under any calibrator that keeps its answers. Measure and calibrate on questions that were not trained on."
    )
