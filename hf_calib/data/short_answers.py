"""
Questions that are answered in free text, with the texts that count as right.

| column | type | |
|---|---|---|
| `id` | `str` | from the data, else a hash of the question |
| `question` | `str` | |
| `answers` | `list[str]` | accepted texts; `None` where they are not known |
| `subject` | `str` | optional |
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets import List as ListOf

from .adapters import CONTEXT_COLUMNS, UnknownLayoutError, adapt_questions, handle_faults
from .columns import parse_columns, rename_columns
from .files import load_records
from .layouts import ADAPTERS, InvalidRow, Row, columns_as_known, digest, find_adapter, structured
from .questions import check_limit, draw_questions, source_name
from .text_files import TextRecords
from .unified import REQUIRED_FEATURES


logger = logging.getLogger(__name__)

# How a proposed answer becomes a question with two options.
JUDGEMENT_TEMPLATE = "Question: {question}\nProposed answer: {answer}\nIs the proposed answer right?"
JUDGEMENT_CHOICES = ("True", "False")
NO_ANSWER = "(no answer)"

_KNOWN = ("id", "question", "answers", "answer", "subject")
# Layouts that show their options without the answers. In the others the options are part of the question.
_BESIDE_QUESTION = [
    name for name, known in ADAPTERS.items() if set(known.columns) != {"question", known.answer_column}
]
_FEATURES = {"id": Value("string"), "question": Value("string"), "answers": ListOf(Value("string"))}


def holds_short_answers(
    records: Dataset | TextRecords, named: str | Mapping[str, str] | None = None, labelled: bool = True
) -> bool:
    """
    Tell by its columns whether a data set has questions with accepted texts and no options.

    Args:
        records (`Dataset` or [`~hf_calib.data.text_files.TextRecords`]):
            The data set, from [`~hf_calib.data.files.load_records`].
        named (`str` or `Mapping[str, str]`, *optional*):
            Column for a name, as in `"question=Prompt,answers=Gold"`.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether accepted texts are needed. With `False` questions alone are enough.
    """
    present = {column.strip().lower() for column in records.column_names}
    if named:
        present |= {name for name, column in parse_columns(named).items() if column.strip().lower() in present}
    if "question" not in present or find_adapter(present):
        return False
    return bool({"answers", "answer"} & present) or not (labelled or find_adapter(present, _BESIDE_QUESTION, False))


def load_short_questions(
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
    Load questions with their accepted texts from a file, a folder or the Hub.

    Args:
        path, name, split, limit, seed, revision, records:
            As in [`~hf_calib.load_questions`].
        adapting:
            Options of [`short_questions`]: `columns`, `drop_invalid`, `labelled`, `answers_from`.

    Returns:
        `Dataset`: the columns `id`, `question`, `answers` and, if some row has one, `subject`.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: see [`short_questions`].
    """
    check_limit(limit)
    source = source_name(path, name, split)
    records = load_records(path, name, split, revision) if records is None else records
    questions = short_questions(records, source=source, **adapting)
    return draw_questions(questions, source, limit, seed)


def short_questions(
    dataset: Dataset | TextRecords,
    source: str = "dataset",
    columns: str | Mapping[str, str] | None = None,
    drop_invalid: bool = False,
    labelled: bool = True,
    answers_from: int | None = None,
) -> Dataset:
    """
    Convert a data set to questions with accepted texts.

    Option questions of any layout that [`~hf_calib.load_questions`] reads lose their options: the text of the right
    one is the accepted text. Otherwise the accepted texts are in the column `answers`: a list of texts, the same as
    JSON, a text, a dict with `text` (SQuAD), or one with `value` and `aliases` (TriviaQA); or in `answer`.

    Args:
        dataset (`Dataset`):
            The rows. Their other columns are dropped.
        source (`str`, *optional*, defaults to `"dataset"`):
            Name of the data in messages.
        columns (`str` or `Mapping[str, str]`, *optional*):
            Column of the data for a name, e.g. `"question=Prompt,answers=Gold"`.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave out invalid rows, and log their number, instead of raising.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the questions need accepted texts. With `False` they are ignored.
        answers_from (`int`, *optional*):
            Number of the first option, 0 or 1, of option questions whose answers are numbers.

    Returns:
        `Dataset`: the columns `id`, `question`, `answers` and, if some row has one, `subject`.

    Raises:
        `ValueError`: if there are neither options nor accepted texts, or a row is invalid; it names row and column.

    Example:

    ```python
    >>> rows = Dataset.from_list([{"question": "Capital of France?", "answers": ["Paris", "City of Paris"]}])
    >>> short_questions(rows)[0]["answers"]
    ['Paris', 'City of Paris']

    ```
    """
    if {"id", "question", "answers"} <= set(dataset.column_names) and _is_clean(dataset, labelled):
        return dataset
    if not holds_short_answers(dataset, columns, labelled):
        known = find_adapter(dataset.column_names, labelled=labelled) or columns
        if not known:
            raise UnknownLayoutError(
                f"{source}: the columns {', '.join(dataset.column_names)} hold neither accepted texts (`answers` or "
                "`answer`, beside `question`) nor options (`choices`); name them by `columns` "
                "(--columns question=...,answers=...)"
            )
        options = adapt_questions(
            dataset,
            source=source,
            columns=columns,
            drop_invalid=drop_invalid,
            labelled=labelled,
            answers_from=answers_from,
        )
        return _dataset([_without_options(row) for row in options])
    if columns:
        named = parse_columns(columns)
        if not labelled:  # accepted texts are not read, and their column may be absent
            named = {name: column for name, column in named.items() if name not in ("answers", "answer")}
        dataset = rename_columns(dataset, named, source)
    if unread := [name for name in dataset.column_names if name.strip().lower() in CONTEXT_COLUMNS]:
        logger.warning(
            f"{source}: the column '{unread[0]}' is not read; if questions need it, put its text into the questions"
        )
    return _dataset(_valid_rows(dataset, source, drop_invalid, labelled))


def _is_clean(dataset: Dataset | TextRecords, labelled: bool) -> bool:
    """Whether a data set is a result of [`short_questions`]."""
    if not isinstance(dataset, Dataset):
        return False
    expected = {**_FEATURES, "subject": Value("string")}
    if any(dataset.features[name] != expected.get(name) for name in dataset.column_names):
        return False
    if not labelled:
        return all(answers is None for answers in dataset["answers"])
    return all(answers and all(text.strip() for text in answers) for answers in dataset["answers"])


def _without_options(row: Row) -> Row:
    answers = None if row["answer"] is None else [row["choices"][row["answer"]]]
    return {"id": row["id"], "question": row["question"], "answers": answers, "subject": row.get("subject")}


def _dataset(rows: Sequence[Row]) -> Dataset:
    features = dict(_FEATURES)
    if any(row.get("subject") is not None for row in rows):
        features["subject"] = Value("string")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=Features(features))


def _valid_rows(dataset: Dataset | TextRecords, source: str, drop_invalid: bool, labelled: bool) -> list[Row]:
    records = isinstance(dataset, TextRecords)
    places = columns_as_known(dataset.column_names, _KNOWN)
    column = "answers" if "answers" in places else "answer"
    valid, faults = [], {}
    for index, row in enumerate(dataset.rows if records else dataset):
        row = {name: row.get(place) for name, place in places.items()}
        try:
            valid.append(_short_question(row, column, labelled))
        except InvalidRow as error:
            faults[index] = error
    if not len(dataset):
        raise ValueError(f"{source}: no valid question among 0 rows; choose another split or file")
    if faults:
        handle_faults(faults, len(valid), source, drop_invalid, dataset.lines if records else [])
    return valid


def _short_question(row: Row, column: str, labelled: bool) -> Row:
    question = _text(row["question"], "question")
    answers = accepted_texts(row.get(column), column) if labelled else None
    given_id, subject = row.get("id"), row.get("subject")
    return {
        "id": digest(question)[:16] if given_id in (None, "") else str(given_id),
        "question": question,
        "answers": answers,
        "subject": None if subject is None else str(subject),
    }


def accepted_texts(value: Any, column: str = "answers") -> list[str]:
    """
    Read the accepted texts of a question in any of their layouts, without repetitions.

    Args:
        value (`list`, `dict`, `str` or number):
            See [`short_questions`].
        column (`str`, *optional*, defaults to `"answers"`):
            Name of the column, for messages.

    Raises:
        [`InvalidRow`]: for an empty text, a list without texts, or another layout.
    """
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = structured(value, column)
        except InvalidRow:
            pass  # a text that begins with a bracket
    if isinstance(value, Mapping):
        texts = [value.get(key) for key in ("value", "text", "texts", "aliases") if value.get(key) is not None]
        if not texts:
            raise InvalidRow(
                column, f"a dict of {', '.join(map(repr, value))}; it must have `text`, `value` or `aliases`"
            )
        value = [text for part in texts for text in (part if isinstance(part, (list, tuple)) else [part])]
    if isinstance(value, (list, tuple)) and not value or value is None:
        raise InvalidRow(column, "there is no accepted text", hidden_label=True)
    texts = [_text(text, column) for text in (value if isinstance(value, (list, tuple)) else [value])]
    return list(dict.fromkeys(texts))


def _text(value: Any, column: str) -> str:
    if isinstance(value, (bool, list, tuple, Mapping)) or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidRow(column, f"{str(value)[:60]} is a {type(value).__name__}, not a text")
    text = "" if value is None else str(value).strip()
    if not text:
        raise InvalidRow(column, "empty text")
    return text


def p_true_questions(
    questions: Dataset,
    answers: Sequence[str],
    correct: Sequence[bool] | None,
    template: str = JUDGEMENT_TEMPLATE,
    choices: Sequence[str] = JUDGEMENT_CHOICES,
) -> Dataset:
    """
    Turn written answers into option questions: is this answer right?

    Option 0 is that it is. The probability that a model gives to it is P(True) of Kadavath et al. Such questions are
    evaluated, trained and calibrated as any option questions with two options.

    Args:
        questions (`Dataset`):
            Questions of [`load_short_questions`].
        answers (`Sequence[str]`):
            The written answer of each.
        correct (`Sequence[bool]`, *optional*):
            Whether each is right; `None` if it is not known, for questions to train on without labels.
        template (`str`, *optional*):
            `str.format` template of the fields `{question}` and `{answer}`. An empty answer is written as
            `(no answer)`.
        choices (`Sequence[str]`, *optional*, defaults to `("True", "False")`):
            The two options; the first says that the answer is right.

    Returns:
        `Dataset`: option questions in the unified columns, in the order of the questions.

    References:
        Kadavath et al., "Language Models (Mostly) Know What They Know", https://huggingface.co/papers/2207.05221.
    """
    features = dict(REQUIRED_FEATURES)
    columns = {
        "id": questions["id"][:],
        "question": [
            template.format(question=question, answer=" ".join(answer.split()) or NO_ANSWER)
            for question, answer in zip(questions["question"], answers, strict=True)
        ],
        "choices": [list(choices)] * len(questions),
        "answer": [None] * len(questions) if correct is None else [0 if right else 1 for right in correct],
    }
    if "subject" in questions.column_names:
        columns["subject"], features["subject"] = questions["subject"][:], Value("string")
    return Dataset.from_dict(columns, features=Features(features))
