"""Post-hoc calibrators: fitted on option logits and labels, kept beside the model, or as a temperature folded into it."""

from .base import PostHocCalibrator, set_confidence, softmax
from .confidence import BetaCalibration, HistogramBinning, IsotonicConfidence, TemperatureIsotonic
from .scaling import AgreementTemperature, EnsembleTemperatureScaling, MatrixScaling, TemperatureScaling, VectorScaling
from .selection import AS_IS, choose_method, cross_validate, fit_calibrator
from .transfer import TransferredTemperature


# By name, the simplest first: those before make fewer assumptions on the labels at hand than those behind.
METHODS = {
    kind.method: kind
    for kind in (
        AgreementTemperature,
        TemperatureScaling,
        EnsembleTemperatureScaling,
        BetaCalibration,
        VectorScaling,
        TemperatureIsotonic,
        IsotonicConfidence,
        HistogramBinning,
        MatrixScaling,
    )
}

__all__ = [
    "AS_IS",
    "METHODS",
    "AgreementTemperature",
    "BetaCalibration",
    "EnsembleTemperatureScaling",
    "HistogramBinning",
    "IsotonicConfidence",
    "MatrixScaling",
    "PostHocCalibrator",
    "TemperatureIsotonic",
    "TemperatureScaling",
    "TransferredTemperature",
    "VectorScaling",
    "choose_method",
    "cross_validate",
    "fit_calibrator",
    "set_confidence",
    "softmax",
]
