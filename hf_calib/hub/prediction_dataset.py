"""Option predictions as a data set on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, load_dataset

from ..evaluation.protocol import is_hub_id
from ..evaluation.tables import write_json
from ..inference.option_scorer import pad_rows
from ..inference.predictions import OptionPredictions
from .card import CARD, RESULTS
from .markup import render
from .repository import HubError, download


if TYPE_CHECKING:
    from .publish import Evaluation

DATA, METADATA = "data/test.parquet", "metadata.json"


def as_dataset(predictions: OptionPredictions) -> Dataset:
    """
    Make a row of each question: `id`, `label`, `option_logits` and `probabilities` of its options, without padding;
    `subject` and `target_probabilities` if there are any.
    """
    present = [np.arange(k) for k in predictions.num_options]

    def rows(matrix: np.ndarray) -> list[list[float]]:
        return [row[options].tolist() for row, options in zip(matrix, present, strict=True)]

    columns = {
        "id": predictions.ids.tolist(),
        "label": predictions.labels.tolist(),
        "option_logits": rows(predictions.option_logits),
        "probabilities": rows(predictions.probabilities),
    }
    if predictions.subjects is not None:
        columns["subject"] = predictions.subjects.tolist()
    if predictions.target_probabilities is not None:
        columns["target_probabilities"] = rows(predictions.target_probabilities)
    return Dataset.from_dict(columns)


def from_dataset(rows: Dataset, metadata: dict | None = None) -> OptionPredictions:
    """Make predictions (float32) of the rows of [`as_dataset`]."""
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


def write_prediction_dataset(folder: str | Path, repo_id: str, evaluation: Evaluation) -> list[str]:
    """
    Write predictions and their measures as a data set.

    Args:
        folder (`str` or `Path`):
            Folder of the data set; made if it does not exist.
        repo_id (`str`):
            Name of the data set on the Hub.
        evaluation ([`Evaluation`]):
            Output of `hf-calib evaluate`.

    Returns:
        `list[str]`: the files to publish, relative to the folder.
    """
    folder, results, metadata = Path(folder), dict(evaluation.results), dict(evaluation.predictions.metadata)
    for content, key in ((results, "model"), (results, "dataset"), (metadata, "model")):
        if (name := content.get(key)) and not is_hub_id(name):
            content[key] = Path(name).name
    rows = as_dataset(evaluation.predictions)
    (folder / DATA).parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / DATA)
    write_json(folder / RESULTS, results)
    write_json(folder / METADATA, metadata)
    card = render("predictions.md.j2", repo_id=repo_id, results=results, columns=rows.column_names)
    (folder / CARD).write_text(card, encoding="utf-8")
    return [DATA, RESULTS, METADATA, CARD]


def load_predictions(path: str | Path, revision: str | None = None) -> OptionPredictions:
    """
    Load predictions from a folder, a file or the Hub.

    Args:
        path (`str` or `Path`):
            Output folder of `hf-calib evaluate`, an `.npz` file, a data set on the Hub that `hf-calib push --what
            predictions` published, or the `.parquet` file of one.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
    """
    place, metadata = Path(path).expanduser(), {}
    if not place.exists() and is_hub_id(str(path)) and place.suffix != ".npz":
        try:
            folder = download(str(path), [DATA, METADATA], revision, repo_type="dataset")
        except HubError as error:
            raise HubError(f"there is no file or folder {path}; as a data set on the Hub: {error}") from error
        if not (folder / DATA).is_file():
            raise HubError(f"{path} holds no {DATA}: it was not published by `hf-calib push --what predictions`.")
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        place = folder / DATA
    if place.suffix == ".parquet":
        return from_dataset(load_dataset("parquet", data_files=str(place), split="train"), metadata)
    return OptionPredictions.load(place / "predictions.npz" if place.is_dir() else place)
