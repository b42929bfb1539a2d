"""`hf-calib evaluate` of questions that are answered in free text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.text_files import TextRecords
    from ..inference.answer_confidence import AnswerPredictions
    from .evaluate_arguments import EvaluateArguments

DEFAULT_CONFIDENCES = ["likelihood", "agreement", "p_true"]


def takes_answers(args: EvaluateArguments, records: Dataset | TextRecords) -> bool:
    """Whether the questions are to be answered in free text."""
    from ..data.short_answers import holds_short_answers

    return bool(args.confidence) or holds_short_answers(records, args.columns)


def prepare_answers(args: EvaluateArguments, records: Dataset | TextRecords, output_dir: Path) -> Callable[[], None]:
    """Load and check questions and model; the result writes answers, measures their confidences and prints."""
    from ..data.grading import load_grader
    from ..data.short_answers import load_short_questions
    from ..evaluation.protocol import EvaluationProtocol

    if args.reference_predictions:
        raise ValueError("--reference_predictions are of options: written answers have no reference.")
    grader = load_grader(args.grader) if args.grader else None
    drawing = {"limit": args.limit, "seed": args.seed, "drop_invalid": args.drop_invalid, **args.reading}
    questions = load_short_questions(args.dataset, args.dataset_config, args.split, records=records, **drawing)
    confidences = args.confidence or DEFAULT_CONFIDENCES
    protocol = EvaluationProtocol.of({**vars(args), "answer_confidence": confidences[0]})
    keeping = {"batch_size": args.batch_size, "output_dir": output_dir, "resume": not args.no_resume}
    options = protocol.answer_options(confidences, grader, **keeping)
    model, tokenizer = args.load_asked()
    if "p_true" in confidences and tokenizer is not None:
        _check_letters(tokenizer, questions, options)

    def evaluate() -> None:
        from accelerate import PartialState

        from ..evaluation.asking import ask
        from ..evaluation.tables import print_groups, print_table

        found = ask(model, tokenizer, questions, options)
        if not PartialState().is_main_process:
            return
        print(found.summary())
        write_answer_files(output_dir, found)
        stages = []
        for name in confidences:
            results = _results(args, replace(protocol, answer_confidence=name), found, tokenizer)
            stages.append({"stage": name, **results})
            _write(args, output_dir / name, found, results)
        print_table(stages, Path(args.model).name)
        for stage in stages:
            if "n_groups" in stage:
                print(stage["stage"])
                print_groups(stage)
        print(f"regime: {stages[0]['regime']}. {stages[0]['explanation']}")
        for stage in stages:
            if "judgement_regime" in stage:
                print(f"regime of True or False: {stage['judgement_regime']}. {stage['judgement_explanation']}")
        print(f"results: {output_dir}/{{{','.join(confidences)}}}")

    return evaluate


def _check_letters(tokenizer, questions: Dataset, options) -> None:
    """Encode a judgement: fails before the work if the letters are no single tokens."""
    from ..data.short_answers import p_true_questions
    from ..inference.encoding import OptionEncoder

    judgement = p_true_questions(questions.select([0]), ["answer"], [True])[0]
    OptionEncoder(tokenizer, options.judging_format).encode(judgement)


def _results(args: EvaluateArguments, protocol, found: AnswerPredictions, tokenizer) -> dict[str, Any]:
    predictions = found.predictions[protocol.answer_confidence]
    described = {"model": args.model, **protocol.statement(predictions, tokenizer), "empty_answers": found.num_empty}
    return {**described, **protocol.measure(predictions, critical_accuracy=args.critical_accuracy)}


def _write(args: EvaluateArguments, folder: Path, found: AnswerPredictions, results: dict[str, Any]) -> None:
    from ..evaluation.tables import write_evaluation

    title = f"{Path(args.model).name}, {folder.name}"
    write_evaluation(folder, found.predictions[folder.name], results, title, **args.measuring)


def write_answer_files(output_dir: Path, found: AnswerPredictions) -> None:
    """Write `graded.jsonl`, a question a line with answer, grade and confidences, and `p_true/questions.parquet`."""
    columns = {}
    for name, predictions in found.predictions.items():
        values = predictions.outcomes[0].tolist()
        if len(values) < len(found.answers):  # judgements may be too long
            of = dict(zip(predictions.ids.tolist(), values, strict=True))
            values = [of.get(question) for question in found.questions["id"]]
        columns[name] = values
    with open(output_dir / "graded.jsonl", "w", encoding="utf-8") as file:
        for place, row in enumerate(found.questions):
            stated = {name: values[place] for name, values in columns.items()}
            line = {**row, "answer": found.answers[place], "correct": found.correct[place], **stated}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (output_dir / "p_true").mkdir(exist_ok=True)
    found.judgements.to_parquet(output_dir / "p_true" / "questions.parquet")
