"""`hf-calib measure`: measure predictions that other tools saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arguments import MeasuringArguments, RegimeArguments
from .reading import FilesParser, ReadingArguments


_EXAMPLES = """\
examples:
  # lm-evaluation-harness, with --log_samples; several files are tasks, measured together and one by one
  hf-calib measure results/model/samples_arc_easy_2026-01-31T12-00-00.jsonl
  hf-calib measure results/model/samples_mmlu_*.jsonl --output_dir mmlu
  hf-calib measure results/model

  # lighteval, inspect_ai, HELM, the original MMLU evaluation
  hf-calib measure details/model/2026-01-31/details_arc_2026-01-31.parquet
  hf-calib measure logs/2026-01-31_arc.eval
  hf-calib measure runs/v1/mmlu:subject=anatomy,model=my_model/scenario_state.json
  hf-calib measure results_model/*.csv

  # chat completions with top_logprobs: the batch output of OpenAI or of vLLM, and the right options by custom_id
  hf-calib measure batch_output.jsonl --labels answers.csv --num_options 4

  # a csv, json or parquet of one's own: probabilities and label, or confidence and correct
  hf-calib measure predictions.csv
  hf-calib measure predictions.csv --columns probabilities=p_yes,p_no,label=gold
  hf-calib measure answers.csv --columns confidence=score,correct=hit

  # two models on the same questions, matched by id: every difference with its interval and p-value
  hf-calib measure after.csv --other_predictions before.csv

  # convert, then calibrate
  hf-calib measure samples_arc_easy.jsonl --output_dir before
  hf-calib calibrate --predictions before

formats, recognised by content:
  lm_eval            samples_*.jsonl of lm-evaluation-harness
  lighteval          details_*.parquet of lighteval
  inspect_ai         .eval or json log of inspect_ai with top_logprobs
  helm               scenario_state.json of HELM
  chat_completions   chat completions, completions or responses with top_logprobs, one object a line
  mmlu               results csv of the original MMLU evaluation
  columns            csv, json, parquet or npz with the columns
                       probabilities (a list or an object in each row) or p_0, p_1, ... or A, B, ..., and label
                       (number from 0, letter, or name of a column); or confidence and correct, or
                       confidence, prediction and label; optionally id, subject, target_probabilities, and
                       weight, for `hf-calib threshold`
  predictions.npz    and output folders of hf-calib evaluate

"A", " A" and "A." add up. Letters that are not among the top_logprobs share what these leave of the probability. The
option mass is the mean probability of all options together: where it is small, the model would write something else.

Confidences alone give no cw-ECE, NLL, Brier or option mass; with --num_options the regime can be tested.

writes to OUTPUT_DIR, if it is given, what `hf-calib evaluate` writes:
  results.json           every measure, flat; those of the subjects as group/<subject>/...
  predictions.npz        for --predictions of calibrate and diagnose
  reliability, corp, groups (.png, .svg)
"""


@dataclass
class MeasureArguments(RegimeArguments, ReadingArguments, MeasuringArguments):
    """Arguments of `hf-calib measure`."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of results, predictions and diagram (default: only print)."}
    )
    other_predictions: str | None = field(
        default=None,
        metadata={
            "help": "Predictions of another model for the same questions, to compare with: a folder or a file, "
            "read as FILE is."
        },
    )


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the call; the result reads, measures, prints and writes."""
    parser = FilesParser("measure", MeasureArguments, "FILE [FILE ...]", _EXAMPLES)
    (args,) = parser.parse(argv)
    from ..evaluation.tables import check_output_dir
    from ..hub.saved_predictions import load_option_predictions, load_predictions
    from ..prediction_files.options import ReadOptions

    ReadOptions(**args.file_reading)  # checks the values
    inputs = (*parser.files, args.reference_predictions, args.other_predictions)
    output_dir = check_output_dir(args.output_dir, *inputs) if args.output_dir else None
    paths = parser.files[0] if len(parser.files) == 1 else parser.files
    predictions = load_predictions(paths, **args.file_reading)
    reference = (
        load_option_predictions(args.reference_predictions, **args.file_reading)
        if args.reference_predictions
        else None
    )
    other = load_predictions(args.other_predictions, **args.file_reading) if args.other_predictions else None

    def measure() -> None:
        from ..evaluation.measure import measure_predictions

        options = {**args.measuring, "critical_accuracy": args.critical_accuracy, "alpha": args.alpha, "details": True}
        results = measure_predictions(predictions, reference, args.num_options, other, **options)
        _show(results, args, predictions.weights is not None)
        if output_dir is not None:
            from ..evaluation.tables import write_evaluation

            predictions.save(output_dir / "predictions.npz")
            write_evaluation(
                output_dir, predictions, results, results["model"] or results["dataset"], **args.measuring
            )
            print(f"results: {output_dir}")

    return measure


def _show(results: dict[str, Any], args: MeasureArguments, weighted: bool) -> None:
    """Print the measures, and what a reader should know about them."""
    from ..evaluation.details import details_sentences
    from ..evaluation.measure import NEEDS_PROBABILITIES
    from ..evaluation.tables import print_comparison, print_groups, print_table

    scored = f", option scores: {results['option_normalization']}" if results["option_normalization"] else ""
    print(f"{results['predictions_format']}, {len(results['files']) or 1} file(s){scored}")
    print_table([{"stage": results["model"] or results["dataset"] or "predictions", **results}])
    if "n_groups" in results:
        print_groups(results)
    if "option_mass" in results:
        print(f"option mass: {results['option_mass']:.3f} on average")
    if "nll" not in results:
        print(f"not computed, because the file has confidences alone: {NEEDS_PROBABILITIES}")
    if results["left_out"]:
        print(f"left out: {results['left_out']} rows")
    if weighted:
        print("note: the weights of the questions are not used; `hf-calib threshold` uses them")
    for note in results.get("notes", ()):
        print(f"note: {note}")
    if args.other_predictions:
        print_comparison(results)
    for sentence in details_sentences(results):
        print(sentence)
    print(f"{results['regime']}: {results['explanation']}")
    print(f"recommended: {results['recommended_method']}")
    if args.output_dir is None:
        print("to save this and to calibrate it, add --output_dir DIR")
