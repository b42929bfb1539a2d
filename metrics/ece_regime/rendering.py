"""Results as a person reads them: the verdict, the figures, and a table that says what each number means."""

from __future__ import annotations

import base64
import io
import re
from html import escape
from typing import Any

import matplotlib as mpl
from reading import Predictions

from hf_calib.evaluation.evaluate import groups_of
from hf_calib.plots import regime_plane, reliability_diagram
from hf_calib.plots.style import STYLE


# Heading of each part of the table; then key, name, and what it means.
MEASURES = {
    "How far confidence and accuracy lie apart": {
        "accuracy": ("Accuracy", "share of right answers"),
        "confidence": ("Mean confidence", "probability of the chosen option"),
        "overconfidence": ("Overconfidence", "confidence less accuracy; negative: underconfident"),
        "ece": ("ECE", "gap between confidence and accuracy, averaged over bins of the confidence; 0 is perfect"),
        "debiased_ece": ("Debiased ECE", "the ECE less what sampling noise adds to it"),
        "ece_equal_mass": ("Equal-mass ECE", "the same with equally filled bins"),
        "smooth_ece": ("Smooth ECE", "the same without bins"),
        "mce": ("Maximum error", "the gap in the worst bin, however small the bin"),
        "cw_ece": ("Classwise ECE", "the same for every option, not the chosen one alone"),
        "tce": ("Target calibration error", "the same against the target instead of the labels"),
    },
    "How much of it is chance": {
        "n": ("Questions", "the fewer, the larger the ECE of even a perfect model"),
        "ece_interval": ("95% interval of the ECE", "where it would lie on endless data"),
        "ece_noise_floor": ("Noise floor", "ECE of a perfectly calibrated model on as many questions"),
        "ece_p_value": ("p-value", "chance that a perfectly calibrated model shows this ECE or more"),
    },
    "How good the predictions are": {
        "auroc": ("AUROC", "does confidence tell right from wrong answers? 0.5: no, 1: perfectly"),
        "aurc": ("AURC", "error rate when the least confident answers are left out; lower is better"),
        "nll": ("Log-likelihood (negative)", "surprise at the right option in nats; lower is better"),
        "brier": ("Brier score", "squared error over all options, from 0 to 2; lower is better"),
    },
    "Whether it can be repaired": {
        "regime": ("Regime", "calibratable: no accuracy has to be given up; non-calibratable: some error must stay"),
        "critical_accuracy": ("Critical accuracy ACC*", "the most that a calibrated model reaches on unseen questions"),
        "border_distance": ("Distance to the border", "accuracy less critical accuracy; positive: non-calibratable"),
        "ece_lower_bound": ("Lower bound of the ECE", "whatever the bins"),
        "recommended_method": ("Recommended repair", "cft: calibration-aware fine-tuning; rcft: with the ECE regulariser"),
    },
}  # fmt: skip

CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto; }
#text textarea { font-family: ui-monospace, monospace; font-size: .84rem; white-space: pre; overflow-x: auto; }
#formats pre { overflow-x: auto; contain: inline-size; }
#results .html-container { padding: 0; }
#results { --soft: color-mix(in srgb, var(--body-text-color) 72%, transparent); --line: var(--border-color-primary); }
#results .box { border: 1px solid var(--line); border-left: 5px solid #0072B2; border-radius: 6px; padding: 14px 18px; }
#results .box.warn { border-left-color: #D55E00; }
#results .box h3 { margin: 0 0 6px; font-size: 1.2rem; }
#results .box p { margin: 4px 0 0; }
#results .tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; margin: 14px 0; }
#results .tile { border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px; }
#results .tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
#results .tile span { color: var(--soft); font-size: .85rem; }
#results .figures { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 14px; }
#results figure { margin: 0; background: #fff; color: #333; border: 1px solid var(--line); border-radius: 6px; padding: 12px; }
#results figure img { width: 100%; height: auto; display: block; margin: 0; }
#results figcaption { font-size: .85rem; margin-top: 8px; line-height: 1.45; color: #333; }
#results figcaption b { color: inherit; }
#results .scroll { overflow-x: auto; contain: inline-size; }
#results table { width: 100%; border: 0; border-collapse: collapse; margin: 14px 0 0; font-size: .92rem; }
#results .note { margin: 18px 0 0; color: var(--soft); }
#results tr { border: 0; background: none; }
#results th, #results td { text-align: left; padding: 5px 14px 5px 0; border: 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
#results th { padding-top: 16px; font-weight: 600; border-bottom-width: 2px; }
#results .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
#results .meaning { color: var(--soft); padding-right: 0; }
@media (max-width: 760px) {
  .gradio-container .main { padding: 8px 16px !important; }
  #results .figures { grid-template-columns: minmax(0, 1fr); }
  #results .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  #results tr.measure { display: grid; grid-template-columns: 1fr auto; border-bottom: 1px solid var(--line); padding: 5px 0; }
  #results tr.measure td { border: 0; padding: 0; }
  #results tr.measure .meaning { grid-column: 1 / -1; font-size: .85rem; }
}
"""


def render(predictions: Predictions, results: dict[str, Any], n_bins: int, binning: str) -> str:
    """Verdict, figures and tables."""
    diagram = reliability_diagram(predictions.scores, predictions.outcomes, n_bins=int(n_bins), binning=binning)
    plane = regime_plane({"this model": results})
    about_plane = (
        "Accuracy against calibration error. Right of the critical accuracy, ECE and the target calibration error (TCE) "
        "cannot both vanish: in the shaded region TCE is at least the distance up to the line."
        if "critical_accuracy" in results
        else "Accuracy against calibration error. Give the columns of a target or of a reference, or a critical accuracy, "
        "to see the border beyond which calibration costs accuracy."
    )
    about_diagram = (
        "Each bar is a range of confidence: as high as the accuracy there, hatched up or down to the confidence. A "
        "calibrated model follows the diagonal. Below: how many predictions fall into each range."
    )
    figures = _figure(diagram, "Reliability diagram", about_diagram) + _figure(plane, "Regime plane", about_plane)
    return (
        f'{_verdict(results)}{_tiles(results)}<div class="figures">{figures}</div>{_table(results)}{_groups(results)}'
    )


def render_error(error: ValueError) -> str:
    """What is wrong, in the place of the results."""
    return f'<div class="box warn" role="alert"><b>This cannot be measured.</b> {_prose(str(error))}</div>'


def _prose(text: str) -> str:
    """Text of any origin as HTML, `names` as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _verdict(results: dict[str, Any]) -> str:
    gap = results["overconfidence"]
    if results["ece_p_value"] >= 0.05:
        calibrated, heading = True, "No sign of miscalibration"
        sentence = (
            f"On {results['n']:,} questions a perfectly calibrated model shows an ECE of {results['ece_noise_floor']:.3f} by "
            f"chance alone; this one shows {results['ece']:.3f}."
        )
    else:
        calibrated = False
        kind = "Overconfident" if gap > 0 else "Underconfident"
        heading = f"{kind} by {abs(100 * gap):.0f} points" if abs(gap) >= 0.005 else "Miscalibrated"
        sentence = (
            f"It is {results['confidence']:.0%} sure on average and right {results['accuracy']:.0%} of the time. Its ECE of "
            f"{results['ece']:.3f} is more than chance explains ({results['ece_noise_floor']:.3f} on {results['n']:,} questions)."
        )
    regime = results["regime"]
    warn = not calibrated or regime == "non-calibratable"
    return (
        f'<div class="box{" warn" if warn else ""}"><h3>{heading}; {regime}</h3><p>{sentence}</p>'
        f"<p>{_prose(results['explanation'])}</p></div>"
    )


def _tiles(results: dict[str, Any]) -> str:
    tiles = [
        (f"{results['accuracy']:.3f}", "accuracy"),
        (f"{results['confidence']:.3f}", "mean confidence"),
        (f"{results['ece']:.3f}", "ECE, 95% interval " + _interval(results).replace(" ", "&nbsp;")),
        (f"{results['ece_noise_floor']:.3f}", f"noise floor for N = {results['n']:,}"),
    ]
    return f'<div class="tiles">{"".join(f"<div class=tile><b>{b}</b><span>{s}</span></div>" for b, s in tiles)}</div>'


def _interval(results: dict[str, Any]) -> str:
    return f"{results['ece_low']:.3f} – {results['ece_high']:.3f}"


def _figure(figure, title: str, caption: str) -> str:
    """The figure as a picture of its own in the page: sharp at every width, saved with a right click."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    image = f'<img alt="{title}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption><b>{title}.</b> {caption}</figcaption></figure>"


def _table(results: dict[str, Any]) -> str:
    values = {**results, "ece_interval": _interval(results)}
    rows = []
    for heading, measures in MEASURES.items():
        rows.append(f'<tr><th colspan="3">{heading}</th></tr>')
        for key, (name, meaning) in measures.items():
            if values.get(key) is not None:
                cells = f'<td>{name}</td><td class="number">{_text(values[key])}</td>'
                rows.append(f'<tr class="measure">{cells}<td class="meaning">{meaning}</td></tr>')
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _groups(results: dict[str, Any]) -> str:
    """A table of the groups: by the lower end of the interval, as the measured ECE is largest where a group is small."""
    groups = sorted(groups_of(results).items(), key=lambda item: -item[1]["ece_low"])
    if not groups:
        return ""
    columns = {
        "n": "N", "accuracy": "accuracy", "confidence": "confidence", "ece": "ECE", "ece_interval": "95% interval",
        "ece_noise_floor": "noise floor", "ece_p_value_holm": "p-value, corrected",
    }  # fmt: skip
    head = "".join(f'<th class="number">{name}</th>' for name in columns.values())
    rows = []
    for name, group in groups:
        values = {**group, "ece_interval": _interval(group)}
        cells = "".join(f'<td class="number">{_text(values[key])}</td>' for key in columns)
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    count, bad = results["n_groups"], results["n_groups_miscalibrated"]
    note = (
        f"{bad} of {count} groups are miscalibrated at level {results['alpha']:g}, corrected for their number (Holm). "
        "First come those whose ECE is surely large: they are sorted by the lower end of its interval."
    )
    table = f"<thead><tr><th>Group</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<p class="note">{note}</p><div class="scroll"><table>{table}</table></div>'
