"""Post-hoc calibrators: maps of option logits to calibrated probabilities, fitted without changing the model."""

from .base import PostHocCalibrator, set_confidence
from .confidence import BetaCalibration, HistogramBinning, IsotonicConfidence, TemperatureIsotonic
from .recalibration_gain import RecalibrationGain, recalibration_gain
from .scaling import AgreementTemperature, EnsembleTemperatureScaling, MatrixScaling, TemperatureScaling, VectorScaling
from .selection import AS_IS, choose_method, cross_validate, fit_calibrator
from .subject_temperature import SubjectTemperature
from .transfer import TransferredTemperature


# Calibrators by name, from the simplest (fewest fitted parameters) to the most flexible.
METHODS = {
    kind.method: kind
    for kind in (
        AgreementTemperature,
        TemperatureScaling,
        EnsembleTemperatureScaling,
        BetaCalibration,
        VectorScaling,
        SubjectTemperature,
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
    "RecalibrationGain",
    "SubjectTemperature",
    "TemperatureIsotonic",
    "TemperatureScaling",
    "TransferredTemperature",
    "VectorScaling",
    "choose_method",
    "cross_validate",
    "fit_calibrator",
    "recalibration_gain",
    "set_confidence",
]
