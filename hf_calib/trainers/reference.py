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

from ..inference.encoding import IGNORE_INDEX
from ..inference.model_loading import load_model, load_tokenizer
from ..inference.option_scorer import OptionScorer, pad_rows
from ..inference.predict import Results, score_features
from ..posthoc import softmax


REFERENCE_COLUMN = "reference_logits"

_FURTHEST = 20.0  # nats: the odds of the prediction times or divided by 5e8

logger = logging.getLogger(__name__)


def add_reference(
    dataset: Dataset,
    name_or_path: str,
    tokenizer: PreTrainedTokenizerBase,
    option_normalization: str,
    batch_size: int,
    pseudo_count: float = math.inf,
    held_out: Dataset | None = None,
    **loading,
) -> Dataset:
    """
    Score the encoded questions with a reference model, once, and keep its option logits in the column `reference_logits`, moved
    to what the labels say of its accuracy. Each process scores its part; all get the whole.

    Args:
        dataset ([`~datasets.Dataset`]):
            Encoded training rows; rows without options get no logits.
        name_or_path (`str`):
            The reference: a model, or an adapter on one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            What the rows are encoded with.
        option_normalization (`str`):
            See [`~hf_calib.inference.option_scorer.OptionScorer`].
        batch_size (`int`):
            Questions a batch.
        pseudo_count (`float`, *optional*, defaults to `inf`):
            See [`calibrate_reference`].
        held_out ([`~datasets.Dataset`], *optional*):
            Encoded questions that are not trained on, whose labels judge the reference as well.
        loading:
            Further arguments of [`~hf_calib.inference.model_loading.load_tokenizer`].

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
    scorer = OptionScorer(model, tokenizer, option_normalization)
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
    labels = np.array([feature["option_label"] for feature in features])
    column = [[] for _ in range(len(questions))]
    for row, option_logits in zip(rows, calibrate_reference(results.gather(), labels, pseudo_count), strict=True):
        column[row] = option_logits.tolist()
    del model, scorer
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return dataset.add_column(REFERENCE_COLUMN, column[: len(dataset)])


def calibrate_reference(rows: list[np.ndarray], labels: np.ndarray, pseudo_count: float) -> list[np.ndarray]:
    """
    Move the confidence of a reference to what its accuracy seems to be. None of the labels has trained it: all may judge it.

    A constant is added to the logit of the option that it predicts, the same for all questions, so that its mean confidence
    becomes (n accuracy + m confidence) / (n + m): the posterior mean of its accuracy after n answers, if its own confidence was
    worth m of them before (derived in docs/method.md). The prediction stays, however far the constant takes it.

    Args:
        rows (`list[np.ndarray]`):
            Its option logits, question by question.
        labels (`np.ndarray` of shape `(N,)`):
            The right options, -100 where they are not known.
        pseudo_count (`float`):
            m. With 0 the labels alone decide, with infinity none does.

    Returns:
        `list[np.ndarray]`: the option logits of the same questions, moved.
    """
    from scipy.optimize import brentq

    known = np.flatnonzero(labels != IGNORE_INDEX)
    if math.isinf(pseudo_count) or not len(known):
        return rows
    logits = pad_rows(rows, max(map(len, rows)), -np.inf).astype(np.float64)
    every, predicted = np.arange(len(rows)), logits.argmax(axis=1)
    own, accuracy = softmax(logits[known]).max(axis=1).mean(), (predicted == labels)[known].mean()
    wanted = (len(known) * accuracy + pseudo_count * own) / (len(known) + pseudo_count)
    top, runner_up = np.sort(logits, axis=1)[:, :-3:-1].T

    def moved(constant: float) -> np.ndarray:
        """A hair above the runner-up at least, so that no other option is predicted."""
        result = logits.copy()
        result[every, predicted] = np.maximum(top + constant, np.nextafter(runner_up, np.inf))
        return result

    def excess(constant: float) -> float:
        return softmax(moved(constant)[known]).max(axis=1).mean() - wanted

    # Where even the furthest is not enough (all are right, or the accuracy is below chance), it is taken.
    low, high = -_FURTHEST, _FURTHEST
    constant = low if excess(low) > 0 else high if excess(high) < 0 else brentq(excess, low, high)
    logger.info(
        f"Reference: accuracy {accuracy:.3f}, confidence {own:.3f}, moved to {wanted:.3f}: {len(known)} labels."
    )
    return [row[: len(given)] for row, given in zip(moved(constant), rows, strict=True)]
