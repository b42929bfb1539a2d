"""The unified columns of option questions, and a fast check of data sets that have them."""

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value
from datasets import List as ListOf

from .prompts import MAX_OPTIONS


# Largest deviation of the sum of target probabilities from 1.
TARGET_TOLERANCE = 1e-3

REQUIRED_FEATURES = {
    "id": Value("string"),
    "question": Value("string"),
    "choices": ListOf(Value("string")),
    "answer": Value("int64"),
}
OPTIONAL_FEATURES = {"subject": Value("string"), "target_probabilities": ListOf(Value("float64"))}


def is_unified(dataset: Dataset, labelled: bool = True) -> bool:
    """
    Tell whether a data set has the unified columns and only valid questions, so that it needs no adaptation.

    The features are compared first. The rows are then checked column by column in Arrow, without Python objects.

    Args:
        dataset (`Dataset`):
            Any data set.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether every question must have an answer. Otherwise none may have one.
    """
    known = {**REQUIRED_FEATURES, **OPTIONAL_FEATURES}
    found = dataset.features
    if not REQUIRED_FEATURES.keys() <= found.keys() <= known.keys() or not len(dataset):
        return False
    if any(feature != known[name] for name, feature in found.items()):
        return False
    table = dataset.with_format("arrow")[:]
    columns = {name: _combined(table[name]) for name in found}
    counts = pc.list_value_length(columns["choices"])
    return (
        _is_text(columns["id"])
        and _is_text(columns["question"])
        and _are_choices(columns["choices"], counts)
        and _are_answers(columns["answer"], counts, labelled)
        and _are_targets(columns.get("target_probabilities"), counts)
    )


def _combined(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _all(condition: pa.Array) -> bool:
    """Whether a condition holds everywhere; null counts as false."""
    return condition.null_count == 0 and pc.all(condition).as_py() is not False


def _is_text(column: pa.Array) -> bool:
    """Whether all values are text, not empty, without spaces around it."""
    trimmed = pc.equal(pc.utf8_trim_whitespace(column), column)
    return _all(trimmed) and _all(pc.greater(pc.binary_length(column), 0))


def _are_choices(choices: pa.Array, counts: pa.Array) -> bool:
    """Whether every question has 2 to 26 different options."""
    if not _all(pc.and_(pc.greater_equal(counts, 2), pc.less_equal(counts, MAX_OPTIONS))):
        return False
    texts = pc.list_flatten(choices)
    pairs = pa.table({"row": pc.list_parent_indices(choices), "text": texts})
    return _is_text(texts) and pairs.group_by(["row", "text"]).aggregate([]).num_rows == len(texts)


def _are_answers(answers: pa.Array, counts: pa.Array, labelled: bool) -> bool:
    if not labelled:
        return answers.null_count == len(answers)
    return _all(pc.and_(pc.greater_equal(answers, 0), pc.less(answers, pc.cast(counts, pa.int64()))))


def _are_targets(targets: pa.Array | None, counts: pa.Array) -> bool:
    """Whether the target probabilities of every question that has them are a distribution over its options."""
    if targets is None or targets.null_count == len(targets):
        return True
    given = pc.is_valid(targets)
    values = pc.list_flatten(targets)
    sums = pa.table({"row": pc.list_parent_indices(targets), "value": values}).group_by("row")
    totals = sums.aggregate([("value", "sum")])["value_sum"].combine_chunks()
    return (
        _all(pc.equal(pc.list_value_length(targets).filter(given), counts.filter(given)))
        and _all(pc.greater_equal(values, 0))
        and _all(pc.less_equal(pc.abs(pc.subtract(totals, 1.0)), TARGET_TOLERANCE))
    )
