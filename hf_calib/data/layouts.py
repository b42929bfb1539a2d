"""Column layouts of known data sets, and the conversion of their rows to question, options and answer."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .literals import parse_literal


Row = dict[str, Any]

_LABEL_KEYS = ("label", "labels", "key", "letter", "id")
_TEXT_KEYS = ("text", "texts", "option", "content", "value", "choice")


class InvalidRow(ValueError):
    """Raised for a row that is not a valid option question, with the column at fault."""

    def __init__(self, column: str, problem: str, hidden_label: bool = False):
        super().__init__(f"column '{column}': {problem}")
        self.column, self.hidden_label = column, hidden_label


def digest(*parts: object) -> str:
    """Hash texts and numbers, with the same result in every process."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def structured(value: Any, column: str) -> Any:
    """Parse a list or dict that a CSV file holds as text: as JSON, or as `DataFrame.to_csv` writes it."""
    if not isinstance(value, str):
        return value
    from .json_files import parse_json

    for parse in (parse_json, parse_literal):
        try:
            parsed = parse(value)
        except (ValueError, RecursionError):
            continue
        if isinstance(parsed, (list, tuple, dict)):
            return list(parsed) if isinstance(parsed, tuple) else parsed
    raise InvalidRow(column, f"{value[:60]!r} is text, not a list; write it as JSON, e.g. {_EXAMPLES.get(column, [])}")


_EXAMPLES = {"target_probabilities": "[0.2, 0.8]"} | dict.fromkeys(
    ("choices", "options", "endings", "mc1_targets"), '["yes", "no"]'
)


def options_of(value: Any, column: str = "choices") -> tuple[list[Any], list[str] | None]:
    """
    Read options in any of their layouts.

    Args:
        value (`list`, `dict` or `str`):
            A list of texts; a dict of a `text` list and a `label` list; a dict from label to text; a list of dicts of
            `label` and `text`; or one of them as text.
        column (`str`, *optional*, defaults to `"choices"`):
            Name of the column, for messages.

    Returns:
        `tuple[list, list[str] | None]`: texts, and labels where there are some.

    Raises:
        [`InvalidRow`]: for another layout, or labels that are missing or repeated.
    """
    value = structured(value, column)
    if isinstance(value, Mapping):
        texts, labels = _options_of_dict(value, column)
    elif isinstance(value, list) and value and all(isinstance(option, Mapping) for option in value):
        texts = [_only(option, _TEXT_KEYS, column) for option in value]
        labels = [_only(option, _LABEL_KEYS, column) for option in value]
    elif isinstance(value, list):
        while value and value[-1] is None:  # lists padded to the same length
            value = value[:-1]
        return value, None
    else:
        raise InvalidRow(column, f"it must be a list of texts, not {type(value).__name__}")
    return texts, _checked_labels(labels, len(texts), column)


def _options_of_dict(value: Mapping[str, Any], column: str) -> tuple[list[Any], list[Any]]:
    text, label = (next((key for key in keys if isinstance(value.get(key), list)), None) for keys in _KEYS)
    if text and label:
        return value[text], value[label]
    if any(isinstance(option, (list, Mapping)) for option in value.values()):
        raise InvalidRow(
            column, "it must be a list of texts, a dict of `text` and `label`, or a dict from label to text"
        )
    # A column of dicts has all keys of the file, with None where a question has fewer options.
    given = {key: option for key, option in value.items() if option is not None}
    # Letters in their order.
    keys = sorted(given) if set(given) == set(string.ascii_uppercase[: len(given)]) else list(given)
    return [given[key] for key in keys], keys


_KEYS = (_TEXT_KEYS, _LABEL_KEYS)


def _only(option: Mapping[str, Any], keys: Iterable[str], column: str) -> Any:
    found = [key for key in keys if key in option]
    if not found:
        raise InvalidRow(column, f"an option has no {keys[0]!r}, only {', '.join(map(repr, option))}")
    return option[found[0]]


def _checked_labels(labels: list[Any], num_options: int, column: str) -> list[str]:
    read = ["" if label is None else str(label).strip() for label in labels]
    if len(read) != num_options or not all(read):
        raise InvalidRow(column, f"{sum(map(bool, read))} label(s) for {num_options} options")
    if repeated := [label for place, label in enumerate(read) if label in read[:place]]:
        raise InvalidRow(column, f"the label {repeated[0]!r} is there twice")
    return read


def _options(row: Row, options: str = "choices", question: str = "question", answer: str = "answer") -> Row:
    """Convert a row with the options in one column."""
    texts, labels = options_of(row[options], options)
    return {"question": row[question], "choices": texts, "labels": labels, "answer": row[answer]}


def _unified(row: Row) -> Row:
    targets = structured(row.get("target_probabilities"), "target_probabilities")
    return {**_options(row), "target_probabilities": targets}


def _columns(row: Row, option_columns: tuple[str, ...], answer_column: str, question: str = "question") -> Row:
    """Convert a row with one column for each option."""
    # The last columns may be empty. An empty column before a filled one is kept, and reported as an empty text.
    choices = [row.get(column) for column in option_columns]
    while choices and (choices[-1] is None or not str(choices[-1]).strip()):
        choices.pop()
    return {"question": row[question], "choices": choices, "answer": row[answer_column]}


def _mixed(question: str, texts: list[str], right: int) -> Row:
    """Order the options by a hash, which mixes the places of the right answers and is the same in every run."""
    order = sorted(range(len(texts)), key=lambda k: digest(question, texts[k]))
    return {"question": question, "choices": [texts[k] for k in order], "answer": order.index(right)}


def _sciq(row: Row) -> Row:
    """Convert a row of SciQ, which has the right answer in a column of its own."""
    texts = [row["correct_answer"], row["distractor1"], row["distractor2"], row["distractor3"]]
    return _mixed(row["question"], texts, 0)


def _gpqa(row: Row) -> Row:
    """Convert a row of GPQA, which has the right answer in a column of its own."""
    texts = [_text(row[name]).strip() for name in _GPQA_COLUMNS[1:]]
    return _mixed(row["Question"], texts, 0)


def _race(row: Row) -> Row:
    """Convert a row of RACE: the question is about the article."""
    adapted = _options(row, "options")
    return {**adapted, "question": f"{row['article']}\n\n{row['question']}"}


def _mmlu_pro(row: Row) -> Row:
    index, letter = str(row.get("answer_index", "")).strip(), str(row["answer"]).strip()
    if index.isascii() and index.isdigit() and len(letter) == 1 and letter.isalpha():
        if int(index) != ord(letter.upper()) - ord("A"):
            raise InvalidRow("answer", f"{letter!r} is not the option that answer_index {index} names")
    return {**_options(row, "options"), "id": row.get("question_id")}


def _hellaswag(row: Row) -> Row:
    """Convert a row of HellaSwag: the context is to be continued by one of the endings."""
    activity, texts = row.get("activity_label"), options_of(row["endings"], "endings")[0]
    context = str(row["ctx"]) if activity in (None, "") else f"{activity}: {row['ctx']}"
    return {"question": _plain(context), "choices": [_plain(text) for text in texts], "answer": row["label"]}


def _plain(text: Any) -> Any:
    """Replace the marks of WikiHow, such as `[title]`."""
    if not isinstance(text, str):
        return text
    return (
        re.sub(r"\s+", " ", re.sub(r"\[[a-z]+\]", "", re.sub(r"\s*\[title\]", ".", text))).strip().removeprefix(". ")
    )


def _ai2(row: Row) -> Row:
    """Convert a row of the authors' ARC, OpenBookQA or CommonsenseQA, which has the options inside the question."""
    question = row["question"]
    if isinstance(question, str) and question.lstrip().startswith("{"):
        question = structured(question, "question")
    if not isinstance(question, Mapping) or not {"stem", "choices"} <= question.keys():
        raise InvalidRow("question", "without a column of options it must be a dict of `stem` and `choices`")
    texts, labels = options_of(question["choices"])
    return {"question": question["stem"], "choices": texts, "labels": labels, "answer": row["answerKey"]}


def _winogrande(row: Row) -> Row:
    """Convert a row of WinoGrande: the options fill the blank `_` of the sentence, and are called 1 and 2."""
    texts = [row["option1"], row["option2"]]
    return {"question": row["sentence"], "choices": texts, "labels": ["1", "2"], "answer": row["answer"]}


def _truthful_qa(row: Row) -> Row:
    """Convert a row of TruthfulQA (MC1), where the right answer is the first one in every row."""
    targets = structured(row["mc1_targets"], "mc1_targets")
    if not isinstance(targets, Mapping):
        raise InvalidRow("mc1_targets", "it must be a dict of `choices` and `labels`, or from text to 0 or 1")
    if not {"choices", "labels"} <= targets.keys():  # the authors' file
        given = {text: mark for text, mark in targets.items() if mark is not None}
        targets = {"choices": list(given), "labels": list(given.values())}
    texts, marks = targets["choices"], [str(mark) for mark in targets["labels"]]
    if len(marks) != len(texts) or sorted(marks) != ["0"] * (len(texts) - 1) + ["1"]:
        raise InvalidRow("mc1_targets", "exactly one option must have the label 1, and the others 0")
    return _mixed(row["question"], [_text(text) for text in texts], marks.index("1"))


def _text(value: Any) -> str:
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Adapter:
    """
    A column layout and the function that converts its rows.

    Args:
        columns (`tuple[str]`):
            Columns that identify the layout. The case of a column's name does not matter.
        convert (`Callable`):
            From a row to a dict with `question`, `choices` and `answer` (an index from 0, or a label), and where they
            apply `labels` of the options (by default A, B, ...), `target_probabilities` and `id`.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the answer, for error messages.
        subject_column (`str`, *optional*, defaults to `"subject"`):
            Column of the subject, if there is one.
        more (`tuple[str]`, *optional*):
            Further columns that `convert` reads.
    """

    columns: tuple[str, ...]
    convert: Callable[[Row], Row]
    answer_column: str = "answer"
    subject_column: str = "subject"
    more: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.columns, self.answer_column, self.subject_column, "id", *self.more)


_LETTERS = tuple(string.ascii_uppercase)
_GPQA_COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_OPTION_COLUMNS = ("opa", "opb", "opc", "opd")
ADAPTERS: dict[str, Adapter] = {
    "unified": Adapter(("question", "choices", "answer"), _unified, more=("target_probabilities",)),
    "mmlu": Adapter(("question", "subject", "choices", "answer"), _unified, more=("target_probabilities",)),
    "race": Adapter(("article", "question", "options", "answer"), _race),
    "mmlu_pro": Adapter(
        ("question", "options", "answer"), _mmlu_pro, subject_column="category", more=("question_id",)
    ),
    "arc": Adapter(("question", "choices", "answerKey"), partial(_options, answer="answerKey"), "answerKey"),
    "commonsense_qa": Adapter(
        ("question", "question_concept", "choices", "answerKey"), partial(_options, answer="answerKey"), "answerKey"
    ),
    "openbookqa": Adapter(
        ("question_stem", "choices", "answerKey"),
        partial(_options, question="question_stem", answer="answerKey"),
        "answerKey",
    ),
    "medmcqa": Adapter(
        ("question", *_OPTION_COLUMNS, "cop"),
        partial(_columns, option_columns=_OPTION_COLUMNS, answer_column="cop"),
        "cop",
        "subject_name",
    ),
    "sciq": Adapter(("question", "correct_answer", "distractor1", "distractor2", "distractor3"), _sciq),
    "gpqa": Adapter(_GPQA_COLUMNS, _gpqa, "Correct Answer", "High-level domain"),
    "piqa": Adapter(
        ("goal", "sol1", "sol2", "label"),
        partial(_columns, option_columns=("sol1", "sol2"), answer_column="label", question="goal"),
        "label",
    ),
    "truthful_qa": Adapter(("question", "mc1_targets"), _truthful_qa),
    "hellaswag": Adapter(("ctx", "endings", "label"), _hellaswag, "label", more=("activity_label",)),
    "winogrande": Adapter(("sentence", "option1", "option2", "answer"), _winogrande),
    "lettered": Adapter(
        ("question", "A", "B", "answer"),
        partial(_columns, option_columns=_LETTERS, answer_column="answer"),
        more=_LETTERS,
    ),
    "ai2": Adapter(("question", "answerKey"), _ai2, "answerKey"),
}


def find_adapter(columns: Iterable[str], names: Iterable[str] = ADAPTERS, labelled: bool = True) -> Adapter | None:
    """
    Find the first adapter whose columns are all present, in any case.

    Args:
        columns (`Iterable[str]`):
            Columns of a data set.
        names (`Iterable[str]`, *optional*):
            Names of adapters to consider, by default all.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the column of the answer must be present too.
    """
    present = {column.strip().lower() for column in columns}
    for name in names:
        wanted = set(ADAPTERS[name].columns) - (set() if labelled else {ADAPTERS[name].answer_column})
        if {column.lower() for column in wanted} <= present:
            return ADAPTERS[name]
    return None


def columns_as_known(columns: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """
    Match the columns of a data set to known names, up to case and outer spaces.

    Returns:
        `dict[str, str]`: the column of each known name that there is.

    Raises:
        `ValueError`: if two columns match a name and none is equal to it.
    """
    columns = list(columns)
    found = {}
    for name in known:
        same = [column for column in columns if column.strip().lower() == name.lower()]
        if name in same:
            found[name] = name
        elif len(same) > 1:
            raise ValueError(f"the columns {', '.join(map(repr, same))} differ only in case; rename one")
        elif same:
            found[name] = same[0]
    return found
