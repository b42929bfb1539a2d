"""Adapters from the column layouts of well-known data sets to option questions, and the check of every row."""

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

from datasets import Dataset, Features, Value
from datasets import List as ListOf


logger = logging.getLogger(__name__)

MAX_OPTIONS = len(string.ascii_uppercase)
Row = dict[str, Any]


class _InvalidRow(ValueError):
    """A row that is no option question; `column` is the culprit."""

    def __init__(self, column: str, problem: str, hidden_label: bool = False):
        super().__init__(f"column '{column}': {problem}")
        self.column, self.hidden_label = column, hidden_label


def digest(*parts: object) -> str:
    """A hash of texts and numbers that is the same in every process."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def _structured(value: Any, column: str) -> Any:
    """CSV files hold lists and dicts as text: JSON, or what `DataFrame.to_csv` writes."""
    if not isinstance(value, str):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError):
            continue
    raise _InvalidRow(column, f'{value!r} is text, not a list of options; write it as JSON, e.g. ["yes", "no"]')


def _unified(row: Row) -> Row:
    choices = _structured(row["choices"], "choices")
    if isinstance(choices, dict) and {"text", "label"} <= choices.keys():  # as in ARC, without the name of its answers
        return _labelled({**row, "choices": choices, "answerKey": row["answer"]})
    if not isinstance(choices, list):
        raise _InvalidRow("choices", f"a list of texts is wanted, not {type(choices).__name__}")
    targets = _structured(row.get("target_probabilities"), "target_probabilities")
    return {"question": row["question"], "choices": choices, "answer": row["answer"], "target_probabilities": targets}


def _labelled(row: Row, question_column: str = "question") -> Row:
    choices = _structured(row["choices"], "choices")
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise _InvalidRow("choices", "a dict of `text` and `label` lists is wanted")
    labels = [str(label) for label in choices["label"]]
    return {
        "question": row[question_column],
        "choices": choices["text"],
        "answer": row["answerKey"],
        "labels": labels,
    }


def _columns(row: Row, option_columns: tuple[str, ...], answer_column: str) -> Row:
    # Shorter questions leave the last columns empty; a hole in the middle stays and is reported.
    choices = [row.get(column) for column in option_columns]
    while choices and (choices[-1] is None or not str(choices[-1]).strip()):
        choices.pop()
    return {"question": row["question"], "choices": choices, "answer": row[answer_column]}


def _sciq(row: Row) -> Row:
    # The data lists the right answer apart: ordering by a hash puts it anywhere, and always at the same place.
    texts = [row["correct_answer"], row["distractor1"], row["distractor2"], row["distractor3"]]
    order = sorted(range(4), key=lambda k: digest(row["question"], texts[k]))
    return {"question": row["question"], "choices": [texts[k] for k in order], "answer": order.index(0)}


@dataclass(frozen=True)
class Adapter:
    """
    A column layout and the pure function that reads one of its rows.

    Args:
        columns (`tuple[str]`):
            Columns by which the layout is recognised.
        convert (`Callable`):
            From a row to a dict with `question`, `choices`, `answer` (an index from 0, or a label), option `labels`
            where they are not A, B, ..., and `target_probabilities` if there are any.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            What errors about the answer name.
        subject_column (`str`, *optional*, defaults to `"subject"`):
            Where the subject stands, if there is one.
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
    """The first adapter of these names that knows what to make of the columns; unlabelled, that of the answer may miss."""
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
    wanted = "\n".join(f"  {name}: {', '.join(entry.columns)}" for name, entry in ADAPTERS.items())
    raise ValueError(
        f"{source}: no adapter fits the columns {', '.join(columns)}. Rename them with `dataset.rename_column`, or "
        f"pass a function from a row to question, choices, answer as `adapter`. The adapters want:\n{wanted}"
    )


def _text(value: Any, column: str) -> str:
    text = "" if value is None else str(value).strip()
    if not text:
        raise _InvalidRow(column, "empty text")
    return text


def _answer_index(answer: Any, column: str, labels: list[str] | None, num_options: int) -> int:
    if answer in (None, "", -1) or (isinstance(answer, float) and math.isnan(answer)):
        raise _InvalidRow(column, f"no answer ({answer!r})", hidden_label=True)
    # Labels may be digits that count from 1: where the data has labels, the answer is one of them, never an index.
    if labels is not None or isinstance(answer, str):
        labels = labels or list(string.ascii_uppercase[:num_options])
        if str(answer).strip() not in labels:
            raise _InvalidRow(column, f"{answer!r} is not one of the option labels {', '.join(labels)}")
        return labels.index(str(answer).strip())
    if answer not in range(num_options):
        raise _InvalidRow(column, f"{answer!r} is out of range, 0 to {num_options - 1} is wanted")
    return int(answer)


def _validated(row: Row, adapter: Adapter, labelled: bool) -> Row:
    adapted = adapter.convert(row if labelled else {**row, adapter.answer_column: None})
    question = _text(adapted["question"], "question")
    choices = [_text(choice, f"choices[{k}]") for k, choice in enumerate(adapted["choices"])]
    if not 2 <= len(choices) <= MAX_OPTIONS:
        raise _InvalidRow("choices", f"{len(choices)} option(s), 2 to {MAX_OPTIONS} are wanted")
    if len(set(choices)) < len(choices):
        raise _InvalidRow("choices", f"duplicate option {Counter(choices).most_common(1)[0][0]!r}")
    answer = None
    if labelled:
        answer = _answer_index(adapted["answer"], adapter.answer_column, adapted.get("labels"), len(choices))
    targets = adapted.get("target_probabilities")
    if targets is not None:
        total = math.fsum(targets)
        if len(targets) != len(choices) or min(targets) < 0 or not math.isclose(total, 1.0, abs_tol=1e-3):
            raise _InvalidRow(
                "target_probabilities",
                f"{len(targets)} numbers that sum to {total:g}; {len(choices)}, none negative, with sum 1 are wanted",
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
    Turns a data set of a known layout into the unified columns and checks every row.

    Args:
        dataset (`Dataset`):
            Questions in the columns of `cais/mmlu`, `allenai/ai2_arc`, `allenai/openbookqa`,
            `openlifescienceai/medmcqa`, `tau/commonsense_qa`, `allenai/sciq`, the unified ones, or a spreadsheet's
            (`question`, `A`, `B`, ..., `answer`). Other columns are left out of the result.
        adapter (`str` or `Callable`, *optional*, defaults to `"auto"`):
            A name in `ADAPTERS`, `"auto"` to recognise the layout by its columns, or a function from a row to a dict
            with `question`, `choices` and `answer` (and `target_probabilities` if it has them).
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave rows out that are no valid question, and log how many, instead of raising.
        source (`str`, *optional*):
            What errors call the data; by default the name and split the data set knows itself by.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the answers are wanted. Otherwise they are neither read nor missed, and `answer` is `None` everywhere.

    Returns:
        `Dataset`: unified columns; `subject` and `target_probabilities` only where some row has them.

    Raises:
        `ValueError`: names the data set, row and column at fault.

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
            f"a `datasets.Dataset` is wanted, not {type(dataset).__name__}; pick one split of a DatasetDict"
        )
    source = source or f"{dataset.info.dataset_name or 'dataset'}" + (f" ({dataset.split})" if dataset.split else "")
    chosen = _choose_adapter(adapter, dataset.column_names, source, labelled)
    valid, dropped = [], Counter()
    for index, row in enumerate(dataset):
        try:
            valid.append(_validated(row, chosen, labelled))
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
    features = {"id": Value("string"), "question": Value("string"), "choices": ListOf(Value("string"))}
    features["answer"] = Value("int64")
    for column, feature in (("subject", Value("string")), ("target_probabilities", ListOf(Value("float64")))):
        if any(row[column] is not None for row in valid):
            features[column] = feature
    return Dataset.from_dict({c: [row[c] for row in valid] for c in features}, features=Features(features))
