"""Read predictions in any known format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from ..inference.predictions import OptionPredictions
from . import chat_completions, columns, helm, inspect_ai, lighteval, lm_eval, mmlu
from .collect import UNKNOWN
from .confidences import ConfidencePredictions
from .folders import check_one_run, listed, prediction_files
from .labels import GoldLabels
from .options import ReadOptions
from .source import Source


# In the order in which they are tried: the more special first.
FORMATS: dict[str, ModuleType] = {
    "lm_eval": lm_eval,
    "lighteval": lighteval,
    "inspect_ai": inspect_ai,
    "helm": helm,
    "chat_completions": chat_completions,
    "mmlu": mmlu,
    "columns": columns,
}


def read_predictions(
    paths: str | Path | Sequence[str | Path], options: ReadOptions | None = None
) -> OptionPredictions | ConfidencePredictions:
    """
    Read predictions that other tools saved.

    Args:
        paths (`str`, `Path` or a sequence of them):
            Files, or one folder with files of one format and one model, also in folders inside it. Several files are
            joined; the subject of a question is then the task or the file that it is from, if the file names none.
        options ([`ReadOptions`], *optional*):
            How to read them.

    Returns:
        [`OptionPredictions`] or, where a file holds no probabilities of all options, [`ConfidencePredictions`].
        `metadata` tells `format`, `files`, `option_normalization`, `left_out` and `notes`.

    Raises:
        `ValueError`: the format is not known, or the content is wrong. File and line are named.
    """
    options = options or ReadOptions()
    if options.format is not None and options.format not in FORMATS:
        raise ValueError(f"the format {options.format!r} is not known: use one of {', '.join(FORMATS)}")
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    labels = GoldLabels(options.labels, options.answers_from) if options.labels else None
    folder, ignored = Path(paths[0]).expanduser(), []
    if len(paths) == 1 and folder.is_dir():
        named = bool(options.columns)
        paths, ignored = prediction_files(folder, options, lambda path: detect_format(Source(path), named))
    parts = [_read_file(path, options, labels) for path in paths]
    if folder.is_dir():
        check_one_run(folder, paths, parts)
    if labels is not None:
        _check_distinct(paths, parts, labels)
    predictions = parts[0] if len(parts) == 1 else _joined(paths, parts)
    notes = list(predictions.metadata.get("notes", ()))
    if repeated := len(predictions) - len(set(predictions.ids.tolist())):
        notes.append(
            f"{repeated} questions have the id of another one: if they are the same questions, intervals and noise "
            "floor are too narrow"
        )
    if ignored:
        notes.append(f"files of the folder that are not read: {listed(ignored, folder)}")
    if notes:
        predictions.metadata["notes"] = notes
    within = folder.is_dir()
    predictions.metadata["files"] = [str(path.relative_to(folder)) if within else Path(path).name for path in paths]
    return _labelled(predictions, options, paths[0]) if isinstance(predictions, OptionPredictions) else predictions


def _read_file(
    path: str | Path, options: ReadOptions, labels: GoldLabels | None
) -> OptionPredictions | ConfidencePredictions:
    source = Source(path)
    if source.kind == "npz" and "option_logits.npy" in source.fields:
        name = "hf_calib"
        _check_meaning(name, options)
        predictions = OptionPredictions.load(source.path)
    else:
        name = options.format or detect_format(source, named=bool(options.columns))
        if options.format and not FORMATS[name].recognises(source) and name != "columns":
            raise ValueError(
                f"{path}: this is no {FORMATS[name].TITLE}; the fields are {', '.join(source.fields[:12])}"
            )
        arguments = (labels,) if name == "chat_completions" else ()
        _check_meaning(name, options)
        predictions = FORMATS[name].read(source, options, *arguments)
        if name in _WRITTEN and isinstance(predictions, OptionPredictions):
            _check_written(path, predictions)
    predictions.metadata["format"] = name
    if labels is not None:
        if not isinstance(predictions, OptionPredictions):
            raise ValueError(f"{path}: --labels needs probabilities of all options; this file holds confidences")
        labels.join(predictions)
    return predictions


def _check_distinct(paths: Sequence[str | Path], parts: Sequence, labels: GoldLabels) -> None:
    """Raise `ValueError` if an id, by which the labels are joined, is of questions in several files."""
    found: dict[str, str | Path] = {}
    for path, part in zip(paths, parts, strict=True):
        for name in set(part.ids.tolist()):
            if name in found:
                raise ValueError(
                    f"{labels.path}: the id {name!r} is of a question in {found[name]} and of another in {path}: give "
                    "the questions ids of their own, or read the files one by one"
                )
            found[name] = path


_WRITTEN = ("chat_completions", "inspect_ai", "helm")  # formats with the probabilities of written tokens


def _check_written(path: str | Path, predictions: OptionPredictions) -> None:
    """Raise `ValueError` if all options of all questions are equally likely, because no token spells one."""
    best = predictions.probabilities.max(axis=1)
    if predictions.metadata.get("letters") and np.allclose(best * predictions.num_options, 1):
        raise ValueError(
            f"{path}: none of the {len(best)} answers has an option among the likeliest tokens: name what the model "
            "writes with --option_labels, e.g. a,b,c,d"
        )


# Options that only some formats have a use for.
_ONLY_FOR = {
    "filter": ("lm_eval",),
    "columns": ("columns", "mmlu"),
    "option_normalization": ("lm_eval", "lighteval", "helm"),
    "option_labels": ("chat_completions", "inspect_ai"),
}


def _check_meaning(name: str, options: ReadOptions) -> None:
    for option, formats in _ONLY_FOR.items():
        if getattr(options, option) and name not in formats:
            raise ValueError(f"--{option} has no meaning for the format {name}, only for {', '.join(formats)}")


def detect_format(source: Source, named: bool = False) -> str:
    """
    Name of the format that the content has.

    Args:
        source ([`Source`]):
            The file.
        named (`bool`, *optional*, defaults to `False`):
            Whether the columns are named by the caller, so that any table will do.

    Raises:
        `ValueError`: it has none of the known formats.
    """
    for name, module in FORMATS.items():
        if module.recognises(source):
            return name
    if named and source.kind != "zip":
        return "columns"
    known = "\n".join(f"  {module.TITLE}" for module in FORMATS.values())
    raise ValueError(
        f"{source.path}: the content has none of the known formats (its fields are {', '.join(source.fields[:12])}). "
        f"Name columns with --columns, or use one of\n{known}"
    )


def _joined(paths: Sequence[str | Path], parts: list) -> OptionPredictions | ConfidencePredictions:
    """Predictions of several files. The name of the file, or of its task, becomes the subject and part of the ids."""
    kinds = {type(part) for part in parts}
    if len(kinds) > 1:
        raise ValueError("some files hold probabilities of all options and others confidences: measure them apart")
    names = [
        part.metadata.get("task") or Path(path).name.partition(".")[0] for path, part in zip(paths, parts, strict=True)
    ]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    for name, part in zip(names, parts, strict=True):
        part.ids = np.char.add(f"{name}/", part.ids)
        if part.subjects is None:
            part.subjects = np.full(len(part), name)
    if len({part.metadata.get("option_normalization") for part in parts}) > 1:
        raise ValueError("the files score options differently: measure them apart, or give --option_normalization")
    joined = kinds.pop().join(parts)
    told = [(name, note) for name, part in zip(names, parts, strict=True) for note in part.metadata.get("notes", ())]
    left_out = sum(part.metadata.get("left_out", 0) for part in parts)
    joined.metadata = {
        **joined.metadata,
        "task": ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else ""),
        "letters": all(part.metadata.get("letters") for part in parts),
        "notes": [f"{name}: {note}" for name, note in told],
        "left_out": left_out,
    }
    return joined


def _labelled(predictions: OptionPredictions, options: ReadOptions, path: str | Path) -> OptionPredictions:
    """Check that every question has a right option, if it must; with `drop_invalid`, leave out those without."""
    known = predictions.labels != UNKNOWN
    if known.all() or not options.labelled:
        return predictions
    missing = int((~known).sum())
    if not known.any():
        raise ValueError(
            f"{path}: there are no right options: give --labels FILE with the columns id and label, or --columns "
            "label=NAME"
        )
    if not options.drop_invalid:
        name = str(predictions.ids[int((~known).argmax())])
        raise ValueError(
            f"{path}: {missing} of {len(known)} questions have no right option, the first of them {name!r}; add them "
            "to --labels, or leave these questions out with --drop_invalid true"
        )
    arrays = {
        name: getattr(predictions, name)[known]
        for name in ("option_logits", "labels", "ids", "subjects", "target_probabilities", "votes", "weights")
        if getattr(predictions, name) is not None
    }
    left_out = predictions.metadata.get("left_out", 0) + missing
    return replace(predictions, **arrays, metadata={**predictions.metadata, "left_out": left_out})
