"""csv, json, parquet or npz with named columns: option probabilities, or confidences and outcomes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any, NamedTuple

import numpy as np

from ..data.answers import warn_or_raise_without_zero
from ..data.layouts import InvalidRow
from ..inference.predictions import OptionPredictions
from ..measures.validation import as_outcomes, iterate_columns
from .collect import UNKNOWN, check_scores, in_rows, padded
from .confidences import ConfidencePredictions
from .labels import ID_COLUMNS, LABEL_COLUMNS, find_column, indices, normalized
from .options import ReadOptions
from .source import Source
from .tables import Table


TITLE = "named columns: probabilities and label, or confidence and correct (csv, json, parquet, npz)"

ACCEPTED = {
    "probabilities": ("probabilities", "probs", "option_probabilities", "choice_probabilities", "prediction_scores"),
    "option_logits": (
        "option_logits", "logits", "log_probabilities", "logprobs", "log_probs", "log_likelihoods", "loglikelihoods",
    ),
    "id": ID_COLUMNS,
    "label": LABEL_COLUMNS,
    "confidence": ("confidence", "confidences", "conf"),
    "correct": ("correct", "is_correct", "right", "hit", "acc"),
    "prediction": ("prediction", "predicted", "pred", "predicted_answer", "predicted_label", "model_answer"),
    "subject": ("subject", "subjects", "group", "groups", "category"),
    "target_probabilities": ("target_probabilities", "target_probs"),
    "weight": ("weight", "weights", "sample_weight", "importance_weight"),
}  # fmt: skip

# Names of columns that hold one option each; the group is the option: p_0, prob_A, A_prob, ada_choiceA_probs, A.
_SPREAD_LOGITS = r"(?:logits?|log_?probs?|log_?likelihoods?)_?(\d+|(?<=_)[a-z])"
_SPREAD = (
    _SPREAD_LOGITS,
    r"(?:p|prob|probs|probability|probabilities|option|choice)_?(\d+|(?<=_)[a-z])",
    r"([a-z])_?(?:p|prob|probs|probability)",
    r".*_choice([a-z])_probs?",
    r"([a-z])",
)
_RIGHT, _WRONG = ("true", "yes", "right", "correct", "1", "1.0"), ("false", "no", "wrong", "incorrect", "0", "0.0")
_NUMBERED = (["no", "yes"], ["No", "Yes"], ["false", "true"], ["False", "True"])  # 0 and 1
_OUTCOMES = {**dict.fromkeys(_RIGHT, 1), **dict.fromkeys(_WRONG, 0)}


class OptionColumns(NamedTuple):
    """
    Columns that hold one option each.

    Attributes:
        columns (`list[str]`): Names of the columns.
        options (`list[str]`): Names of the options.
        logits (`bool`): Whether the columns are logits.
        ordered (`bool`): Whether a number can tell an option.
    """

    columns: list[str]
    options: list[str]
    logits: bool = False
    ordered: bool = True


def recognises(source: Source) -> bool:
    """Whether a file has columns with option probabilities, or confidences."""
    if source.kind == "zip":
        return False
    names = {normalized(name.removesuffix(".npy")) for name in source.fields}
    return bool(_spread(source)) or any(
        not names.isdisjoint(ACCEPTED[role]) for role in ("probabilities", "option_logits", "confidence")
    )


def read(source: Source, options: ReadOptions) -> OptionPredictions | ConfidencePredictions:
    """
    Read predictions from named columns.

    Raises:
        `ValueError`: a column is missing or can be chosen in two ways, or a value is wrong. File and line are named.
    """
    if source.kind == "npz":
        source.fields = [name.removesuffix(".npy") for name in source.fields]
    if unknown := set(options.columns).difference(ACCEPTED):
        raise ValueError(f"--columns knows the roles {', '.join(ACCEPTED)}, not {', '.join(sorted(unknown))}")
    roles = {role: _column(source, role, options) for role in ACCEPTED}
    scores = _option_columns(source, roles, options)
    wanted = [name for name in roles.values() if name]
    table = Table(source, [*(scores.columns if scores else []), *wanted])
    common = {
        "ids": np.array(table.texts(roles["id"]) if roles["id"] else np.arange(len(table)), np.str_),
        "subjects": np.array(table.texts(roles["subject"]), np.str_) if roles["subject"] else None,
        "weights": _weights(table, roles["weight"]) if roles["weight"] else None,
    }
    if scores or roles["probabilities"] or roles["option_logits"]:
        return _probabilities(table, roles, scores, options, common)
    if roles["confidence"]:
        return _confidences(table, roles, options, common)
    raise ValueError(
        f"{source.path}: no column holds probabilities of options (`probabilities` with a list in each row, or p_0, "
        f"p_1, ...) or `confidence`; name them with --columns probabilities=... The columns are "
        f"{', '.join(source.fields[:12])}"
    )


def _weights(table: Table, name: str) -> np.ndarray:
    weights = table.numbers(name)
    wrong = ~((weights >= 0) & np.isfinite(weights))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{table.where(row)}: {name} is {weights[row]:g}; a weight is a number of at least 0")
    return weights


def _column(source: Source, role: str, options: ReadOptions) -> str | None:
    given = options.columns.get(role)
    if given is not None and "," in given and role in ("probabilities", "option_logits"):
        return None
    if role == "option_logits" and "probabilities" in options.columns:
        return None
    return find_column(source, ACCEPTED[role], given, role)


def _option_columns(source: Source, roles: dict[str, Any], options: ReadOptions) -> OptionColumns | None:
    """Columns that hold one option each, if no column holds the list of all."""
    for role in ("probabilities", "option_logits"):
        given = options.columns.get(role, "")
        if "," in given:
            columns = [find_column(source, (), name.strip(), role) for name in given.split(",")]
            return OptionColumns(columns, [_suffix(name, columns) for name in columns], role == "option_logits")
    if roles["probabilities"] or roles["option_logits"]:
        return None
    found = _spread(source)
    found = [each for each in found if not each.logits] or found
    if len(found) > 1:
        role = "option_logits" if found[0].logits else "probabilities"
        raise ValueError(
            f"{source.path}: the {role} can be in {' or in '.join(', '.join(each.columns) for each in found)}: "
            f"choose with --columns {role}={','.join(found[0].columns)}"
        )
    return found[0] if found else None


def _suffix(name: str, columns: Sequence[str]) -> str:
    """What tells a column from the others: the name without the beginning and the end that all have."""
    start = len(_common_prefix(columns))
    end = len(_common_prefix([each[start:][::-1] for each in columns]))
    return name[start : len(name) - end]


def _common_prefix(words: Sequence[str]) -> str:
    shortest = min(words, key=len)
    return next((shortest[:at] for at in range(len(shortest)) if any(w[at] != shortest[at] for w in words)), shortest)


def _spread(source: Source) -> list[OptionColumns]:
    """Groups of columns that hold one option each, named by numbers or letters without a gap."""
    groups: dict[tuple[str, bool], dict[str, str]] = {}
    for name in source.fields:
        for pattern in _SPREAD:
            if match := re.fullmatch(pattern, normalized(name)):
                option = match[1]
                kind = normalized(name)[: match.start(1)] + "*" + normalized(name)[match.end(1) :]
                groups.setdefault((kind, pattern == _SPREAD_LOGITS), {})[option] = name
                break
    found = []
    for (_, logits), group in groups.items():
        numeric = all(option.isdigit() for option in group)
        ordered = sorted(group, key=int) if numeric else sorted(group)
        first = int(ordered[0]) if numeric else 0
        expected = [str(first + k) for k in range(len(group))] if numeric else list(ascii_lowercase[: len(group)])
        if len(group) > 1 and ordered == expected and first <= 1:
            found.append(OptionColumns([group[option] for option in ordered], ordered, logits))
    return found


def _probabilities(
    table: Table, roles: dict[str, Any], scores: OptionColumns | None, options: ReadOptions, common: dict[str, Any]
) -> OptionPredictions:
    path = table.source.path
    logits = scores.logits if scores else roles["option_logits"] is not None
    listed = roles["option_logits" if logits else "probabilities"]
    if scores:
        flat, lengths = _spread_values(table, scores)
    elif names := table.option_names(listed):
        words = max(map(len, names)) > 1 and not names[0].isdigit()
        scores = OptionColumns(names, names, ordered=not words or names in _NUMBERED)
        flat, lengths = table.named(listed, names)
    else:
        flat, lengths = table.lists(listed)
    if lengths.min() < 2:
        raise ValueError(
            f"{table.where(int(lengths.argmin()))}: {lengths.min()} option(s): a question has at least two"
        )
    if logits:
        _check_logits(table, flat, lengths, listed or "option_logits")
        option_logits = padded(flat, lengths)
    else:
        matrix = in_rows(flat, lengths, 0.0)
        try:
            for _ in iterate_columns(matrix):
                pass
        except ValueError as error:
            raise ValueError(f"{path}: {error} (rows count from 0)") from None
        with np.errstate(divide="ignore"):
            option_logits = padded(np.log(flat.clip(0, 1)), lengths)  # rounding may leave [0, 1]
    target = None
    if roles["target_probabilities"]:
        target = in_rows(*table.lists(roles["target_probabilities"]), 0.0)
    return OptionPredictions(
        option_logits=option_logits,
        labels=_labels(table, roles["label"], lengths, scores, options),
        **common,
        target_probabilities=target,
        metadata={"option_normalization": "logits" if logits else "probabilities"},
    )


def _spread_values(table: Table, scores: OptionColumns) -> tuple[np.ndarray, np.ndarray]:
    """Values and lengths of one column per option; empty cells at the end of a row are options that do not exist."""
    matrix = np.stack([table.numbers(name) for name in scores.columns], axis=1)
    empty = np.isnan(matrix)
    if not empty.any():
        return matrix.ravel(), np.full(len(matrix), matrix.shape[1])
    lengths = matrix.shape[1] - empty[:, ::-1].cumprod(axis=1).sum(axis=1)
    present = np.arange(matrix.shape[1]) < lengths[:, None]
    if (holes := (empty & present).any(axis=1)).any():
        row = int(holes.argmax())
        raise ValueError(f"{table.where(row)}: the column {scores.columns[int(empty[row].argmax())]} is empty")
    return matrix[present], lengths


def _check_logits(table: Table, flat: np.ndarray, lengths: np.ndarray, name: str) -> None:
    bad = np.isnan(flat) | (flat == np.inf)
    best = np.maximum.reduceat(flat, np.cumsum(lengths) - lengths)
    if bad.any() or (best == -np.inf).any():
        ends = np.cumsum(lengths)
        row = int(np.searchsorted(ends, int(bad.argmax()), side="right") if bad.any() else (best == -np.inf).argmax())
        try:
            check_scores(flat[ends[row] - lengths[row] : ends[row]].tolist())
        except ValueError as error:
            raise ValueError(f"{table.where(row)}, {name}: {error}") from None


def _labels(
    table: Table, name: str | None, lengths: np.ndarray, scores: OptionColumns | None, options: ReadOptions
) -> np.ndarray:
    """Indices of the right options, from numbers, letters or the names of the columns; -100 where there is none."""
    if name is None:
        return np.full(len(lengths), UNKNOWN)
    numbered = scores is not None and scores.options[0].isdigit()
    first = options.answers_from
    if first is None and numbered and scores.options[0] == "1":
        first = 1  # p_1, p_2, ... with the labels 1, 2, ...
    source = str(table.source.path)
    try:
        numbers = table.numbers(name)
        whole = np.array_equal(numbers, np.round(numbers))
    except ValueError:
        whole = False
    if not whole:
        labels = [re.sub(r"^\[\s*([^,\[\]]*?)\s*\]$", r"\1", text) or None for text in table.texts(name)]
        named = scores.options if scores and not numbered and max(map(len, scores.options)) > 1 else None
        choices = [("",) * count for count in lengths.tolist()]
        try:
            return indices(labels, choices, name, source, first, named)
        except InvalidRow as error:
            row = next(row for row, label in enumerate(labels) if label is not None and repr(label) in str(error))
            raise ValueError(f"{table.where(row)}, {error}") from None
    labels = numbers.astype(np.int64)
    known = labels != UNKNOWN
    if known.any() and not (scores is None or scores.ordered):
        raise ValueError(
            f"{source}: {name} is a number, and which of the options {', '.join(scores.options)} it means is not "
            "known: write the name of the option instead"
        )
    if first is None and known.any() and not (labels[known] == 0).any():
        warn_or_raise_without_zero(bool((labels == lengths)[known].any()), int(known.sum()), name, source)
    wrong = known & ((labels < (first or 0)) | (labels - (first or 0) >= lengths))
    if wrong.any():
        row = int(wrong.argmax())
        last = lengths[row] - 1 + (first or 0)
        raise ValueError(f"{table.where(row)}: {name} is {labels[row]}; it must be {first or 0} to {last}")
    return np.where(known, labels - (first or 0), UNKNOWN)


def _confidences(
    table: Table, roles: dict[str, Any], options: ReadOptions, common: dict[str, Any]
) -> ConfidencePredictions:
    path = table.source.path
    if roles["correct"]:
        correct = _outcomes(table, roles["correct"])
    elif roles["prediction"] and roles["label"]:
        correct = _compared(table, roles["prediction"], roles["label"])
    else:
        raise ValueError(
            f"{path}: `{roles['confidence']}` needs `correct` (1 where the prediction is right, else 0), or "
            "`prediction` and `label`; name them with --columns correct=..."
        )
    confidences = table.numbers(roles["confidence"])
    outside = ~((confidences >= 0) & (confidences <= 1 + 1e-6))
    if outside.any():
        row = int(outside.argmax())
        hint = ": divide percentages by 100" if confidences[row] > 1 and np.nanmax(confidences) <= 100 else ""
        raise ValueError(f"{table.where(row)}: {roles['confidence']} is {confidences[row]}, outside [0, 1]{hint}")
    confidences, correct = as_outcomes(np.minimum(confidences, 1.0), correct, binary=True)
    return ConfidencePredictions(confidences, correct, **common)


def _compared(table: Table, prediction: str, label: str) -> np.ndarray:
    """1 where the prediction is the label: the same text, number (1 and 1.0) or letter (b and B), else 0."""
    sides, kinds = [], []
    for name in (prediction, label):
        texts = table.texts(name)
        if "" in texts:
            raise ValueError(f"{table.where(texts.index(''))}: {name} is empty; leave such rows out of the file")
        sides.append([_comparable(text) for text in texts])
        kinds.append({type(each) if isinstance(each, float) else len(each) == 1 for each in sides[-1]})
    if {float} in kinds and {True} in kinds:  # numbers and letters
        shown = " and ".join(f"{name} has {table.texts(name)[0]!r}" for name in (prediction, label))
        raise ValueError(f"{table.source.path}: {shown}; name a column of 1 (right) and 0 with --columns correct=...")
    return np.array([each == other for each, other in zip(*sides, strict=True)], np.float64)


def _comparable(text: str) -> str | float:
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE):
        return float(text)
    return text.upper() if len(text) == 1 else text


def _outcomes(table: Table, name: str) -> np.ndarray:
    """1 where a prediction is right, else 0."""
    texts = {text: _OUTCOMES.get(text.lower()) for text in set(table.texts(name))}
    if all(outcome is not None for outcome in texts.values()):
        return np.array([texts[text] for text in table.texts(name)], np.float64)
    numbers = table.numbers(name)
    wrong = (numbers != 0) & (numbers != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{table.where(row)}: {name} is {numbers[row]}, not 1 (right) or 0 (wrong)")
    return numbers
