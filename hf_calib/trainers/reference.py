"""Anchoring: what another model makes of the training questions, kept with them as a target that needs no labels."""

from __future__ import annotations

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..loading import load_model, load_tokenizer
from ..option_scorer import OptionScorer
from ..predict import Results, score_features


REFERENCE_COLUMN = "reference_logits"


def add_reference(
    dataset: Dataset,
    name_or_path: str,
    tokenizer: PreTrainedTokenizerBase,
    normalization: str,
    batch_size: int,
    **loading,
) -> Dataset:
    """
    Score the encoded questions with a reference model, once, and keep its option logits in the column `reference_logits`.
    Each process scores its part; all get the whole.

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
    rows = [row for row, count in enumerate(dataset["num_options"]) if count]
    results = Results(None, {}, resume=False, state=PartialState())
    features = list(dataset.select(rows))
    score_features(
        scorer,
        features,
        batch_size,
        results,
        "reference question",
        lambda index: f"training row {rows[index]} has reference logits",
    )
    column = [[] for _ in range(len(dataset))]
    for row, option_logits in zip(rows, results.gather(), strict=True):
        column[row] = option_logits.tolist()
    del model, scorer
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return dataset.add_column(REFERENCE_COLUMN, column)
