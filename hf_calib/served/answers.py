"""Written answers of a model behind a server, and their confidences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ..data.layouts import digest
from ..data.prompts import PromptFormat
from ..data.short_answers import short_questions
from ..inference.answer_confidence import AnswerOptions, AnswerPredictions, collect_answers
from ..inference.predict import PredictionOptions
from ..inference.written_answers import (
    AnswerWriter,
    InterruptedWriting,
    Sampling,
    WrittenAnswer,
    first_answer,
    first_line,
)
from .client import Generation, Prompt, RequestSampling, ServedModel
from .errors import EndpointError
from .predict import check_one_process, check_options, predict_served_options
from .probe import probe_server


if TYPE_CHECKING:
    from datasets import Dataset

# Spelling of a special token, such as <|im_end|> or </s>; <0xE9> is a byte.
_SPECIAL = re.compile(r"<(?!0x)[^<>\s]+>")


def predict_served_answers(
    served: ServedModel, dataset: Dataset, options: AnswerOptions | None = None, **changes
) -> AnswerPredictions:
    """
    Let a served model write answers, grade them, and compute their confidences.

    Questions are chat messages; with `use_chat_template=False` they are plain texts that the model continues. Every
    answer is saved when its batch ends or fails. For a likelihood the server's sampling is probed before the first
    answer that is not saved; without one no log-probabilities are saved, because nothing checks them.

    Args:
        served ([`ServedModel`]):
            The model.
        dataset (`Dataset`):
            Questions with accepted texts, or option questions; see [`~hf_calib.load_short_questions`].
        options ([`~hf_calib.AnswerOptions`], *optional*):
            As for [`~hf_calib.predict_answers`], without `max_length`. `drop_too_long` leaves out of P(True) what the
            server refuses to judge as too long. A question that is too long itself raises.
        changes:
            Fields that replace those of `options`.

    Returns:
        [`~hf_calib.inference.answer_confidence.AnswerPredictions`]

    Raises:
        `ValueError`: for a malformed question, or one that the server refuses.
        [`~hf_calib.served.errors.EndpointError`]: if the server fails, or if its sampling changes the
            log-probabilities and a likelihood is wanted.
    """
    options = replace(options or AnswerOptions(), **changes)
    check_one_process()
    if "p_true" in options.confidences:
        check_options(PredictionOptions(), options.judging_format)
    # A smaller batch would keep the server from its number of requests at a time.
    options = replace(options, batch_size=max(options.batch_size, served.options.concurrency))
    questions = short_questions(dataset, labelled=options.labelled)
    likelihoods = bool({"likelihood", "sequence_likelihood"} & set(options.confidences))
    source = ServedAnswers(served, options.answer_format, options.max_new_tokens, keep_log_probs=likelihoods)

    @cache
    def check_sampling() -> None:
        _check_sampling(served, source.prompt(min(questions, key=lambda row: len(row["question"]))))

    def write(rows: Sequence[Mapping[str, Any]], sampling: Sampling) -> list[list[WrittenAnswer]]:
        if likelihoods and sampling.temperature == 0:
            check_sampling()
        return source(rows, sampling)

    def judge(judgements: Dataset, path):
        settings = {name: getattr(options, name) for name in ("drop_too_long", "resume", "progress")}
        settings |= {"prompt_format": options.judging_format, "labelled": False, "output_path": path}
        return predict_served_options(served, judgements, **settings)

    writer = replace(source.writer(), write=write)
    return collect_answers(writer, judge, questions, options, {"model": served.model, "too_long": 0})


def _check_sampling(served: ServedModel, prompt: Prompt) -> None:
    found = probe_server(served, prompt, 2)
    if found.sampling == "touched":
        raise EndpointError(
            f"the likelihood of an answer needs log-probabilities from before sampling: {found.describe()}; or leave "
            "the likelihood out (--confidence agreement p_true)"
        )


class ServedAnswers:
    """
    Write answers with a served model; it takes the place of [`~hf_calib.inference.written_answers.ModelAnswers`].

    Args:
        served ([`ServedModel`]):
            The model.
        prompt_format ([`~hf_calib.PromptFormat`]):
            How a question is written.
        max_new_tokens (`int`, *optional*, defaults to `32`):
            Largest number of tokens of an answer.
        keep_log_probs (`bool`, *optional*, defaults to `True`):
            Keep the log-probabilities of the answers.
    """

    def __init__(
        self,
        served: ServedModel,
        prompt_format: PromptFormat,
        max_new_tokens: int = 32,
        keep_log_probs: bool = True,
    ):
        self.served, self.prompt_format = served, prompt_format
        self.max_new_tokens, self.keep_log_probs = max_new_tokens, keep_log_probs

    def writer(self) -> AnswerWriter:
        """The writer, with what its answers depend on."""
        extra = json.dumps(dict(self.served.options.extra_body), sort_keys=True)
        fingerprint = {
            "model": digest(self.served.model),
            "prompts": digest(repr(self.prompt_format)),
            "max_new_tokens": str(self.max_new_tokens),
            "requests": digest(extra),
        }
        return AnswerWriter(self, fingerprint)

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        """Messages or text of a question."""
        chat = self.prompt_format.use_chat_template is not False
        write = self.prompt_format.messages if chat else self.prompt_format.plain
        return write(row["question"], [], row.get("subject"))

    def __call__(self, questions: Sequence[Mapping[str, Any]], sampling: Sampling) -> list[list[WrittenAnswer]]:
        """
        Write answers to a batch of questions, at the same time.

        Raises:
            [`InterruptedWriting`]: if the server fails or refuses a question, with the answers that were written.
        """
        items = [(place, draw) for place in range(len(questions)) for draw in range(sampling.num_samples)]
        written: dict[tuple[int, int], WrittenAnswer] = {}

        def write(item: tuple[int, int]) -> Generation:
            drawing = {"seed": (sampling.seed + item[1]) % 2**31, "top_p": 1.0} if sampling.temperature else {}
            request = RequestSampling(sampling.temperature, max_tokens=self.max_new_tokens, **drawing)
            return self.served.generate(self.prompt(questions[item[0]]), request)

        problem = None
        try:
            for item, found in self.served.concurrently(write, items):
                if isinstance(found, Exception):
                    problem = problem or f"question {questions[item[0]]['id']!r}: {found}"
                else:
                    answer = self._answer(found)
                    written[item] = answer if self.keep_log_probs else WrittenAnswer(answer.text)
        except EndpointError as error:
            problem = str(error)
        draws = range(sampling.num_samples)
        whole = {
            place: [written[place, draw] for draw in draws]
            for place in range(len(questions))
            if all((place, draw) in written for draw in draws)
        }
        if problem is not None:
            raise InterruptedWriting(f"{problem} (all answers so far are saved if there is an output_dir)", whole)
        return list(whole.values())

    @staticmethod
    def _answer(found: Generation) -> WrittenAnswer:
        """
        The first line of the answer, and the log-probabilities of its tokens.

        Some servers list the token that ends the answer. It is left out, as for a local model.
        """
        tokens, log_probs = found.tokens, found.log_probabilities
        if _lists_end(tokens, found.text.strip()):
            tokens, log_probs = tokens[:-1], log_probs[:-1]
        answer = first_answer(tokens, log_probs, "".join)
        # A character may be in several tokens, none of which is spelled as a part of the text.
        return WrittenAnswer(first_line(found.text), answer.log_probs or tuple(log_probs))


def _lists_end(tokens: Sequence[str], text: str) -> bool:
    """Whether the last token is one that ends the text, not a part of it."""
    if not tokens:
        return False
    if "".join(tokens[:-1]).strip() == text:
        return "".join(tokens).strip() != text
    # Tokens may be spelled otherwise than the text, as parts of a character are.
    return _SPECIAL.fullmatch(tokens[-1].strip()) is not None and not text.endswith(tokens[-1].strip())
