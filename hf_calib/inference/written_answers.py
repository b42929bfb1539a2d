"""Write answers to questions with a model, greedily or sampled; their likelihood, and the agreement of samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..data.grading import normalize_answer
from ..data.layouts import digest
from ..data.prompts import PromptFormat
from .encoding import QuestionTooLongError
from .generic_texts import check_whole, evaluation_mode, generation_config, own_config, own_random_state, pad_prompts
from .option_head import unwrap_causal_lm
from .predict import context_length, weights_digest


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class WrittenAnswer:
    """
    An answer that a model wrote.

    Args:
        text (`str`):
            The answer: the first line that is not blank, without white space around it. Empty if there is none.
        log_probs (`tuple[float, ...]`):
            Log-probability of each token of the answer, in nats, under the model's own distribution: at temperature 1,
            from the whole vocabulary. The token that ends the answer is not counted.
    """

    text: str
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """
    How answers are drawn.

    Args:
        num_samples (`int`, *optional*, defaults to `1`):
            Number of answers to each question, at least 1.
        temperature (`float`, *optional*, defaults to `0.0`):
            Temperature, at least 0, of samples from the whole vocabulary. 0: greedy.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
    """

    num_samples: int = 1
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples}; it must be at least 1")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature}; it must be at least 0")


# Writes `num_samples` answers to each of the questions (rows with `question`, perhaps `subject`). A model behind a
# server needs such a function and nothing else.
Write = Callable[[Sequence[Mapping[str, Any]], Sampling], list[list[WrittenAnswer]]]


class InterruptedWriting(ValueError):
    """
    Raised where a batch was answered in part.

    Args:
        reason (`str`):
            What went wrong.
        written (`Mapping[int, list[WrittenAnswer]]`, *optional*):
            Answers of the questions that have all of them, by their place in the batch.
    """

    def __init__(self, reason: str, written: Mapping[int, list[WrittenAnswer]] | None = None):
        super().__init__(reason)
        self.written = dict(written or {})


@dataclass(frozen=True, eq=False)
class AnswerWriter:
    """
    A function that writes answers, and what its answers depend on.

    Args:
        write (`Callable`):
            From questions and a [`Sampling`] to a list of [`WrittenAnswer`] for each question. It may raise
            [`InterruptedWriting`] with the answers that it has.
        fingerprint (`Mapping[str, str]`):
            Digests or names of weights, prompts and limits: answers are kept only where all are equal.
    """

    write: Write
    fingerprint: Mapping[str, str]


class ModelAnswers:
    """
    Write answers with a causal language model.

    Generation stops at an EOS token, at the first line break after some text, or after `max_new_tokens`.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, on the device where it is to run.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt_format ([`~hf_calib.PromptFormat`]):
            How a question is written; its scoring is `"text"`.
        max_new_tokens (`int`, *optional*, defaults to `32`):
            Largest number of tokens of an answer, at least 1.
        max_length (`int`, *optional*):
            Largest number of tokens of a prompt with an answer. Defaults to the context length of the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt_format: PromptFormat,
        max_new_tokens: int = 32,
        max_length: int | None = None,
    ):
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}; it must be at least 1")
        self.model = unwrap_causal_lm(extract_model_from_parallel(model))
        check_whole(self.model)
        self.tokenizer, self.prompt_format = tokenizer, prompt_format
        self.max_new_tokens, self.max_length = max_new_tokens, max_length or context_length(model)

    def writer(self) -> AnswerWriter:
        """The writer, with the digest of the weights."""
        chat = self.tokenizer.chat_template if self.prompt_format.uses_chat_template(self.tokenizer) else ""
        fingerprint = {
            "weights": weights_digest(self.model),
            "prompts": digest(repr(self.prompt_format), chat),
            "max_new_tokens": str(self.max_new_tokens),
        }
        return AnswerWriter(self, fingerprint)

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """
        Token ids of a question's prompt.

        Raises:
            [`QuestionTooLongError`]: if it leaves less than `max_new_tokens` tokens.
        """
        most = None if self.max_length is None else self.max_length - self.max_new_tokens
        return encode_question(self.tokenizer, self.prompt_format, row, most)

    @torch.no_grad()
    def __call__(self, questions: Sequence[Mapping[str, Any]], sampling: Sampling) -> list[list[WrittenAnswer]]:
        """
        Write answers to a batch of questions.

        Args:
            questions (`Sequence[Mapping]`):
                Rows with `question`, and `subject` if the template uses it.
            sampling ([`Sampling`]):
                How many, and how they are drawn.

        Returns:
            `list[list[WrittenAnswer]]`: `num_samples` answers of each question.
        """
        prompts, n = [self.prompt(row) for row in questions], sampling.num_samples
        config = generation_config(self.model, self.tokenizer, self.max_new_tokens, sampling.temperature)
        width, recorder = max(map(len, prompts)), _Recorder()
        with evaluation_mode(self.model), own_config(self.model, config), own_random_state(self.model, sampling.seed):
            batch = self._read_once(pad_prompts(self.model, config.pad_token_id, prompts), n)
            sequences = self.model.generate(
                **batch,
                generation_config=config,
                logits_processor=LogitsProcessorList([recorder]),
                stopping_criteria=StoppingCriteriaList([_LineEnd(self._text, width)]),
            )
        log_probs = recorder.finish(sequences).tolist()
        ends = config.eos_token_id or []
        written = [
            self._answer(tokens, row, ends)
            for tokens, row in zip(sequences[:, width:].tolist(), log_probs, strict=True)
        ]
        return [written[first : first + n] for first in range(0, len(written), n)]

    def _read_once(self, batch: dict[str, torch.Tensor], n: int) -> dict[str, Any]:
        """Repeat each prompt n times; the keys and values of its tokens but the last are computed once."""
        repeated: dict[str, Any] = {name: tensor.repeat_interleave(n, dim=0) for name, tensor in batch.items()}
        if n == 1 or batch["input_ids"].shape[1] < 2:
            return repeated
        first = {name: tensor[:, :-1] for name, tensor in batch.items()}
        positions = (first["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        cache = self.model.base_model(**first, position_ids=positions, use_cache=True).past_key_values
        if type(cache) is DynamicCache and not any(cache.is_sliding):
            cache.batch_repeat_interleave(n)
            repeated["past_key_values"] = cache
        return repeated

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _answer(self, tokens: list[int], log_probs: list[float], ends: Sequence[int]) -> WrittenAnswer:
        """The first line with text, and the log-probabilities of its tokens."""
        length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        return first_answer(tokens[:length], log_probs, self._text)


def encode_question(
    tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, row: Mapping[str, Any], most: int | None = None
) -> list[int]:
    """
    Token ids of the prompt of a question that is answered in free text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]), prompt_format ([`~hf_calib.PromptFormat`]):
            How it is written.
        row (`Mapping`):
            A question with `question`, perhaps `id` and `subject`.
        most (`int`, *optional*):
            Largest number of tokens.

    Raises:
        [`QuestionTooLongError`]: if there are more.
    """
    text, _, _ = prompt_format.render(tokenizer, row["question"], [], subject=row.get("subject"))
    special = prompt_format.add_special_tokens(tokenizer)
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    if special and ids and ids[-1] == tokenizer.eos_token_id:  # with `add_eos_token=True`
        ids = ids[:-1]
    if most is not None and len(ids) > most:
        raise QuestionTooLongError(
            f"Question {row.get('id', row['question'][:60])!r} needs {len(ids)} tokens, and the limit less those of "
            f"its answer is {most}. Raise max_length, or leave the question out."
        )
    return ids


def first_answer(
    tokens: Sequence[Any], log_probs: Sequence[float], decode: Callable[[Sequence[Any]], str]
) -> WrittenAnswer:
    """
    Cut what a model wrote to its first line with text.

    Args:
        tokens (`Sequence`):
            What was written, without the token that ends it.
        log_probs (`Sequence[float]`):
            Log-probability of each token, in nats.
        decode (`Callable`):
            From the first tokens to their text.
    """
    length = next((n for n in range(1, len(tokens) + 1) if _is_line(decode(tokens[:n]))), len(tokens))
    text = first_line(decode(tokens[:length]))
    while length and first_line(decode(tokens[: length - 1])) == text:  # a line break or a space alone
        length -= 1
    return WrittenAnswer(text, tuple(log_probs[:length]))


def first_line(text: str) -> str:
    """The first line of a text that is not blank, without white space around it."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _is_line(text: str) -> bool:
    """Whether a text has a line break after some other text."""
    return "\n" in text.lstrip()


class _LineEnd(StoppingCriteria):
    """Stop a row at the first line break after some text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], start: int):
        self.decode, self.start = decode, start

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.Tensor:
        done = [_is_line(self.decode(row)) for row in input_ids[:, self.start :].tolist()]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class _Recorder(LogitsProcessor):
    """Keep the log-probability of every chosen token, from the logits before the temperature."""

    def __init__(self):
        self.chosen: list[torch.Tensor] = []
        self._last: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        self._keep(input_ids)
        self._last = scores.float().log_softmax(-1)
        return scores

    def _keep(self, input_ids: torch.Tensor) -> None:
        if self._last is not None:
            self.chosen.append(self._last.gather(-1, input_ids[:, -1:])[:, 0].cpu())

    def finish(self, sequences: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `(batch, tokens)` of all that was written."""
        self._keep(sequences)
        return torch.stack(self.chosen, dim=1)


def likelihood(answer: WrittenAnswer, mean: bool = True) -> float:
    """
    Likelihood of an answer; 0 for an empty one.

    Args:
        answer ([`WrittenAnswer`]):
            The answer.
        mean (`bool`, *optional*, defaults to `True`):
            Exponential of the mean log-probability of its tokens, instead of the sum.

    Raises:
        `ValueError`: for an answer without log-probabilities.
    """
    if not answer.text:
        return 0.0
    if not answer.log_probs:
        raise ValueError(
            f"the answer {answer.text[:60]!r} has no log-probabilities: a run without a likelihood saved it. Choose "
            "another output_dir, or write the answers again with resume=False (`--no_resume`)"
        )
    return float(np.exp(np.mean(answer.log_probs) if mean else np.sum(answer.log_probs)))


def agreement(answer: str, samples: Sequence[WrittenAnswer]) -> float:
    """
    Share of samples that agree with an answer after normalisation, `(k + 1/2) / (N + 1)`; 0 for an empty answer.

    The added half keeps the confidence of k = 0 and k = N inside (0, 1), where log-odds are finite.

    Args:
        answer (`str`):
            The greedy answer.
        samples (`Sequence[WrittenAnswer]`):
            N sampled answers.
    """
    if not answer:
        return 0.0
    counts = Counter(_group(sample.text) for sample in samples)
    return (counts[_group(answer)] + 0.5) / (len(samples) + 1)


def _group(text: str) -> str:
    """What two answers must share to agree: the normalised text, or the text itself if nothing else is left."""
    return normalize_answer(text) or text
