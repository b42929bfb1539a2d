"""Render results as HTML: verdict, figures and tables."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from reading import Predictions

from hf_calib.evaluation.evaluate import groups_of
from hf_calib.measures.checked import check_scores
from hf_calib.measures.threshold import accuracy_threshold
from hf_calib.plots import regime_plane, reliability_diagram, risk_coverage_diagram
from hf_calib.plots.style import STYLE
from hf_calib.regime.report import NON_CALIBRATABLE, TARGET_CONTRADICTED


# Heading of each part of the table; key, name and meaning of each measure.
MEASURES = {
    "Calibration": {
        "accuracy": ("Accuracy", "share of right answers"),
        "confidence": ("Mean confidence", "probability of the predicted option"),
        "overconfidence": ("Overconfidence", "confidence less accuracy; negative: underconfident"),
        "ece": ("ECE", "gap between confidence and accuracy, averaged over bins of the confidence; 0 is perfect"),
        "debiased_ece": ("Debiased ECE", "the ECE less its bias from sampling noise"),
        "ece_equal_mass": ("Equal-mass ECE", "the ECE with equally filled bins"),
        "smooth_ece": ("Smooth ECE", "the ECE without bins"),
        "mce": ("Maximum error", "the gap in the worst bin, however small the bin"),
        "cw_ece": ("Classwise ECE", "the ECE of every option, averaged"),
        "tce": ("Target calibration error", "the ECE against the target instead of the labels"),
    },
    "Uncertainty": {
        "n": ("Questions", "the fewer, the larger the ECE of even a perfect model"),
        "ece_interval": ("95% interval of the ECE", "of the ECE on unlimited data"),
        "ece_noise_floor": ("Noise floor", "ECE of a perfectly calibrated model on as many questions"),
        "ece_p_value": ("p-value", "probability that a perfectly calibrated model has at least this ECE"),
    },
    "Quality of the predictions": {  # each with its 95% interval
        "auroc": ("AUROC", "how well confidence separates right from wrong answers; 0.5: not at all, 1: perfectly"),
        "nll": ("Log-likelihood (negative)", "in nats; lower is better"),
        "brier": ("Brier score", "squared error over all options, from 0 to 2; lower is better"),
    },
    "Selective answering": {  # each with its 95% interval
        "aurc": ("AURC", "error rate without the least confident answers, over all coverages; lower is better"),
        "e_aurc": ("Excess AURC", "AURC less that of the best order; 0 is perfect"),
        "augrc": ("AUGRC", "share of all questions answered wrongly, over all coverages; lower is better"),
        "coverage_at_risk/0.05": ("Coverage at risk 5%", "questions answered if 5% of the answers may be wrong"),
        "coverage_at_risk/0.1": ("Coverage at risk 10%", "the same for 10%; measured, without a guarantee"),
        "coverage_at_risk/0.2": ("Coverage at risk 20%", "the same for 20%"),
        "risk_at_coverage/0.5": ("Risk at coverage 50%", "error rate of the most confident half"),
        "risk_at_coverage/0.8": ("Risk at coverage 80%", "error rate without the least confident fifth"),
    },
    "Regime": {
        "regime": ("Regime", "calibratable: accuracy need not fall; non-calibratable, target-contradicted: some error "
                   "must remain"),
        "critical_accuracy": ("Critical accuracy ACC*", "accuracy of the best predictor if labels follow the target"),
        "border_distance": ("Distance to the border", "accuracy less critical accuracy; positive: non-calibratable"),
        "border_distance_detectable": ("Detectable distance", "found with probability 0.8 on as many questions"),
        "expected_accuracy": ("Expected accuracy T", "mean probability that the target gives to the predictions"),
        "ece_lower_bound": ("Lower bound of the ECE", "for any bins"),
        "recommended_method": ("Recommended repair", "cft: calibration-aware fine-tuning; rcft: with EM-ECE"),
    },
}  # fmt: skip

_TEMPLATES = Path(__file__).parent
CSS = (_TEMPLATES / "style.css.j2").read_text(encoding="utf-8")


def render(
    predictions: Predictions, results: dict[str, Any], n_bins: int, binning: str, target_accuracy: float | None
) -> str:
    """
    Render the results of the metric.

    Args:
        predictions ([`Predictions`]):
            Predictions, for the reliability diagram.
        results (`dict`):
            Result of the metric.
        n_bins (`int`):
            Number of bins of the diagram.
        binning (`str`):
            `"equal_width"` or `"equal_mass"`.
        target_accuracy (`float`, *optional*):
            Accuracy for which a threshold is sought.

    Returns:
        `str`: HTML.
    """
    diagram = reliability_diagram(predictions.scores, predictions.outcomes, n_bins=int(n_bins), binning=binning)
    about_diagram = (
        "Each bar is a bin of the confidence. Its height is the accuracy in the bin, the hatched part its gap to the "
        "confidence. A calibrated model follows the diagonal. Below: share of predictions in each bin."
    )
    about_plane = (
        "Accuracy against calibration error. Right of the critical accuracy, ECE and target calibration error (TCE) "
        "cannot both be 0: in the shaded region the TCE is at least the distance to the line."
        if "critical_accuracy" in results
        else "Accuracy against calibration error. Give a target, a reference or a critical accuracy to see the border "
        "beyond which calibration costs accuracy."
    )
    figures = [
        {"title": "Reliability diagram", "data": _svg(diagram), "caption": about_diagram},
        {"title": "Regime plane", "data": _svg(regime_plane({"this model": results})), "caption": about_plane},
    ]
    calibrated = results["ece_p_value"] >= 0.05
    return _fill(
        "results.html.j2",
        results=results,
        heading=_heading(results["overconfidence"], calibrated),
        calibrated=calibrated,
        warn=not calibrated or results["regime"] in (NON_CALIBRATABLE, TARGET_CONTRADICTED),
        figures=figures,
        measures=MEASURES,
        with_intervals=("Quality of the predictions", "Selective answering"),
        decision=_decision(predictions, target_accuracy),
        # the ECE of a small group is large by chance, so the lower end of the interval orders the groups
        groups=sorted(groups_of(results).items(), key=lambda item: -item[1]["ece_low"]),
    )


def _decision(predictions: Predictions, target_accuracy: float | None) -> dict[str, Any]:
    """Risk-coverage plot, and a sentence about the threshold, if one is sought."""
    examples = check_scores(predictions.scores, predictions.outcomes)
    arrays = examples.confidences, examples.correct
    found = sentence = None
    if target_accuracy is not None:
        try:
            found = accuracy_threshold(*arrays, target_accuracy)
            sentence = found.sentence(target_accuracy)
        except ValueError as error:  # too few questions
            sentence = f"No threshold: {error}"
    threshold = found.threshold if found and found.found else None
    risk = None if target_accuracy is None else 1 - target_accuracy
    figure = {
        "title": "Risk and coverage",
        "data": _svg(risk_coverage_diagram({"this model": arrays}, risk, threshold)),
        "caption": "Error rate of the answers if only the most confident part of the questions is answered, with its "
        "95% interval. Dotted: everything is answered.",
    }
    return {"figure": figure, "sentence": sentence, "found": threshold is not None}


def render_error(error: ValueError) -> str:
    """Render an error message as HTML."""
    return _fill("error.html.j2", message=str(error))


def _fill(template: str, **content) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, code=_code)
    return environment.get_template(template).render(content)


def _number(value: Any) -> Any:
    """Format a number; text stays as it is."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else value


def _code(text: str) -> Markup:
    """Escape text and mark `names` as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _heading(gap: float, calibrated: bool) -> str:
    if calibrated:
        return "No sign of miscalibration"
    if abs(gap) < 0.005:
        return "Miscalibrated"
    return f"{'Overconfident' if gap > 0 else 'Underconfident'} by {abs(100 * gap):.0f} points"


def _svg(figure) -> str:
    """Encode a figure as base64 SVG, which is sharp at every width."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return base64.b64encode(file.getvalue()).decode()
