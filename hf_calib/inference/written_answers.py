"""Write answers to questions with a model, greedily or sampled, and keep them so that an interrupted run resumes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel, gather_object
from tqdm.auto import tqdm
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..data.layouts import digest
from ..data.prompts import PromptFormat
from .encoding import QuestionTooLongError
from .generic_texts import check_whole, evaluation_mode, generation_config, own_config, own_random_state, pad_prompts
from .model_loading import process_state
from .option_head import unwrap_causal_lm
from .predict import context_length, weights_digest


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


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
        text, _, _ = self.prompt_format.render(self.tokenizer, row["question"], [], subject=row.get("subject"))
        special = self.prompt_format.add_special_tokens(self.tokenizer)
        ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        if special and ids and ids[-1] == self.tokenizer.eos_token_id:  # with `add_eos_token=True`
            ids = ids[:-1]
        if self.max_length is not None and len(ids) + self.max_new_tokens > self.max_length:
            raise QuestionTooLongError(
                f"Question {row.get('id', row['question'][:60])!r} needs {len(ids)} tokens and {self.max_new_tokens} "
                f"for its answer, the limit is {self.max_length}. Raise max_length, or leave the question out."
            )
        return ids

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


def write_answers(
    writer: AnswerWriter,
    questions: Dataset,
    sampling: Sampling,
    path: Path | None = None,
    batch_size: int = 8,
    resume: bool = True,
    progress: bool = True,
) -> list[list[WrittenAnswer]]:
    """
    Write answers to all questions, in batches, shared by all processes.

    Args:
        writer ([`AnswerWriter`]):
            Writes the answers to a batch.
        questions (`Dataset`):
            Questions with `id` and `question`.
        sampling ([`Sampling`]):
            How many answers, and how they are drawn.
        path (`Path`, *optional*):
            `.jsonl` file of the answers, one question a line. Each batch is added as it is written.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of answers in a batch.
        resume (`bool`, *optional*, defaults to `True`):
            Keep the answers at `path` if model, prompts and sampling are the same. `False` writes all again.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        `list[list[WrittenAnswer]]`: answers of each question, in the order of the questions.

    Raises:
        `ValueError`: if the answers at `path` are of another model, prompt or sampling, or a log-probability is not
            finite; the answers before it are kept.
    """
    state = process_state()
    file = _AnswerFile(path, {**writer.fingerprint, "sampling": repr(sampling)}, questions, resume, state)
    pending = sorted(set(range(len(questions))) - file.done.keys(), key=lambda i: -len(questions[i]["question"]))
    size = max(1, batch_size // sampling.num_samples)
    batches = [pending[first : first + size] for first in range(0, len(pending), size)]
    hidden = not (progress and state.is_local_main_process)
    unit = "answer" if sampling.temperature == 0 else "sample"
    with tqdm(total=len(pending), desc=f"Writing {unit}s", unit="question", disable=hidden) as bar:
        for first in range(0, len(batches), state.num_processes):
            together = batches[first : first + state.num_processes]
            own = together[state.process_index] if state.process_index < len(together) else []
            rows = [questions[index] for index in own]
            # A batch has draws of its own. A resumed run has the same batches.
            seed = int(digest(sampling.seed, *(row["id"] for row in rows))[:8], 16)
            drawn = Sampling(sampling.num_samples, sampling.temperature, seed)
            try:
                written = list(zip(own, writer.write(rows, drawn) if rows else [], strict=True))
            except InterruptedWriting as error:
                file.add([(own[place], answers) for place, answers in error.written.items()])
                raise
            file.add(gather_object(written))
            bar.update(sum(map(len, together)))
    return [file.done[index] for index in range(len(questions))]


class _AnswerFile:
    """Answers by index of the question, and the file that they are added to."""

    def __init__(self, path: Path | None, fingerprint: dict[str, str], questions: Dataset, resume: bool, state):
        self.path, self.questions, self.state = path, questions, state
        self.done: dict[int, list[WrittenAnswer]] = {}
        if path is None:
            return
        if state.is_main_process:
            self._prepare(path.with_suffix(".fingerprint.json"), fingerprint, resume)
        state.wait_for_everyone()
        self._read()
        if self.done and state.is_main_process:
            logger.info(f"{path}: {len(self.done)} questions are answered already")
        state.wait_for_everyone()

    def _prepare(self, record: Path, fingerprint: dict[str, str], resume: bool) -> None:
        if resume and record.exists() and self.path.exists():
            found = json.loads(record.read_text(encoding="utf-8"))
            if differing := [name for name in fingerprint if found.get(name) != fingerprint[name]]:
                raise ValueError(
                    f"{self.path} holds answers with other {' and '.join(differing)}; choose another output_dir, or "
                    "overwrite it with resume=False (`--no_resume`)"
                )
            text = self.path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):  # a line that a killed process did not finish
                self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")
        record.write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")

    def _read(self) -> None:
        found = {}
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                found[_key(row)] = [WrittenAnswer(each["text"], tuple(each["log_probs"])) for each in row["written"]]
        self.done = {i: found[key] for i, row in enumerate(self.questions) if (key := _key(row)) in found}

    def add(self, written: Sequence[tuple[int, list[WrittenAnswer]]]) -> None:
        """Add the answers of a batch; raises a `ValueError` for one whose log-probability is not finite."""
        lines, wrong = [], None
        for index, answers in written:
            row = self.questions[index]
            if not all(math.isfinite(value) for answer in answers for value in answer.log_probs):
                wrong = row
                continue
            self.done[index] = answers
            texts = [{"text": answer.text, "log_probs": answer.log_probs} for answer in answers]
            line = {"id": row["id"], "question": row["question"], "written": texts}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        if self.path is not None and self.state.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(lines)
        if wrong is not None:
            raise ValueError(
                f"the answer to question {wrong['id']!r} has log-probabilities that are not finite; look for NaN in "
                "the weights, or load the model in bfloat16 or float32 if it runs in float16"
            )


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["id"], row["question"]
