"""
Confidences of written answers: likelihood, agreement of samples, P(True).

All are kept as [`OptionPredictions`] with two options: the answer is right (option 0), the answer is wrong (option 1).
Option 0 has the confidence as its probability, and `metadata["answer_confidence"]` its name. So everything that takes
option predictions takes them. Measures and thresholds take the probability of option 0 as the confidence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.grading import grade_answers
from ..data.short_answers import p_true_questions, short_questions
from .answer_files import write_answers
from .answer_options import AnswerOptions
from .encoding import IGNORE_INDEX, QuestionTooLongError
from .model_loading import process_state
from .predict import model_name, predict_options
from .predictions import OptionPredictions
from .written_answers import AnswerWriter, ModelAnswers, Sampling, agreement, likelihood


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Nearest that a confidence comes to 0 and 1, so that its log-odds are finite.
NEAREST = 1e-6


@dataclass(eq=False)
class AnswerPredictions:
    """
    Written answers of N questions, their grades and confidences.

    Args:
        questions (`Dataset`):
            The questions, without those that were left out.
        answers (`list[str]`):
            The greedy answers.
        correct (`list[bool]`, *optional*):
            Whether each is right; `None` if the accepted texts are not known.
        predictions (`dict[str, OptionPredictions]`):
            Probability that the answer is right (option 0) and wrong (option 1), by confidence.
        judgements (`Dataset`):
            Option questions whether each answer is right; see [`~hf_calib.p_true_questions`].
    """

    questions: Dataset
    answers: list[str]
    correct: list[bool] | None
    predictions: dict[str, OptionPredictions] = field(default_factory=dict)
    judgements: Dataset | None = None

    @property
    def num_empty(self) -> int:
        """Number of empty answers, which count as wrong."""
        return sum(not answer for answer in self.answers)

    def summary(self) -> str:
        """Describe the answers in a sentence or two."""
        text = f"{len(self.answers):,} answers"
        if self.correct is not None:
            text += f", {sum(self.correct):,} right"
        text += f", {self.num_empty:,} empty (counted as wrong)." if self.num_empty else "."
        if self.correct and len(set(self.correct)) == 1:
            which = "right" if self.correct[0] else "wrong"
            text += f" All are {which}: no confidence can be told from another, and none can be recalibrated."
        return text


# Scores option questions without their labels, and keeps the scores at a path: `predict_options`, or a served model.
Judge = Callable[["Dataset", "Path | None"], OptionPredictions]


def predict_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    options: AnswerOptions | None = None,
    **changes,
) -> AnswerPredictions:
    """
    Write an answer to each question, grade it, and compute its confidences.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, on the device where it is to run.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset (`Dataset`):
            Questions with accepted texts, or option questions, whose options are not shown; see
            [`~hf_calib.load_short_questions`].
        options ([`AnswerOptions`], *optional*):
            All options.
        changes:
            Fields of [`AnswerOptions`] that replace those of `options`.

    Returns:
        [`AnswerPredictions`]

    Raises:
        `ValueError`: for a malformed question, answers of another model in `output_dir`, or NaN in the logits.
        [`~hf_calib.inference.encoding.QuestionTooLongError`]: for a question longer than `max_length`.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> questions = Dataset.from_list([{"question": "What is the capital of France?", "answers": ["Paris"]}])
    >>> found = predict_answers(model, tokenizer, questions, confidences=("likelihood",))  # doctest: +SKIP
    >>> found.answers, found.predictions["likelihood"].probabilities[:, 0]  # doctest: +SKIP
    (['Paris'], array([0.81], dtype=float32))

    ```
    """
    options = replace(options or AnswerOptions(), **changes).resolved(
        lambda prompt_format: prompt_format.uses_chat_template(tokenizer)
    )
    source = ModelAnswers(model, tokenizer, options.answer_format, options.max_new_tokens, options.max_length)
    questions = short_questions(dataset, labelled=options.labelled)
    questions = fitting_questions(source.prompt, questions, options.drop_too_long)

    def judge(judgements: Dataset, path: Path | None) -> OptionPredictions:
        return predict_options(
            model,
            tokenizer,
            judgements,
            prompt_format=options.judging_format,
            batch_size=options.batch_size,
            max_length=options.max_length,
            drop_too_long=options.drop_too_long,
            output_path=path,
            resume=options.resume,
            progress=options.progress,
            labelled=False,
        )

    metadata = {
        "model": model_name(model),
        "prompt_digest": options.answer_format.digest(tokenizer),
        "too_long": len(dataset) - len(questions),
    }
    return collect_answers(source.writer(), judge, questions, options, metadata)


def fitting_questions(encode: Callable[[Mapping[str, Any]], Any], questions: Dataset, drop_too_long: bool) -> Dataset:
    """
    Leave out questions that are too long.

    Args:
        encode (`Callable`):
            Encodes a question; it raises [`QuestionTooLongError`] for one that is too long.
        questions (`Dataset`):
            The questions.
        drop_too_long (`bool`):
            Whether to leave them out and log their number, instead of raising.
    """
    kept = []
    for index, row in enumerate(questions):
        try:
            encode(row)
            kept.append(index)
        except QuestionTooLongError as error:
            if not drop_too_long:
                raise QuestionTooLongError(f"{error} `drop_too_long=True` leaves out all such questions.") from None
    if not kept:
        raise QuestionTooLongError(f"none of {len(questions)} questions is short enough: raise max_length")
    if len(kept) < len(questions):
        logger.warning(f"left out {len(questions) - len(kept)} of {len(questions)} questions as too long")
    return questions.select(kept) if len(kept) < len(questions) else questions


def collect_answers(
    writer: AnswerWriter,
    judge: Judge,
    questions: Dataset,
    options: AnswerOptions,
    metadata: dict[str, Any] | None = None,
) -> AnswerPredictions:
    """
    Write, grade and judge answers by two functions: the part of [`predict_answers`] that needs no model of its own.

    Args:
        writer ([`~hf_calib.inference.written_answers.AnswerWriter`]):
            Writes answers.
        judge (`Callable`):
            From option questions and a path to their [`OptionPredictions`], for P(True).
        questions (`Dataset`):
            Questions of [`~hf_calib.load_short_questions`].
        options ([`AnswerOptions`]):
            All options.
        metadata (`dict`, *optional*):
            Entries for the metadata of the predictions, e.g. `model`.

    Returns:
        [`AnswerPredictions`]
    """
    keeping = {"batch_size": options.batch_size, "resume": options.resume, "progress": options.progress}
    written = write_answers(writer, questions, Sampling(), options.path("answers.jsonl"), **keeping)
    greedy = [answers[0] for answers in written]
    found = AnswerPredictions(questions, [answer.text for answer in greedy], None)
    if options.labelled:
        found.correct = grade_answers(found.answers, questions["answers"][:], options.grader)
    wording = (options.judgement_template, options.judgement_choices)
    found.judgements = p_true_questions(questions, found.answers, found.correct, *wording)
    metadata = {
        **(metadata or {}),
        "empty_answers": found.num_empty,
        "fingerprint": dict(writer.fingerprint),
    }
    for name in options.confidences:
        if name == "p_true":
            found.predictions[name] = _judged(found, judge, options, metadata)
            continue
        entries = {"answer_confidence": name, "prompt_format": asdict(options.answer_format), **metadata}
        entries["answering"] = options.statement(name)
        if name == "agreement":
            sampling = Sampling(options.num_samples, options.temperature, options.seed)
            samples = write_answers(writer, questions, sampling, options.path("samples.jsonl"), **keeping)
            values = [agreement(answer.text, drawn) for answer, drawn in zip(greedy, samples, strict=True)]
        else:
            values = [likelihood(answer, mean=name == "likelihood") for answer in greedy]
        found.predictions[name] = answer_predictions(np.array(values), found, entries)
        _save(found.predictions[name], options.path(f"{name}/predictions.npz"))
    return found


def _judged(
    found: AnswerPredictions, judge: Judge, options: AnswerOptions, metadata: dict[str, Any]
) -> OptionPredictions:
    """P(True), with the grades as labels. It is scored without them, so that other grades need no other scores."""
    path = options.path("p_true/predictions.npz")
    judged = judge(found.judgements, path)
    labels = np.array([IGNORE_INDEX if label is None else label for label in found.judgements["answer"]])
    if len(judged) < len(labels):  # some were too long
        of = dict(zip(found.judgements["id"], labels, strict=True))
        labels = np.array([of[name] for name in judged.ids])
    answering = options.statement("p_true")
    stated = {**metadata, **judged.metadata, "answer_confidence": "p_true", "answering": answering}
    judged = replace(judged, labels=labels, metadata=stated)
    _save(judged, path)
    return judged


def _save(predictions: OptionPredictions, path: Path | None) -> None:
    state = process_state()
    if path is not None and state.is_main_process:
        predictions.save(path)
    state.wait_for_everyone()


def answer_predictions(values: np.ndarray, found: AnswerPredictions, metadata: dict[str, Any]) -> OptionPredictions:
    """
    Make option predictions of confidences: option 0 is that the answer is right, option 1 that it is wrong.

    Args:
        values (`np.ndarray` of shape `(N,)`):
            Confidences. Those nearer to 0 or 1 than 1e-6 are moved there.
        found ([`AnswerPredictions`]):
            Questions and grades.
        metadata (`dict`):
            Entries of the metadata.
    """
    values = np.clip(values.astype(np.float64), NEAREST, 1 - NEAREST)
    labels = np.full(len(values), IGNORE_INDEX) if found.correct is None else np.where(found.correct, 0, 1)
    subjects = None
    if "subject" in found.questions.column_names and None not in found.questions["subject"]:
        subjects = np.array(found.questions["subject"], dtype=np.str_)
    return OptionPredictions(
        option_logits=np.stack([np.log(values), np.log1p(-values)], axis=1).astype(np.float32),
        labels=labels.astype(np.int64),
        ids=np.array(found.questions["id"], dtype=np.str_),
        subjects=subjects,
        # The options are no tokens, so there is no mass of them, and no temperature to fold into the model.
        metadata={"option_normalization": None, "single_tokens": False, **metadata},
    )
