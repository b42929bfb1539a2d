"""Load and check preference pairs in TRL's layout, and make pairs of option questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from .layouts import digest
from .prompts import PromptFormat, space_after
from .questions import shuffle_options
from .training_rows import PREFERENCE_COLUMN, load_training_rows


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PAIR_COLUMNS = ("prompt", "chosen", "rejected", PREFERENCE_COLUMN)


def load_pairs(
    path: str | Path | Dataset,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    drop_invalid: bool = False,
) -> Dataset:
    """
    Load preference pairs from a file, a folder or the Hub, and check them.

    Args:
        path (`str`, `Path` or `Dataset`):
            A file, a folder, or a data set on the Hub (`ID` or `ID:CONFIGURATION`) with the columns `chosen`,
            `rejected` and, unless these begin with it, `prompt`: texts or messages. An optional column
            `preference_probability` in [0, 1] holds the probability that annotators prefer the chosen completion.
        split (`str`, *optional*):
            Split of a data set that has several.
        limit (`int`, *optional*):
            Largest number of pairs to keep, drawn by `seed`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave out invalid rows, and log their number, instead of raising.

    Returns:
        `Dataset`: the columns `prompt`, `chosen`, `rejected` and, if there is one, `preference_probability`.

    Raises:
        `ValueError`: for a missing column or an invalid row; see [`pair_fault`].
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no pairs; pass a positive number or None")
    loaded = isinstance(path, Dataset)
    pairs = path if loaded else load_training_rows(path, split=split)
    name = "the given pairs" if loaded else str(path)
    if drop_invalid:
        pairs = drop_invalid_pairs(pairs, name)
    check_pairs(pairs, name)
    if limit is not None and limit < len(pairs):
        pairs = pairs.shuffle(seed=seed).select(range(limit))
    columns = [name for name in PAIR_COLUMNS if name == "prompt" or name in pairs.column_names]
    return Dataset.from_list([{name: row[name] for name in columns} for row in map(split_prompt, pairs)])


def split_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    Separate the prompt of a pair from its completions.

    A pair without a prompt of the completions' type (text or messages) has it at the beginning of both completions.
    """
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
    Find a fault of a preference pair.

    Args:
        row (`Mapping`):
            `chosen` and `rejected`, optionally `prompt` and `preference_probability`, in any layout of
            [`~trl.DPOTrainer`].

    Returns:
        `str` or `None`: a description of the fault, or `None` for a valid pair.
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
    if isinstance(probability, (str, bool)) or probability is None or not 0 <= probability <= 1:
        return f"the preference probability {probability!r} is not in [0, 1]"
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
            Name of the data, for error messages.

    Raises:
        `ValueError`: if a column is missing, there are no rows, or a row is invalid.
    """
    missing = {"chosen", "rejected"} - set(pairs.column_names)
    if missing:
        raise ValueError(
            f"{name}: no column {', '.join(map(repr, sorted(missing)))} among {', '.join(pairs.column_names)}; pairs "
            "need `chosen`, `rejected` and, unless these begin with it, `prompt`. Option questions are not pairs: "
            "pass them to a trainer as option_dataset, or convert them with "
            "hf_calib.data.preference_pairs.pairs_from_questions."
        )
    if not len(pairs):
        raise ValueError(f"{name}: there are no pairs, the data set has no rows.")
    for number, row in enumerate(pairs.select_columns([c for c in PAIR_COLUMNS if c in pairs.column_names])):
        if fault := pair_fault(row):
            raise ValueError(
                f"{name}, row {number}: {fault}. Correct the row, or leave out such rows: drop_invalid: true in a "
                "recipe, --drop_invalid true on the command line, or in Python "
                "hf_calib.data.preference_pairs.drop_invalid_pairs."
            )


def drop_invalid_pairs(pairs: Dataset, name: str) -> Dataset:
    """Return the valid pairs, and log the number of other rows; `name` is the name of the data in the message."""
    if not {"chosen", "rejected"} <= set(pairs.column_names):
        return pairs  # `check_pairs` raises
    kept = pairs.filter(lambda row: pair_fault(row) is None, desc="Checking pairs")
    if len(pairs) and not len(kept):
        raise ValueError(
            f"{name}: none of {len(pairs)} rows is a valid preference pair; row 0: {pair_fault(pairs[0])}"
        )
    if len(kept) < len(pairs):
        logger.warning(f"{name}: left out {len(pairs) - len(kept)} of {len(pairs)} rows as invalid preference pairs")
    return kept


def pairs_from_questions(
    questions: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat | None = None,
    seed: int = 0,
) -> Dataset:
    """
    Make a preference pair of every question: chosen is the right option, rejected a random other one.

    [`~trl.DPOTrainer`] tokenises the pairs to the tokens that [`~hf_calib.inference.encoding.OptionEncoder`] scores.
    The pairs are messages if the prompt uses the tokenizer's chat template, and texts otherwise. DPOTrainer adds the
    end of the answer (the end of the turn, or the EOS token).

    Args:
        questions (`Dataset`):
            Questions in the unified columns.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model to be trained on the pairs.
        prompt_format ([`PromptFormat`], *optional*):
            How a question is written. Defaults to letters as answers.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the rejected option and of the order of the options, which is shuffled so that no letter is right
            more often than another. Both depend on the question's id and not on the other rows.

    Returns:
        `Dataset`: the columns `id`, `prompt`, `chosen` and `rejected`, in the order of the questions.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> row = {"id": "ice", "question": "Ice is", "choices": ["hot", "cold"], "answer": 1}
    >>> prompt_format = PromptFormat("text", use_chat_template=False)
    >>> pairs = pairs_from_questions(Dataset.from_list([row]), tokenizer, prompt_format)
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
            messages, begun = prompt_format.turns(question, choices, subject)
            texts = [f"{begun}{space_after(begun)}{text}" for text in prompt_format.candidates(choices)]
            completions = {side: [{"role": "assistant", "content": texts[k]}] for side, k in sides.items()}
            return {"id": row["id"], "prompt": messages, **completions}
        prompt, texts, _ = prompt_format.render(tokenizer, question, choices, subject)
        return {"id": row["id"], "prompt": prompt, **{side: texts[k] for side, k in sides.items()}}

    shuffled = shuffle_options(questions, seed)
    return shuffled.map(pair, remove_columns=shuffled.column_names, desc="Making pairs of questions")
