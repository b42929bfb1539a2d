"""`hf-calib answer`: answer a file of questions where the confidence reaches a gate's threshold, else abstain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import QuestionArguments
from .parser import CommandParser
from .served_arguments import ServedArguments


if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation.gate import Gate

_EXAMPLES = """\
examples:
  # 1. predictions of the model for labelled questions; 2. a threshold; 3. answers to new questions
  hf-calib evaluate --model ./my-model --dataset labelled.parquet --output_dir after
  hf-calib threshold after --target_accuracy 0.9 --output_dir gate
  hf-calib answer --model ./my-model --gate gate/gate.json --dataset questions.parquet --output answers.jsonl

  # with a post-hoc calibrator: the gate is of predictions that it calibrated
  hf-calib calibrate --predictions fit --apply_to after --method temperature --output_dir calibration
  hf-calib threshold calibration --target_accuracy 0.9 --output_dir gate
  hf-calib answer --model ./my-model --gate gate/gate.json --calibrator calibration/calibrators/temperature \\
      --dataset questions.csv --output answers.csv

  # gate and calibrator that were published with the model
  hf-calib answer --model org/calibrated-model --dataset questions.parquet --output answers.parquet

  # answers in free text: the gate is of a confidence of short answers
  hf-calib evaluate --model ./my-model --dataset short.jsonl --output_dir short
  hf-calib threshold short/p_true --target_accuracy 0.9 --output_dir gate
  hf-calib answer --model ./my-model --gate gate/gate.json --dataset new.jsonl --output answers.jsonl

  # a model behind a server
  hf-calib answer --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-8B --gate gate/gate.json \\
      --dataset questions.parquet --output answers.jsonl

  # on several GPUs
  accelerate launch -m hf_calib answer --model ./my-model --gate gate/gate.json \\
      --dataset questions.parquet --output answers.jsonl

  # does the gate still hold? with labels the accuracy is tested, without them a shift of the confidences
  hf-calib threshold --check gate/gate.json answers.npz

The questions are asked as those of the gate: its prompt format and scoring, with options or in free text. A gate of
another model, dtype, calibrator or tokenizer is an error; a served model is another one if its log-probabilities
differ. Answers in the file are not shown to the model; if all questions have one, the accuracy is
printed. With a gate by subject, a question without a subject is an error, and one of an unknown subject is not
answered.

writes:
  OUTPUT (.jsonl, .csv, .parquet)
                         a row for each question, in their order: id, question, answered, answer (letter), text,
                         confidence; subject and correct where they are known. Where it abstains, answer and text are
                         empty; confidence and correct are those of the likeliest option. In free text, text is the
                         answer and answer is empty.
  OUTPUT (.npz)          calibrated predictions behind the answers, for --check. An interrupted run resumes from
                         OUTPUT.npz.partial; with another gate on the same questions nothing is computed again.
  OUTPUT.npz.written/    in free text: what the model wrote, from which a run resumes
"""


@dataclass(kw_only=True)
class AnswerArguments(ServedArguments, QuestionArguments):
    """Arguments of `hf-calib answer`."""

    model: str = field(
        metadata={
            "help": "Model or adapter: a local folder or a name on the Hub; with --endpoint its name on the server."
        }
    )
    dataset: str = field(
        metadata={"help": "Questions: a parquet, csv or json(l) file, a folder, or a name on the Hub."}
    )
    output: str = field(metadata={"help": "File of answers to write; its ending is .jsonl, .csv or .parquet."})
    gate: str | None = field(
        default=None,
        metadata={"help": "gate.json of hf-calib threshold, or its folder (default: the one published with --model)."},
    )
    calibrator: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the calibrator of the gate's predictions (default: the one published with --model, if "
            "they were calibrated)."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draw of --limit questions."})
    no_resume: bool = field(
        default=False, metadata={"help": "Start over instead of resuming from what is beside --output."}
    )

    def __post_init__(self):
        self.check_values()


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Load and check gate, questions and model; the result answers, writes and prints a summary."""
    usage = "--model MODEL --gate GATE --dataset DATASET --output OUTPUT"
    (args,) = CommandParser("answer", AnswerArguments, usage, _EXAMPLES).parse(argv)
    from ..evaluation.selective_answers import check_output
    from ..evaluation.tables import check_output_dir
    from ..hub.gate import load_gate, usable_gate
    from ..hub.selective_answerer import SelectiveAnswerer
    from ..training.library_warnings import ignore_library_warnings

    output = check_output(args.output)
    predictions = output.with_suffix(".npz")
    _check_resumable(args, output, predictions)
    if args.endpoint is not None and args.gate is None:
        raise ValueError("give --gate: none is published with a served model.")
    gate = usable_gate(args.gate or load_gate(args.model, args.revision))
    check_output_dir(output.parent)
    questions, unlabelled = _questions(args, gate)
    if args.endpoint is None:
        ignore_library_warnings()
        load = SelectiveAnswerer.from_pretrained
        answerer = load(args.model, gate, args.calibrator, args.batch_size, **args.loading)
    else:
        served = args.served_model(args.model)
        answerer = SelectiveAnswerer(served, args.served_tokenizer(), gate, args.calibrator, args.batch_size)
    answerer.check_subjects(questions)
    questions = answerer.fitting(questions, args.max_length) if args.drop_too_long else questions

    def answer() -> None:
        from accelerate import PartialState

        from ..evaluation.selective_answers import answers_summary, save_answers

        answers, found = answerer.answer(
            questions, max_length=args.max_length, output_path=predictions, resume=not args.no_resume
        )
        if not PartialState().is_main_process:
            return
        save_answers(output, answers)
        print("\n".join(answers_summary(gate, found)))
        if unlabelled:
            print(f"accuracy: not known ({unlabelled})")
        print(f"answers: {output}    predictions: {predictions}")

    return answer


def _check_resumable(args: AnswerArguments, output: Path, predictions: Path) -> None:
    """Refuse to replace files of which it is not known whether they are of the same model and questions."""
    if output.stem == "predictions":
        raise ValueError(f"{predictions} is the name of a file of hf-calib evaluate: choose another --output.")
    kept = (predictions, *(predictions.with_name(f"{predictions.name}.{end}") for end in ("partial", "written")))
    if output.exists() and not any(path.exists() for path in kept) and not args.no_resume:
        raise ValueError(
            f"{output} exists, and its predictions {predictions} do not, so its model is not known: choose another "
            "--output, or overwrite it with --no_resume true."
        )


def _questions(args: AnswerArguments, gate: Gate) -> tuple[Dataset, str | None]:
    """The questions, with their answers if all have one; else also the reason why the answers are not used."""
    from ..data.adapters import UnknownLayoutError
    from ..data.files import load_records
    from ..data.questions import load_questions
    from ..data.short_answers import load_short_questions

    records = load_records(args.dataset, args.dataset_config, args.split)
    written = gate.fingerprint.get("answer_confidence")
    load = partial(_load, args, load_short_questions if written else load_questions, records)
    questions = load(labelled=False)
    if grader := (gate.fingerprint.get("answering") or {}).get("grader"):
        return questions, f"the function {grader} graded the answers of the gate"
    try:
        labelled = load(labelled=True)
    except UnknownLayoutError:
        return questions, "the questions have no answers"
    except ValueError as error:
        return questions, str(error)
    if labelled["id"][:] != questions["id"][:]:  # --drop_invalid leaves out questions without an answer
        return questions, "not all questions have a valid answer"
    return labelled, None


def _load(args: AnswerArguments, load: Callable, records, labelled: bool) -> Dataset:
    """Questions in the order of the file, also those that --limit draws."""
    from ..hub.verify import sample_questions

    reading = {**args.reading, "drop_invalid": args.drop_invalid, "labelled": labelled, "records": records}
    questions = load(args.dataset, args.dataset_config, args.split, **reading)
    return sample_questions(questions, args.limit, args.seed)
