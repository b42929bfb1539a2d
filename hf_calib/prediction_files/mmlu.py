"""Results of the original MMLU evaluation: one csv file for each subject."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from ..inference.predictions import OptionPredictions
from . import columns
from .options import ReadOptions
from .source import Source
from .tables import Table


TITLE = "results csv of the original MMLU evaluation (hendrycks/test)"

_PROBABILITY = re.compile(r"(.*)_choice([A-Z])_probs")


def recognises(source: Source) -> bool:
    """Whether the columns are the question, its options and its answer, without names, and `<model>_choiceA_probs`."""
    return source.kind == "csv" and any(map(_PROBABILITY.fullmatch, source.fields))


def read(source: Source, options: ReadOptions) -> OptionPredictions:
    """Read option probabilities; the answer is the last column that has a number as its name."""
    models = sorted({match[1] for match in map(_PROBABILITY.fullmatch, source.fields) if match})
    numbered = [name for name in source.fields if name.isdigit()]
    if len(models) > 1 and "probabilities" not in options.columns:
        first = ",".join(name for name in source.fields if name.startswith(f"{models[0]}_choice"))
        raise ValueError(
            f"{source.path}: it has results of {', '.join(models)}: choose with --columns probabilities={first}"
        )
    given = dict(options.columns)
    if numbered:
        given.setdefault("label", max(numbered, key=int))
    predictions = columns.read(source, replace(options, columns=given))
    subject = source.path.name.split(".")[0].removesuffix("_test")
    predictions.subjects = np.full(len(predictions), subject)
    predictions.metadata["model"] = models[0]
    outcome = f"{models[0]}_correct"
    if outcome in source.fields and len(models) == 1:
        right = np.array([text.lower() in ("true", "1", "1.0") for text in Table(source, [outcome]).texts(outcome)])
        differing = int((right != (predictions.probabilities.argmax(1) == predictions.labels)).sum())
        if differing:
            predictions.metadata["notes"] = [f"{differing} rows differ from the file's own {outcome}"]
    return predictions
