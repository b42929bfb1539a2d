"""
Confidences of written answers: likelihood, agreement of samples, P(True).

All are kept as [`OptionPredictions`] with two options: the answer is right (option 0), the answer is wrong (option 1).
Option 0 has the confidence as its probability, and `metadata["answer_confidence"]` its name. So everything that takes
option predictions takes them. Measures and thresholds take the probability of option 0 as the confidence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.grading import Grader, grade_answers
from ..data.prompts import ANSWER_TEMPLATE, PromptFormat
from ..data.short_answers import JUDGEMENT_CHOICES, JUDGEMENT_TEMPLATE, p_true_questions, short_questions
from .answer_files import write_answers
from .encoding import IGNORE_INDEX, QuestionTooLongError
from .model_loading import process_state
from .predict import model_name, predict_options
from .predictions import OptionPredictions
from .written_answers import AnswerWriter, ModelAnswers, Sampling, agreement, likelihood


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CONFIDENCES = ("likelihood", "sequence_likelihood", "agreement", "p_true")
# Nearest that a confidence comes to 0 and 1, so that its log-odds are finite.
NEAREST = 1e-6


@dataclass(frozen=True)
class AnswerOptions:
    """
    Options of [`predict_answers`].

    Args:
        confidences (`tuple[str, ...]`, *optional*, defaults to `("likelihood", "agreement", "p_true")`):
            Confidences to compute. `"likelihood"`: exponential of the mean log-probability of the answer's tokens,
            without the token that ends it; `"sequence_likelihood"`: of their sum. `"agreement"`: share of samples that
            agree with the greedy answer after [`~hf_calib.normalize_answer`], `(k + 1/2) / (N + 1)` for k of N
            samples. `"p_true"`: probability of True to the question whether the answer is right.
        prompt_format ([`~hf_calib.PromptFormat`], *optional*):
            How a question is written, with scoring `"text"`. Defaults to `ANSWER_TEMPLATE` of `hf_calib.data.prompts`.
        judgement_format ([`~hf_calib.PromptFormat`], *optional*):
            How the question whether an answer is right is written and scored. Defaults to letters, with the chat
            template and the system prompt of `prompt_format`.
        judgement_template (`str`, *optional*), judgement_choices (`tuple[str, str]`, *optional*):
            Text of that question, and its two options; see [`~hf_calib.p_true_questions`].
        max_new_tokens (`int`, *optional*, defaults to `32`):
            Largest number of tokens of an answer.
        num_samples (`int`, *optional*, defaults to `10`):
            Number N of samples of a question for `"agreement"`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the samples, above 0. At 1 a sample is drawn from the model's own distribution.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
        grader (`Callable`, *optional*):
            From a written answer and the accepted texts to true or false. Defaults to
            [`~hf_calib.data.grading.exact_match`].
        batch_size (`int`, *optional*, defaults to `8`):
            Questions in a batch, or samples.
        max_length (`int`, *optional*):
            Largest number of tokens of a prompt with its answer. Defaults to the context length of the model.
        drop_too_long (`bool`, *optional*, defaults to `False`):
            Leave out longer questions, and log their number, instead of raising.
        output_dir (`str` or `Path`, *optional*):
            Folder of `answers.jsonl`, `samples.jsonl` and `p_true/predictions.npz`, from which a run resumes.
        resume (`bool`, *optional*, defaults to `True`):
            Keep what `output_dir` holds, if it is of the same model and questions.
        progress (`bool`, *optional*, defaults to `True`):
            Show progress bars.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the questions need accepted texts. With `False` nothing is graded, and all labels are -100.

    Raises:
        `ValueError`: for a value that is not allowed.
    """

    confidences: Sequence[str] = ("likelihood", "agreement", "p_true")
    prompt_format: PromptFormat | None = None
    judgement_format: PromptFormat | None = None
    judgement_template: str = JUDGEMENT_TEMPLATE
    judgement_choices: tuple[str, str] = JUDGEMENT_CHOICES
    max_new_tokens: int = 32
    num_samples: int = 10
    temperature: float = 1.0
    seed: int = 0
    grader: Grader | None = None
    batch_size: int = 8
    max_length: int | None = None
    drop_too_long: bool = False
    output_dir: str | Path | None = None
    resume: bool = True
    progress: bool = True
    labelled: bool = True

    def __post_init__(self):
        if unknown := [name for name in self.confidences if name not in CONFIDENCES]:
            raise ValueError(f"confidence {unknown[0]!r}; choose among {', '.join(CONFIDENCES)}")
        if not self.confidences:
            raise ValueError("confidences is empty: name at least one")
        for name in ("max_new_tokens", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; samples need one above 0")

    @property
    def answer_format(self) -> PromptFormat:
        """How a question is written."""
        return self.prompt_format or PromptFormat("text", ANSWER_TEMPLATE)

    @property
    def judging_format(self) -> PromptFormat:
        """How the question whether an answer is right is written."""
        given = self.answer_format
        return self.judgement_format or PromptFormat("letter", None, given.use_chat_template, given.system_prompt)

    def path(self, name: str) -> Path | None:
        """A file in `output_dir`."""
        return None if self.output_dir is None else Path(self.output_dir).expanduser() / name


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
    options = replace(options or AnswerOptions(), **changes)
    source = ModelAnswers(model, tokenizer, options.answer_format, options.max_new_tokens, options.max_length)
    questions = _fitting(source, short_questions(dataset, labelled=options.labelled), options.drop_too_long)

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

    metadata = {"model": model_name(model), "too_long": len(dataset) - len(questions)}
    return collect_answers(source.writer(), judge, questions, options, metadata)


def _fitting(source: ModelAnswers, questions: Dataset, drop_too_long: bool) -> Dataset:
    kept = []
    for index, row in enumerate(questions):
        try:
            source.prompt(row)
            kept.append(index)
        except QuestionTooLongError as error:
            if not drop_too_long:
                raise QuestionTooLongError(f"{error} `drop_too_long=True` leaves out all such questions.") from None
    if not kept:
        raise QuestionTooLongError(f"none of {len(questions)} questions fits in max_length={source.max_length}")
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
        "max_new_tokens": options.max_new_tokens,
        "empty_answers": found.num_empty,
        "fingerprint": dict(writer.fingerprint),
    }
    for name in options.confidences:
        if name == "p_true":
            found.predictions[name] = _judged(found, judge, options, metadata)
            continue
        entries = {"answer_confidence": name, "prompt_format": asdict(options.answer_format), **metadata}
        if name == "agreement":
            entries |= {"num_samples": options.num_samples, "temperature": options.temperature}
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
    stated = {**metadata, **judged.metadata, "answer_confidence": "p_true"}
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
