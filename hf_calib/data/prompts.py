"""Prompt formats: how a question becomes a prompt, candidate answers, and the end of an answer."""

import re
import string
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .layouts import digest


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MAX_OPTIONS = len(string.ascii_uppercase)  # options are lettered

DEFAULT_TEMPLATES = {"letter": "{question}\n{options}\n{assistant}Answer:", "text": "{question}"}
# Instead of the first, where a server begins the assistant's turn: without the last line models mostly explain.
ONE_TURN_TEMPLATE = "{question}\n{options}\nAnswer with one letter:"
ANSWER_TEMPLATE = (
    "Answer with one word or a short phrase, not with a sentence.\n\nQuestion: {question}\nAnswer:"  # in free text
)
FIELDS = ("question", "options", "subject", "assistant")

# A text whose tokens tell one tokenizer from another.
_SAMPLE = "Which of these is right, 1 or 23?\nA. the first\nB. the second\nAnswer: A"
# A placeholder for the answer, to find what a chat template writes around it.
_PROBE = "0answer0"
# The place of `{assistant}` while a template is filled in.
_TURN = "\0assistant\0"
# How models open and close the block in which they think before they answer.
THINKING = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "<|STARTTHINKING|>": "<|ENDTHINKING|>",
}


@dataclass(frozen=True)
class PromptFormat:
    """
    Format of prompts and candidate answers.

    Args:
        scoring (`str`, *optional*, defaults to `"letter"`):
            `"letter"`: the prompt lists the options, and the candidates are their letters. `"text"`: the candidates
            are the texts of the options, which the prompt only lists if its template contains `{options}`.
        prompt_template (`str`, *optional*):
            `str.format` template of the fields `{question}`, `{options}` (lines like `A. text`) and `{subject}`. In a
            chat, what follows `{assistant}` begins the assistant's turn, so that the model goes on with the answer and
            not with an explanation; without a chat template `{assistant}` is empty. Defaults to
            `"{question}\\n{options}\\n{assistant}Answer:"` for letters and to `"{question}"` for texts.
        use_chat_template (`bool`, *optional*):
            Whether the prompt is a user's turn in the tokenizer's chat template. Defaults to whether the tokenizer has
            a chat template.
        system_prompt (`str`, *optional*):
            System message. Without a chat template it is written above the prompt.

    Raises:
        `ValueError`: for an unknown `scoring`, and for a template with unknown or missing fields.

    Example:

    ```python
    >>> prompt_format = PromptFormat(scoring="letter", use_chat_template=False)
    >>> prompt, candidates, suffix = prompt_format.render(tokenizer, "Ice is", ["hot", "cold"])
    >>> print(prompt)
    Ice is
    A. hot
    B. cold
    Answer:
    >>> candidates
    [' A', ' B']

    ```
    """

    scoring: str = "letter"
    prompt_template: str | None = None
    use_chat_template: bool | None = None
    system_prompt: str | None = None

    def __post_init__(self):
        if self.scoring not in DEFAULT_TEMPLATES:
            raise ValueError(f"scoring={self.scoring!r}; choose 'letter' or 'text'")
        try:
            used = [name for _, name, _, _ in string.Formatter().parse(self._template) if name is not None]
        except ValueError as error:
            raise ValueError(
                f"prompt_template {self.prompt_template!r}: {error}; write {{{{ and }}}} for braces"
            ) from None
        if unknown := sorted(set(used).difference(FIELDS)):
            raise ValueError(
                f"prompt_template {self.prompt_template!r} has the unknown field {{{unknown[0]}}}; "
                f"use {', '.join(f'{{{name}}}' for name in FIELDS)}, and {{{{ and }}}} for braces"
            )
        if used.count("assistant") > 1:
            raise ValueError(f"prompt_template {self.prompt_template!r} has {{assistant}} more than once")
        for needed in ("question", "options") if self.scoring == "letter" else ("question",):
            if needed not in used:
                raise ValueError(
                    f"prompt_template {self.prompt_template!r} lacks {{{needed}}}, which {self.scoring} scoring needs"
                )

    @property
    def _template(self) -> str:
        return DEFAULT_TEMPLATES[self.scoring] if self.prompt_template is None else self.prompt_template

    def letters(self, num_options: int) -> list[str]:
        """The letters of `num_options` (2 to 26) options."""
        if not 2 <= num_options <= MAX_OPTIONS:
            raise ValueError(f"{num_options} option(s); 2 to {MAX_OPTIONS} can be lettered")
        return list(string.ascii_uppercase[:num_options])

    def candidates(self, choices: list[str]) -> list[str]:
        """The answers to score, without surrounding spaces: letters, or the texts of the options."""
        return self.letters(len(choices)) if self.scoring == "letter" else list(choices)

    def uses_chat_template(self, tokenizer: "PreTrainedTokenizerBase") -> bool:
        """Whether prompts for this tokenizer use its chat template."""
        has_one = getattr(tokenizer, "chat_template", None) is not None
        if self.use_chat_template and not has_one:
            raise ValueError(
                f"use_chat_template=True, but the tokenizer of {tokenizer.name_or_path or 'this model'} has none; "
                "set `tokenizer.chat_template`, or use_chat_template=False"
            )
        return has_one if self.use_chat_template is None else self.use_chat_template

    def resolved(self, use_chat_template: bool) -> "PromptFormat":
        """The same format with its defaults written out."""
        return replace(self, prompt_template=self._template, use_chat_template=use_chat_template)

    def add_special_tokens(self, tokenizer: "PreTrainedTokenizerBase") -> bool:
        """Whether tokenisation adds special tokens to a prompt: not if a chat template has written them."""
        return not self.uses_chat_template(tokenizer)

    def digest(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """
        Digest of all that the tokens of a prompt depend on beside the question: this format and the tokenizer.

        A format whose defaults are written out has the same digest. The source of the chat template counts, not what
        it writes, which may contain the date.
        """
        chat_template = tokenizer.chat_template if self.uses_chat_template(tokenizer) else None
        tokens = tokenizer(_SAMPLE)["input_ids"]
        return digest(self.scoring, self._template, self.system_prompt, chat_template, *tokens)

    def render(
        self, tokenizer: "PreTrainedTokenizerBase", question: str, choices: list[str], subject: str | None = None
    ) -> tuple[str, list[str], str]:
        """
        Write a question as a prompt and candidate answers.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                Tokenizer of the model.
            question (`str`):
                Text of the question.
            choices (`list[str]`):
                Texts of its options, 2 to 26; none for a question that is answered in free text.
            subject (`str`, *optional*):
                Value of `{subject}` in the template.

        Returns:
            `tuple[str, list[str], str]`: the prompt, with chat markup; the candidates, with the space between prompt
            and answer; and the end of an answer (the end of the assistant's turn, or the EOS token).
        """
        if self.uses_chat_template(tokenizer):
            messages, begun = self.turns(question, choices, subject)
            prompt, lead, suffix = self._chat(tokenizer, messages)
            if begun:
                prompt, lead = prompt + begun, space_after(begun)
        else:
            prompt = self.plain(question, choices, subject)
            lead, suffix = space_after(prompt), tokenizer.eos_token or ""
        return prompt, [lead + candidate for candidate in self.candidates(choices)], suffix

    def turns(self, question: str, choices: list[str], subject: str | None = None) -> tuple[list[dict[str, str]], str]:
        """
        Write a question as messages and the beginning of the assistant's turn.

        Args:
            question (`str`), choices (`list[str]`), subject (`str`, *optional*):
                As in [`PromptFormat.render`].

        Returns:
            `tuple[list[dict[str, str]], str]`: the messages up to the user's, and what follows `{assistant}`, which is
            empty if the template does not have it.
        """
        content, marker, begun = self._content(question, choices, subject).partition(_TURN)
        return self._messages(content.rstrip() if marker else content), begun

    def messages(self, question: str, choices: list[str], subject: str | None = None) -> list[dict[str, str]]:
        """
        Write a question as messages, all of it in the user's turn, for a server that begins the assistant's itself.

        The default template of letters then ends with `Answer with one letter:`. Arguments as in
        [`PromptFormat.render`].
        """
        if self._template == DEFAULT_TEMPLATES["letter"]:
            return replace(self, prompt_template=ONE_TURN_TEMPLATE).messages(question, choices, subject)
        return self._messages(self._content(question, choices, subject).replace(_TURN, ""))

    def plain(self, question: str, choices: list[str], subject: str | None = None) -> str:
        """Write a question as a text without chat markup; arguments as in [`PromptFormat.render`]."""
        prompt = self._content(question, choices, subject).replace(_TURN, "")
        return prompt if self.system_prompt is None else f"{self.system_prompt}\n\n{prompt}"

    def _messages(self, content: str) -> list[dict[str, str]]:
        messages = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*messages, {"role": "user", "content": content}]

    def _content(self, question: str, choices: list[str], subject: str | None) -> str:
        if subject is None and "{subject" in self._template:
            raise ValueError(
                f"prompt_template {self.prompt_template!r} uses {{subject}}, but a question has no `subject`"
            )
        options = "\n".join(
            f"{letter}. {text}"
            for letter, text in zip(self.letters(len(choices)) if choices else [], choices, strict=True)
        )
        return self._template.format(question=question, options=options, subject=subject, assistant=_TURN)

    def _chat(self, tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> tuple[str, str, str]:
        """Apply the chat template: the prompt, the space before the answer, and the text that follows the answer."""
        from jinja2 import TemplateError

        try:
            prompt = apply_chat_template(tokenizer, messages, add_generation_prompt=True)
        except TemplateError as error:
            what, instead = "user's turn", "set use_chat_template=False"
            if self.system_prompt is not None:
                what, instead = "system message", "write it into `prompt_template` instead"
            raise ValueError(f"the chat template refuses the {what} ({error}); {instead}") from error
        try:
            answered = apply_chat_template(tokenizer, [*messages, {"role": "assistant", "content": _PROBE}])
        except (TemplateError, ValueError):  # there is no telling how it ends an answer
            answered = ""
        lead, suffix = "", tokenizer.eos_token or ""
        if answered.startswith(prompt) and _PROBE in answered[len(prompt) :]:
            before, suffix = answered[len(prompt) :].split(_PROBE, 1)
            # Text before the answer, such as an empty thinking block, belongs to the prompt; a space to the answer.
            shared = before.rstrip(" ")
            prompt, lead = prompt + shared, before[len(shared) :]
        closed = _without_thinking(prompt)
        if closed != prompt and _PROBE in answered:
            suffix = answered.rpartition(_PROBE)[2]
        return closed, lead, suffix


def space_after(text: str) -> str:
    """The space between a text and the answer that follows it; none where there is no text."""
    return "" if not text or text[-1].isspace() else " "


def apply_chat_template(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], **options) -> str:
    """
    Apply the chat template to messages, with their contents as texts, or as lists of parts if it wants those.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        messages (`list[dict[str, str]]`):
            Messages with `role` and `content`, a text or a list of parts.
        options:
            Further options of the tokenizer's own method, e.g. `add_generation_prompt`.

    Returns:
        `str`: the text of all messages.

    Raises:
        `jinja2.TemplateError`: if the template refuses the messages.
        `ValueError`: if it leaves one out.
    """
    from jinja2 import TemplateError

    refused = None
    texts = [{**message, "content": _content_text(message.get("content"))} for message in messages]
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in texts]
    for given in (texts, parts):
        try:
            text = tokenizer.apply_chat_template(given, tokenize=False, **options)
        except (TemplateError, TypeError) as error:
            refused = refused or error
            continue
        left_out = [message["role"] for message in texts if not _is_in(message["content"], text)]
        if not left_out:
            return text
    if refused is not None:
        raise refused if isinstance(refused, TemplateError) else TemplateError(str(refused))
    raise ValueError(
        f"the chat template leaves out the message of the {left_out[0]}: use use_chat_template=False, or write all in "
        "`prompt_template`"
    )


def _content_text(content: str | list[dict[str, str]] | None) -> str:
    """Text of a message's content, which may be a list of parts; empty for a call of a tool."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def _is_in(content: str, text: str) -> bool:
    """Whether a text has the words of a message, which a template may trim or escape; it may leave out thoughts."""
    if content.strip() in text:
        return True
    for opening, closing in THINKING.items():
        content = re.sub(f"{re.escape(opening)}.*?{re.escape(closing)}", "", content, flags=re.DOTALL)
    words = re.findall(r"\w+", content)
    return all(word in text for word in words)


def _without_thinking(prompt: str) -> str:
    """End a thinking block that the chat template opens: the answer comes after it."""
    for opening, closing in THINKING.items():
        if prompt.rstrip().endswith(opening):
            return f"{prompt.rstrip()}\n\n{closing}\n\n"
    return prompt


def before_thinking(prompt: str) -> str:
    """Leave out a thinking block that the chat template opens at the end of a prompt."""
    return next((prompt.rstrip().removesuffix(each) for each in THINKING if prompt.rstrip().endswith(each)), prompt)


@dataclass(kw_only=True)
class PromptArguments:
    """
    Command-line arguments that define how questions are written and scored.

    Args:
        scoring (`str`, *optional*, defaults to `"letter"`):
            `"letter"`: the options are listed and their letters scored. `"text"`: the texts of the options are scored.
        option_normalization (`str`, *optional*, defaults to `"sum"`):
            Log-likelihood of an option: sum over its tokens, or mean.
        prompt_template (`str`, *optional*), use_chat_template (`bool`, *optional*), system_prompt (`str`, *optional*):
            As in [`PromptFormat`].
    """

    help_group = "prompt and scoring"

    scoring: str = field(
        default="letter",
        metadata={"help": "Score the options' letters or their texts.", "choices": ["letter", "text"]},
    )
    option_normalization: str = field(
        default="sum",
        metadata={"help": "'sum' or 'mean' of an option's token log-likelihoods.", "choices": ["sum", "mean"]},
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "Template with the fields {question}, {options}, {subject}; in a chat, what follows {assistant} "
            "begins the answer."
        },
    )
    use_chat_template: bool | None = field(
        default=None, metadata={"help": "Put questions through the chat template (default: if there is one)."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message, with or without a chat template."}
    )

    def prompt_format(self) -> PromptFormat:
        """The format that these arguments describe."""
        return PromptFormat(self.scoring, self.prompt_template, self.use_chat_template, self.system_prompt)
