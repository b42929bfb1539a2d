"""Anchoring: what another model makes of the training questions, kept with them as a target that needs no labels."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..loading import load_model, load_tokenizer
from ..option_scorer import OptionScorer, pad_rows
from ..options import IGNORE_INDEX
from ..posthoc import softmax
from ..posthoc.scaling import best_log_temperature, fit_temperature
from ..predict import Results, score_features


REFERENCE_COLUMN = "reference_logits"

logger = logging.getLogger(__name__)


def add_reference(
    dataset: Dataset,
    name_or_path: str,
    tokenizer: PreTrainedTokenizerBase,
    normalization: str,
    batch_size: int,
    pseudo_count: float = math.inf,
    held_out: Dataset | None = None,
    **loading,
) -> Dataset:
    """
    Score the encoded questions with a reference model, once, and keep its option logits in the column `reference_logits`,
    divided by a temperature. Each process scores its part; all get the whole.

    Args:
        dataset ([`~datasets.Dataset`]):
            Encoded training rows; rows without options get no logits.
        name_or_path (`str`):
            The reference: a model, or an adapter on one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            What the rows are encoded with.
        normalization (`str`):
            See [`~hf_calib.option_scorer.OptionScorer`].
        batch_size (`int`):
            Questions a batch.
        pseudo_count (`float`, *optional*, defaults to `inf`):
            See [`fit_reference_temperature`].
        held_out ([`~datasets.Dataset`], *optional*):
            Encoded questions that are not trained on, whose labels the temperature is fitted on as well.
        loading:
            Further arguments of [`~hf_calib.loading.load_tokenizer`].

    Returns:
        [`~datasets.Dataset`]: the rows with one column more.

    Raises:
        `OSError`: if there is no such model. `ValueError`: if the reference has another vocabulary, or its weights would be
            spread by ZeRO-3.
    """
    if is_deepspeed_zero3_enabled():
        raise ValueError("reference_model_name_or_path loads a second model whole, which ZeRO-3 spreads: use ZeRO-2.")
    try:
        its_tokenizer = load_tokenizer(name_or_path, **loading)
    except (OSError, ValueError) as error:
        raise OSError(f"reference_model_name_or_path={name_or_path!r} cannot be loaded: {error}") from error
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"The reference {name_or_path} has another vocabulary than the model: choose the model that training (or its "
            "preference alignment) began with."
        )
    model, _ = load_model(name_or_path, **loading)
    scorer = OptionScorer(model, tokenizer, normalization)
    questions = dataset if held_out is None or math.isinf(pseudo_count) else concatenate_datasets([dataset, held_out])
    rows = [row for row, count in enumerate(questions["num_options"]) if count]
    results = Results(None, {}, resume=False, state=PartialState())
    features = list(questions.select(rows))
    score_features(
        scorer,
        features,
        batch_size,
        results,
        "reference question",
        lambda index: f"training row {rows[index]} has reference logits",
    )
    scored, labels = results.gather(), np.array([feature["option_label"] for feature in features])
    temperature = fit_reference_temperature(scored, labels, pseudo_count)
    column = [[] for _ in range(len(questions))]
    for row, option_logits in zip(rows, scored, strict=True):
        column[row] = (option_logits / temperature).tolist()
    del model, scorer
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return dataset.add_column(REFERENCE_COLUMN, column[: len(dataset)])


def fit_reference_temperature(rows: list[np.ndarray], labels: np.ndarray, pseudo_count: float) -> float:
    """
    The temperature of a reference, which none of the labels has trained: all of them may judge it.

    Args:
        rows (`list[np.ndarray]`):
            Its option logits, question by question.
        labels (`np.ndarray` of shape `(N,)`):
            The right options, -100 where they are not known.
        pseudo_count (`float`):
            Shrinkage towards 1, as if the reference had been calibrated on this many questions more: the targets are the
            labels and its own probabilities, mixed n to `pseudo_count`. With 0 the labels alone decide, with infinity none does.
    """
    known = np.flatnonzero(labels != IGNORE_INDEX)
    if math.isinf(pseudo_count) or not len(known):
        return 1.0
    logits = pad_rows([rows[row] for row in known], max(map(len, rows)), -np.inf)
    if pseudo_count == 0:
        temperature = fit_temperature(logits, labels[known])[0].item()
    else:
        share = pseudo_count / (len(known) + pseudo_count)
        targets = (1 - share) * np.eye(logits.shape[1])[labels[known]] + share * softmax(logits)
        temperature = math.exp(best_log_temperature(logits, targets))
    logger.info(f"Reference: temperature {temperature:.3f}, from {len(known)} labels.")
    return temperature
