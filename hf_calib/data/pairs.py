"""Preference pairs made of option questions: the right option is chosen, a distractor rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .adapters import digest
from .mcq import shuffle_options
from .prompts import PromptFormat


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def pairs_from_questions(
    questions: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat | None = None,
    seed: int = 0,
) -> Dataset:
    """
    Makes a preference pair of every question: chosen is the right option, rejected one of the others.

    The pairs are written such that [`~trl.DPOTrainer`] reads the same tokens as [`~hf_calib.options.OptionEncoder`] scores:
    messages where the prompt goes through the tokenizer's chat template, otherwise text, with the same space between prompt
    and answer. What ends an answer, the end of the turn or the EOS token, DPOTrainer adds itself.

    Args:
        questions (`Dataset`):
            Questions in the unified columns.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model that is to learn from the pairs.
        prompt_format ([`PromptFormat`], *optional*):
            How a question is asked; by default letters are the answers.
        seed (`int`, *optional*, defaults to `0`):
            Draws the rejected option and the order of the options, so that no letter is right more often than another. Both
            hang on the question's id alone, whatever rows stand around it.

    Returns:
        `Dataset`: the columns `id`, `prompt`, `chosen` and `rejected`, in the order of the questions.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> row = {"id": "ice", "question": "Ice is", "choices": ["hot", "cold"], "answer": 1}
    >>> pairs = pairs_from_questions(Dataset.from_list([row]), tokenizer, PromptFormat("text", chat_template=False))
    >>> pairs[0]
    {'id': 'ice', 'prompt': 'Ice is', 'chosen': ' cold', 'rejected': ' hot'}

    ```
    """
    prompt_format = prompt_format or PromptFormat()
    conversational = prompt_format.uses_chat_template(tokenizer)

    def pair(row: dict[str, Any]) -> dict[str, Any]:
        question, choices, subject = row["question"], row["choices"], row.get("subject")
        generator = np.random.default_rng(int(digest(seed, "rejected", row["id"])[:16], 16))
        wrong = [k for k in range(len(choices)) if k != row["answer"]]
        sides = {"chosen": row["answer"], "rejected": wrong[generator.integers(len(wrong))]}
        if conversational:
            texts = prompt_format.candidates(choices)
            completions = {side: [{"role": "assistant", "content": texts[k]}] for side, k in sides.items()}
            return {"id": row["id"], "prompt": prompt_format.messages(question, choices, subject), **completions}
        prompt, texts, _ = prompt_format.render(tokenizer, question, choices, subject)
        return {"id": row["id"], "prompt": prompt, **{side: texts[k] for side, k in sides.items()}}

    shuffled = shuffle_options(questions, seed)
    return shuffled.map(pair, remove_columns=shuffled.column_names, desc="Making pairs of questions")
