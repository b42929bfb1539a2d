"""Score preference pairs with a model, and compute the preferences that their margins imply."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.layouts import digest
from ..data.prompts import apply_chat_template, before_thinking
from ..losses.preference_links import NORMALIZED_LOSSES, linked_probabilities, loss_of_margin, preference_link
from .encoding import OptionEncoder, QuestionTooLongError
from .model_loading import process_state
from .option_scorer import OptionScorer
from .predict import context_length, weights_digest
from .predictions import OptionPredictions, npz_path
from .resumable import ResumableScores, score_features


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)


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
        from jinja2 import TemplateError

        if not self.conversational:
            eos = tokenizer.eos_token or ""
            return question, [text if text.endswith(eos) else text + eos for text in choices], ""
        try:
            prompt = apply_chat_template(tokenizer, question, add_generation_prompt=True)
            texts = [apply_chat_template(tokenizer, [*question, *turn]) for turn in choices]
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in [*question, *choices[0]])
            raise ValueError(
                f"the chat template refuses the messages of a pair ({error}), whose roles are {roles}; a system "
                "message can be a part of the user's first turn"
            ) from error
        if not all(text.startswith(prompt) for text in texts):  # an answered turn may have no thinking block
            prompt = before_thinking(prompt)
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
    if len(kept) < len(pairs):
        logger.warning(
            f"left out {len(pairs) - len(kept)} of {len(pairs)} pairs longer than {encoder.max_length} tokens"
        )
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


def completion_lengths(tokenizer: PreTrainedTokenizerBase, pairs: Dataset) -> np.ndarray:
    """
    Count the tokens of both completions of every pair, for the losses that take means over tokens.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        pairs (`Dataset`):
            Pairs as [`~hf_calib.data.preference_pairs.load_pairs`] returns them.

    Returns:
        `np.ndarray` of shape `(N, 2)`: tokens of `chosen` and `rejected`, with the end of the answer.
    """
    encoder = OptionEncoder(tokenizer, PairFormat(conversational=not isinstance(pairs[0]["prompt"], str)))
    questions = (
        {"question": row["prompt"], "choices": [row["chosen"], row["rejected"]], "answer": 0} for row in pairs
    )
    return np.array([np.bincount(encoder.encode(row)["option_index"], minlength=2) for row in questions])


def preference_probabilities(
    scores: np.ndarray,
    reference_scores: np.ndarray,
    beta: float = 0.1,
    loss_type: str | Sequence[str] = "sigmoid",
    label_smoothing: float = 0.0,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    r"""
    Compute the probability that the chosen completion is preferred, as the loss of the training implies it.

    For DPO it is

    .. math::
        p = \sigma\left(\beta \left(\log\frac{\pi(y_w | x)}{\pi_{ref}(y_w | x)}
            - \log\frac{\pi(y_l | x)}{\pi_{ref}(y_l | x)}\right)\right)

    Args:
        scores (`np.ndarray` of shape `(N, 2)`):
            Log-likelihoods of chosen and rejected under the aligned model, from [`score_pairs`].
        reference_scores (`np.ndarray` of shape `(N, 2)`):
            Log-likelihoods under the reference model.
        beta (`float`, *optional*, defaults to `0.1`):
            `beta` of the training.
        loss_type (`str` or `Sequence[str]`, *optional*, defaults to `"sigmoid"`):
            Loss of the training; see [`~hf_calib.losses.preference_links.preference_link`]. The f-divergence is TRL's
            default, `"reverse_kl"`.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            `label_smoothing` of the training.
        lengths (`np.ndarray` of shape `(N, 2)`, *optional*):
            Tokens of both completions, from [`completion_lengths`], for `"ipo"` and `"sigmoid_norm"`.

    Returns:
        `np.ndarray` of shape `(N,)`: probabilities in [0, 1].

    Raises:
        `ValueError`: for a loss that implies no probability, and without `lengths` where they are needed.

    References:
        Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, equation 6.
    """
    link, log_ratios = preference_link(loss_type, label_smoothing), scores - reference_scores
    if loss_of_margin(loss_type) in NORMALIZED_LOSSES:
        if lengths is None:
            raise ValueError(f"loss_type={loss_type} takes means over tokens: give the lengths of the completions.")
        log_ratios = log_ratios / lengths
    return linked_probabilities(link, beta * (log_ratios @ [1.0, -1.0]))
