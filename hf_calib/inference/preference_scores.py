"""Score preference pairs with a model, and compute the preference that DPO's implicit reward assigns to them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from ..data.layouts import digest
from .encoding import OptionEncoder, QuestionTooLongError
from .model_loading import process_state
from .option_scorer import OptionScorer
from .predict import context_length, weights_digest
from .predictions import OptionPredictions, npz_path
from .resumable import ResumableScores, score_features


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairFormat:
    """
    Format preference pairs as TRL's DPOTrainer does: messages by the chat template, plain text with the EOS token.

    It has the interface of [`~hf_calib.PromptFormat`] that [`~hf_calib.inference.encoding.OptionEncoder`] needs.

    Args:
        conversational (`bool`):
            Whether prompt and completions are lists of messages.
    """

    conversational: bool
    scoring = "text"

    def add_special_tokens(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        return not self.conversational

    def render(self, tokenizer, question, choices, subject=None) -> tuple[str, list[str], str]:
        """Prompt, its two completions, and an empty ending; see [`PromptFormat.render`]."""
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
    Compute the log-likelihood of both completions of every pair.

    Under `accelerate launch` the pairs are divided among the processes, and every process returns all of them.

    Args:
        model ([`~transformers.PreTrainedModel`]), tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model.
        pairs (`Dataset`):
            Pairs as [`~hf_calib.data.preference_pairs.load_pairs`] returns them.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of pairs in a forward pass of the longest pairs.
        max_length (`int`, *optional*):
            Largest number of tokens of a prompt with one completion. Defaults to the context length of the model.
        output_path (`str` or `Path`, *optional*), resume (`bool`, *optional*, defaults to `True`):
            `.npz` file to write, and whether to reuse the scores in it; see
            [`~hf_calib.inference.predict.PredictionOptions`].

    Returns:
        `np.ndarray` of shape `(N, 2)`: log-likelihoods of `chosen` and `rejected`, in nats; NaN for a pair that is
        longer than `max_length`.

    Raises:
        `ValueError`: for scores of another model or other pairs at `output_path`, and for a NaN log-likelihood.
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
    path = None if output_path is None else npz_path(output_path)
    results = ResumableScores(path, fingerprint, resume, process_state())
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
    Compute the probability that the chosen completion is preferred, under DPO's implicit reward.

    .. math::
        p = \\sigma\\left(\\beta \\left(\\log\\frac{\\pi(y_w | x)}{\\pi_{ref}(y_w | x)}
            - \\log\\frac{\\pi(y_l | x)}{\\pi_{ref}(y_l | x)}\\right)\\right)

    Args:
        scores (`np.ndarray` of shape `(N, 2)`):
            Log-likelihoods of chosen and rejected under the aligned model, from [`score_pairs`].
        reference_scores (`np.ndarray` of shape `(N, 2)`):
            Log-likelihoods under the reference model.
        beta (`float`, *optional*, defaults to `0.1`):
            `beta` of the DPO training.

    Returns:
        `np.ndarray` of shape `(N,)`: probabilities in [0, 1].

    References:
        Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, equation 6.
    """
    margin = (scores - reference_scores) @ [1.0, -1.0]
    return expit(beta * margin)
