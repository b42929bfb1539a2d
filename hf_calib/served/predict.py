"""Predict the log-likelihoods of the options' letters with a model behind a server."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..data.adapters import adapt_questions
from ..data.layouts import digest
from ..data.prompts import PromptFormat
from ..inference.encoding import OptionEncoder, encode_fitting
from ..inference.model_loading import process_state
from ..inference.predict import PredictionOptions, collect_predictions
from ..inference.predictions import OptionPredictions, npz_path
from ..inference.resumable import ResumableScores
from ..prediction_files.answer_token import listed_masses, option_names, option_scores
from .answer_log import AnswerLog
from .client import LogProbabilities, Prompt, RequestSampling, ServedModel
from .errors import EndpointError, NoAnswerError, RequestRefusedError
from .identity import KeptIdentity
from .probe import NEUTRAL, ServerProbe, probe_server


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# After so many answers without any of the options, the work stops.
_WITHOUT_LETTERS = 20
# Answers of this kind are left out.
_TOO_LONG, _UNANSWERED = "too_long", "unanswered"


@dataclass
class _Work:
    """Questions with their prompts, the server, and the answers so far."""

    served: ServedModel
    questions: Dataset
    prompts: Sequence[Prompt]
    options: PredictionOptions
    log: AnswerLog
    identity: KeptIdentity

    def answer_of(self, index: int) -> LogProbabilities | str | None:
        return self.log.answers.get(str(index))

    def names(self, index: int) -> tuple[str, ...]:
        return option_names(len(self.questions[index]["choices"]))


def predict_served_options(
    served: ServedModel,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: PredictionOptions | None = None,
    **changes,
) -> OptionPredictions:
    """
    Score the letters of the options of every question by the log-probabilities that a server sends.

    Without a tokenizer, questions are chat messages, to which the server applies the model's chat template. With
    `use_chat_template=False` they are plain texts that the model continues. With the tokenizer of the model they are
    the very token ids that [`~hf_calib.predict_options`] reads. A letter's probability is that of its tokens with and
    without a space, "A" and " A". Letters that are not among the likeliest tokens share what these leave, up to the
    smallest of them.

    Before the questions are sent, the server is probed; see [`~hf_calib.served.probe.probe_server`]. Every answer is
    saved as soon as it is there, so that a run resumes after a dead server or a killed process.

    Args:
        served ([`ServedModel`]):
            The model.
        dataset (`Dataset`):
            Questions in any layout that [`~hf_calib.data.questions.adapt_questions`] knows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the served model, to render and encode prompts here.
        options ([`PredictionOptions`], *optional*):
            `prompt_format`, `max_length` (with a tokenizer), `drop_too_long`, `output_path`, `resume`, `progress` and
            `labelled`; the others are those of a local model.
        changes:
            Fields of [`PredictionOptions`] that replace those of `options`.

    Returns:
        [`OptionPredictions`]: in the order of the data set. The entry `served` of the metadata has what the probe
            found, the number of questions without some of their letters, and the mean probability of the letters that
            the server listed.

    Raises:
        `ValueError`: for a malformed question, another scoring than that of letters, answers without any letter, a
            question that the server refuses, other questions or requests at `output_path`.
        [`~hf_calib.served.errors.EndpointError`]: if the server fails. All answers before it are saved.
    """
    options = replace(options or PredictionOptions(), **changes)
    prompt_format = options.prompt_format_for(None)
    check_options(options, prompt_format, tokenizer)
    check_one_process()
    prompt_format = prompt_format.resolved(uses_chat(tokenizer, prompt_format))
    questions = adapt_questions(dataset, labelled=options.labelled)
    kept, prompts = _prompts(questions, prompt_format, tokenizer, options)
    questions = questions.select(kept) if len(kept) < len(questions) else questions
    api = "chat/completions" if isinstance(prompts[0], list) and tokenizer is None else "completions"
    requests = {"api": api, "top_logprobs": served.options.top_logprobs, "extra_body": dict(served.options.extra_body)}
    fingerprint = {
        "model": digest(served.model),
        "questions": digest(*questions["id"], *questions["answer"]),
        "prompts": digest(json.dumps(prompts)),
        "requests": digest(json.dumps(requests, sort_keys=True)),
    }
    path = None if options.output_path is None else npz_path(options.output_path)
    results = ResumableScores(path, fingerprint, options.resume, process_state())
    if results.finished is not None:
        return results.finished
    folder = None if path is None else results.folder
    identity = KeptIdentity(served, api == "chat/completions", folder and folder / "served.json")
    log = AnswerLog(folder and folder / "answers.jsonl")
    work = _Work(served, questions, prompts, options, log, identity)
    try:
        _request_all(work, tokenizer, prompt_format)
    except EndpointError as error:
        raise EndpointError(f"{error} ({_saved(work)})") from None
    finally:
        log.close()
    metadata = {
        "model": served.model,
        "prompt_format": asdict(prompt_format),
        "prompt_digest": None if tokenizer is None else prompt_format.digest(tokenizer),
        "option_normalization": "sum",
        "single_tokens": True,
        "fingerprint": fingerprint,
    }
    predictions = _collect(work, metadata, {**requests, "identity": identity.as_dict()})
    predictions.metadata["too_long"] += len(dataset) - len(kept)
    results.finish(predictions)
    return predictions


def uses_chat(tokenizer: PreTrainedTokenizerBase | None, prompt_format: PromptFormat) -> bool:
    """Whether a prompt is a chat, by the tokenizer or at the server."""
    if tokenizer is not None:
        return prompt_format.uses_chat_template(tokenizer)
    return prompt_format.use_chat_template is not False


def check_one_process() -> None:
    """Raise a `ValueError` if there are several processes."""
    if process_state().num_processes > 1:
        raise ValueError("a served model needs one process here: run the command without `accelerate launch`")


def check_options(options: PredictionOptions, prompt_format: PromptFormat, tokenizer=None) -> None:
    """Raise a `ValueError` for options that a served model has no use for."""
    if prompt_format.scoring != "letter" or options.option_normalization != "sum" or options.votes:
        raise ValueError(
            "a served model is scored by the letters of the options: servers send log-probabilities of the likeliest "
            "tokens only, not of given texts"
        )
    if options.max_length is not None and tokenizer is None:
        raise ValueError("max_length needs the tokenizer of the served model")


def _prompts(
    questions: Dataset, prompt_format: PromptFormat, tokenizer, options: PredictionOptions
) -> tuple[list[int], list[Prompt]]:
    """Row numbers of the questions that fit, and their prompts."""
    if tokenizer is not None:
        encoder = OptionEncoder(tokenizer, prompt_format, options.max_length)
        kept, features = encode_fitting(encoder, questions, options.drop_too_long)
        return kept, [feature["input_ids"] for feature in features]
    write = prompt_format.messages if prompt_format.use_chat_template else prompt_format.plain
    prompts = [write(row["question"], row["choices"], row.get("subject")) for row in questions]
    return list(range(len(questions))), prompts


def _request_all(work: _Work, tokenizer, prompt_format: PromptFormat) -> None:
    """Request the answers that are not in the log; raises the first error after those under way are saved."""
    pending = [index for index in range(len(work.questions)) if work.answer_of(index) is None]
    if done := len(work.questions) - len(pending):
        logger.info(f"resuming after {done} of {len(work.questions)} questions")
    if not pending:
        return _check_letters(work)
    # The shortest question is the surest to fit into the context.
    shortest = min(range(len(work.prompts)), key=lambda index: len(str(work.prompts[index])))
    if tokenizer is not None:
        _check_tokenizer(work, shortest, tokenizer, prompt_format)
    num_options = max(map(len, work.questions["choices"]))
    probe = probe_server(work.served, work.prompts[shortest], num_options)
    work.identity.check()
    work.log.add("probe", probe.as_dict())
    failures: list[Exception] = []
    # No further question is sent after a failure.
    sent = takewhile(lambda _: not failures, pending)
    answers = work.served.concurrently(lambda index: _likeliest(work, index, probe), sent)
    hidden = not work.options.progress
    with tqdm(total=len(pending), desc="Requesting answers", unit="question", disable=hidden) as bar:
        for count, (index, answer) in enumerate(answers, start=1):
            try:
                work.log.add(str(index), _accepted(work, index, answer))
                if count == _WITHOUT_LETTERS:
                    _check_letters(work)
            except ValueError as error:
                failures.append(error)
            bar.update()
    if failures:
        raise failures[0]
    _check_letters(work)


def _likeliest(work: _Work, index: int, probe: ServerProbe) -> LogProbabilities:
    """The likeliest tokens; after an empty answer from a sampled one, which states the same of the first token."""
    for sampling in (probe.request, NEUTRAL, NEUTRAL, NEUTRAL):
        try:
            return work.served.likeliest(work.prompts[index], sampling)
        except NoAnswerError as error:
            empty = error
    raise empty


def _accepted(work: _Work, index: int, answer: Any) -> Any:
    """What the log keeps of an answer or of an error that the options allow; other errors are raised."""
    if not isinstance(answer, Exception):
        return answer
    name = work.questions[index]["id"]
    if isinstance(answer, RequestRefusedError):
        if answer.too_long and work.options.drop_too_long:
            return _TOO_LONG
        advice = "; --drop_too_long true leaves out such questions" if answer.too_long else ""
        raise ValueError(f"question {name!r}: {answer}{advice}")
    if work.served.options.drop_unanswered:
        return _UNANSWERED
    raise ValueError(f"question {name!r}: {answer}; --drop_unanswered true leaves out such questions and counts them")


def _check_letters(work: _Work) -> None:
    """Raise a `ValueError` if no answer lists a letter."""
    firsts = []
    for index in range(len(work.questions)):
        answer = work.answer_of(index)
        if isinstance(answer, (list, tuple)):
            if any(listed_masses(answer, work.names(index), around=False)):
                return
            firsts.append(max(answer, key=lambda pair: pair[1])[0])
    if not firsts:
        raise ValueError("no question has an answer: all were left out")
    shown = ", ".join(repr(token) for token in dict.fromkeys(firsts[:8]))
    raise ValueError(
        f"none of the first {len(firsts)} answers lists a letter of the options among the likeliest tokens, which "
        f"are {shown}: {work.served.model} starts its answers otherwise. Ask for the letter alone in "
        "--system_prompt, give --tokenizer, or switch thinking off with --extra_body"
    )


def _check_tokenizer(work: _Work, index: int, tokenizer, prompt_format: PromptFormat) -> None:
    """Raise a `ValueError` if the server splits the text of a prompt into another number of tokens."""
    row, ids = work.questions[index], work.prompts[index]
    text, _, _ = prompt_format.render(tokenizer, row["question"], row["choices"], row.get("subject"))
    usage = work.served.answer(text, RequestSampling()).get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    # The server may add a token that begins the sequence.
    if isinstance(count, int) and abs(count - len(ids)) > 1:
        raise ValueError(
            f"the tokenizer splits question {row['id']!r} into {len(ids)} tokens, the server into {count}: give the "
            "tokenizer of the served model"
        )


def _saved(work: _Work) -> str:
    done = sum(work.answer_of(index) is not None for index in range(len(work.questions)))
    if work.options.output_path is None:
        return f"{done} of {len(work.questions)} questions were answered; with an output_path they would be saved"
    return f"{done} of {len(work.questions)} answers are saved; the same command resumes from them"


def _collect(work: _Work, metadata: dict[str, Any], requests: Mapping[str, Any]) -> OptionPredictions:
    """Combine the answers with the columns of the data set, and count what is missing."""
    answers = [work.answer_of(index) for index in range(len(work.questions))]
    kept = [index for index, answer in enumerate(answers) if not isinstance(answer, str)]
    rows, listed, missing = [], 0.0, 0
    for index in kept:
        names = work.names(index)
        masses = listed_masses(answers[index], names, around=False)
        rows.append(option_scores(answers[index], names, around=False))
        listed += sum(masses) / len(kept)
        missing += 0.0 in masses
    metadata["too_long"] = answers.count(_TOO_LONG)
    metadata["served"] = {
        **requests,
        **work.log.answers["probe"],
        "unanswered": answers.count(_UNANSWERED),
        "missing_letters": missing,
        "listed_mass": round(listed, 6),
    }
    questions = work.questions if len(kept) == len(answers) else work.questions.select(kept)
    return collect_predictions(questions, rows, metadata)
