"""Risk-coverage curve: the error rate of the answers against the share of questions that are answered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .bootstrap import LEVEL, Estimate
from .checked import Examples, check_examples
from .options import MeasureOptions
from .score_intervals import aurc_estimate
from .selective import TieGroups
from .validation import as_group_names


_CELLS = 1024  # most cells of the bootstrap
_BLOCK = 100  # bootstrap draws at a time
_TOLERANCE = 1e-12  # for the rounding of a coverage or a risk


class OperatingPoint(NamedTuple):
    """
    A threshold with its coverage and risk.

    Attributes:
        threshold (`float`): Questions with a confidence of at least this are answered; infinite if none is.
        coverage (`float`): Share of the questions that are answered.
        risk (`float`): Error rate of the answers; NaN if there are none.
    """

    threshold: float
    coverage: float
    risk: float


@dataclass(frozen=True)
class RiskCoverage:
    """
    Risk-coverage curve. Questions of equal confidence are answered together.

    Args:
        groups ([`~hf_calib.measures.selective.TieGroups`]):
            Predictions grouped by confidence.
        n_right (`int`):
            Number of right predictions.
        n_effective (`float`):
            Effective number of predictions, `(sum w)^2 / sum w^2`.
        confidences (`np.ndarray` of shape `(N,)`):
            Confidence of each prediction.
    """

    groups: TieGroups
    n_right: int
    n_effective: float
    confidences: np.ndarray

    @classmethod
    def of(cls, examples: Examples) -> RiskCoverage:
        """Compute the curve of checked examples."""
        groups, weights = TieGroups.of(examples), examples.weights
        n_effective = len(examples) if weights is None else weights.sum() ** 2 / (weights @ weights)
        return cls(groups, int(examples.correct.sum()), float(n_effective), examples.confidences)

    @cached_property
    def thresholds(self) -> np.ndarray:
        """The different confidences, `(groups,)`, in descending order."""
        return np.unique(self.confidences + 0.0)[::-1]

    @cached_property
    def coverage(self) -> np.ndarray:
        """Share of the questions answered at each threshold, `(groups,)`, ascending to 1."""
        answered = np.cumsum(self.groups.weights[::-1])
        return answered / answered[-1]

    @cached_property
    def risk(self) -> np.ndarray:
        """Error rate of the answers at each threshold, `(groups,)`."""
        weights, hits = self.groups.weights[::-1], self.groups.hits[::-1]
        return np.cumsum(weights - hits) / np.cumsum(weights)

    @property
    def aurc(self) -> float:
        """Area under the curve, see [`~hf_calib.measures.proper_scores.aurc`]."""
        return self.groups.aurc()

    @property
    def e_aurc(self) -> float:
        """
        AURC less that of the best order of the same predictions, all right ones before all wrong ones.

        References:
            Geifman, Uziel & El-Yaniv (2019), "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
            arXiv 1805.08206.
        """
        return max(0.0, self.aurc - self.groups.best_aurc(self.n_right))

    @property
    def augrc(self) -> float:
        """
        Area under the generalised risk-coverage curve.

        The generalised risk is the share of all questions that are answered wrongly. Equal confidences count as
        ordered at random.

        References:
            Traub et al. (2024), "Overcoming Common Flaws in the Evaluation of Selective Classification Systems",
            arXiv 2407.01032.
        """
        return self.groups.augrc()

    def coverage_at_risk(self, risk: float) -> OperatingPoint:
        """
        Find the largest coverage whose risk is at most `risk`.

        The risk is that of the given questions. For a threshold that holds for new ones see
        [`~hf_calib.measures.threshold.accuracy_threshold`].

        Args:
            risk (`float`):
                Error rate in [0, 1].
        """
        _check_share(risk, "risk")
        within = np.flatnonzero(self.risk <= risk + _TOLERANCE)
        return self._point(within[-1]) if len(within) else OperatingPoint(float("inf"), 0.0, float("nan"))

    def risk_at_coverage(self, coverage: float) -> OperatingPoint:
        """
        Find the risk at the smallest coverage that is at least `coverage`.

        Args:
            coverage (`float`):
                Share of the questions, in (0, 1].
        """
        _check_share(coverage, "coverage", above_zero=True)
        return self._point(np.searchsorted(self.coverage, min(coverage, 1.0) - _TOLERANCE))

    def _point(self, index: int) -> OperatingPoint:
        values = (self.thresholds, self.coverage, self.risk)
        return OperatingPoint(*(float(value[index]) for value in values))


def _check_share(value: float, name: str, above_zero: bool = False) -> None:
    if not (0 < value <= 1 if above_zero else 0 <= value <= 1):
        raise ValueError(f"`{name}` must lie in {'(0' if above_zero else '[0'}, 1], got {value}.")


def risk_coverage(confidences, correct, sample_weight=None) -> RiskCoverage:
    """
    Compute the risk-coverage curve.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.

    Returns:
        [`RiskCoverage`]: `thresholds`, `coverage` and `risk` as arrays, the areas `aurc`, `e_aurc` and `augrc`, and
        the methods `coverage_at_risk` and `risk_at_coverage`.

    Raises:
        ValueError: A value is outside its range, or the shapes do not fit. The row is named.

    Example:

    ```python
    >>> from hf_calib.measures.risk_coverage import risk_coverage
    >>> curve = risk_coverage([0.9, 0.8, 0.8, 0.6], [1, 1, 0, 0])
    >>> curve.coverage.tolist()
    [0.25, 0.75, 1.0]
    >>> curve.coverage_at_risk(0.4)
    OperatingPoint(threshold=0.8, coverage=0.75, risk=0.3333333333333333)

    ```
    """
    return RiskCoverage.of(check_examples(confidences, correct, sample_weight))


def selective_report(
    confidences,
    correct,
    sample_weight=None,
    groups=None,
    risks=(0.05, 0.1, 0.2),
    coverages=(0.5, 0.8, 0.95),
    **options,
) -> dict[str, float]:
    """
    Compute the measures of selective answering, with 95% intervals.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidence of each prediction, in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        sample_weight (array-like of shape `(N,)`, *optional*):
            Importance weight of each row.
        groups (array-like of shape `(N,)`, *optional*):
            Group of each question, e.g. its subject. Adds the same keys for each, after `group/<name>/`.
        risks (sequence of `float`, *optional*, defaults to `(0.05, 0.1, 0.2)`):
            Risks at which the coverage is computed.
        coverages (sequence of `float`, *optional*, defaults to `(0.5, 0.8, 0.95)`):
            Coverages at which the risk is computed.
        options:
            `n_bootstrap` and `seed`, see [`~hf_calib.measures.options.MeasureOptions`].

    Returns:
        `dict[str, float]`: `n`, `n_effective`, and `aurc`, `e_aurc`, `augrc`, `coverage_at_risk/<risk>` and
        `risk_at_coverage/<coverage>`, each with `_low` and `_high`. The interval of `aurc` is that of
        [`~hf_calib.measures.score_intervals.aurc_estimate`], as in `calibration_report`; the others are of the
        Bayesian bootstrap.

    Raises:
        TypeError: An option is unknown.
        ValueError: A value is outside its range, or the shapes do not fit.
    """
    options = MeasureOptions(**options)
    examples = check_examples(confidences, correct, sample_weight)
    report = report_selective(examples, risks, coverages, options)
    if groups is None:
        return report
    groups = as_group_names(groups)
    if groups.shape != np.shape(confidences):
        raise ValueError(f"`groups` has shape {groups.shape} for {len(confidences)} rows: give one group per row.")
    if examples.kept is not None:
        groups = groups[examples.kept]
    for name in np.unique(groups):
        part = report_selective(examples.examples(groups == name), risks, coverages, options)
        report |= {f"group/{name}/{key}": value for key, value in part.items()}
    return report


def report_selective(examples: Examples, risks, coverages, options: MeasureOptions) -> dict[str, float]:
    """Compute [`selective_report`] of checked examples, without groups."""
    curve = RiskCoverage.of(examples)
    values = {"e_aurc": curve.e_aurc, "augrc": curve.augrc}
    values |= {f"coverage_at_risk/{risk:g}": curve.coverage_at_risk(risk).coverage for risk in risks}
    values |= {f"risk_at_coverage/{share:g}": curve.risk_at_coverage(share).risk for share in coverages}
    report = {"n": len(examples), "n_effective": curve.n_effective}
    report |= aurc_estimate(curve.groups, curve.n_effective).named("aurc")
    draws, observed = _bootstrap(curve, risks, coverages, options)
    for name, value in values.items():
        shifted = draws[name]
        if name in observed:
            # The draws are integrals over cells. Their distance to the integral of the observed cells is what varies.
            shifted = np.clip(shifted - observed[name] + value, 0, 1)
        low, high = np.quantile(shifted, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        report |= Estimate(value, min(float(low), value), max(float(high), value)).named(name)
    return report


def _bootstrap(
    curve: RiskCoverage, risks, coverages, options: MeasureOptions
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """
    Draw the measures by the Bayesian bootstrap, on at most 1,024 cells of neighbouring confidences.

    Half a right and half a wrong answer are added, spread over the cells, so that a risk of 0 has an interval.

    Returns:
        `tuple`: draws of each measure, `(n_bootstrap,)`, and its value on the observed cells.
    """
    cumulative = np.cumsum(curve.groups.weights[::-1])
    share = cumulative / cumulative[-1]
    ends = np.searchsorted(share, np.arange(1, _CELLS + 1) / _CELLS - _TOLERANCE)
    starts = np.concatenate([[0], np.unique(ends)[:-1] + 1])
    scale = curve.n_effective / cumulative[-1]
    mass, right = (np.add.reduceat(values[::-1], starts) * scale for values in curve.groups[1:3])
    observed = _areas(mass[None], (mass - right)[None])
    rng, pseudo = options.generator(3), 0.5 * mass / curve.n_effective
    parts = []
    for start in range(0, options.n_bootstrap, _BLOCK):
        size = (min(_BLOCK, options.n_bootstrap - start), len(mass))
        drawn_right = rng.standard_gamma(right + pseudo, size)
        drawn_wrong = rng.standard_gamma(np.maximum(mass - right, 0.0) + pseudo, size)
        drawn = drawn_right + drawn_wrong
        part = _areas(drawn, drawn_wrong)
        covered = np.cumsum(drawn, axis=1)
        risk = np.cumsum(drawn_wrong, axis=1) / np.maximum(covered, np.finfo(float).tiny)
        covered /= covered[:, -1:]
        for level in risks:
            part[f"coverage_at_risk/{level:g}"] = np.where(risk <= level, covered, 0.0).max(axis=1)
        for level in coverages:
            reached = (covered >= level - _TOLERANCE).argmax(axis=1)
            part[f"risk_at_coverage/{level:g}"] = np.take_along_axis(risk, reached[:, None], axis=1)[:, 0]
        parts.append(part)
    draws = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return draws, {name: float(value[0]) for name, value in observed.items()}


def _areas(mass: np.ndarray, wrong: np.ndarray) -> dict[str, np.ndarray]:
    """
    Compute E-AURC and AUGRC as integrals over cells in descending order of confidence.

    Args:
        mass (`np.ndarray` of shape `(draws, cells)`):
            Mass of each cell.
        wrong (`np.ndarray` of shape `(draws, cells)`):
            Mass of the wrong answers in it.
    """
    from scipy.special import xlogy

    covered, errors = np.cumsum(mass, axis=1), np.cumsum(wrong, axis=1)
    total = covered[:, -1]
    before, errors_before = covered - mass, errors - wrong
    # over a cell of mass m with errors e, after a mass W with errors E, the integral of (E + e x) / (W + m x) m dx is
    # e + (E - e W / m) log(1 + m / W)
    rate = wrong / np.maximum(mass, np.finfo(float).tiny)
    growth = np.log1p(np.divide(mass, before, out=np.zeros_like(mass), where=before > 0))
    aurc = (wrong + (errors_before - rate * before) * growth).sum(axis=1) / total
    risk = errors[:, -1] / total
    best = risk + xlogy(1 - risk, 1 - risk)
    augrc = (mass * (errors + errors_before)).sum(axis=1) / 2 / total**2
    return {"e_aurc": aurc - best, "augrc": augrc}
