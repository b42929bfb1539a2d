"""Option logits of a reference model on the training questions, as targets that need no labels."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from scipy.optimize import brentq
from scipy.special import softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..inference.encoding import IGNORE_INDEX
from ..inference.model_loading import load_model, load_tokenizer
from ..inference.option_scorer import OptionScorer, pad_rows
from ..inference.resumable import ResumableScores, score_features


REFERENCE_COLUMN = "reference_logits"

_MAX_SHIFT = 20.0  # nats: the odds of the prediction times or divided by 5e8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """
    A reference model, and how it is evaluated.

    Args:
        name_or_path (`str`):
            A model, or an adapter.
        option_normalization (`str`, *optional*, defaults to `"sum"`):
            See [`~hf_calib.inference.option_scorer.OptionScorer`].
        batch_size (`int`, *optional*, defaults to `8`):
            Questions per batch.
        pseudo_count (`float`, *optional*, defaults to `inf`):
            See [`calibrate_reference`].
        loading (`dict`, *optional*):
            Further arguments of [`~hf_calib.inference.model_loading.load_model`].
    """

    name_or_path: str
    option_normalization: str = "sum"
    batch_size: int = 8
    pseudo_count: float = math.inf
    loading: dict[str, Any] = field(default_factory=dict)

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """
        Load the model.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the questions, of which the vocabulary must be that of the reference.

        Raises:
            `OSError`: if the model cannot be loaded.
            `ValueError`: if it has another vocabulary, or ZeRO-3 would partition its weights.
        """
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "reference_model_name_or_path loads a second model whole, which ZeRO-3 would partition: use ZeRO-2."
            )
        try:
            own_tokenizer = load_tokenizer(self.name_or_path, **self.loading)
        except (OSError, ValueError) as error:
            raise OSError(f"reference_model_name_or_path={self.name_or_path!r} cannot be loaded: {error}") from error
        if own_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"The reference {self.name_or_path} has another vocabulary than the model: choose the model that the "
                "training (or its preference alignment) began with."
            )
        return load_model(self.name_or_path, **self.loading)[0]


def add_reference(
    dataset: Dataset, reference: Reference, tokenizer: PreTrainedTokenizerBase, held_out: Dataset | None = None
) -> Dataset:
    """
    Add the calibrated option logits of a reference model, as the column `reference_logits`.

    Each process scores a part of the questions; all processes get the whole column.

    Args:
        dataset ([`~datasets.Dataset`]):
            Encoded training rows; rows without options get empty lists.
        reference ([`Reference`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that the rows were encoded with.
        held_out ([`~datasets.Dataset`], *optional*):
            Encoded questions that are not trained on, whose labels calibrate the reference too.

    Returns:
        [`~datasets.Dataset`]: the training rows with one column more.

    Raises:
        `OSError`, `ValueError`: see [`Reference.load`].
    """
    model = reference.load(tokenizer)
    scorer = OptionScorer(model, tokenizer, reference.option_normalization)
    calibrates = held_out is not None and not math.isinf(reference.pseudo_count)
    questions = concatenate_datasets([dataset, held_out]) if calibrates else dataset
    rows = [row for row, count in enumerate(questions["num_options"]) if count]
    results = ResumableScores(None, {}, resume=False, state=PartialState())
    features = list(questions.select(rows))
    score_features(
        scorer,
        features,
        reference.batch_size,
        results,
        "reference question",
        lambda index: f"training row {rows[index]} has reference logits",
    )
    labels = np.array([feature["option_label"] for feature in features])
    logits = calibrate_reference(results.gather(), labels, reference.pseudo_count)
    column = [[] for _ in range(len(questions))]
    for row, option_logits in zip(rows, logits, strict=True):
        column[row] = option_logits.tolist()
    del model, scorer
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return dataset.add_column(REFERENCE_COLUMN, column[: len(dataset)])


def calibrate_reference(rows: list[np.ndarray], labels: np.ndarray, pseudo_count: float) -> list[np.ndarray]:
    r"""
    Shift the mean confidence of a reference towards its accuracy.

    One constant is added to the logit of the predicted option of every question, so that on the labelled questions the
    mean confidence becomes

    .. math::

        \frac{n \cdot \text{accuracy} + m \cdot \text{confidence}}{n + m}

    with n labels and m pseudo-questions: the posterior mean of the accuracy, if the confidence is a prior worth m
    questions. All labels can be used, since the reference was trained on none of them. The predictions do not change.

    Args:
        rows (`list[np.ndarray]`):
            Option logits of each question.
        labels (`np.ndarray` of shape `(N,)`):
            Index of the right options, -100 where it is not known.
        pseudo_count (`float`):
            The number m, at least 0. With 0 the labels alone decide; with infinity the logits are returned as they
            are.

    Returns:
        `list[np.ndarray]`: the shifted option logits of each question.
    """
    known = np.flatnonzero(labels != IGNORE_INDEX)
    if math.isinf(pseudo_count) or not len(known):
        return rows
    logits = pad_rows(rows, max(map(len, rows)), -np.inf).astype(np.float64)
    every, predicted = np.arange(len(rows)), logits.argmax(axis=1)
    confidence = softmax(logits[known], axis=1).max(axis=1).mean()
    accuracy = (predicted == labels)[known].mean()
    wanted = (len(known) * accuracy + pseudo_count * confidence) / (len(known) + pseudo_count)
    top, second = np.sort(logits, axis=1)[:, :-3:-1].T

    def shifted(constant: float) -> np.ndarray:
        # Above the second logit at least, so that the prediction does not change.
        result = logits.copy()
        result[every, predicted] = np.maximum(top + constant, np.nextafter(second, np.inf))
        return result

    def excess(constant: float) -> float:
        return softmax(shifted(constant)[known], axis=1).max(axis=1).mean() - wanted

    # Where no shift in the range suffices (all are right, or the accuracy is below chance), its end is taken.
    low, high = -_MAX_SHIFT, _MAX_SHIFT
    constant = low if excess(low) > 0 else high if excess(high) < 0 else brentq(excess, low, high)
    logger.info(
        f"Reference: accuracy {accuracy:.3f} and mean confidence {confidence:.3f} on {len(known)} labels; the mean "
        f"confidence becomes {wanted:.3f}."
    )
    return [row[: len(given)] for row, given in zip(shifted(constant), rows, strict=True)]
