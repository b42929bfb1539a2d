"""`hf-calib transfer`: calibrate questions without answers, using labelled questions of another kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import PredictionArguments
from .parser import CommandParser


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..inference.predictions import OptionPredictions

_EXAMPLES = """\
examples:
  # labelled questions on physics, unlabelled ones on law
  hf-calib transfer --model ./my-dpo-model --labelled_dataset physics.parquet --dataset law.parquet --output_dir law

  # a model trained on the labelled questions: use its held-out predictions, and the model before that training
  hf-calib transfer --model calibrated-model --labelled_dataset physics.parquet --dataset law.parquet \\
      --held_out_predictions calibrated-model/held_out --original_model ./my-dpo-model --scoring text \\
      --option_normalization mean --use_chat_template false --output_dir law

  # measure the result on questions with answers, which are used for the report alone
  hf-calib transfer --model ./my-dpo-model --labelled_dataset physics.parquet --dataset history.parquet \\
      --dataset_is_labelled

writes to OUTPUT_DIR:
  predictions.npz        the questions of --dataset, calibrated
  calibrator/            for PostHocCalibrator.load
  results.json           temperature and expected accuracy; with --dataset_is_labelled measures, report.md, figures
  uncalibrated/          predictions of the models, from which an interrupted run resumes
The method and its limits: docs/concepts/transferred-temperature.md.
"""


@dataclass
class TransferArguments(PredictionArguments):
    """Arguments of `hf-calib transfer`."""

    model: str = field(metadata={"help": "Model or adapter: a local folder or a name on the Hub."})
    labelled_dataset: str = field(
        metadata={
            "help": "Labelled questions: a file, a folder, or a name on the Hub (its split train). --limit and "
            "--dataset_config apply to them, too."
        }
    )
    dataset: str = field(metadata={"help": "Questions of another kind, some hundred. Answers are not needed."})
    held_out_predictions: str | None = field(
        default=None,
        metadata={
            "help": "Saved predictions of --model for labelled questions that it was not trained on, e.g. the folder "
            "held_out of its training (default: --model is run on --labelled_dataset)."
        },
    )
    original_model: str | None = field(
        default=None,
        metadata={"help": "The model before it was trained on the labelled questions (default: --model)."},
    )
    dataset_is_labelled: bool = field(
        default=False, metadata={"help": "The questions of --dataset have answers: measure the result."}
    )
    output_dir: str = field(default="transferred", metadata={"help": "Folder of predictions, calibrator and results."})


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Load and check questions and models; the result predicts, fits, prints and writes."""
    usage = "--model MODEL --labelled_dataset LABELLED --dataset DATASET"
    (args,) = CommandParser("transfer", TransferArguments, usage, _EXAMPLES).parse(argv)
    from ..evaluation.tables import check_output_dir
    from ..hub.saved_predictions import load_option_predictions
    from ..inference.model_loading import load_tokenizer

    labelled = args.questions(args.labelled_dataset, split="train")
    unlabelled = args.questions(args.dataset, labelled=args.dataset_is_labelled)
    held_out = load_option_predictions(args.held_out_predictions) if args.held_out_predictions else None
    # A wrong --model is found here, not after --original_model has scored all questions.
    load_tokenizer(args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)
    loaded = [args.load(args.original_model or args.model)]
    args.check_tokenizer(loaded[0][1], labelled)
    if held_out is not None:
        _check_same_prompt(args, held_out, loaded[0][1])
    check_output_dir(args.output_dir, args.held_out_predictions)
    folder = check_output_dir(Path(args.output_dir) / "uncalibrated")

    def transfer() -> None:
        from accelerate import PartialState

        scored = _score(args, loaded, labelled, unlabelled, folder, held_out)
        if PartialState().is_main_process:
            _fit_and_write(args, *scored, unlabelled)

    return transfer


def _score(
    args: TransferArguments,
    loaded: list,
    labelled: Dataset,
    unlabelled: Dataset,
    folder: Path,
    held_out: OptionPredictions | None,
) -> tuple[OptionPredictions, OptionPredictions, np.ndarray, np.ndarray]:
    """Predictions for labelled and unlabelled questions, and the votes of the original model on both."""

    def score(name: str, questions: Dataset, **options) -> OptionPredictions:
        return args.predict(*loaded[0], questions, folder / f"{name}.npz", **options)

    # Scored without the answers even if they are known: both calls share the saved predictions.
    first = score("original-labelled", labelled, votes=True)
    second = score("original-unlabelled", unlabelled, votes=True, labelled=False)
    if not args.original_model:
        return held_out or first, second, first.votes, second.votes
    loaded.clear()  # one model in memory at a time
    loaded.append(args.load(args.model))
    source = held_out or score("labelled", labelled)
    return source, score("unlabelled", unlabelled, labelled=False), first.votes, second.votes


def _fit_and_write(
    args: TransferArguments,
    source: OptionPredictions,
    target: OptionPredictions,
    source_votes: np.ndarray,
    target_votes: np.ndarray,
    questions: Dataset,
) -> None:
    """Fit the temperature, write predictions, calibrator and results, and print a summary."""
    from ..evaluation.tables import remove_stage_report, write_json
    from ..posthoc import TransferredTemperature

    output_dir = Path(args.output_dir)
    if args.dataset_is_labelled:
        target = _with_answers(target, questions)
    calibrator = TransferredTemperature().fit(
        source.option_logits, source.labels, source_votes, target.option_logits, target_votes
    )
    calibrator.save(output_dir / "calibrator")
    after = target.recalibrated(calibrator)
    after.save(output_dir / "predictions.npz")
    confidence_before, confidence = (float(p.probabilities.max(axis=1).mean()) for p in (target, after))
    results = {
        "model": args.model,
        "n_labels": len(source),
        "n": len(target),
        **calibrator.found,
        "temperature": calibrator.temperature.item(),
        "confidence_before": confidence_before,
        "confidence": confidence,
    }
    if args.dataset_is_labelled:
        results["measured"] = _measure(args, target, after, results["expected_accuracy"])
    else:
        remove_stage_report(output_dir)
    write_json(output_dir / "results.json", results)
    print(
        f"above chance, {results['known']:.3f} of the {len(source)} labelled questions are answered correctly and the "
        f"votes agree on {results['agreed']:.3f}; on the {len(target)} others they agree on "
        f"{results['agreed_on_target']:.3f}.\n"
        f"expected accuracy {results['expected_accuracy']:.3f}: T = {results['temperature']:.3g}, mean confidence "
        f"{confidence_before:.3f} -> {confidence:.3f}    results: {output_dir}"
    )


def _measure(
    args: TransferArguments, before: OptionPredictions, after: OptionPredictions, expected_accuracy: float
) -> list[dict[str, Any]]:
    """Measure the predictions before and after calibration; write and print the report."""
    from ..evaluation.tables import evaluation_results, print_table, write_stage_report

    predictions = {"as it is": before, "transferred temperature": after}
    options = {**args.measuring, "alpha": args.alpha}
    stages = [{"stage": name, **evaluation_results(p, **options)} for name, p in predictions.items()]
    title = f"{Path(args.model).name} on {Path(args.dataset).stem}, by labels of {Path(args.labelled_dataset).stem}"
    notes = f"Accuracy expected without the answers: {expected_accuracy:.3f}."
    write_stage_report(args.output_dir, stages, predictions, title, notes)
    print_table(stages, title)
    return stages


def _with_answers(predictions: OptionPredictions, questions: Dataset) -> OptionPredictions:
    """Add the answers of the questions; those of questions that were too long are skipped."""
    ids, answers = questions["id"][:], questions["answer"][:]
    if predictions.ids.tolist() == ids:
        return replace(predictions, labels=np.array(answers))
    answers_of: dict[str, set[int]] = {}
    for name, answer in zip(ids, answers, strict=True):
        answers_of.setdefault(name, set()).add(answer)
    if differing := [name for name in predictions.ids.tolist() if len(answers_of[name]) > 1]:
        raise ValueError(
            f"--dataset: the id {differing[0]!r} is of several questions, and some questions were too long, so that "
            "answers cannot be matched: give every question an id of its own."
        )
    return replace(predictions, labels=np.array([min(answers_of[name]) for name in predictions.ids.tolist()]))


def _check_same_prompt(
    args: TransferArguments, held_out: OptionPredictions, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check that the held-out predictions were made with the prompt and scoring of this call."""
    from ..data.prompts import PromptFormat

    if "prompt_format" not in held_out.metadata:
        return  # predictions of another program
    then, now = PromptFormat(**held_out.metadata["prompt_format"]), args.prompt_format()
    for name, (stated, given) in {
        "scoring": (then.scoring, now.scoring),
        "option_normalization": (held_out.metadata["option_normalization"], args.option_normalization),
        "prompt_template": (then.prompt_template, now.prompt_template),
        "system_prompt": (then.system_prompt, now.system_prompt),
        "use_chat_template": (then.uses_chat_template(tokenizer), now.uses_chat_template(tokenizer)),
    }.items():
        if stated != given:
            raise ValueError(
                f"--held_out_predictions were made with --{name} {stated}, this call has {given}: use the same."
            )
