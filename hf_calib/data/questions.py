"""
Load, split and reorder option questions in the unified columns.

| column | type | |
|---|---|---|
| `id` | `str` | from the data, else a hash of question and options |
| `question` | `str` | |
| `choices` | `list[str]` | 2 to 26 different texts |
| `answer` | `int` | index of the right option, from 0 |
| `subject` | `str` | optional |
| `target_probabilities` | `list[float]` | optional, one for each option, with sum 1 |
"""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from .adapters import adapt_questions, warn_of_answers_from_one
from .files import load_records
from .layouts import ADAPTERS, Row, digest
from .prompts import PromptFormat
from .text_files import TextRecords


__all__ = [
    "ADAPTERS",
    "PromptFormat",
    "adapt_questions",
    "deduplicate_questions",
    "load_questions",
    "permute_options",
    "shuffle_options",
    "split_questions",
]

logger = logging.getLogger(__name__)


def load_questions(
    path: str | Path,
    name: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    revision: str | None = None,
    records: Dataset | TextRecords | None = None,
    **adapting,
) -> Dataset:
    """
    Load option questions from a file, a folder or the Hub, in the unified columns.

    Args:
        path (`str` or `Path`):
            A `.parquet`, `.jsonl`, `.ndjson`, `.json`, `.csv` or `.tsv` file, all but the first also as `.gz`; a
            folder written by `save_to_disk`, or of such files; or a data set on the Hub. The latter may be followed by
            a configuration, as in `"allenai/ai2_arc:ARC-Easy"`, and by a split, as in `"cais/mmlu:all:validation"`,
            which overrides `split`. CSV and JSON files are read as text, so that NA, 007 and 1.50 stay as they are. In
            a CSV file, options are a JSON list, or have one column each (`A`, `B`, ...).
        name (`str`, *optional*):
            Configuration of a data set on the Hub, unless `path` contains one, e.g. `"ARC-Easy"`.
        split (`str`, *optional*):
            Split, or a slice of one, as in `"test[:100]"`. Required where there are several.
        limit (`int`, *optional*):
            Largest number of questions to keep, at least 1.
        seed (`int`, *optional*):
            Shuffle the questions with this seed, before `limit`.
        revision (`str`, *optional*):
            Branch, tag or commit of a data set on the Hub.
        records (`Dataset` or [`~hf_calib.data.text_files.TextRecords`], *optional*):
            The rows, if [`~hf_calib.data.files.load_records`] has read them already. `path` then only names them.
        adapting:
            Options of [`adapt_questions`]: `adapter`, `drop_invalid`, `labelled`, `columns`, `answers_from`.

    Returns:
        `Dataset`: the questions in the unified columns.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: for an unknown type of file, a missing `split`, or an invalid question; and for a CSV or JSON
            file that cannot be read, with line and column.
    """
    check_limit(limit)
    records = load_records(path, name, split, revision) if records is None else records
    source = source_name(path, name, split)
    questions = adapt_questions(records, source=source, **adapting)
    if questions is records and adapting.get("labelled", True) and adapting.get("answers_from") is None:
        warn_of_answers_from_one(questions, source)
    return draw_questions(questions, source, limit, seed)


def check_limit(limit: int | None) -> None:
    """Raise a `ValueError` for a number of questions below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no questions; pass a positive number or None")


def source_name(path: str | Path, name: str | None, split: str | None) -> str:
    """Name of a data set in messages."""
    return str(path) + "".join(f" ({part})" for part in (name, split) if part)


def draw_questions(questions: Dataset, source: str, limit: int | None, seed: int | None) -> Dataset:
    """Shuffle loaded questions by a seed, if there is one, and keep at most `limit`; warn of repeated ids."""
    _warn_of_repeated_ids(questions, source)
    if seed is not None:
        questions = questions.shuffle(seed=seed)
    return questions if limit is None else questions.select(range(min(limit, len(questions))))


def _warn_of_repeated_ids(questions: Dataset, source: str) -> None:
    """Warn of an id that several different questions have."""
    ids = questions["id"][:]
    counts = Counter(ids)
    if len(counts) == len(ids):
        return
    texts = {}
    for name, question in zip(ids, questions["question"][:], strict=True):
        if counts[name] > 1 and texts.setdefault(name, question) != question:
            repeated = sum(count > 1 for count in counts.values())
            logger.warning(
                f"{source}: {repeated} ids are of several questions, the first {name!r}; predictions for these "
                "questions can be matched only with predictions for the same questions in the same order"
            )
            return


def _content_key(row: Row) -> str:
    """Hash a question's text and options, up to case, spacing and the order of the options."""

    def normalise(text: str) -> str:
        return " ".join(text.casefold().split())

    return digest(normalise(row["question"]), *sorted(map(normalise, row["choices"])))


def deduplicate_questions(dataset: Dataset, exclude: Dataset | None = None) -> Dataset:
    """
    Keep the first of equal questions.

    Two questions are equal if they have the same text, up to case and spacing, and the same options in any order.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns.
        exclude (`Dataset`, *optional*):
            Questions to leave out as well, e.g. the test questions when `dataset` is for training.

    Returns:
        `Dataset`: the distinct questions, in their order.
    """
    seen = {_content_key(row) for row in exclude} if exclude is not None else set()
    kept = []
    for index, row in enumerate(dataset):
        if (key := _content_key(row)) not in seen:
            seen.add(key)
            kept.append(index)
    if len(kept) < len(dataset):
        logger.info(f"left out {len(dataset) - len(kept)} of {len(dataset)} questions as duplicates")
    return dataset.select(kept)


def split_questions(
    dataset: Dataset,
    train: int | float | None = None,
    calibration: int | float | None = 0.2,
    test: int | float | None = 0.2,
    seed: int = 0,
) -> DatasetDict:
    """
    Split questions into disjoint parts, without duplicates (see [`deduplicate_questions`]).

    Questions are ordered by a seeded hash of their content, so the parts do not depend on the order of the rows.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns.
        train, calibration, test (`int`, `float` or `None`):
            Number of questions (`int`), fraction of the distinct questions (`float` below 1), 0 for no such split, or
            `None` for all remaining questions (for at most one of the three).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order.

    Returns:
        `DatasetDict`: the splits whose size is not 0.

    Raises:
        `ValueError`: if a split would be empty, or the sizes exceed the data.
    """
    distinct = deduplicate_questions(dataset)
    total, sizes = len(distinct), {"train": train, "calibration": calibration, "test": test}
    for name, size in sizes.items():
        if size is not None and (size < 0 or (isinstance(size, float) and size >= 1)):
            raise ValueError(f"{name}={size}: pass a count (int), a fraction below 1 (float), 0, or None for the rest")
    if sum(size is None for size in sizes.values()) > 1:
        raise ValueError("only one of train, calibration and test may be None (the rest)")
    counts = {
        name: round(size * total) if isinstance(size, float) else size for name, size in sizes.items() if size != 0
    }
    rest = total - sum(count for count in counts.values() if count is not None)
    counts = {name: rest if count is None else count for name, count in counts.items()}
    if rest < 0 or any(count < 1 for count in counts.values()):
        raise ValueError(
            f"{total} distinct questions (of {len(dataset)} rows) cannot be split into "
            f"{', '.join(f'{name}={count}' for name, count in counts.items())}; ask for smaller splits, or 0 for none"
        )
    order = sorted(range(total), key=lambda index: digest(seed, _content_key(distinct[index])))
    ends = np.cumsum(list(counts.values()))
    return DatasetDict(
        {name: distinct.select(order[end - counts[name] : end]) for name, end in zip(counts, ends, strict=True)}
    )


def _reordered(row: Row, order: list[int]) -> Row:
    """Return the row with option `order[j]` at place `j`."""
    moved = {"choices": [row["choices"][k] for k in order], "answer": order.index(row["answer"])}
    if row.get("target_probabilities") is not None:
        moved["target_probabilities"] = [row["target_probabilities"][k] for k in order]
    return moved


def shuffle_options(dataset: Dataset, seed: int) -> Dataset:
    """
    Shuffle the options of each question, with its answer and target probabilities.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns.
        seed (`int`):
            Seed. With the question's id it decides the order, independent of the other rows.
    """

    def shuffle(row: Row) -> Row:
        generator = np.random.default_rng(int(digest(seed, row["id"])[:16], 16))
        return _reordered(row, generator.permutation(len(row["choices"])).tolist())

    return dataset.map(shuffle, desc="Shuffling options")


def permute_options(dataset: Dataset, shift: int) -> Dataset:
    """
    Rotate the options of each question by `shift` places, with its answer and target probabilities.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns.
        shift (`int`):
            Number of places by which each option moves down, modulo the number of options.
    """

    def rotate(row: Row) -> Row:
        k = len(row["choices"])
        return _reordered(row, [(place - shift) % k for place in range(k)])

    return dataset.map(rotate, desc="Permuting options")
