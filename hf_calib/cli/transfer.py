"""`hf-calib transfer`: labelled questions, and others of another kind without answers; a temperature for the others out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .arguments import PredictionArguments
from .parser import CommandParser


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..inference.predictions import OptionPredictions

_EXAMPLES = """\
examples:
  # labels for questions on physics, none for those on law
  hf-calib transfer --model ./my-dpo-model --labelled_dataset physics.parquet --dataset law.parquet --output_dir law

  # the same of a model that was trained on them: what it makes of those held out from training, what it agreed on before
  hf-calib transfer --model calibrated-model --held_out_predictions calibrated-model/held_out --original_model ./my-dpo-model \\
      --labelled_dataset physics.parquet --dataset law.parquet --scoring text --option_normalization mean \\
      --use_chat_template false --output_dir law

  # is it any good? on questions whose answers are known, and used for the report alone
  hf-calib transfer --model ./my-dpo-model --labelled_dataset physics.parquet --dataset history.parquet --dataset_is_labelled true

OUTPUT_DIR then holds predictions.npz (the questions of --dataset under the temperature found), calibrator/ (for
PostHocCalibrator.load), results.json (accuracy expected, what it was made of), with --dataset_is_labelled also report.md and diagrams,
and asked/: what the models said, from where a run that was cut off goes on. How, and how far to trust it: docs/concepts/transferred-temperature.md.
"""


@dataclass
class TransferArguments(PredictionArguments):
    """Which model, the questions with labels and those without."""

    model: str = field(metadata={"help": "Model or adapter: a local folder or a name on the Hub."})
    labelled_dataset: str = field(
        metadata={
            "help": "Labelled questions: a file, a folder, or a name on the Hub (split train; --split is of --dataset, --limit "
            "and --dataset_config are of both)."
        }
    )
    dataset: str = field(metadata={"help": "Questions of another kind, some hundred; answers are not needed."})
    held_out_predictions: str | None = field(
        default=None,
        metadata={
            "help": "Predictions of --model for labelled questions that it was not trained on: held_out of its training, "
            "OUTPUT_DIR of an evaluation, or predictions.npz. By default it is asked the questions of --labelled_dataset."
        },
    )
    original_model: str | None = field(
        default=None,
        metadata={"help": "The model before it was trained on such questions. By default --model itself."},
    )
    dataset_is_labelled: bool = field(
        default=False, metadata={"help": "The questions have answers: measure what comes out."}
    )
    output_dir: str = field(default="transferred", metadata={"help": "Folder of predictions, calibrator and results."})


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib transfer`: load and check questions and models; the result asks, fits, prints and writes."""
    (args,) = CommandParser(
        "transfer", TransferArguments, "--model MODEL --labelled_dataset LABELLED --dataset DATASET", _EXAMPLES
    ).parse(argv)
    from ..evaluation.tables import (
        check_output_dir,
        evaluation_results,
        print_table,
        remove_stage_report,
        write_json,
        write_stage_report,
    )
    from ..hub.prediction_dataset import load_predictions
    from ..inference.model_loading import load_tokenizer
    from ..posthoc import TransferredTemperature

    output_dir = check_output_dir(args.output_dir)
    asked = check_output_dir(output_dir / "asked")
    labelled = args.questions(args.labelled_dataset, split="train")
    questions = args.questions(args.dataset, labelled=args.dataset_is_labelled)
    held_out = load_predictions(args.held_out_predictions) if args.held_out_predictions else None
    load_tokenizer(
        args.model, revision=args.revision, trust_remote_code=args.trust_remote_code
    )  # a wrong name is said now, not after --original_model has answered everything
    loaded = [args.load(args.original_model or args.model)]
    args.check_tokenizer(loaded[0][1], labelled)
    if held_out is not None:
        _check_asked_alike(args, held_out, loaded[0][1])

    def transfer() -> None:
        from accelerate import PartialState

        def ask(name: str, what, **options):
            return args.predict(*loaded[0], what, asked / f"{name}.npz", **options)

        # Whether the others' answers are known is nothing to the models: with --dataset_is_labelled they are not asked again.
        votes = {
            "labelled": ask("before-labelled", labelled, votes=True),
            "others": ask("before-others", questions, votes=True, labelled=False),
        }
        known, others = held_out or votes["labelled"], votes["others"]
        if args.original_model:
            loaded.clear()  # one model at a time
            loaded.append(args.load(args.model))
            known = held_out or ask("labelled", labelled)
            others = ask("others", questions, labelled=False)
        if not PartialState().is_main_process:
            return
        if args.dataset_is_labelled:
            others = _with_answers(others, questions)
        calibrator = TransferredTemperature().fit(
            known.option_logits, known.labels, votes["labelled"].votes, others.option_logits, votes["others"].votes
        )
        calibrator.save(output_dir / "calibrator")
        after = others.recalibrated(calibrator)
        after.save(output_dir / "predictions.npz")
        confidence, calibrated = (float(p.probabilities.max(axis=1).mean()) for p in (others, after))
        results = {
            "model": args.model,
            "n_labels": len(known),
            "n": len(others),
            **calibrator.found,
            "temperature": calibrator.temperature.item(),
            "confidence_before": confidence,
            "confidence": calibrated,
        }
        if args.dataset_is_labelled:
            predictions = {"as it is": others, "transferred temperature": after}
            options = {**args.measuring, "alpha": args.alpha}
            stages = [{"stage": name, **evaluation_results(p, **options)} for name, p in predictions.items()]
            title = f"{Path(args.model).name} on {Path(args.dataset).stem}, by labels of {Path(args.labelled_dataset).stem}"
            notes = f"Accuracy expected without the answers: {results['expected_accuracy']:.3f}."
            write_stage_report(output_dir, stages, predictions, title, notes)
            print_table(stages, title)
            results["measured"] = stages
        else:
            remove_stage_report(output_dir)
        write_json(output_dir / "results.json", results)
        print(
            f"beyond chance {results['known']:.3f} are known of {len(known)} labelled questions, where {results['agreed']:.3f} are "
            f"agreed on; of the {len(others)} others {results['agreed_on_target']:.3f} are agreed on.\n"
            f"Accuracy {results['expected_accuracy']:.3f} is expected there: T = {results['temperature']:.3g}, mean confidence "
            f"{confidence:.3f} -> {calibrated:.3f}    results: {output_dir}"
        )

    return transfer


def _with_answers(predictions: OptionPredictions, questions: Dataset) -> OptionPredictions:
    """The answers beside what was asked without them; questions that were too long are not among the predictions."""
    answers = iter(zip(questions["id"], questions["answer"], strict=True))
    labels = [next(answer for asked, answer in answers if asked == name) for name in predictions.ids.tolist()]
    return replace(predictions, labels=np.array(labels))


def _check_asked_alike(
    args: TransferArguments, held_out: OptionPredictions, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Say before the work that what was held out was asked in another way than the others will be."""
    from ..data.prompts import PromptFormat

    if "prompt_format" not in held_out.metadata:
        return  # predictions from elsewhere
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
                f"--held_out_predictions was asked with --{name} {stated}, the others would be with {given}: give the same."
            )
