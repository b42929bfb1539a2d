"""`hf-calib calibrate`: fit and compare post-hoc calibrators on saved predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import MeasuringArguments
from .parser import CommandParser
from .reading import ReadingArguments


if TYPE_CHECKING:
    from ..inference.predictions import OptionPredictions

_EXAMPLES = """\
examples:
  # fit all methods on the predictions for some questions, compare them on those for others
  hf-calib evaluate --model ./my-dpo-model --dataset train.parquet --output_dir fit
  hf-calib evaluate --model ./my-dpo-model --dataset test.parquet --output_dir before
  hf-calib calibrate --predictions fit --apply_to before --output_dir calibration

  # without other questions: every question is calibrated by a fit on the others (cross-validation)
  hf-calib calibrate --predictions before

  # without labels, from the predictions of the model before alignment
  hf-calib calibrate --predictions before --reference_predictions reference --method agreement

  # predictions of another tool; `hf-calib measure --help` lists formats and columns
  hf-calib calibrate --predictions results/model --method temperature
  hf-calib calibrate --predictions scores.csv --columns probabilities=p_yes,p_no,label=gold

  # write a checkpoint whose logits are divided by the temperature
  hf-calib calibrate --predictions fit --method temperature --fold_into ./my-dpo-model --output_dir calibration

methods:
  agreement, temperature, ensemble_temperature, beta, vector, subject_temperature, temperature_isotonic (TS-IR),
  isotonic, histogram, matrix
  subject_temperature needs predictions with subjects.
  Vector and matrix scaling can change answers. The chosen method is the simplest whose cross-validated likelihood on
  the questions of --predictions is not significantly worse than the best.

writes to OUTPUT_DIR:
  report.md, results.json, reliability (.png, .svg)
  calibrators/<method>/  for PostHocCalibrator.load
  predictions.npz        calibrated by the chosen method
  model/                 with --fold_into; the temperature changes all sampled text, see docs/guides/post-hoc.md
"""


@dataclass
class CalibrateArguments(ReadingArguments, MeasuringArguments):
    """Arguments of `hf-calib calibrate`."""

    predictions: str = field(
        metadata={
            "help": "Saved predictions to fit on: OUTPUT_DIR of evaluate or measure, predictions.npz, or a file or "
            "folder that `hf-calib measure` reads."
        }
    )
    apply_to: str | None = field(
        default=None,
        metadata={"help": "Saved predictions of the same model for other questions, to calibrate and compare on."},
    )
    reference_predictions: str | None = field(
        default=None,
        metadata={"help": "Saved predictions of the model before alignment for the same questions, for agreement."},
    )
    method: list[str] | None = field(default=None, metadata={"help": "Methods to compare; see below (default: all)."})
    n_folds: int = field(default=5, metadata={"help": "Number of folds of the cross-validation."})
    fold_into: str | None = field(
        default=None,
        metadata={"help": "Model or adapter whose output is divided by the temperature; written to OUTPUT_DIR/model."},
    )
    output_dir: str = field(default="calibration", metadata={"help": "Folder of the report and the calibrators."})


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Load and check predictions, and fit; the result compares, prints, writes and folds."""
    (args,) = CommandParser("calibrate", CalibrateArguments, "--predictions PREDICTIONS", _EXAMPLES).parse(argv)
    from ..evaluation.compare import choice_sentence, compare_calibrators, comparison_stages, write_comparison
    from ..evaluation.tables import check_output_dir, print_table
    from ..hub.saved_predictions import load_option_predictions

    inputs = (args.predictions, args.apply_to, args.reference_predictions)
    calibration, test, reference = (
        load_option_predictions(path, **args.file_reading) if path else None for path in inputs
    )
    if test is not None:
        _check_same_prompt(calibration, test)
    if args.fold_into:
        _check_foldable(args, calibration)
    comparison = compare_calibrators(calibration, test, reference, args.method, args.n_folds, args.seed)
    output_dir = check_output_dir(args.output_dir, *inputs)

    def calibrate() -> None:
        stages = comparison_stages(comparison, alpha=args.alpha, **args.measuring)
        title = f"Post-hoc calibration of {Path(calibration.metadata.get('model') or 'the model').name}"
        report = write_comparison(output_dir, comparison, stages, len(calibration), title)
        print_table(stages, title)
        for name, reason in comparison.left_out.items():
            print(f"{name} left out: {reason}")
        print(f"{choice_sentence(comparison)}\nreport: {report}")
        if args.fold_into:
            from ..posthoc.fold_temperature import save_folded

            method = "temperature" if "temperature" in comparison.calibrators else "agreement"
            temperature = comparison.calibrators[method].temperature.item()
            samples = save_folded(args.fold_into, temperature, output_dir / "model")
            effect = (
                "Its own sampling temperature is divided by as much, so it samples as before; divide any other"
                if samples
                else "Greedy text stays the same. To sample as before, divide the sampling temperature by as much"
            )
            print(f"{args.fold_into} with its logits divided by {temperature:.4g}: {output_dir / 'model'}. {effect}.")

    return calibrate


def _check_same_prompt(calibration: OptionPredictions, test: OptionPredictions) -> None:
    """Check that both were predicted with the same prompt and scoring, if their files state it."""
    first, second = (
        {
            **p.metadata.get("prompt_format", {}),
            "option_normalization": p.metadata.get("option_normalization"),
            "answer_confidence": p.metadata.get("answer_confidence"),
        }
        for p in (calibration, test)
    )
    if len(first) == len(second) and (differing := [name for name in first if first[name] != second[name]]):
        stated = ", ".join(f"{name} {first[name]!r} and {second[name]!r}" for name in differing)
        raise ValueError(
            f"--predictions and --apply_to were predicted differently: {stated}. A calibrator holds for one prompt "
            "and scoring: evaluate both alike."
        )


def _check_foldable(args: CalibrateArguments, predictions: OptionPredictions) -> None:
    """Check that a temperature is fitted, and that dividing the logits of the model applies it."""
    from ..inference.model_loading import load_tokenizer

    if args.method and not {"temperature", "agreement"}.intersection(args.method):
        raise ValueError("--fold_into folds a temperature: add temperature (or agreement) to --method.")
    scoring = predictions.metadata.get("prompt_format", {}).get("scoring")
    if not predictions.metadata.get("single_tokens", scoring == "letter"):
        raise ValueError(
            "--fold_into needs options of one token each (letters): dividing the logits of every token does not "
            "divide the log-likelihood of an option of several tokens. Use the calibrator beside the model "
            "(PostHocCalibrator.load), or predictions with --scoring letter."
        )
    load_tokenizer(args.fold_into)
