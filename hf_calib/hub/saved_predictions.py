"""Load saved predictions: of this package, of the Hub, or of other tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.protocol import is_hub_id
from ..inference.predictions import OptionPredictions
from ..prediction_files.confidences import ConfidencePredictions
from ..prediction_files.folders import FILE_TYPES
from ..prediction_files.options import ReadOptions
from ..prediction_files.read import read_predictions
from ..prediction_files.source import Source
from .repository import HubError, download


if TYPE_CHECKING:
    from datasets import Dataset

DATA, METADATA = "data/test.parquet", "metadata.json"  # files of a data set of predictions


def load_predictions(
    path: str | Path | Sequence[str | Path], revision: str | None = None, **reading
) -> OptionPredictions | ConfidencePredictions:
    """
    Load predictions of this package or of other tools.

    Args:
        path (`str`, `Path` or a sequence of them):
            Output folder of `hf-calib evaluate` or `hf-calib measure`, an `.npz` file, a data set on the Hub that
            `hf-calib push --what predictions` published, or a file of another tool: samples of lm-evaluation-harness,
            details of lighteval, logs of inspect_ai, states of HELM, chat completions with log-probabilities, results
            of the original MMLU evaluation, or csv, json or parquet with named columns; or a folder of such files of
            one format and one model, also in folders inside it. The content decides. Several files are joined.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        reading:
            `labels`, `format`, `filter`, `columns`, `option_normalization`, `option_labels`, `num_options`,
            `answers_from`, `drop_invalid`, `labelled`: see [`~hf_calib.prediction_files.options.ReadOptions`].

    Returns:
        [`OptionPredictions`]; [`~hf_calib.prediction_files.confidences.ConfidencePredictions`] of a file with
        confidences alone.

    Raises:
        `ValueError`: the content cannot be read. File and line are named.
    """
    options = ReadOptions(**reading)
    if not isinstance(path, (str, Path)):
        return read_predictions(path, options)
    place = Path(path).expanduser()
    if not place.exists() and is_hub_id(str(path)) and place.suffix not in FILE_TYPES:
        return _from_hub(str(path), revision)
    if place.is_dir():
        saved = place / "predictions.npz"
        if not saved.is_file():
            parts = sorted(part.parent.name for part in place.glob("*/predictions.npz"))
            if parts:
                raise FileNotFoundError(f"{path}: name one of its folders {', '.join(parts)}, e.g. {path}/{parts[0]}")
            return read_predictions(place, options)
        place = saved
    if options == ReadOptions() and place.is_file():
        source = Source(place)
        if source.kind == "npz" and "option_logits.npy" in source.fields:
            return OptionPredictions.load(place)
        if source.kind == "parquet" and {"id", "label", "option_logits"} <= set(source.fields):
            from datasets import load_dataset

            return from_dataset(load_dataset("parquet", data_files=str(place), split="train"))
    return read_predictions(place, options)


def _from_hub(name: str, revision: str | None) -> OptionPredictions:
    from datasets import load_dataset

    try:
        folder = download(name, [DATA, METADATA], revision, repo_type="dataset")
    except HubError as error:
        raise HubError(f"there is no file or folder {name}; as a data set on the Hub: {error}") from error
    if not (folder / DATA).is_file():
        raise HubError(f"{name} holds no {DATA}: it was not published by `hf-calib push --what predictions`.")
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    return from_dataset(load_dataset("parquet", data_files=str(folder / DATA), split="train"), metadata)


def load_option_predictions(path: str | Path, **reading) -> OptionPredictions:
    """
    Load predictions with probabilities of all options; see [`load_predictions`].

    Raises:
        `ValueError`: the content cannot be read, or holds confidences alone. Without `reading`, the message advises a
            conversion.
    """
    try:
        predictions = load_predictions(path, **reading)
    except HubError:
        raise
    except ValueError as error:
        if reading:
            raise
        raise ValueError(
            f"{error}\nIf this needs arguments, convert the file with `hf-calib measure FILE ... --output_dir DIR`, "
            "and pass DIR here."
        ) from None
    if not isinstance(predictions, OptionPredictions):
        raise ValueError(f"{path} holds confidences alone; this command needs probabilities of all options.")
    return predictions


def from_dataset(rows: Dataset, metadata: dict | None = None) -> OptionPredictions:
    """Make predictions (float32) of the rows of [`~hf_calib.hub.prediction_dataset.as_dataset`]."""
    from ..inference.option_scorer import pad_rows

    if missing := {"id", "label", "option_logits"}.difference(rows.column_names):
        raise ValueError(f"these rows are not option predictions: they lack {', '.join(sorted(missing))}")
    width = max(map(len, rows["option_logits"]))
    predictions = OptionPredictions(
        option_logits=pad_rows([np.float32(row) for row in rows["option_logits"]], width, -np.inf),
        labels=np.array(rows["label"], dtype=np.int64),
        ids=np.array(rows["id"], dtype=np.str_),
        metadata=metadata or {},
    )
    if "subject" in rows.column_names:
        predictions.subjects = np.array(rows["subject"], dtype=np.str_)
    if "target_probabilities" in rows.column_names:
        predictions.target_probabilities = pad_rows(rows["target_probabilities"], width, 0.0)
    return predictions
