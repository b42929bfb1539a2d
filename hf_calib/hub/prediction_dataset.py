"""Option predictions as a data set on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.protocol import is_hub_id
from ..evaluation.tables import write_json
from ..inference.predictions import OptionPredictions
from .card import CARD, RESULTS
from .markup import render
from .saved_predictions import DATA, METADATA


if TYPE_CHECKING:
    from datasets import Dataset

    from .publish import Evaluation


def as_dataset(predictions: OptionPredictions) -> Dataset:
    """
    Make a row of each question: `id`, `label`, `option_logits` and `probabilities` of its options, without padding;
    `subject` and `target_probabilities` if there are any.
    """
    from datasets import Dataset

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
