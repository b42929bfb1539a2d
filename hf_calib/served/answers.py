"""Written answers of a model behind a server, and their confidences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ..data.layouts import digest
from ..data.prompts import PromptFormat
from ..data.short_answers import short_questions
from ..inference.answer_confidence import AnswerPredictions, collect_answers, fitting_questions
from ..inference.answer_options import AnswerOptions
from ..inference.predict import PredictionOptions
from ..inference.written_answers import (
    AnswerWriter,
    InterruptedWriting,
    Sampling,
    WrittenAnswer,
    encode_question,
    first_answer,
    first_line,
)
from .client import Generation, Prompt, RequestSampling, ServedModel
from .errors import EndpointError
from .identity import KeptIdentity
from .predict import check_one_process, check_options, predict_served_options, uses_chat
from .probe import probe_server


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Spelling of a special token, such as <|im_end|> or </s>; <0xE9> is a byte.
_SPECIAL = re.compile(r"<(?!0x)[^<>\s]+>")


def predict_served_answers(
    served: ServedModel,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: AnswerOptions | None = None,
    **changes,
) -> AnswerPredictions:
    """
    Let a served model write answers, grade them, and compute their confidences.

    Questions are chat messages; with `use_chat_template=False` they are plain texts that the model continues; with the
    tokenizer of the model they are the very token ids that [`~hf_calib.predict_answers`] reads. Every answer is saved
    when its batch ends or fails. For a likelihood the server's sampling is probed before the first answer that is not
    saved; without one no log-probabilities are saved, because nothing checks them.

    Args:
        served ([`ServedModel`]):
            The model.
        dataset (`Dataset`):
            Questions with accepted texts, or option questions; see [`~hf_calib.load_short_questions`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the served model, to render and encode prompts here.
        options ([`~hf_calib.AnswerOptions`], *optional*):
            As for [`~hf_calib.predict_answers`]; `max_length` needs the tokenizer. Without it `drop_too_long` leaves
            out of P(True) what the server refuses to judge as too long, and a question that is too long itself raises.
        changes:
            Fields that replace those of `options`.

    Returns:
        [`~hf_calib.inference.answer_confidence.AnswerPredictions`]

    Raises:
        `ValueError`: for a malformed question, or one that the server refuses.
        [`~hf_calib.served.errors.EndpointError`]: if the server fails, if it serves another model than the one whose
            answers are saved, or if its sampling changes the log-probabilities and a likelihood is wanted.
    """
    options = replace(options or AnswerOptions(), **changes)
    check_one_process()
    limits = PredictionOptions(max_length=options.max_length)
    check_options(limits, options.judging_format if "p_true" in options.confidences else PromptFormat(), tokenizer)
    options = options.resolved(partial(uses_chat, tokenizer))
    # A smaller batch would keep the server from its number of requests at a time.
    options = replace(options, batch_size=max(options.batch_size, served.options.concurrency))
    questions = short_questions(dataset, labelled=options.labelled)
    likelihoods = bool({"likelihood", "sequence_likelihood"} & set(options.confidences))
    source = ServedAnswers(served, options, tokenizer, keep_log_probs=likelihoods)
    kept = questions if tokenizer is None else fitting_questions(source.prompt, questions, options.drop_too_long)
    identity = KeptIdentity(served, source.chat, options.path("served.json"), options.resume)

    @cache
    def check_server(sampling_too: bool) -> None:
        identity.check()
        if sampling_too:
            _check_sampling(served, source.prompt(min(kept, key=lambda row: len(row["question"]))))

    def write(rows: Sequence[Mapping[str, Any]], sampling: Sampling) -> list[list[WrittenAnswer]]:
        check_server(likelihoods and sampling.temperature == 0)
        return source(rows, sampling)

    def judge(judgements: Dataset, path):
        settings = {name: getattr(options, name) for name in ("max_length", "drop_too_long", "resume", "progress")}
        settings |= {"prompt_format": options.judging_format, "labelled": False, "output_path": path}
        return predict_served_options(served, judgements, tokenizer, **settings)

    metadata = {
        "model": served.model,
        "prompt_digest": None if tokenizer is None else options.answer_format.digest(tokenizer),
        "too_long": len(questions) - len(kept),
        "served": {
            "api": "chat/completions" if source.chat else "completions",
            "extra_body": dict(served.options.extra_body),
            "identity": identity.as_dict(),
        },
    }
    return collect_answers(replace(source.writer(), write=write), judge, kept, options, metadata)


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
        options ([`~hf_calib.AnswerOptions`]):
            How a question is written, and its limits.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the model, to encode prompts here.
        keep_log_probs (`bool`, *optional*, defaults to `True`):
            Keep the log-probabilities of the answers.
    """

    def __init__(
        self,
        served: ServedModel,
        options: AnswerOptions,
        tokenizer: PreTrainedTokenizerBase | None = None,
        keep_log_probs: bool = True,
    ):
        self.served, self.tokenizer, self.keep_log_probs = served, tokenizer, keep_log_probs
        self.prompt_format, self.max_new_tokens = options.answer_format, options.max_new_tokens
        self.most = None if options.max_length is None else options.max_length - options.max_new_tokens

    @property
    def chat(self) -> bool:
        """Whether questions are sent as messages of a chat."""
        return self.tokenizer is None and bool(self.prompt_format.use_chat_template)

    def writer(self) -> AnswerWriter:
        """The writer, with what its answers depend on."""
        extra = json.dumps(dict(self.served.options.extra_body), sort_keys=True)
        fingerprint = {
            "model": digest(self.served.model),
            "prompts": digest(repr(self.prompt_format), self.tokenizer and self.prompt_format.digest(self.tokenizer)),
            "max_new_tokens": str(self.max_new_tokens),
            "requests": digest(extra),
        }
        return AnswerWriter(self, fingerprint)

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        """Messages, token ids or text of a question."""
        if self.tokenizer is not None:
            return encode_question(self.tokenizer, self.prompt_format, row, self.most)
        write = self.prompt_format.messages if self.chat else self.prompt_format.plain
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
