"""Conformal prediction sets: the options among which the right one is, with a guaranteed probability."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field, fields
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from ..extras import with_advice
from ..inference.predictions import OptionPredictions
from ..measures.sequential_test import accuracy_evidence
from ..measures.threshold import clopper_pearson
from .gate import FILE as GATE_FILE
from .gate import predictions_digest, predictions_fingerprint
from .gate_check import GateCheck
from .tables import write_json


SETS_FILE = "sets.json"
METHODS = ("lac", "aps")
_ROUNDING = 1e-8  # MAPIE's tolerance
_SMALL = 1e-12  # rounding of a sum of probabilities
_ERROR = 0.05  # of `coverage_least`, and of the test of new predictions


@dataclass
class PredictionSets:
    """
    Rule that gives each question a set of options, with a guarantee that the right one is among them.

    A set holds the right option of a new question with a probability of at least `level`, over the questions of the
    sample and the new one. This takes a random sample of questions of the same kind, which did not train or calibrate
    the model, and nothing else: the probabilities need not be calibrated.

    Args:
        method (`str`):
            `"lac"`: options whose probability exceeds one bound; the smallest sets. `"aps"`: the most probable options
            up to one sum of probabilities; larger sets, which differ less in their coverage between easy and hard
            questions.
        level (`float`):
            Probability of the guarantee.
        quantile (`float`):
            Largest score of an option in a set; see [`PredictionSets.apply`].
        n (`int`):
            Number of questions behind the quantile.
        coverage_least (`float`):
            With probability .95 over the sample, the coverage of these sets is at least this.
        coverage, coverage_low, coverage_high (`float`, *optional*):
            Measured by cross-fitting on the sample: share of the sets that hold the right option, with its 95%
            Clopper-Pearson interval; `None` if there are too few questions.
        sizes (`dict[str, float]`):
            Share of the sets of each size.
        fingerprint (`dict`), questions (`str`):
            What the predictions are of, as in a [`~hf_calib.evaluation.gate.Gate`].
    """

    method: str
    level: float
    quantile: float
    n: int
    coverage_least: float = 0.0
    coverage: float | None = None
    coverage_low: float | None = None
    coverage_high: float | None = None
    sizes: dict[str, float] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    questions: str = ""

    @classmethod
    def fit(
        cls, predictions: OptionPredictions, level: float = 0.9, method: str = "lac", seed: int = 0, folds: int = 5
    ) -> PredictionSets:
        """
        Calibrate the sets on labelled predictions, with MAPIE.

        Args:
            predictions ([`OptionPredictions`]):
                Predictions with their right options, of questions that did not train or calibrate the model.
            level (`float`, *optional*, defaults to `0.9`):
                Probability in (0, 1) with which a set holds the right option.
            method (`str`, *optional*, defaults to `"lac"`):
                `"lac"` or `"aps"`.
            seed (`int`, *optional*, defaults to `0`):
                Seed of what `"aps"` draws, and of the folds.
            folds (`int`, *optional*, defaults to `5`):
                Number of folds of the measured coverage; 0 does not measure it.

        Raises:
            ImportError: MAPIE is not installed.
            ValueError: Labels are missing, a value is outside its range, or there are fewer questions than any
                guarantee needs.

        References:
            Sadinle, Lei & Wasserman (2019), "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels",
            arXiv 1609.00451: lac.
            Romano, Sesia & Candes (2020), "Classification with Valid and Adaptive Coverage", arXiv 2006.02544: aps.
        """
        _check(predictions, level, method)
        probabilities, labels = _normalised(predictions), predictions.labels
        rule = cls(method, level, _calibrated(probabilities, labels, level, method, seed), len(labels))
        rule.coverage_least = _coverage_least(rule.n, level)
        rule.sizes = _sizes(rule.apply(predictions))
        rule.fingerprint, rule.questions = predictions_fingerprint(predictions), predictions_digest(predictions)
        if folds and len(labels) * (folds - 1) // folds >= least_questions_of_sets(level):
            held = rule._cross_fitted(probabilities, labels, seed, folds)
            rule.coverage = float(held.mean())
            rule.coverage_low, rule.coverage_high = clopper_pearson(int(held.sum()), len(held))
        return rule

    def _cross_fitted(self, probabilities: np.ndarray, labels: np.ndarray, seed: int, folds: int) -> np.ndarray:
        """Whether the set of each question, calibrated on the others' folds, holds the right option, `(N,)`."""
        n = len(labels)
        fold = np.random.default_rng(seed).permutation(n) % folds
        held = np.empty(n, dtype=bool)
        for number in range(folds):
            rest, rows = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            quantile = _calibrated(probabilities[rest], labels[rest], self.level, self.method, seed)
            chosen = _sets(probabilities[rows], self.method, quantile)
            held[rows] = chosen[np.arange(len(rows)), labels[rows]]
        return held

    def apply(self, predictions: OptionPredictions) -> np.ndarray:
        """
        Give each question its set.

        The score of an option is 1 less its probability (`"lac"`), or the sum of its probability and those of all more
        probable options (`"aps"`). A set holds the options with a score of at most the quantile; with `"aps"` also the
        next one. The result is that of MAPIE's `predict_set`, except that options with a probability below 1e-8 count:
        without them `"aps"` misses the level where a very sure model is often wrong.

        Args:
            predictions ([`OptionPredictions`]):
                N predictions, with or without labels.

        Returns:
            `np.ndarray` of shape `(N, K)`: whether each option is in the set. Padding is in none.
        """
        chosen = _sets(_normalised(predictions), self.method, self.quantile)
        return chosen & (np.arange(chosen.shape[1]) < predictions.num_options[:, None])

    @property
    def sentence(self) -> str:
        """What the sets guarantee."""
        measured = ""
        if self.coverage is not None:
            interval = f"[{self.coverage_low:.3f}, {self.coverage_high:.3f}]"
            measured = f" (measured by cross-fitting: {self.coverage:.3f} {interval})"
        return (
            f"A set holds the right option of a new question with a probability of at least {self.level:.4g}"
            f"{measured}. With {1 - _ERROR:.2f} probability over samples of {self.n:,} questions it is at least "
            f"{self.coverage_least:.3f} for these sets."
        )

    def save(self, path: str | Path) -> None:
        """Write the rule as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> PredictionSets:
        """
        Read a sets.json, or that of a folder.

        Raises:
            ValueError: The file holds no prediction sets.
        """
        path = Path(path).expanduser()
        path = path / SETS_FILE if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rule = cls(**{each.name: content[each.name] for each in fields(cls)})
            if rule.method not in METHODS or not (isfinite(rule.quantile) and 0 < rule.coverage_least < 1):
                raise ValueError(f"method {rule.method!r}, quantile {rule.quantile!r}")
            return rule
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} holds no prediction sets of `hf-calib threshold` ({reason}).") from None


def holds_sets(path: str | Path) -> bool:
    """Whether a file, or that of a folder without a gate, is a sets.json, by its content."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / (GATE_FILE if (path / GATE_FILE).exists() else SETS_FILE)
    try:
        return "quantile" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def check_sets(rule: PredictionSets, chosen: np.ndarray, labels: np.ndarray) -> GateCheck:
    """
    Describe the sets of new predictions, and with labels test their coverage.

    The test is sequential, as that of a gate: it may be repeated while labelled predictions are added at the end. It
    refutes a coverage of at least `coverage_least` at the error rate .05.

    Args:
        rule ([`PredictionSets`]):
            The rule.
        chosen (`np.ndarray` of shape `(N, K)`):
            Sets of the predictions, in the order in which they came.
        labels (`np.ndarray` of shape `(N,)`):
            Index of the right option; negative where it is not known.
    """
    sizes, known = _sizes(chosen), labels >= 0
    results: dict[str, Any] = {"n": len(chosen), "sizes": sizes, "mean_size": float(chosen.sum(axis=1).mean())}
    sentences = [sizes_sentence(sizes)]
    if not known.any():
        sentences.append("Without labels: whether the sets hold the right options was not tested.")
        return GateCheck(True, "sets", sentences, {**results, "holds": True})
    held = chosen[np.flatnonzero(known), labels[known]]
    evidence, limit = accuracy_evidence(held, rule.coverage_least).largest, 1 / _ERROR
    low, high = clopper_pearson(int(held.sum()), len(held))
    results |= {"n_labelled": len(held), "coverage": float(held.mean()), "coverage_low": low, "coverage_high": high}
    sentences += [
        f"{held.mean():.1%} [{low:.1%}, {high:.1%}] of {len(held):,} sets hold the right option; the evidence against "
        f"{rule.coverage_least:.1%} has reached {evidence:.3g}, and {limit:.3g} refutes it.",
        "The guarantee is refuted." if evidence >= limit else "The guarantee is not refuted.",
    ]
    return GateCheck(evidence < limit, "sets", sentences, {**results, "e_value": evidence, "holds": evidence < limit})


def sizes_sentence(sizes: dict[str, float]) -> str:
    """Say how large the sets are."""
    mean = sum(int(size) * share for size, share in sizes.items())
    parts = ", ".join(f"{share:.1%} {size}" for size, share in sizes.items() if share)
    return f"A set has {mean:.2f} options on average; share of the sets by number of options: {parts}."


def _sizes(chosen: np.ndarray) -> dict[str, float]:
    shares = np.bincount(chosen.sum(axis=1)) / len(chosen)
    return {str(size): float(share) for size, share in enumerate(shares) if share or size}


class _Ready(ClassifierMixin, BaseEstimator):
    """Classifier whose inputs are its option probabilities, as MAPIE takes one."""

    def __init__(self, num_options: int):
        self.num_options = num_options
        self.classes_ = np.arange(num_options)
        self.n_features_in_ = num_options

    def fit(self, X, y=None):
        """Do nothing."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, X) -> np.ndarray:
        """Return the inputs."""
        return X

    def predict(self, X) -> np.ndarray:
        """Return the most probable options."""
        return X.argmax(axis=1)


def least_questions_of_sets(level: float) -> int:
    """Compute the least number of questions from which MAPIE calibrates sets."""
    return ceil(max(3, 1 / round(1 - level, 12), 1 / level) - 1e-9)


def require_options(predictions: Any) -> OptionPredictions:
    """Return predictions. Raises `ValueError` if they are confidences alone."""
    if not isinstance(predictions, OptionPredictions):
        raise ValueError("prediction sets need the probabilities of all options, and these are confidences alone.")
    return predictions


def _check(predictions: Any, level: float, method: str) -> None:
    require_options(predictions)
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level}.")
    if missing := int((predictions.labels < 0).sum()):
        raise ValueError(
            f"{missing} of {len(predictions)} questions have no right option: prediction sets need labels. Give them "
            "with --labels FILE, or leave these questions out."
        )
    if len(predictions) < (least := least_questions_of_sets(level)):
        raise ValueError(
            f"there are {len(predictions)} questions; prediction sets of level {level:g} need at least {least}."
        )


def _normalised(predictions: OptionPredictions) -> np.ndarray:
    """Option probabilities `(N, K)` as float64 with sums of 1 up to rounding."""
    probabilities = predictions.probabilities.astype(np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def _calibrated(probabilities: np.ndarray, labels: np.ndarray, level: float, method: str, seed: int) -> float:
    """Compute the quantile with MAPIE."""
    try:
        from mapie.classification import SplitConformalClassifier
    except ImportError as error:
        raise with_advice(error) from error
    # MAPIE has no aps for two options, or right options of two numbers. The scores depend on the order of no option:
    # add empty options, and shift those of each question so that the right ones are evenly spread.
    n, width = len(labels), max(3, probabilities.shape[1])
    padded = np.pad(probabilities, ((0, 0), (0, width - probabilities.shape[1])))
    spread = np.arange(n) % width
    shifted = (np.arange(width) - spread[:, None] + labels[:, None]) % width
    classifier = SplitConformalClassifier(_Ready(width), level, method, prefit=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer questions than options
        classifier.conformalize(np.take_along_axis(padded, shifted, axis=1), spread)
    return float(np.sort(np.ravel(classifier.conformity_scores))[_rank(n, level) - 1])


def _rank(n: int, level: float) -> int:
    """Rank of the score that is the quantile."""
    return min(ceil((n + 1) * round(level, 12) - 1e-9), n)


def _sets(probabilities: np.ndarray, method: str, quantile: float) -> np.ndarray:
    if method == "lac":
        return 1 - probabilities <= quantile + _ROUNDING
    ordered = np.flip(np.sort(probabilities, axis=1), axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    # MAPIE leaves out options below 1e-8, and so misses the level where a sure model is often wrong. Here they count.
    last = (before <= quantile + _SMALL).sum(axis=1) - 1
    least = np.take_along_axis(ordered, last[:, None], axis=1)
    return probabilities >= least - _ROUNDING  # options as probable as the last one are in too


def _coverage_least(n: int, level: float) -> float:
    """
    Lower 5% quantile of the coverage over samples of n questions.

    References:
        Vovk (2012), "Conditional validity of inductive conformal predictors", arXiv 1209.2673, proposition 2a.
    """
    from scipy.special import betaincinv

    rank = _rank(n, level)
    return float(betaincinv(rank, n + 1 - rank, _ERROR))
