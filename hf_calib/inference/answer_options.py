"""Options of written answers and their confidences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data.grading import Grader
from ..data.prompts import ANSWER_TEMPLATE, PromptFormat
from ..data.short_answers import JUDGEMENT_CHOICES, JUDGEMENT_TEMPLATE
from .run_options import RunOptions


CONFIDENCES = ("likelihood", "sequence_likelihood", "agreement", "p_true")
# Options that only one confidence depends on.
_OF_CONFIDENCE = {
    "agreement": ("num_samples", "temperature"),
    "p_true": ("judgement_format", "judgement_template", "judgement_choices"),
}


@dataclass(frozen=True)
class AnswerOptions(RunOptions):
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
        output_dir (`str` or `Path`, *optional*):
            Folder of `answers.jsonl`, `samples.jsonl` and `p_true/predictions.npz`, from which a run resumes.
        batch_size, max_length, drop_too_long, resume, progress, labelled:
            See [`~hf_calib.inference.run_options.RunOptions`].

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
    output_dir: str | Path | None = None

    def __post_init__(self):
        super().__post_init__()
        if unknown := [name for name in self.confidences if name not in CONFIDENCES]:
            raise ValueError(f"confidence {unknown[0]!r}; choose among {', '.join(CONFIDENCES)}")
        if not self.confidences:
            raise ValueError("confidences is empty: name at least one")
        for name in ("max_new_tokens", "num_samples"):
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

    def resolved(self, uses_chat_template: Callable[[PromptFormat], bool]) -> AnswerOptions:
        """The same options with the defaults of both prompt formats written out."""
        written = {"prompt_format": self.answer_format, "judgement_format": self.judging_format}
        return replace(self, **{name: each.resolved(uses_chat_template(each)) for name, each in written.items()})

    def statement(self, confidence: str) -> dict[str, Any]:
        """What the answers and a confidence depend on beside the model, for JSON; see [`AnswerOptions.stated`]."""
        names = ["prompt_format", "max_new_tokens", *_OF_CONFIDENCE.get(confidence, ())]
        given = {**asdict(replace(self, grader=None)), "judgement_choices": list(self.judgement_choices)}
        grader = self.grader and f"{self.grader.__module__}:{self.grader.__qualname__}"
        return {**{name: given[name] for name in names}, "grader": grader}

    @classmethod
    def stated(cls, statement: Mapping[str, Any], confidence: str, **more) -> AnswerOptions:
        """
        Options of a statement.

        Args:
            statement (`Mapping`):
                Result of [`AnswerOptions.statement`]. Its grader is not imported, because it is code.
            confidence (`str`):
                The confidence to compute.
            more:
                Further options.
        """
        given = {name: value for name, value in statement.items() if name != "grader"}
        given |= {name: PromptFormat(**value) for name, value in given.items() if isinstance(value, Mapping)}
        return cls((confidence,), **{**given, **more})

    def path(self, name: str) -> Path | None:
        """A file in `output_dir`."""
        return None if self.output_dir is None else Path(self.output_dir).expanduser() / name
