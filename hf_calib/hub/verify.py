"""Verification of a published model: repeat its evaluation and compare each figure with the card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.gate import FILE as GATE
from ..evaluation.protocol import EvaluationProtocol, is_hub_id, questions_digest
from ..inference.model_loading import check_model_name
from .calibrator import load_calibrator
from .card import METRICS, RESULTS, CalibrationCard
from .model_folder import MODEL_FILES
from .publish import CALIBRATOR
from .repository import HubError, download


if TYPE_CHECKING:
    from datasets import Dataset
    from rich.table import Table

    from ..inference.predictions import OptionPredictions

# Measures that are means over questions: the standard error of their mean is known.
_MEANS = ("accuracy", "confidence", "nll", "brier")
_TITLES = {"ece": "conf-ECE", "cw_ece": "cw-ECE", "tce": "TCE", "nll": "NLL", "brier": "Brier", "auroc": "AUROC"}
_TITLES |= {f"{key}_{end}": f"{title} {end}" for key, title in _TITLES.items() for end in ("low", "high")}
# What stands before the key of a figure, and how the table shows it.
_WHERE = {"": "", "with_calibrator": ", with the calibrator", "gate": ", of the gate"}


@dataclass(frozen=True)
class Check:
    """
    Comparison of one figure of a card.

    Attributes:
        name (`str`): Key in results.json, perhaps with `with_calibrator/` or `gate/` before it.
        stated (`float`): Value on the card.
        found (`float`): Value of the repeated evaluation.
        low (`float`), high (`float`): Range of values that agree with the card; for a calibration error on a sample,
            the stated 95% interval.
        holds (`bool`): Whether the figure holds.
    """

    name: str
    stated: float
    found: float
    low: float
    high: float
    holds: bool


@dataclass(eq=False)
class Published:
    """
    A checkpoint and its results.json, from [`fetch`].

    Attributes:
        name (`str`): Its name.
        folder (`Path`): Where its files are.
        results (`dict`): Its results.json.
    """

    name: str
    folder: Path
    results: dict[str, Any]

    @property
    def protocol(self) -> EvaluationProtocol:
        return EvaluationProtocol.of(self.results)


def fetch(repo_id_or_path: str, revision: str | None = None, trust_remote_code: bool = False) -> Published:
    """
    Download a checkpoint and its results.json: weights as safetensors only, code only if it is trusted.

    Args:
        repo_id_or_path (`str`):
            A model on the Hub, or the folder of one.
        revision (`str`, *optional*), trust_remote_code (`bool`, *optional*, defaults to `False`):
            As in [`~hf_calib.inference.model_loading.load_model`].
    """
    folder = Path(repo_id_or_path)
    if not folder.is_dir():
        check_model_name(repo_id_or_path)
        patterns = [*MODEL_FILES, RESULTS, GATE, f"{CALIBRATOR}/calibrator.*"]
        patterns += ["*.py"] if trust_remote_code else []
        folder = download(repo_id_or_path, patterns, revision)
    if not (folder / RESULTS).is_file():
        raise HubError(
            f"{repo_id_or_path} has no {RESULTS}: `hf-calib push` did not publish it, so nothing can be verified."
        )
    card = CalibrationCard.from_file(folder)
    if not card.measured:
        raise HubError(
            f"{repo_id_or_path} was published without an evaluation: its {RESULTS} has no figures to verify."
        )
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not is_hub_id(base) and not Path(repo_id_or_path).is_dir():
            raise HubError(
                f"{repo_id_or_path} is an adapter on {base!r}, which is not a model on the Hub: it cannot be loaded."
            )
    return Published(repo_id_or_path, folder, dict(card.results))


def sample_questions(questions: Dataset, size: int | None, seed: int = 0) -> Dataset:
    """Draw `size` questions; all of them if there are not more."""
    if size is None or size >= len(questions):
        return questions
    return questions.select(sorted(np.random.default_rng(seed).choice(len(questions), size, replace=False).tolist()))


def compare(
    published: Published, predictions: OptionPredictions, same_questions: bool, tolerance: float = 0.005
) -> list[Check]:
    """
    Compare the figures of a card with those of a model's predictions.

    On all of the same questions, figures must agree within the tolerance. On a sample of them, means may differ by
    their standard error with finite population correction, on other questions by the standard error of the difference.
    The intervals hold jointly with a probability of at least 95% (Bonferroni). A calibration error on a sample holds
    if its 95% interval overlaps the stated one. Other measures are compared only on all of the same questions.

    Args:
        published ([`Published`]):
            The checkpoint and its results.json.
        predictions ([`OptionPredictions`]):
            Predictions of the model, for all its questions, a sample, or others.
        same_questions (`bool`):
            Whether these are all or some of the questions of the card.
        tolerance (`float`, *optional*, defaults to `0.005`):
            Allowed difference between machines and batch sizes. One more question is allowed for: its answer or bin
            can change with rounding.
    """
    checks = _compare(published.results, published.protocol, predictions, same_questions, tolerance, "")
    stated = published.results.get("with_calibrator")
    if stated and (published.folder / CALIBRATOR).is_dir():
        calibrated = predictions.recalibrated(load_calibrator(published.folder))
        checks += _compare(stated, published.protocol, calibrated, same_questions, tolerance, "with_calibrator/")
    return checks


def _compare(
    stated: Mapping[str, Any],
    protocol: EvaluationProtocol,
    predictions: OptionPredictions,
    same_questions: bool,
    tolerance: float,
    prefix: str,
) -> list[Check]:
    found, n, total = protocol.measure(predictions), len(predictions), stated["n"]
    tolerance += 1 / n
    whole = same_questions and n == total
    rest = max(0.0, 1 / n - 1 / total) if same_questions else 1 / n + 1 / total
    z = NormalDist().inv_cdf(1 - 0.05 / (2 * (len(_MEANS) + 1)))
    spread = {key: float(values.std(ddof=1)) if n > 1 else 1.0 for key, values in _per_question(predictions).items()}
    checks = []
    for key in METRICS:
        if stated.get(key) is None or found.get(key) is None:
            continue
        if key == "ece" and not whole:
            low, high = stated["ece_low"], stated["ece_high"]
            holds = found["ece_low"] <= high + tolerance and low - tolerance <= found["ece_high"]
        elif whole or key in _MEANS:
            margin = tolerance * max(1.0, abs(stated[key])) + (z * spread[key] * sqrt(rest) if key in _MEANS else 0.0)
            low, high = stated[key] - margin, stated[key] + margin
            holds = low <= found[key] <= high
        else:
            continue
        checks.append(Check(prefix + key, float(stated[key]), float(found[key]), low, high, holds))
    return checks


def _per_question(predictions: OptionPredictions) -> dict[str, np.ndarray]:
    """Values of each question whose means are the measures, `(N,)` each."""
    probabilities, labels = predictions.probabilities.astype(np.float64), predictions.labels
    rows = np.arange(len(labels))
    right = np.zeros_like(probabilities)
    right[rows, labels] = 1.0
    confidences, correct = probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(np.float64)
    if predictions.of_answers:
        confidences, correct = probabilities[:, 0], predictions.outcomes[1]
    return {
        "accuracy": correct,
        "confidence": confidences,
        "nll": -np.log(np.maximum(probabilities[rows, labels], 1e-12)),
        "brier": ((probabilities - right) ** 2).sum(axis=1),
    }


def same_questions(published: Published, questions: Dataset, predictions: OptionPredictions) -> bool:
    """Tell whether the questions, or those predicted, are those of the card."""
    digests = {questions_digest(predictions.ids, predictions.labels)}
    if "answer" in questions.column_names:  # written answers are right or wrong only when they are written
        digests.add(questions_digest(questions["id"], questions["answer"]))
    return published.results.get("questions") in digests


def checks_table(checks: list[Check], title: str) -> Table:
    """Format the checks as a table for the terminal."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("measure", no_wrap=True)
    for name in ("stated", "found", "holds within"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("holds", no_wrap=True)
    for check in checks:
        prefix, _, key = check.name.rpartition("/")
        name = _TITLES.get(key, key.replace("_", " ").replace("ece", "conf-ECE"))
        table.add_row(
            f"{name}{_WHERE[prefix]}",
            f"{check.stated:.4f}",
            f"{check.found:.4f}",
            f"{check.low:.4f} to {check.high:.4f}",
            "yes" if check.holds else "NO",
        )
    return table
