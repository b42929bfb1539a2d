"""Measure, explain and restore the calibration of preference-aligned language models."""

import importlib


__version__ = "0.1.0"

# Public names and their modules. A name is imported on first use, so that `import hf_calib` is fast, and the measures
# work without torch and trl; the trainers need the extra `train`.
_MODULE_OF = {
    "calibration_report": "measures.calibration_error",
    "classwise_calibration_error": "measures.calibration_error",
    "confidence_report": "measures.calibration_error",
    "expected_calibration_error": "measures.calibration_error",
    "target_calibration_error": "measures.calibration_error",
    "one_vs_rest_error": "measures.one_vs_rest",
    "corp_curve": "measures.corp",
    "corp_decomposition": "measures.corp",
    "kernel_calibration_test": "measures.kernel_test",
    "compare_predictions": "measures.paired",
    "comparison_report": "measures.paired",
    "risk_coverage": "measures.risk_coverage",
    "selective_report": "measures.risk_coverage",
    "Gate": "evaluation.gate",
    "SelectiveAnswerer": "hub.selective_answerer",
    "accuracy_evidence": "measures.sequential_test",
    "accuracy_threshold": "measures.threshold",
    "accuracy_thresholds": "measures.threshold",
    "collapse_report": "measures.preference_collapse",
    "pair_report": "measures.preference_collapse",
    "PromptFormat": "data.questions",
    "load_questions": "data.questions",
    "load_short_questions": "data.short_answers",
    "p_true_questions": "data.short_answers",
    "normalize_answer": "data.grading",
    "AnswerOptions": "inference.answer_options",
    "predict_answers": "inference.answer_confidence",
    "alignment_report": "evaluation.alignment",
    "AlignmentMeter": "evaluation.alignment",
    "AlignmentReport": "evaluation.alignment_report",
    "diagnose": "evaluation.diagnose",
    "EMCalibrator": "losses.em_calibrator",
    "em_ece_loss": "losses.em_ece_loss",
    "OptionEvaluator": "evaluation.option_evaluator",
    "PredictionSets": "evaluation.prediction_sets",
    "load_calibrator": "hub.calibrator",
    "load_predictions": "hub.saved_predictions",
    "fold_temperature": "posthoc.fold_temperature",
    "order_report": "measures.position_bias",
    "metric_path": "paths",
    "recipe_path": "paths",
    "classwise_diagram": "plots",
    "confidence_shift": "plots",
    "corp_diagram": "plots",
    "group_diagram": "plots",
    "order_diagram": "plots",
    "regime_plane": "plots",
    "reliability_diagram": "plots",
    "risk_coverage_diagram": "plots",
    "AgreementTemperature": "posthoc",
    "BetaCalibration": "posthoc",
    "EnsembleTemperatureScaling": "posthoc",
    "HistogramBinning": "posthoc",
    "IsotonicConfidence": "posthoc",
    "MatrixScaling": "posthoc",
    "PostHocCalibrator": "posthoc",
    "SubjectTemperature": "posthoc",
    "TemperatureIsotonic": "posthoc",
    "TemperatureScaling": "posthoc",
    "TransferredTemperature": "posthoc",
    "VectorScaling": "posthoc",
    "recalibration_gain": "posthoc",
    "OptionCalibrationProcessor": "posthoc.logits_processor",
    "OptionPredictions": "inference.predictions",
    "PredictionOptions": "inference.predict",
    "predict_options": "inference.predict",
    "ServedModel": "served.client",
    "ServedOptions": "served.client",
    "predict_served_options": "served.predict",
    "predict_served_answers": "served.answers",
    "RegimeReport": "regime.report",
    "classify_confidences": "regime.classify",
    "classify_regime": "regime.classify",
    "register": "evaluation.metric_registration",
    "StreamingCalibration": "measures.streaming",
    "CalibratedDPOConfig": "trainers.dpo_config",
    "CalibratedDPOTrainer": "trainers.dpo_trainer",
    "CalibratedSFTConfig": "trainers.sft_config",
    "CalibratedSFTTrainer": "trainers.sft_trainer",
    "CollapseCallback": "trainers.callbacks",
    "RestoreOptions": "training.restore_options",
    "run_restore": "training.restore",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    except ModuleNotFoundError as error:
        from .extras import with_advice

        raise with_advice(error) from error
    globals()[name] = value  # later look-ups skip this function
    return value


def __dir__():
    return sorted({*globals(), *__all__})
