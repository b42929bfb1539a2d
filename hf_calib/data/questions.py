"""Option questions: loading, splitting and reordering them, in one schema.

Every question of this library is a row of the *unified* columns

| column | type | |
|---|---|---|
| `id` | `str` | taken from the data, else a hash of question and options |
| `question` | `str` | |
| `choices` | `list[str]` | 2 to 26 different texts |
| `answer` | `int` | index of the right option, from 0 |
| `subject` | `str` | optional |
| `target_probabilities` | `list[float]` | optional, one per option, sums to 1 |

The adapters that produce these columns live in `adapters`, the prompts made of them in `prompts`; both are public from
here.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .adapters import ADAPTERS, Row, adapt_questions, digest
from .prompts import PromptFormat


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

FILE_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}


def load_rows(
    path: str | Path, name: str | None = None, split: str | None = None, revision: str | None = None
) -> Dataset:
    """Loads rows of any columns, as they are, from a file, a folder or the Hub; arguments as in [`load_questions`]."""
    local = Path(path).expanduser()
    if not local.exists() and (named := re.fullmatch(r"([^:]+):([^:/\\]+)(?::(.+))?", str(path))):
        path, name = named.groups()[:2]
        split = named[3] or split
        local = Path(path).expanduser()
    builder = FILE_BUILDERS.get(local.suffix.lower())
    if local.is_file() or (builder and not local.exists()):
        if builder is None:
            raise ValueError(f"{path}: unknown file type '{local.suffix}'; use one of {', '.join(FILE_BUILDERS)}")
        if not local.exists():
            raise FileNotFoundError(f"{path}: no such file")
        options = {"sep": "\t"} if local.suffix.lower() == ".tsv" else {}
        # A file is one split: it is called what the caller calls it, so that slices work.
        data_files = {(split or "train").partition("[")[0]: str(local)}
        loaded = load_dataset(builder, data_files=data_files, split=split or "train", **options)
    elif local.is_dir() and any((local / marker).exists() for marker in ("state.json", "dataset_dict.json")):
        loaded = load_from_disk(str(local))
    else:
        loaded = load_dataset(str(local if local.is_dir() else path), name, split=split, revision=revision)
    if isinstance(loaded, DatasetDict):
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            raise ValueError(f"{path}: choose `split` among {', '.join(loaded)} (got {split!r})")
        loaded = loaded[split]
    return loaded


def load_questions(
    path: str | Path,
    name: str | None = None,
    split: str | None = None,
    adapter: str | Callable[[Row], Row] = "auto",
    limit: int | None = None,
    seed: int | None = None,
    revision: str | None = None,
    drop_invalid: bool = False,
    labelled: bool = True,
) -> Dataset:
    """
    Loads option questions from a file, a folder or the Hub, in the unified columns.

    Args:
        path (`str` or `Path`):
            A `.parquet`, `.jsonl`, `.json`, `.csv` or `.tsv` file, a folder (from `save_to_disk`, or of such files),
            or the id of a data set on the Hub, perhaps with its configuration, as in `"allenai/ai2_arc:ARC-Easy"`, and with
            a split of its own, as in `"cais/mmlu:all:validation"`, which goes before `split`. Lists in a CSV file are JSON, or one column an option (`A`, `B`, ...).
        name (`str`, *optional*):
            Configuration of a data set on the Hub whose id brings none, e.g. `"ARC-Easy"`.
        split (`str`, *optional*):
            Split, slices as in `"test[:100]"` included. Needed where there are several.
        adapter (`str` or `Callable`, *optional*, defaults to `"auto"`):
            See [`adapt_questions`].
        limit (`int`, *optional*):
            Keep this many questions at most.
        seed (`int`, *optional*):
            Shuffle the questions with this seed, before `limit`.
        revision (`str`, *optional*):
            Branch, tag or commit of a data set on the Hub.
        drop_invalid (`bool`, *optional*, defaults to `False`), labelled (`bool`, *optional*, defaults to `True`):
            See [`adapt_questions`].

    Returns:
        `Dataset`: the questions in the unified columns.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves no questions; pass a positive number or None")
    loaded = load_rows(path, name, split, revision)
    source = str(path) + "".join(f" ({part})" for part in (name, split) if part)
    questions = adapt_questions(loaded, adapter, drop_invalid, source, labelled)
    if seed is not None:
        questions = questions.shuffle(seed=seed)
    return questions if limit is None else questions.select(range(min(limit, len(questions))))


def _content_key(row: Row) -> str:
    def normalise(text: str) -> str:
        return " ".join(text.casefold().split())

    return digest(normalise(row["question"]), *sorted(map(normalise, row["choices"])))


def deduplicate_questions(dataset: Dataset, exclude: Dataset | None = None) -> Dataset:
    """
    Keeps the first of equal questions: same text up to case and spacing, same options in any order.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns.
        exclude (`Dataset`, *optional*):
            Questions to leave out as well, e.g. the test set when this is the training set.

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
    Splits questions into disjoint parts without duplicates (see [`deduplicate_questions`]).

    The order is a seeded hash of each question's content, so it does not depend on the order of the rows.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns.
        train, calibration, test (`int`, `float` or `None`):
            Number of questions (`int`), share of the distinct questions (`float` below 1), 0 for no such split, or
            `None` for all that the other two leave (at most one of them).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order.

    Returns:
        `DatasetDict`: the splits asked for.

    Raises:
        `ValueError`: where a split would be empty or the sizes exceed the data.
    """
    distinct = deduplicate_questions(dataset)
    total, sizes = len(distinct), {"train": train, "calibration": calibration, "test": test}
    for name, size in sizes.items():
        if size is not None and (size < 0 or (isinstance(size, float) and size >= 1)):
            raise ValueError(f"{name}={size}: pass a count (int), a share below 1 (float), 0, or None for the rest")
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
    """The row with option `order[j]` at place `j`."""
    moved = {"choices": [row["choices"][k] for k in order], "answer": order.index(row["answer"])}
    if row.get("target_probabilities") is not None:
        moved["target_probabilities"] = [row["target_probabilities"][k] for k in order]
    return moved


def shuffle_options(dataset: Dataset, seed: int) -> Dataset:
    """
    Puts the options of each question in random order, the answer and its target probabilities with them.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns.
        seed (`int`):
            With the question's id it decides the order, whatever rows stand around it.
    """

    def shuffle(row: Row) -> Row:
        generator = np.random.default_rng(int(digest(seed, row["id"])[:16], 16))
        return _reordered(row, generator.permutation(len(row["choices"])).tolist())

    return dataset.map(shuffle, desc="Shuffling options")


def permute_options(dataset: Dataset, shift: int) -> Dataset:
    """
    Moves every option `shift` places down, the last ones to the front, the answer and target probabilities with them.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns.
        shift (`int`):
            Number of places, modulo each question's number of options.
    """

    def rotate(row: Row) -> Row:
        k = len(row["choices"])
        return _reordered(row, [(place - shift) % k for place in range(k)])

    return dataset.map(rotate, desc="Permuting options")
