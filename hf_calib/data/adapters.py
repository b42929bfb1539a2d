"""
Convert data sets of known layouts to option questions in the unified columns, and check every row.

[`adapt_questions`] is the entry point. It recognises a layout by its column names (see
[`~hf_calib.data.layouts.ADAPTERS`]), converts each row with that layout's function, and checks the result. A data set
that already has the unified columns, and only valid questions, is returned as it is.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Features

from .answers import Answer, parse_answer, settle_answers, warn_or_raise_without_zero
from .columns import parse_columns, rename_columns
from .layouts import ADAPTERS, Adapter, InvalidRow, Row, columns_as_known, digest, find_adapter
from .text_files import TextRecords
from .unified import MAX_OPTIONS, OPTIONAL_FEATURES, REQUIRED_FEATURES, TARGET_TOLERANCE, is_unified


logger = logging.getLogger(__name__)

# Texts that questions may refer to.
CONTEXT_COLUMNS = ("article", "context", "passage", "paragraph", "story")


class UnknownLayoutError(ValueError):
    """Raised for data whose columns are of no known layout."""


def _choose_adapter(adapter: str | Callable[[Row], Row], columns: list[str], source: str, labelled: bool) -> Adapter:
    if callable(adapter):
        return Adapter((), adapter)
    if adapter != "auto" and adapter not in ADAPTERS:
        raise ValueError(f"unknown adapter '{adapter}'; choose 'auto' or one of {', '.join(ADAPTERS)}")
    found = find_adapter(columns, ADAPTERS if adapter == "auto" else [adapter], labelled)
    if found is not None:
        return found
    if adapter != "auto":
        missing = _missing(ADAPTERS[adapter], columns, labelled)
        raise ValueError(
            f"{source}: adapter '{adapter}' misses column(s) {', '.join(missing)} among {', '.join(columns)}; name "
            "them by `columns` (--columns question=...,answer=...), or choose another adapter"
        )
    present = {column.strip().lower() for column in columns}
    if "question" in present and {"answers", "answer"} & present:
        raise ValueError(
            f"{source}: the columns {', '.join(columns)} hold no options. Questions with accepted texts are for "
            "`hf-calib evaluate`, which writes option questions about the model's answers to p_true/questions.parquet "
            "(see docs/guides/short-answers.md); otherwise name the options by `columns` (--columns choices=...)"
        )
    near = [(name, _missing(entry, columns, labelled)) for name, entry in ADAPTERS.items() if len(entry.columns) > 2]
    almost = "".join(f"; for the layout '{name}', {absent[0]} is missing" for name, absent in near if len(absent) == 1)
    raise UnknownLayoutError(
        f"{source}: the columns {', '.join(columns)} are of no known layout{almost}; a question has question, choices "
        "(or A, B, ...) and answer: name them by `columns` (--columns question=...,answer=...)"
    )


def _missing(adapter: Adapter, columns: list[str], labelled: bool) -> list[str]:
    present = columns_as_known(columns, adapter.columns)
    return [name for name in adapter.columns if name not in present and (labelled or name != adapter.answer_column)]


def _text(value: Any, column: str) -> str:
    if isinstance(value, (bool, list, tuple, Mapping)):
        raise InvalidRow(column, f"{str(value)[:60]} is a {type(value).__name__}, not a text")
    text = "" if value is None else str(value).strip()
    if not text:
        raise InvalidRow(column, "empty text")
    return text


def _targets(values: Any, num_options: int) -> list[float] | None:
    if values is None:
        return None
    try:
        targets = [float(value) for value in values]
    except (TypeError, ValueError):
        raise InvalidRow("target_probabilities", f"{str(values)[:60]} is not a list of numbers") from None
    total = math.fsum(targets)
    if len(targets) != num_options or min(targets) < 0 or not math.isclose(total, 1.0, abs_tol=TARGET_TOLERANCE):
        raise InvalidRow(
            "target_probabilities",
            f"{len(targets)} numbers that sum to {total:g}; it must be {num_options} numbers >= 0 that sum to 1",
        )
    return targets


def _adapt_row(row: Row, adapter: Adapter, labelled: bool) -> Row:
    """Convert and check one row; its answer is still to be settled, see [`settle_answers`]."""
    adapted = adapter.convert(row if labelled else {**row, adapter.answer_column: None})
    question = _text(adapted["question"], "question")
    if not isinstance(adapted["choices"], list):
        raise InvalidRow("choices", f"it must be a list of texts, not {type(adapted['choices']).__name__}")
    choices = [_text(choice, f"choices[{k}]") for k, choice in enumerate(adapted["choices"])]
    if not 2 <= len(choices) <= MAX_OPTIONS:
        raise InvalidRow("choices", f"{len(choices)} option(s); there must be 2 to {MAX_OPTIONS}")
    if len(set(choices)) < len(choices):
        raise InvalidRow("choices", f"duplicate option {Counter(choices).most_common(1)[0][0]!r}")
    answer = None
    if labelled:
        answer = parse_answer(adapted["answer"], adapter.answer_column, adapted.get("labels"), adapted["choices"])
    given_id, subject = adapted.get("id", row.get("id")), row.get(adapter.subject_column)
    return {
        "id": digest(question, *choices)[:16] if given_id in (None, "") else str(given_id),
        "question": question,
        "choices": choices,
        "answer": answer,
        "subject": None if subject is None else str(subject),
        "target_probabilities": _targets(adapted.get("target_probabilities"), len(choices)),
    }


def adapt_questions(
    dataset: Dataset | TextRecords,
    adapter: str | Callable[[Row], Row] = "auto",
    drop_invalid: bool = False,
    source: str | None = None,
    labelled: bool = True,
    columns: str | Mapping[str, str] | None = None,
    answers_from: int | None = None,
) -> Dataset:
    """
    Convert a data set of a known layout to the unified columns, and check every row.

    A data set that has the unified columns and only valid questions is returned as it is.

    Args:
        dataset (`Dataset`):
            Questions in the unified columns, in those of a spreadsheet (`question`, `A`, `B`, ..., `answer`), or in
            those of a benchmark in [`~hf_calib.data.layouts.ADAPTERS`]. The case of the names does not matter. Other
            columns are dropped.
        adapter (`str` or `Callable`, *optional*, defaults to `"auto"`):
            A name in [`~hf_calib.data.layouts.ADAPTERS`], `"auto"` to recognise the layout by its columns, or a
            function from a row to a dict with `question`, `choices`, `answer`, and optionally `target_probabilities`.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave out invalid rows, and log their number, instead of raising. Data with more invalid rows than valid
            ones is an error, except for rows without an answer.
        source (`str`, *optional*):
            Name of the data in messages. Defaults to the name and split of the data set.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the questions need answers. With `False` answers are ignored, and `answer` is `None` everywhere.
        columns (`str` or `Mapping[str, str]`, *optional*):
            Column of the data for a name of a layout, e.g. `"question=Prompt,answer=Gold"`.
        answers_from (`int`, *optional*):
            Number of the first option, 0 or 1, where answers are numbers. By default they count from 0, and answers
            that seem to count from 1 are an error.

    Returns:
        `Dataset`: the unified columns; `subject` and `target_probabilities` only if some row has them.

    Raises:
        `ValueError`: for an unknown layout or an invalid row; it names data set, row and column.
        `TypeError`: if `dataset` is not a `Dataset`.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> choices = {"text": ["hot", "cold"], "label": ["1", "2"]}
    >>> dataset = Dataset.from_list([{"question": "Ice is", "choices": choices, "answerKey": "2"}])
    >>> adapt_questions(dataset)[0]["answer"]
    1

    ```
    """
    if not isinstance(dataset, (Dataset, TextRecords)):
        raise TypeError(
            f"expected a `datasets.Dataset`, not {type(dataset).__name__}; choose one split of a DatasetDict"
        )
    if answers_from not in (None, 0, 1):
        raise ValueError(f"answers_from={answers_from}: answers count from 0 or from 1")
    if source is None and isinstance(dataset, Dataset):
        source = (dataset.info.dataset_name or "dataset") + (f" ({dataset.split})" if dataset.split else "")
    if columns:
        dataset = rename_columns(dataset, parse_columns(columns), source)
    if isinstance(dataset, Dataset) and adapter in ("auto", "unified") and not answers_from:
        if is_unified(dataset, labelled):
            return dataset
    names = dataset.column_names
    chosen = _choose_adapter(adapter, names, source, labelled)
    if unread := [name for name in names if name.strip().lower() in CONTEXT_COLUMNS and name not in chosen.columns]:
        logger.warning(
            f"{source}: the column '{unread[0]}' is not read; if questions need it, put its text into the questions"
        )
    valid = _valid_rows(dataset, chosen, source, labelled, drop_invalid, answers_from)
    features = dict(REQUIRED_FEATURES)
    for column, feature in OPTIONAL_FEATURES.items():
        if any(row[column] is not None for row in valid):
            features[column] = feature
    return Dataset.from_dict({c: [row[c] for row in valid] for c in features}, features=Features(features))


def _valid_rows(
    dataset: Dataset | TextRecords,
    adapter: Adapter,
    source: str,
    labelled: bool,
    drop_invalid: bool,
    answers_from: int | None,
) -> list[Row]:
    """Convert and check all rows."""
    records = isinstance(dataset, TextRecords)
    places = columns_as_known(dataset.column_names, adapter.known)
    renamed = {column: name for name, column in places.items() if name != column}
    valid, faults = {}, {}
    for index, row in enumerate(dataset.rows if records else dataset):
        row = {**dict.fromkeys(adapter.columns), **{renamed.get(name, name): value for name, value in row.items()}}
        try:
            valid[index] = _adapt_row(row, adapter, labelled)
        except InvalidRow as error:
            faults[index] = error
    answers: list[Answer] = [row["answer"] for row in valid.values()] if labelled else []
    first, by_text = settle_answers(answers, adapter.answer_column, source, answers_from)
    for index, row in list(valid.items()) if labelled else ():
        try:
            row["answer"] = row["answer"].index(first, by_text, adapter.answer_column)
        except InvalidRow as error:
            faults[index] = error
            del valid[index]
    if not len(dataset):
        raise ValueError(f"{source}: no valid question among 0 rows; choose another split or file")
    if faults:
        handle_faults(dict(sorted(faults.items())), len(valid), source, drop_invalid, dataset.lines if records else [])
    return list(valid.values())


def handle_faults(
    faults: Mapping[int, InvalidRow], num_valid: int, source: str, drop_invalid: bool, lines: list[int]
) -> None:
    """
    Raise an error for the first invalid row, or log how many are left out.

    Args:
        faults (`Mapping[int, InvalidRow]`):
            What is wrong, by row, at least one.
        num_valid (`int`):
            Number of valid rows.
        source (`str`):
            Name of the data in messages.
        drop_invalid (`bool`):
            Leave out invalid rows. If more are invalid than valid it is an error all the same.
        lines (`list[int]`):
            Line of the file of each row, if it is known.

    Raises:
        `ValueError`: for the first invalid row, or if no row is valid.
    """
    total, (index, first) = len(faults) + num_valid, next(iter(faults.items()))
    malformed = [error for error in faults.values() if not error.hidden_label]
    where = f"{source}, {f'line {lines[index]}' if lines else f'row {index}'}, {first}"
    if len(malformed) > num_valid and len(malformed) > 1:
        raise ValueError(f"{where}; {len(malformed)} of {total} rows are invalid: correct the data")
    if not drop_invalid:
        hint = "this split hides its answers, choose a labelled one (often 'train' or 'validation'), or "
        raise ValueError(
            f"{where}; {hint if first.hidden_label else 'correct the row, or '}"
            "pass `drop_invalid=True` (`--drop_invalid true`) to leave such rows out"
        )
    counts = Counter(error.column.partition("[")[0] for error in faults.values())
    reasons = ", ".join(f"{count} for `{column}`" for column, count in counts.most_common())
    if not num_valid:
        raise ValueError(f"{source}: no valid question among {total} rows ({reasons}); choose another split or file")
    logger.warning(f"{source}: left out {len(faults)} of {total} rows as invalid ({reasons})")


def warn_of_answers_from_one(questions: Dataset, source: str) -> None:
    """Warn if no answer of many questions in the unified columns is 0."""
    answers = questions.with_format("arrow")[:]["answer"]
    if len(answers) and (pc.min(answers).as_py() or 0) > 0:
        warn_or_raise_without_zero(False, len(answers), "answer", source)
