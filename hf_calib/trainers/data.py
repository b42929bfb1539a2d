"""Training rows: encoding of option questions, and separation of texts from questions."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, List
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.questions import adapt_questions
from ..inference.encoding import OPTION_COLUMNS, OptionEncoder, QuestionTooLongError
from ..inference.model_loading import check_token_ids


logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text", "messages", "prompt", "completion")


def encode_questions(
    questions: Dataset,
    encoder: OptionEncoder,
    branches: bool,
    likelihood: str | None,
    name: str,
    num_proc: int | None = None,
) -> Dataset:
    """
    Encode all questions that fit in `max_length`, and log how many do not.

    Args:
        questions ([`~datasets.Dataset`]):
            Questions in the unified schema.
        encoder ([`~hf_calib.inference.encoding.OptionEncoder`]):
            Encoder.
        branches (`bool`):
            See [`~hf_calib.inference.encoding.OptionEncoder.encode`].
        likelihood (`str`, *optional*):
            See [`~hf_calib.inference.encoding.OptionEncoder.encode`].
        name (`str`):
            Name of the questions in messages, such as `"training"`.
        num_proc (`int`, *optional*):
            Number of processes.

    Returns:
        [`~datasets.Dataset`]: the encoded columns only.

    Raises:
        `ValueError`: if none fits in the encoder's `max_length`.
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        rows = []
        for values in zip(*batch.values(), strict=True):
            try:
                rows.append(encoder.encode(dict(zip(batch, values, strict=True)), branches, likelihood))
            except QuestionTooLongError:
                continue
        # The columns must exist even where no row of the batch fits.
        columns = ["input_ids", *(["labels"] if likelihood else []), *(OPTION_COLUMNS if branches else [])]
        return {column: [row[column] for row in rows] for column in columns}

    encoded = questions.map(
        encode,
        batched=True,
        remove_columns=questions.column_names,
        num_proc=num_proc,
        desc=f"Encoding {name} questions",
    )
    if not len(encoded):
        raise ValueError(f"None of the {len(questions)} {name} questions fits in max_length={encoder.max_length}.")
    if len(encoded) < len(questions):
        dropped = len(questions) - len(encoded)
        logger.warning(
            f"{dropped} of {len(questions)} {name} questions do not fit in max_length={encoder.max_length}."
        )
    return encoded


def check_has_rows(**datasets: Dataset | dict[str, Dataset] | None) -> None:
    """Raise a `ValueError` that names the argument if one of the data sets has no rows."""
    for name, dataset in datasets.items():
        parts = dataset if isinstance(dataset, dict) else {"": dataset}
        if any(isinstance(part, Dataset) and not len(part) for part in parts.values()):
            raise ValueError(f"{name} has no rows: there is nothing to train or evaluate on.")


def report_too_long(given: Dataset, prepared: Dataset, max_length: int | None, name: str) -> None:
    """
    Log how many texts or pairs TRL left out because they are too long, and how many it cuts.

    Args:
        given ([`~datasets.Dataset`]):
            Texts or preference pairs.
        prepared ([`~datasets.Dataset`]):
            What TRL made of them: token ids of each.
        max_length (`int`, *optional*):
            Largest number of tokens.
        name (`str`):
            Name of the rows in messages, such as `"training pairs"`.

    Raises:
        `ValueError`: if none fits.
    """
    if not isinstance(given, Dataset) or not isinstance(prepared, Dataset):
        return
    if not len(prepared):
        raise ValueError(
            f"None of the {len(given)} {name} fits in max_length={max_length}: the prompts alone are as long. Raise "
            "max_length, or shorten the prompts."
        )
    if max_length is None:
        return
    left_out = len(given) - len(prepared)
    if "chosen_ids" in prepared.column_names:
        prompts, chosen, rejected = (map(len, prepared[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected"))
        answers = map(max, chosen, rejected)
        cut = sum(length > max_length for length in map(sum, zip(prompts, answers, strict=True)))
    else:  # a text of just this length was perhaps cut
        cut = sum(len(ids) >= max_length for ids in prepared["input_ids"])
    if left_out or cut:
        logger.warning(
            f"{left_out} of {len(given)} {name} are left out, because their prompts fill max_length={max_length}; "
            f"{cut} others reach it, and what is longer is cut."
        )


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset | None) -> None:
    """
    Check that a model has an embedding for every token of its prepared training set, and for the padding.

    Raises:
        `ValueError`: that names the largest token.
    """
    check_token_ids(model, tokenizer, tokenizer.pad_token_id or 0, "the padding")
    for name in getattr(dataset, "column_names", None) or ():
        if isinstance(dataset, Dataset) and name.endswith("_ids") and isinstance(dataset.features[name], List):
            ids = dataset.select_columns([name]).with_format("arrow")[:][name]
            largest = pc.max(pc.list_flatten(ids)).as_py()
            check_token_ids(model, tokenizer, largest or 0, "the training set")


def longest_questions(encoded: Dataset, count: int = 8) -> list[dict[str, Any]]:
    """The longest encoded questions, and as many others, spread over all lengths. Rows of text have no options."""
    if "num_options" not in encoded.column_names:
        return []
    table = encoded.select_columns(["input_ids", "num_options"]).with_format("arrow")[:]
    lengths = pc.list_value_length(table["input_ids"]).to_numpy()
    has_options = pc.fill_null(pc.greater(table["num_options"], 0), False).to_numpy()
    rows = np.flatnonzero(has_options)
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    chosen = {*rows[:count].tolist(), *rows[:: max(1, len(rows) // count)].tolist()}
    return [encoded[row] for row in sorted(chosen)]


def split_rows(dataset: Dataset) -> tuple[Dataset, Dataset | None]:
    """
    Separate option questions from other rows.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `choices`, and rows whose `choices` is missing or empty.

    Returns:
        `tuple[Dataset, Dataset | None]`: the questions, checked and in the unified schema (none without the column
        `choices`), and the other rows with the text columns that they fill (`None` if there are none).

    Raises:
        `ValueError`: if a row is neither, or no valid question.
    """
    if "choices" not in dataset.column_names:
        return dataset.select([]), dataset
    has_options = [bool(choices) for choices in dataset["choices"]]
    if all(has_options):
        return adapt_questions(dataset), None
    texts = dataset.select([i for i, has in enumerate(has_options) if not has])
    filled = [name for name in TEXT_COLUMNS if name in texts.column_names]
    filled = [name for name in filled if any(value is not None for value in texts[name])]
    if not filled:
        raise ValueError(f"Row {has_options.index(False)} has neither choices nor {', '.join(TEXT_COLUMNS)}.")
    questions = dataset.select([i for i, has in enumerate(has_options) if has])
    return adapt_questions(questions) if len(questions) else questions, texts.select_columns(filled)
