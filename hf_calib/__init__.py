"""Measure, explain and restore the calibration of preference-aligned language models."""

import importlib


__version__ = "0.1.0"

# Each public name and the module it lives in. A name is imported when it is first used, so that `import hf_calib`
# costs nothing and the metrics, which need numpy alone, work where torch and trl are not installed.
_MODULE_OF = {
    "calibration_report": "calibration_error",
    "classwise_calibration_error": "calibration_error",
    "confidence_report": "calibration_error",
    "expected_calibration_error": "calibration_error",
    "target_calibration_error": "calibration_error",
    "collapse_report": "collapse",
    "pair_report": "collapse",
    "PromptFormat": "data.mcq",
    "load_questions": "data.mcq",
    "diagnose": "diagnosis",
    "EMCalibrator": "em_ece",
    "em_ece_loss": "em_ece",
    "OptionEvaluator": "evaluator",
    "load_calibrator": "hub.calibrator",
    "fold_temperature": "folding",
    "order_report": "option_order",
    "metric_path": "paths",
    "recipe_path": "paths",
    "classwise_diagram": "plots",
    "confidence_shift": "plots",
    "group_diagram": "plots",
    "order_diagram": "plots",
    "regime_plane": "plots",
    "reliability_diagram": "plots",
    "AgreementTemperature": "posthoc",
    "BetaCalibration": "posthoc",
    "EnsembleTemperatureScaling": "posthoc",
    "HistogramBinning": "posthoc",
    "IsotonicConfidence": "posthoc",
    "MatrixScaling": "posthoc",
    "PostHocCalibrator": "posthoc",
    "TemperatureIsotonic": "posthoc",
    "TemperatureScaling": "posthoc",
    "TransferredTemperature": "posthoc",
    "VectorScaling": "posthoc",
    "OptionCalibrationProcessor": "processor",
    "OptionPredictions": "predictions",
    "predict_options": "predict",
    "RegimeReport": "regime",
    "classify_confidences": "regime",
    "classify_regime": "regime",
    "register": "registration",
    "StreamingCalibration": "streaming",
    "CalibratedDPOConfig": "trainers.dpo_config",
    "CalibratedDPOTrainer": "trainers.dpo",
    "CalibratedSFTConfig": "trainers.config",
    "CalibratedSFTTrainer": "trainers.sft",
    "CollapseCallback": "trainers.callbacks",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__():
    return sorted({*globals(), *__all__})
