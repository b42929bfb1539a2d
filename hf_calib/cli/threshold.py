"""`hf-calib threshold`: a confidence threshold or prediction sets with a guarantee, and their check."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .reading import FilesParser, ReadingArguments


if TYPE_CHECKING:
    from ..evaluation.gate import Gate
    from ..evaluation.prediction_sets import PredictionSets
    from ..inference.predictions import OptionPredictions
    from ..prediction_files.confidences import ConfidencePredictions

_EXAMPLES = """\
examples:
  # above which confidence are 90% of the answers right?
  hf-calib threshold after --target_accuracy 0.9 --output_dir gate

  # the same as a risk; at another level; one threshold for each subject; predictions of another tool
  hf-calib threshold after/predictions.npz --target_risk 0.1 --output_dir gate
  hf-calib threshold after --target_accuracy 0.9 --level 0.99 --output_dir gate
  hf-calib threshold after --target_accuracy 0.9 --by subject --output_dir gate
  hf-calib threshold samples_arc_easy.jsonl --target_accuracy 0.9 --output_dir gate

  # for another mix of questions: importance weights in a column `weight`, and the largest that there can be
  hf-calib threshold weighted.csv --target_accuracy 0.9 --max_weight 1.6 --output_dir gate

  # not one option, but a set that holds the right one in 90% of the cases; needs the extra `conformal`
  hf-calib threshold after --sets 0.9 --output_dir sets

  # the sets of new predictions, as sets.csv, and with labels their coverage
  hf-calib threshold --check sets/sets.json new.csv --output_dir new_sets

  # does it still hold? labelled predictions, oldest first; or predictions without labels
  hf-calib threshold --check gate/gate.json week_1 week_2 week_3
  hf-calib threshold --check gate/gate.json new.csv

FILE is an output folder of hf-calib evaluate or measure, its predictions.npz, or a file of any format that `hf-calib
measure --help` lists. The questions must be a random sample of those to come, and must not have trained or calibrated
the model.

The guarantee: with probability --level over the sample, the accuracy of the answers above the threshold is at least
the target. It needs no calibrated confidence. With --by subject all subjects' guarantees hold together.

writes to OUTPUT_DIR:
  gate.json              threshold, target, level, coverage and accuracy with intervals, fingerprint of the
                         predictions; the threshold is null where none reaches the target
  risk_coverage (.png, .svg)
  sets.json              with --sets: method, level, quantile, sizes of the sets, coverage with interval, fingerprint
  check.json             with --check: what was tested, and the result; with a sets.json also sets.csv

--check with labels: a sequential test of the accuracy. It may be repeated whenever predictions are added at the end.
--check without labels: a two-sample test for a shift of the confidences. It tests no accuracy.

Exit status: 0 a threshold was found, or the check found nothing; 1 no threshold reaches the target, the guarantee is
refuted, or the confidences have shifted; 2 the call is wrong.
"""


@dataclass
class ThresholdArguments(ReadingArguments):
    """Arguments of `hf-calib threshold`."""

    target_accuracy: float | None = field(
        default=None, metadata={"help": "Accuracy that the answers must have, in (0, 1)."}
    )
    target_risk: float | None = field(
        default=None, metadata={"help": "The same as an error rate: 1 less the target accuracy."}
    )
    level: float = field(default=0.95, metadata={"help": "Probability of the guarantee, in (0, 1)."})
    by: str | None = field(
        default=None, metadata={"help": "A threshold for each subject (default: one).", "choices": ["subject"]}
    )
    sets: float | None = field(
        default=None,
        metadata={"help": "In place of a target: probability in (0, 1) with which a set holds the right option."},
    )
    sets_method: str = field(
        default="lac",
        metadata={"help": "Score behind the sets; lac gives the smallest ones.", "choices": ["lac", "aps"]},
    )
    max_weight: float | None = field(
        default=None,
        metadata={
            "help": "Largest importance weight that a question can have: the guarantee is then for the mix of "
            "questions that the weights in FILE describe (column weight)."
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of gate.json and of the plot, or of sets.json."}
    )
    check: str | None = field(
        default=None, metadata={"help": "A gate.json or sets.json, or its folder, to check on the predictions."}
    )

    def __post_init__(self):
        if self.check is not None:
            given = (self.target_accuracy, self.target_risk, self.by, self.sets, self.max_weight)
            if any(value is not None for value in given):
                raise ValueError(
                    "--check takes target and subjects from the gate: leave out --target_..., --sets and --by."
                )
            return
        if sum(value is not None for value in (self.target_accuracy, self.target_risk, self.sets)) != 1:
            raise ValueError("give either --target_accuracy, --target_risk or --sets.")
        if self.sets is not None and (self.by is not None or self.level != 0.95 or self.max_weight is not None):
            raise ValueError(
                "--sets has no --by and no --max_weight, and is its own level: leave out --by and --level."
            )
        if self.output_dir is None:
            raise ValueError("give --output_dir, the folder of gate.json, or --check a gate.")
        for name in ("target_accuracy", "target_risk", "sets", "level"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {value:g}.")

    @property
    def target(self) -> float:
        """The target accuracy."""
        return self.target_accuracy if self.target_risk is None else round(1 - self.target_risk, 12)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the call, read the predictions, and find or check the threshold; the result prints and writes."""
    usage = "FILE [FILE ...] --target_accuracy P --output_dir DIR"
    parser = FilesParser("threshold", ThresholdArguments, usage, _EXAMPLES)
    (args,) = parser.parse(argv)
    if args.sets is not None:
        return _prepare_sets(args, parser.files)
    if args.check is None:
        return _prepare_gate(args, parser.files)
    from ..evaluation.prediction_sets import holds_sets

    return (_prepare_sets_check if holds_sets(args.check) else _prepare_check)(args, parser.files)


def _prepare_gate(args: ThresholdArguments, files: Sequence[str]) -> Callable[[], None]:
    from ..evaluation.gate import FILE, Gate
    from ..evaluation.tables import check_output_dir
    from ..hub.saved_predictions import load_predictions

    predictions = load_predictions(files[0] if len(files) == 1 else _paths(files), **args.file_reading)
    gate = Gate.fit(predictions, args.target, args.level, args.by == "subject", args.max_weight)
    output_dir = check_output_dir(args.output_dir)

    def write() -> None:
        gate.save(output_dir / FILE)
        _draw(gate, predictions, output_dir)
        if predictions.weights is not None:
            drawn = sum(threshold.n for threshold in gate.thresholds.values())
            told = f"{drawn} of {len(predictions)} questions are drawn by their weights."
            print(told if args.max_weight else "The weights of the questions are not used: give --max_weight.")
        for name, threshold in gate.thresholds.items():
            print(f"{f'{name}: ' if name else ''}{threshold.sentence(gate.target_accuracy, gate.level)}")
        print(f"gate: {output_dir / FILE}")
        if not gate.found:
            raise ValueError(f"no threshold reaches an accuracy of {gate.target_accuracy:.1%}.")

    return write


def _paths(files: Sequence[str]) -> list[str]:
    """Files; those of folders are their predictions.npz."""
    return [str(Path(name) / "predictions.npz") if Path(name).expanduser().is_dir() else name for name in files]


def _draw(gate: Gate, predictions: OptionPredictions | ConfidencePredictions, output_dir: Path) -> None:
    from ..evaluation.gate import Answers
    from ..plots import risk_coverage_diagram, save_figure

    answers = Answers.of(predictions)
    marked = None if gate.by_subject or not gate.found else gate.thresholds[""].threshold
    name = str(gate.fingerprint["model"] or "predictions")
    figure = risk_coverage_diagram(
        {Path(name).name: (answers.confidences, answers.correct)}, round(1 - gate.target_accuracy, 12), marked
    )
    save_figure(figure, output_dir / "risk_coverage")


def _read_new(
    args: ThresholdArguments, files: Sequence[str], rule: Gate | PredictionSets
) -> tuple[list[OptionPredictions | ConfidencePredictions], bool]:
    """Read predictions to check, each named once; also whether all could be compared with the model of the rule."""
    from ..evaluation.gate import check_same_model, predictions_digest
    from ..hub.saved_predictions import load_predictions

    parts, compared, seen = [], [], {}
    for name in files:
        parts.append(load_predictions(name, **args.file_reading, labelled=False))
        compared.append(check_same_model(rule, parts[-1], name))
        if (digest := predictions_digest(parts[-1])) in seen:
            raise ValueError(f"{name} holds the same predictions as {seen[digest]}: name each file once.")
        seen[digest] = name
    return parts, all(compared)


def _prepare_check(args: ThresholdArguments, files: Sequence[str]) -> Callable[[], None]:
    from ..evaluation.gate import Answers, Gate
    from ..evaluation.gate_check import check_gate
    from ..evaluation.tables import check_output_dir, write_json

    gate = Gate.load(args.check)
    parts, compared = _read_new(args, files, gate)
    result = check_gate(gate, Answers.joined([Answers.of(part) for part in parts]))
    output_dir = check_output_dir(args.output_dir) if args.output_dir else None

    def show() -> None:
        if not compared:
            print("The model is not named in the gate or in the predictions: whether it is the same was not checked.")
        if output_dir is not None:
            write_json(output_dir / "check.json", {"kind": result.kind, **result.results})
        for part in result.sentences if result.holds else result.sentences[:-1]:
            print(part)
        if not result.holds:
            raise ValueError(result.sentences[-1])

    return show


def _prepare_sets(args: ThresholdArguments, files: Sequence[str]) -> Callable[[], None]:
    from ..evaluation.prediction_sets import SETS_FILE, PredictionSets, sizes_sentence
    from ..evaluation.tables import check_output_dir
    from ..hub.saved_predictions import load_predictions

    predictions = load_predictions(files[0] if len(files) == 1 else _paths(files), **args.file_reading)
    rule = PredictionSets.fit(predictions, args.sets, args.sets_method)
    output_dir = check_output_dir(args.output_dir)

    def write() -> None:
        rule.save(output_dir / SETS_FILE)
        print(rule.sentence)
        print(sizes_sentence(rule.sizes))
        print(f"sets: {output_dir / SETS_FILE}")

    return write


def _prepare_sets_check(args: ThresholdArguments, files: Sequence[str]) -> Callable[[], None]:
    from ..evaluation.prediction_sets import PredictionSets, check_sets, require_options
    from ..evaluation.tables import check_output_dir, write_json
    from ..inference.predictions import OptionPredictions

    rule = PredictionSets.load(args.check)
    parts = [require_options(part) for part in _read_new(args, files, rule)[0]]
    predictions = parts[0] if len(parts) == 1 else OptionPredictions.join(parts)
    chosen = rule.apply(predictions)
    result = check_sets(rule, chosen, predictions.labels)
    output_dir = check_output_dir(args.output_dir) if args.output_dir else None

    def show() -> None:
        if output_dir is not None:
            write_json(output_dir / "check.json", {"kind": result.kind, **result.results})
            with (output_dir / "sets.csv").open("w", encoding="utf-8", newline="") as file:
                options = (" ".join(str(option) for option in row.nonzero()[0]) for row in chosen)
                csv.writer(file).writerows([("id", "options"), *zip(predictions.ids, options, strict=True)])
        for sentence in result.sentences if result.holds else result.sentences[:-1]:
            print(sentence)
        if not result.holds:
            raise ValueError(result.sentences[-1])

    return show
