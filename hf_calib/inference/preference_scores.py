"""Preference pairs scored by a model: the preference that two models imply, as DPO sees it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import PartialState

from ..data.adapters import digest
from .encoding import OptionEncoder, QuestionTooLongError
from .option_scorer import OptionScorer
from .predict import Results, context_length, score_features, weights_digest
from .predictions import OptionPredictions, npz_path


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairFormat:
    """
    Writes a pair as TRL's DPOTrainer does: messages through the chat template, plain text closed by the EOS token.

    Args:
        conversational (`bool`):
            Whether prompt and completions are lists of messages.
    """

    conversational: bool
    scoring = "text"

    def add_special_tokens(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        return not self.conversational

    def render(self, tokenizer, question, choices, subject=None) -> tuple[str, list[str], str]:
        """Prompt, its two continuations, and nothing that would still follow; see [`PromptFormat.render`]."""
        if not self.conversational:
            eos = tokenizer.eos_token or ""
            return question, [text if text.endswith(eos) else text + eos for text in choices], ""
        prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        texts = [tokenizer.apply_chat_template([*question, *turn], tokenize=False) for turn in choices]
        shared = len(os.path.commonprefix([prompt, *texts]))
        return prompt[:shared], [text[shared:] for text in texts], ""


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    batch_size: int = 8,
    max_length: int | None = None,
    output_path: str | Path | None = None,
    resume: bool = True,
) -> np.ndarray:
    """
    Log-likelihood of both completions of every pair. Under `accelerate launch` the pairs are divided among the processes and
    every process returns all of them.

    Args:
        model ([`~transformers.PreTrainedModel`]), tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model.
        pairs (`Dataset`):
            Pairs as [`~hf_calib.data.preference_pairs.load_pairs`] returns them.
        batch_size (`int`, *optional*, defaults to `8`):
            Pairs in a forward pass where they are the longest of all.
        max_length (`int`, *optional*):
            Most tokens of a prompt with one completion; defaults to the context length of the model.
        output_path (`str` or `Path`, *optional*), resume (`bool`, *optional*, defaults to `True`):
            `.npz` file to write, and whether to go on from what is there; see [`predict_options`].

    Returns:
        `np.ndarray` of shape `(N, 2)`: of `chosen` and `rejected`, in nats; NaN for a pair that is too long.

    Raises:
        `ValueError`: for results of something else at `output_path`, and for a log-likelihood that is NaN.
    """
    pair_format = PairFormat(conversational=not isinstance(pairs[0]["prompt"], str))
    encoder = OptionEncoder(tokenizer, pair_format, max_length or context_length(model))
    kept, features = [], []
    for index, row in enumerate(pairs):
        try:
            question = {"question": row["prompt"], "choices": [row["chosen"], row["rejected"]], "answer": 0}
            features.append(encoder.encode({**question, "id": index}))
            kept.append(index)
        except QuestionTooLongError:
            continue
    scores = np.full((len(pairs), 2), np.nan)
    if not kept:
        return scores
    fingerprint = {"weights": weights_digest(model), "pairs": digest(json.dumps(features))}
    # Without an accelerator, processes find each other only if told that they run on CPUs.
    state = PartialState(cpu=not torch.accelerator.is_available())
    results = Results(None if output_path is None else npz_path(output_path), fingerprint, resume, state)
    if results.finished is None:
        score_features(
            OptionScorer(model, tokenizer),
            features,
            batch_size,
            results,
            "pair",
            lambda index: f"pair {kept[index]} has log-likelihoods",
        )
        ids, labels = np.array(kept, dtype=np.str_), np.zeros(len(kept), dtype=np.int64)
        rows = np.stack(results.gather()).astype(np.float64)
        results.finish(OptionPredictions(rows, labels, ids, metadata={"fingerprint": fingerprint}))
        scores[kept] = rows
    else:
        scores[kept] = results.finished.option_logits
    return scores


def preference_probabilities(scores: np.ndarray, reference_scores: np.ndarray, beta: float = 0.1) -> np.ndarray:
    """
    Probability that the chosen completion is the better one, as DPO's implied reward has it (Rafailov et al., arXiv
    2305.18290, eq. 6): `sigmoid(beta * margin)`, where the margin is how much more the model has raised the chosen one over
    its reference than the rejected one.

    Args:
        scores (`np.ndarray` of shape `(N, 2)`):
            Log-likelihoods by the aligned model, from [`score_pairs`].
        reference_scores (`np.ndarray` of shape `(N, 2)`):
            Those by the model before.
        beta (`float`, *optional*, defaults to `0.1`):
            Temperature of the alignment, as it was trained with.

    Returns:
        `np.ndarray` of shape `(N,)`.
    """
    margin = (scores - reference_scores) @ [1.0, -1.0]
    return 0.5 * (1 + np.tanh(0.5 * beta * margin))
