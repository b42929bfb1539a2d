"""
Convert data sets of known layouts to option questions in the unified columns, and check every row.

[`adapt_questions`] is the entry point. It recognises a layout by its column names (see `ADAPTERS`), converts each row
with that layout's function, and checks the result. A data set that already has the unified columns, and only valid
questions, is returned as it is.
"""

import ast
import hashlib
import json
import logging
import math
import string
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset, Features

from .unified import MAX_OPTIONS, OPTIONAL_FEATURES, REQUIRED_FEATURES, TARGET_TOLERANCE, is_unified


logger = logging.getLogger(__name__)

Row = dict[str, Any]


class _InvalidRow(ValueError):
    """Raised for a row that is not a valid option question, with the column at fault."""

    def __init__(self, column: str, problem: str, hidden_label: bool = False):
        super().__init__(f"column '{column}': {problem}")
        self.column, self.hidden_label = column, hidden_label


def digest(*parts: object) -> str:
    """Hash texts and numbers, with the same result in every process."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def _structured(value: Any, column: str) -> Any:
    """Parse a list or dict that a CSV file holds as text: as JSON, or as a Python literal from `DataFrame.to_csv`."""
    if not isinstance(value, str):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError):
            continue
    raise _InvalidRow(column, f'{value!r} is text, not a list of options; write it as JSON, e.g. ["yes", "no"]')


def _unified(row: Row) -> Row:
    """Convert a row with `question`, a list of `choices`, and `answer`."""
    choices = _structured(row["choices"], "choices")
    if isinstance(choices, dict) and {"text", "label"} <= choices.keys():  # ARC with other column names
        return _labelled({**row, "choices": choices, "answerKey": row["answer"]})
    if not isinstance(choices, list):
        raise _InvalidRow("choices", f"it must be a list of texts, not {type(choices).__name__}")
    targets = _structured(row.get("target_probabilities"), "target_probabilities")
    return {"question": row["question"], "choices": choices, "answer": row["answer"], "target_probabilities": targets}


def _labelled(row: Row, question_column: str = "question") -> Row:
    """Convert a row whose `choices` are a dict of `text` and `label` lists, and whose `answerKey` is a label."""
    choices = _structured(row["choices"], "choices")
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise _InvalidRow("choices", "it must be a dict of `text` and `label` lists")
    labels = [str(label) for label in choices["label"]]
    return {
        "question": row[question_column],
        "choices": choices["text"],
        "answer": row["answerKey"],
        "labels": labels,
    }


def _columns(row: Row, option_columns: tuple[str, ...], answer_column: str) -> Row:
    """Convert a row with one column for each option."""
    # The last columns may be empty. An empty column before a filled one is kept, and reported as an empty text.
    choices = [row.get(column) for column in option_columns]
    while choices and (choices[-1] is None or not str(choices[-1]).strip()):
        choices.pop()
    return {"question": row["question"], "choices": choices, "answer": row[answer_column]}


def _sciq(row: Row) -> Row:
    """Convert a row of SciQ, which has the right answer in a column of its own."""
    # Ordering by a hash mixes the places of the right answers, and is the same in every run.
    texts = [row["correct_answer"], row["distractor1"], row["distractor2"], row["distractor3"]]
    order = sorted(range(4), key=lambda k: digest(row["question"], texts[k]))
    return {"question": row["question"], "choices": [texts[k] for k in order], "answer": order.index(0)}


@dataclass(frozen=True)
class Adapter:
    """
    A column layout and the function that converts its rows.

    Args:
        columns (`tuple[str]`):
            Columns that identify the layout.
        convert (`Callable`):
            From a row to a dict with `question`, `choices` and `answer` (an index from 0, or a label), and where they
            apply `labels` of the options (by default A, B, ...) and `target_probabilities`.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the answer, for error messages.
        subject_column (`str`, *optional*, defaults to `"subject"`):
            Column of the subject, if there is one.
    """

    columns: tuple[str, ...]
    convert: Callable[[Row], Row]
    answer_column: str = "answer"
    subject_column: str = "subject"


_OPTION_COLUMNS = ("opa", "opb", "opc", "opd")
ADAPTERS: dict[str, Adapter] = {
    "unified": Adapter(("question", "choices", "answer"), _unified),
    "mmlu": Adapter(("question", "subject", "choices", "answer"), _unified),
    "arc": Adapter(("question", "choices", "answerKey"), _labelled, "answerKey"),
    "commonsense_qa": Adapter(("question", "question_concept", "choices", "answerKey"), _labelled, "answerKey"),
    "openbookqa": Adapter(
        ("question_stem", "choices", "answerKey"), partial(_labelled, question_column="question_stem"), "answerKey"
    ),
    "medmcqa": Adapter(
        ("question", *_OPTION_COLUMNS, "cop"),
        partial(_columns, option_columns=_OPTION_COLUMNS, answer_column="cop"),
        "cop",
        "subject_name",
    ),
    "sciq": Adapter(("question", "correct_answer", "distractor1", "distractor2", "distractor3"), _sciq),
    "lettered": Adapter(
        ("question", "A", "B", "answer"),
        partial(_columns, option_columns=tuple(string.ascii_uppercase), answer_column="answer"),
    ),
}


def find_adapter(columns: Iterable[str], names: Iterable[str] = ADAPTERS, labelled: bool = True) -> Adapter | None:
    """
    Find the first adapter whose columns are all present.

    Args:
        columns (`Iterable[str]`):
            Columns of a data set.
        names (`Iterable[str]`, *optional*):
            Names of adapters to consider, by default all.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the column of the answer must be present too.
    """
    columns = set(columns)
    for name in names:
        wanted = set(ADAPTERS[name].columns) - (set() if labelled else {ADAPTERS[name].answer_column})
        if wanted <= columns:
            return ADAPTERS[name]
    return None


def _choose_adapter(adapter: str | Callable[[Row], Row], columns: list[str], source: str, labelled: bool) -> Adapter:
    if callable(adapter):
        return Adapter((), adapter)
    if adapter != "auto" and adapter not in ADAPTERS:
        raise ValueError(f"unknown adapter '{adapter}'; choose 'auto' or one of {', '.join(ADAPTERS)}")
    found = find_adapter(columns, ADAPTERS if adapter == "auto" else [adapter], labelled)
    if found is not None:
        return found
    if adapter != "auto":
        missing = [column for column in ADAPTERS[adapter].columns if column not in columns]
        raise ValueError(
            f"{source}: adapter '{adapter}' misses column(s) {', '.join(missing)} among {', '.join(columns)}; "
            "rename with `dataset.rename_column`, or choose another adapter"
        )
    layouts = "\n".join(f"  {name}: {', '.join(entry.columns)}" for name, entry in ADAPTERS.items())
    raise ValueError(
        f"{source}: no adapter fits the columns {', '.join(columns)}. Rename them with `dataset.rename_column`, or "
        f"pass a function from a row to question, choices, answer as `adapter`. The adapters need:\n{layouts}"
    )


def _text(value: Any, column: str) -> str:
    text = "" if value is None else str(value).strip()
    if not text:
        raise _InvalidRow(column, "empty text")
    return text


def _answer_index(answer: Any, column: str, labels: list[str] | None, num_options: int) -> int:
    if answer in (None, "", -1) or (isinstance(answer, float) and math.isnan(answer)):
        raise _InvalidRow(column, f"no answer ({answer!r})", hidden_label=True)
    # Labels may be digits that count from 1. Where the data has labels, the answer is a label and not an index.
    if labels is not None or isinstance(answer, str):
        labels = labels or list(string.ascii_uppercase[:num_options])
        if str(answer).strip() not in labels:
            raise _InvalidRow(column, f"{answer!r} is not one of the option labels {', '.join(labels)}")
        return labels.index(str(answer).strip())
    if answer not in range(num_options):
        raise _InvalidRow(column, f"{answer!r} is out of range; it must be 0 to {num_options - 1}")
    return int(answer)


def _adapt_row(row: Row, adapter: Adapter, labelled: bool) -> Row:
    """Convert and check one row."""
    adapted = adapter.convert(row if labelled else {**row, adapter.answer_column: None})
    question = _text(adapted["question"], "question")
    choices = [_text(choice, f"choices[{k}]") for k, choice in enumerate(adapted["choices"])]
    if not 2 <= len(choices) <= MAX_OPTIONS:
        raise _InvalidRow("choices", f"{len(choices)} option(s); there must be 2 to {MAX_OPTIONS}")
    if len(set(choices)) < len(choices):
        raise _InvalidRow("choices", f"duplicate option {Counter(choices).most_common(1)[0][0]!r}")
    answer = None
    if labelled:
        answer = _answer_index(adapted["answer"], adapter.answer_column, adapted.get("labels"), len(choices))
    targets = adapted.get("target_probabilities")
    if targets is not None:
        total = math.fsum(targets)
        if len(targets) != len(choices) or min(targets) < 0 or not math.isclose(total, 1.0, abs_tol=TARGET_TOLERANCE):
            raise _InvalidRow(
                "target_probabilities",
                f"{len(targets)} numbers that sum to {total:g}; it must be {len(choices)} numbers >= 0 that sum to 1",
            )
    given_id, subject = row.get("id"), row.get(adapter.subject_column)
    return {
        "id": digest(question, *choices)[:16] if given_id in (None, "") else str(given_id),
        "question": question,
        "choices": choices,
        "answer": answer,
        "subject": None if subject is None else str(subject),
        "target_probabilities": targets,
    }


def adapt_questions(
    dataset: Dataset,
    adapter: str | Callable[[Row], Row] = "auto",
    drop_invalid: bool = False,
    source: str | None = None,
    labelled: bool = True,
) -> Dataset:
    """
    Convert a data set of a known layout to the unified columns, and check every row.

    A data set that has the unified columns and only valid questions is returned as it is.

    Args:
        dataset (`Dataset`):
            Questions in the columns of `cais/mmlu`, `allenai/ai2_arc`, `allenai/openbookqa`,
            `openlifescienceai/medmcqa`, `tau/commonsense_qa`, `allenai/sciq`, in the unified columns, or in those of a
            spreadsheet (`question`, `A`, `B`, ..., `answer`). Other columns are dropped.
        adapter (`str` or `Callable`, *optional*, defaults to `"auto"`):
            A name in `ADAPTERS`, `"auto"` to recognise the layout by its columns, or a function from a row to a dict
            with `question`, `choices`, `answer`, and optionally `target_probabilities`.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave out invalid rows, and log their number, instead of raising.
        source (`str`, *optional*):
            Name of the data in messages. Defaults to the name and split of the data set.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the questions need answers. With `False` answers are ignored, and `answer` is `None` everywhere.

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
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"expected a `datasets.Dataset`, not {type(dataset).__name__}; choose one split of a DatasetDict"
        )
    if adapter in ("auto", "unified") and is_unified(dataset, labelled):
        return dataset
    source = source or f"{dataset.info.dataset_name or 'dataset'}" + (f" ({dataset.split})" if dataset.split else "")
    chosen = _choose_adapter(adapter, dataset.column_names, source, labelled)
    valid, dropped = [], Counter()
    for index, row in enumerate(dataset):
        try:
            valid.append(_adapt_row(row, chosen, labelled))
        except _InvalidRow as error:
            if drop_invalid:
                dropped[error.column.partition("[")[0]] += 1
                continue
            hint = "this split hides its answers, choose a labelled one (often 'train' or 'validation'), or "
            raise ValueError(
                f"{source}, row {index}, {error}; {hint if error.hidden_label else 'correct the row, or '}"
                "pass `drop_invalid=True` (`--drop_invalid true`) to leave such rows out"
            ) from None
    if dropped:
        reasons = ", ".join(f"{count} for `{column}`" for column, count in dropped.most_common())
        logger.warning(f"{source}: left out {dropped.total()} of {len(dataset)} rows as invalid ({reasons})")
    if not valid:
        raise ValueError(f"{source}: no valid question among {len(dataset)} rows; choose another split or file")
    features = dict(REQUIRED_FEATURES)
    for column, feature in OPTIONAL_FEATURES.items():
        if any(row[column] is not None for row in valid):
            features[column] = feature
    return Dataset.from_dict({c: [row[c] for row in valid] for c in features}, features=Features(features))
