"""Options of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..measures.options import MeasureOptions
from ..regime.classify import RegimeOptions


@dataclass(frozen=True)
class EvaluationOptions(MeasureOptions):
    """
    Options of an evaluation: those of [`~hf_calib.measures.options.MeasureOptions`] and of the regime test.

    Args:
        alpha (`float`, *optional*, defaults to `0.05`):
            Significance level of the regime test and of the number of miscalibrated groups, in (0, 0.5).
        critical_accuracy (`float`, *optional*):
            ACC* in (0, 1), if it is known.
        details (`bool`, *optional*, defaults to `False`):
            Whether to add the measures of [`~hf_calib.evaluation.details.probability_details`]: kernel tests, CORP
            split and calibration loss.
        risks (sequence of `float`, *optional*, defaults to `()`):
            Error rates in [0, 1] at which the coverage is computed.
        coverages (sequence of `float`, *optional*, defaults to `()`):
            Shares of answered questions in (0, 1] at which the error rate is computed.
        target_accuracy (`float`, *optional*):
            Accuracy in (0, 1) for which a confidence threshold with a guarantee is sought; see
            [`~hf_calib.measures.threshold.accuracy_threshold`].
    """

    alpha: float = 0.05
    critical_accuracy: float | None = None
    details: bool = False
    risks: Sequence[float] = ()
    coverages: Sequence[float] = ()
    target_accuracy: float | None = None

    def __post_init__(self):
        super().__post_init__()
        self.regime  # noqa: B018 (checks the values)

    @property
    def regime(self) -> RegimeOptions:
        """Options of the regime test."""
        return RegimeOptions(self.critical_accuracy, self.alpha, self.n_bins, self.seed)
