"""Space of `ece_regime`: measure pasted or uploaded predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
from ece_regime import ECERegime
from examples import EXAMPLES
from reading import FILE_TYPES, Predictions, read_file, read_text
from rendering import CSS, render, render_error

from hf_calib.measures.threshold import least_questions


RISKS, COVERAGES = (0.05, 0.1, 0.2), (0.5, 0.8)  # points of the risk-coverage curve in the table

INTRODUCTION = """
# Is this model calibrated, and can it be?

A calibrated model with a confidence of 80% is right 80% of the time. Give the predictions of a model on
multiple-choice questions. This page measures the gap between confidence and accuracy (**expected calibration error**),
how much of it is chance, whether the gap can be closed at the accuracy of the model (**regime**), and from which
confidence on the answers are as accurate as you need (**threshold**).
"""

FORMATS = """
One row per question. Either **option probabilities** and the right option,

```
p_0,p_1,p_2,p_3,label
0.70,0.10,0.15,0.05,0
0.20,0.60,0.10,0.10,2
```

where `label` is the number of the right option in the names of the columns (from 0, or from 1 for `p_1` to `p_4`) or
its letter. Leave cells at the end of a row empty where a question has fewer options. Or **confidences**, and whether
the prediction is right:

```
confidence,correct
0.93,1
0.71,0
```

JSON may hold records, columns, or one record per line. Questions may have different numbers of options. A label is the
index in the list, from 0:

```
[{"probabilities": [0.7, 0.3], "label": 0},
 {"probabilities": [0.2, 0.5, 0.3], "label": 1}]
```

Files may be CSV, TSV, JSON, JSON Lines, Parquet or the `predictions.npz` of `hf-calib evaluate`. Optional columns:

- `target_0`, `target_1`, … (or `target_probabilities`, a list in each row): the true option probabilities, or those of
  a calibrated model. They decide the regime.
- `reference_0`, … (or `reference_probabilities`): option probabilities of another model, e.g. the one before
  alignment, that may be miscalibrated. They decide the regime too.
- `subject` (or `group`): adds the results of each group.

Probabilities of a row sum to 1: apply a softmax if you have logits.
"""


def measure_text(
    text: str,
    critical_accuracy: str = "",
    n_bins: int = 10,
    binning: str = "equal_width",
    target_accuracy: str = "0.9",
):
    """Measure pasted predictions."""
    return _measure(lambda: read_text(text), critical_accuracy, n_bins, binning, target_accuracy)


def measure_file(
    path: str | None,
    critical_accuracy: str = "",
    n_bins: int = 10,
    binning: str = "equal_width",
    target_accuracy: str = "0.9",
):
    """Measure an uploaded file."""
    read = partial(read_file, path) if path else partial(read_text, "")
    return _measure(read, critical_accuracy, n_bins, binning, target_accuracy)


def _measure(read: Callable[[], Predictions], critical_accuracy: str, n_bins: int, binning: str, target_accuracy: str):
    """Return the results as HTML, the visibility of the numbers and all numbers; or an error message."""
    try:
        predictions = read()
        target = _fraction(target_accuracy, "target accuracy")
        results = compute(predictions, _fraction(critical_accuracy, "critical accuracy"), n_bins, binning, target)
        page = render(predictions, results, n_bins, binning, target)
    except ValueError as error:  # wrong input; other errors are defects
        return render_error(error), gr.update(visible=False), None
    return page, gr.update(visible=True), results


def _fraction(text: str, name: str) -> float | None:
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise ValueError(f"The {name} must be a number such as 0.62, got {text!r}.") from None


def compute(
    predictions: Predictions, critical_accuracy: float | None, n_bins: int, binning: str, target_accuracy: float | None
) -> dict[str, Any]:
    """Compute the metric. Undefined numbers are `None`, because JSON has no NaN."""
    if target_accuracy is not None and len(predictions.outcomes) < least_questions(target_accuracy):
        target_accuracy = None  # the page says that there are too few questions
    optional = {
        "target_probs": predictions.target,
        "reference_probs": predictions.reference,
        "groups": predictions.groups,
        "critical_accuracy": critical_accuracy,
        "target_accuracy": target_accuracy,
    }
    results = ECERegime(keep_in_memory=True).compute(
        predictions=predictions.scores,
        references=predictions.outcomes,
        n_bins=int(n_bins),
        binning=binning,
        risks=RISKS,
        coverages=COVERAGES,
        **{name: value for name, value in optional.items() if value is not None},
    )
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in results.items()}


def build() -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(title="ECE and calibration regime", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=3, min_width=320) as examples:
                with gr.Tab("Paste"):
                    text = gr.Textbox(
                        label="Predictions as CSV or JSON", lines=9, max_lines=9, elem_id="text",
                        placeholder="p_0,p_1,p_2,p_3,label\n0.70,0.10,0.15,0.05,0\n0.20,0.60,0.10,0.10,2\n…",
                    )  # fmt: skip
                    measure = gr.Button("Measure", variant="primary", elem_id="measure")
                with gr.Tab("Upload"):
                    file = gr.File(label="CSV, JSON, Parquet or npz", file_types=list(FILE_TYPES), elem_id="file")
                    measure_upload = gr.Button("Measure", variant="primary")
            with gr.Column(scale=2, min_width=320):
                with gr.Accordion("What to paste or upload", open=False):
                    gr.Markdown(FORMATS, elem_id="formats")
                # gr.Number sends 0 for an empty field
                critical_accuracy = gr.Textbox(
                    label="Critical accuracy (optional)", placeholder="unknown", elem_id="critical-accuracy",
                    info="Accuracy of the best predictor of these questions; decides the regime",
                )  # fmt: skip
                target_accuracy = gr.Textbox(
                    label="Target accuracy (optional)", value="0.9", elem_id="target-accuracy",
                    info="Seeks the confidence from which on the answers are right this often",
                )  # fmt: skip
                n_bins = gr.Slider(5, 30, value=10, step=1, label="Bins")
                binning = gr.Radio(
                    [("equal width", "equal_width"), ("equal mass", "equal_mass")],
                    value="equal_width",
                    label="Kind of bins",
                )
        options = [critical_accuracy, n_bins, binning, target_accuracy]
        results = gr.HTML(elem_id="results")
        with gr.Accordion("All numbers", open=False, visible=False) as more:
            numbers = gr.JSON(show_label=False, open=True, elem_id="numbers")
        outputs = [results, more, numbers]
        with examples:
            gr.Examples(
                [[text] for text in EXAMPLES.values()], [text], outputs, measure_text, run_on_click=True,
                cache_examples=False, example_labels=list(EXAMPLES), label="Or try an example",
            )  # fmt: skip
        measure.click(measure_text, [text, *options], outputs, api_name="measure")
        gr.on([file.upload, measure_upload.click], measure_file, [file, *options], outputs, api_name="measure_file")
        # on a phone the results are below the visible part
        show = (
            "() => { if (innerWidth < 760) document.getElementById('results').scrollIntoView({behavior: 'smooth'}) }"
        )
        results.change(None, js=show)
    return page


if __name__ == "__main__":
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    build().launch(theme=theme, css=CSS, ssr_mode=False, max_file_size="100mb")
