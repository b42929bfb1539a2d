"""Preference pairs in TRL's layout: loaded, checked, and made of option questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from .adapters import digest
from .prompts import PromptFormat
from .questions import load_rows, shuffle_options


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# How probable it is that annotators prefer the chosen completion.
PREFERENCE_COLUMN = "preference_probability"
PAIR_COLUMNS = ("prompt", "chosen", "rejected", PREFERENCE_COLUMN)


def load_pairs(
    path: str | Path,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    drop_invalid: bool = False,
) -> Dataset:
    """
    Loads preference pairs from a file, a folder or the Hub, and checks them.

    Args:
        path (`str` or `Path`):
            A file, a folder, or a data set on the Hub (`ID` or `ID:CONFIGURATION`) with the columns `chosen`, `rejected` and,
            unless they begin with it, `prompt`: texts or messages. A column `preference_probability` tells how sure the
            annotators are.
        split (`str`, *optional*):
            Split of a data set that has several.
        limit (`int`, *optional*):
            Keep so many pairs, drawn by `seed`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave out rows that are no pairs, with a warning, instead of stopping at the first.

    Returns:
        `Dataset`: the columns `prompt`, `chosen`, `rejected` and, if there is one, `preference_probability`.

    Raises:
        `ValueError`: for a missing column, or a row that is no pair; see [`pair_fault`].
    """
    pairs = load_rows(path, split=split)
    if drop_invalid:
        pairs = drop_invalid_pairs(pairs, str(path))
    check_pairs(pairs, str(path))
    if limit is not None and limit < len(pairs):
        pairs = pairs.shuffle(seed=seed).select(range(limit))
    columns = [name for name in PAIR_COLUMNS if name == "prompt" or name in pairs.column_names]
    return Dataset.from_list([{name: row[name] for name in columns} for row in map(split_prompt, pairs)])


def split_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair with its prompt apart: where there is none of the completions' kind, both completions begin with it."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is not None and isinstance(prompt, str) == isinstance(chosen, str):
        return dict(row)
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared and chosen[shared - 1] == " ":
        shared -= 1  # the space belongs to the first word of the answer
    return {**row, "prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def pair_fault(row: Mapping[str, Any]) -> str | None:
    """
    What is wrong with a preference pair, if anything is.

    Args:
        row (`Mapping`):
            `chosen` and `rejected`, perhaps with `prompt` and `preference_probability`, in any layout of
            [`~trl.DPOTrainer`].
    """
    chosen, rejected = (_text(row[name]) for name in ("chosen", "rejected"))
    if chosen.strip() and chosen == rejected:
        return f"'chosen' and 'rejected' are the same text, {chosen[:60]!r}"
    if chosen and rejected:
        row = split_prompt(row)
    for name in ("chosen", "rejected"):
        if not _text(row[name]).strip():
            return f"the completion in column {name!r} is empty"
    probability = row.get(PREFERENCE_COLUMN, 1.0)
    if probability is None or not 0 <= probability <= 1:
        return f"the preference probability {probability} is not in [0, 1]"
    return None


def _text(completion: str | list[Mapping[str, Any]] | None) -> str:
    if completion is None or isinstance(completion, str):
        return completion or ""
    return "".join(str(message.get("content") or message.get("tool_calls") or "") for message in completion)


def check_pairs(pairs: Dataset, name: str) -> None:
    """
    Check that all rows are preference pairs.

    Args:
        pairs ([`~datasets.Dataset`]):
            Pairs.
        name (`str`):
            What they are, in messages.

    Raises:
        `ValueError`: if a column is missing, if there are no rows, or at the first that is no pair.
    """
    missing = {"chosen", "rejected"} - set(pairs.column_names)
    if missing:
        raise ValueError(
            f"{name}: no column {', '.join(map(repr, sorted(missing)))} among {', '.join(pairs.column_names)}; pairs want "
            "`chosen`, `rejected` and, unless these begin with it, `prompt`. Option questions are no pairs: trainers take "
            "them as option_dataset, and hf_calib.data.preference_pairs.pairs_from_questions makes pairs of them."
        )
    if not len(pairs):
        raise ValueError(f"{name}: there are no pairs, the data set has no rows.")
    for number, row in enumerate(pairs.select_columns([c for c in PAIR_COLUMNS if c in pairs.column_names])):
        if fault := pair_fault(row):
            raise ValueError(
                f"{name}, row {number}: {fault}. Correct the row, or leave such rows out: drop_invalid: true in a recipe, "
                "--drop_invalid true on the command line, hf_calib.data.preference_pairs.drop_invalid_pairs in Python."
            )


def drop_invalid_pairs(pairs: Dataset, name: str) -> Dataset:
    """The rows that are preference pairs, with a warning if that is not all; `name` says what they are."""
    if not {"chosen", "rejected"} <= set(pairs.column_names):
        return pairs  # `check_pairs` says so
    kept = pairs.filter(lambda row: pair_fault(row) is None, desc="Checking pairs")
    if len(kept) < len(pairs):
        logger.warning(f"{name}: left out {len(pairs) - len(kept)} of {len(pairs)} rows as no preference pairs")
    return kept


def pairs_from_questions(
    questions: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat | None = None,
    seed: int = 0,
) -> Dataset:
    """
    Makes a preference pair of every question: chosen is the right option, rejected one of the others.

    The pairs are written such that [`~trl.DPOTrainer`] reads the same tokens as [`~hf_calib.inference.encoding.OptionEncoder`] scores:
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
    >>> pairs = pairs_from_questions(Dataset.from_list([row]), tokenizer, PromptFormat("text", use_chat_template=False))
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
