"""The calibration regime: can this model be calibrated at the accuracy it has? Proofs in docs/theory.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import erfc, inf, sqrt

import numpy as np

from .binning import as_labels, as_outcomes, as_probabilities, assign_bins, bin_edges, reliability_bins, top_label
from .calibration_error import target_confidence


CALIBRATABLE, NON_CALIBRATABLE, UNDETERMINED = "calibratable", "non-calibratable", "undetermined"

_CELLS = 1000  # the empirical test sees confidences to 0.001
_SIMULATIONS = 200
_SENSITIVITY = 0.1  # the empirical test vouches for nothing where an ECE of this size would drown in noise


@dataclass(frozen=True)
class RegimeReport:
    """
    What [`classify_regime`] found. `None` stands for what cannot be said without a target.

    Attributes:
        regime (`str`): `"calibratable"`, `"non-calibratable"` or `"undetermined"`.
        recommended_method (`str`): `"cft"` in the calibratable regime, else `"rcft"` (the regulariser does no harm
            where it turns out not to be needed).
        test (`str`): What decided: `"target"`, `"critical_accuracy"` or `"recalibration"` (the empirical test).
        p_value (`float` or `None`): Of the hypothesis that the model is calibratable: small speaks for
            non-calibratable, and in the two tests of accuracy close to 1 speaks for calibratable.
        alpha (`float`): Significance level.
        n (`int`): Number of questions.
        accuracy (`float`): ACC.
        confidence (`float`): Mean confidence.
        critical_accuracy (`float` or `None`): ACC*.
        border_distance (`float` or `None`): ACC - ACC*, positive in the non-calibratable regime.
        ece (`float`): Measured conf-ECE.
        ece_lower_bound (`float`): |ACC - mean confidence|.
        ece_upper_bound (`float`): Mean of |correct - confidence|.
        tce (`float` or `None`): Target calibration error.
        tce_lower_bound (`float` or `None`): |mean confidence - mean target probability of the prediction|.
        tce_upper_bound (`float` or `None`): Mean of |target probability of the prediction - confidence|.
        sum_lower_bound (`float` or `None`): What ECE + TCE cannot go below, whatever becomes of the confidence:
            |ACC - mean target probability of the prediction|, or max(0, ACC - ACC*) without target probabilities.
        recalibrated_ece (`float` or `None`): Empirical test only: ECE on the second half after the recalibration
            fitted on the first.
        recalibrated_ece_p95 (`float` or `None`): What that ECE stays below, 95 times out of 100, if the recalibration
            is right.
    """

    regime: str
    recommended_method: str
    test: str
    p_value: float | None
    alpha: float
    n: int
    accuracy: float
    confidence: float
    critical_accuracy: float | None
    border_distance: float | None
    ece: float
    ece_lower_bound: float
    ece_upper_bound: float
    tce: float | None = None
    tce_lower_bound: float | None = None
    tce_upper_bound: float | None = None
    sum_lower_bound: float | None = None
    recalibrated_ece: float | None = None
    recalibrated_ece_p95: float | None = None

    def to_dict(self) -> dict[str, float | str | None]:
        """All fields in a flat dictionary that `json.dumps` takes."""
        return asdict(self)


def classify_regime(
    probabilities,
    labels,
    target_probabilities=None,
    critical_accuracy: float | None = None,
    alpha: float = 0.05,
    n_bins: int = 10,
    seed: int = 0,
) -> RegimeReport:
    """
    Say whether a model can be calibrated without losing accuracy.

    Three tests, by what is known (definitions: Xiao et al., arXiv 2505.01997; tests: derived in docs/theory.md):

    - target probabilities given: ACC against ACC* = mean of `max_k target_k` over the same questions, a paired z-test;
    - a critical accuracy given: ACC against that number, an exact binomial test;
    - neither: an isotonic recalibration of the confidence is fitted on a random half of the questions. It keeps the
      predictions, and the model counts as calibratable if the ECE on the other half is no larger than it would be if
      the recalibration were the truth (simulated with the fitting repeated). This is a weak test: it rejects where
      confident predictions are right less often than chance, and it is blind to memorised questions, which only a
      target shows.

    Args:
        probabilities (array-like of shape `(N, K)`):
            Option probabilities of the model.
        labels (array-like of shape `(N,)`):
            Index of the right option.
        target_probabilities (array-like of shape `(N, K)`, *optional*):
            Option probabilities of a *calibrated* reference for the same questions: the truth, the model before its
            alignment, an ensemble.
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1) where it is known from elsewhere; goes before the target's own.
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level in (0, 0.5) of each one-sided test: a model at or below the critical accuracy is called
            non-calibratable with at most this probability, and the other way round.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins of ECE and TCE.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the empirical test: its halves and its simulations.

    Returns:
        [`RegimeReport`].

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.regime import classify_regime
    >>> target = np.tile([0.6, 0.4], (500, 1))  # nobody can be right more than 60% of the time and be calibrated
    >>> memorised = np.tile([0.99, 0.01], (500, 1))
    >>> report = classify_regime(memorised, np.zeros(500, dtype=int), target)
    >>> report.regime, report.recommended_method, round(report.border_distance, 2)
    ('non-calibratable', 'rcft', 0.4)

    ```
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"`alpha` must lie in (0, 0.5), got {alpha}.")
    if critical_accuracy is not None and not 0 < critical_accuracy < 1:
        raise ValueError(f"`critical_accuracy` must lie in (0, 1), got {critical_accuracy}.")
    probabilities = as_probabilities(probabilities)
    labels = as_labels(labels, *probabilities.shape)
    confidences, correct = top_label(probabilities, labels)
    fields = {
        "alpha": alpha,
        "n": len(labels),
        "accuracy": float(correct.mean()),
        "confidence": float(confidences.mean()),
        "ece": reliability_bins(confidences, correct, n_bins).error,
        "ece_lower_bound": float(abs(correct.mean() - confidences.mean())),
        "ece_upper_bound": float(np.abs(correct - confidences).mean()),
    }

    ceilings = None
    if target_probabilities is not None:
        _, target = target_confidence(probabilities, target_probabilities)
        ceilings = as_probabilities(target_probabilities, "target_probabilities").max(axis=1).astype(np.float64)
        fields |= {
            "tce": reliability_bins(confidences, target, n_bins).error,
            "tce_lower_bound": float(abs(confidences.mean() - target.mean())),
            "tce_upper_bound": float(np.abs(target - confidences).mean()),
            "sum_lower_bound": float(abs(correct.mean() - target.mean())),
        }

    if critical_accuracy is None and ceilings is None:
        test = "recalibration"
        tested = recalibration_test(confidences, correct, 1 / probabilities.shape[1], n_bins, seed)
        p_value, fields["recalibrated_ece"], fields["recalibrated_ece_p95"] = tested
        if p_value is None:
            regime = UNDETERMINED
        elif p_value < alpha:
            regime = NON_CALIBRATABLE
        else:
            regime = CALIBRATABLE if tested[2] <= _SENSITIVITY else UNDETERMINED
        fields |= {"critical_accuracy": None, "border_distance": None}
    else:
        if critical_accuracy is None:
            test, critical_accuracy = "target", float(ceilings.mean())
            p_value, p_below = _paired_test(correct - ceilings)
        else:
            test = "critical_accuracy"
            p_value, p_below = _binomial_test(int(correct.sum()), len(correct), critical_accuracy)
        regime = NON_CALIBRATABLE if p_value < alpha else CALIBRATABLE if p_below < alpha else UNDETERMINED
        distance = fields["accuracy"] - critical_accuracy
        fields |= {"critical_accuracy": critical_accuracy, "border_distance": distance}
        fields.setdefault("sum_lower_bound", max(0.0, distance))

    method = "cft" if regime == CALIBRATABLE else "rcft"
    return RegimeReport(regime=regime, recommended_method=method, test=test, p_value=p_value, **fields)


def _paired_test(differences: np.ndarray) -> tuple[float, float]:
    """One-sided p-values of "the mean is above 0" and "below 0"."""
    mean, n = differences.mean(), len(differences)
    error = differences.std(ddof=1) / sqrt(n) if n > 1 else inf
    if error == 0:
        z = 0.0 if mean == 0 else inf * np.sign(mean)
    else:
        z = mean / error
    return erfc(z / sqrt(2)) / 2, erfc(-z / sqrt(2)) / 2


def _binomial_test(hits: int, n: int, rate: float) -> tuple[float, float]:
    from scipy.stats import binom

    return float(binom.sf(hits - 1, n, rate)), float(binom.cdf(hits, n, rate))


def recalibration_test(
    confidences, correct, floor: float = 0.0, n_bins: int = 10, seed: int = 0
) -> tuple[float | None, float | None, float | None]:
    """
    Is there a recalibration of the confidence that keeps the predictions and leaves only noise?

    The two halves are counted in cells of width 0.001, so the cost beyond one pass does not depend on N. The null
    distribution repeats the whole procedure, fitting included, on outcomes drawn from the isotonic fit to all data:
    a fit from N / 2 examples is never exact, and holding it to the noise floor of an exact one would condemn
    calibratable models.

    Args:
        confidences (array-like of shape `(N,)`):
            Confidences in [0, 1].
        correct (array-like of shape `(N,)`):
            Whether each prediction is right (0 or 1).
        floor (`float`, *optional*, defaults to `0.0`):
            Smallest confidence that a prediction may be given: below 1 / K it would lose to another option.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the ECE.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the halves and the simulations.

    Returns:
        `tuple`: p-value, ECE on the second half, and the 95th percentile of that ECE under the hypothesis; three times
        `None` for fewer than 20 examples.
    """
    from sklearn.isotonic import IsotonicRegression

    confidences, correct = as_outcomes(confidences, correct)
    if len(confidences) < 20:
        return None, None, None
    rng = np.random.default_rng(seed)
    half = rng.permutation(len(confidences)) % 2
    cell = np.minimum((confidences * _CELLS).astype(np.int64), _CELLS - 1)
    total = np.bincount(cell, minlength=_CELLS)
    filled = total > 0
    centre = (np.bincount(cell, weights=confidences, minlength=_CELLS)[filled]) / total[filled]
    counts, hits = (
        np.bincount(2 * cell + half, weights=weights, minlength=2 * _CELLS).reshape(_CELLS, 2)[filled].T
        for weights in (None, correct)
    )
    edges = bin_edges(confidences, n_bins)

    def fit(counts: np.ndarray, hits: np.ndarray) -> np.ndarray:
        """Recalibrated confidence of every cell."""
        used = counts > 0
        regression = IsotonicRegression(y_min=floor, y_max=1.0, out_of_bounds="clip")
        regression.fit(centre[used], hits[used] / counts[used], sample_weight=counts[used])
        return regression.predict(centre)

    def procedure(hits: np.ndarray) -> float:
        """Fit on the first half, ECE on the second."""
        recalibrated = fit(counts[0], hits[0])
        gaps = np.bincount(assign_bins(recalibrated, edges), weights=counts[1] * recalibrated - hits[1])
        return float(np.abs(gaps).sum() / counts[1].sum())

    measured = procedure(hits)
    truth = fit(counts.sum(axis=0), hits.sum(axis=0))
    simulated = [procedure(rng.binomial(counts.astype(np.int64), truth)) for _ in range(_SIMULATIONS)]
    p_value = (1 + sum(error >= measured - 1e-12 for error in simulated)) / (1 + _SIMULATIONS)
    return p_value, measured, float(np.quantile(simulated, 0.95))
