"""
Compute the log-likelihoods of the options of encoded questions, without gradients.

Two things make it fast, and both are checked on the model before they are used: all options of a question are
scored in one forward pass under a branch mask, and a prefix that all questions share is read once.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from transformers import DynamicCache

from .encoding import collate_options
from .model_loading import check_token_ids, num_embeddings
from .option_head import HeadOptions, logit_transform, score_options, unwrap_causal_lm
from .packing import (
    architecture_obstacle,
    branch_attention_mask,
    compared_questions,
    difference_of_scores,
    single_options,
)


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Shortest shared prefix, in tokens, whose keys and values are reused.
MIN_PREFIX = 8


class OptionScorer:
    """
    Score all options of a batch of encoded questions with a causal language model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, wrapped for distribution or not.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        option_normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            Log-likelihood of an option: sum over its tokens, or mean.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, option_normalization: str = "sum"):
        self.model = unwrap_causal_lm(extract_model_from_parallel(model))
        transform = logit_transform(self.model.config)
        self.options = HeadOptions(option_normalization, transform, over_vocabulary=True)
        self.tokenizer, size = tokenizer, num_embeddings(self.model)
        # Padding is masked, so any token can pad that has an embedding.
        pads = [token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None]
        self.pad_token_id = next((token for token in pads if token < size), 0)
        self.branches, self.obstacle = True, None  # whether options are packed, and why not
        self._prefix, self._prefix_length = None, 0

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """
        Score the options of a batch of questions.

        Args:
            features (`Sequence[Mapping]`):
                Results of [`~hf_calib.inference.encoding.OptionEncoder.encode`].

        Returns:
            `list[np.ndarray]`: log-likelihoods `(num_options,)` of each question, in nats, float32.
        """
        if self.branches:
            return self._forward(features)
        single = [option for feature in features for option in single_options(feature)]
        scores = []
        for start in range(0, len(single), len(features)):
            scores += self._forward(single[start : start + len(features)])
        ends = np.cumsum([feature["num_options"] for feature in features])
        return np.split(np.concatenate(scores), ends[:-1])

    @torch.no_grad()
    def _forward(self, features: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        batch = collate_options(features, self.pad_token_id)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        start = self._prefix_length
        inputs = {name: batch[name][:, start:] for name in ("input_ids", "position_ids") if name in batch}
        inputs["attention_mask"] = batch["attention_mask"]
        if "option_segments" in batch:
            mask = branch_attention_mask(
                batch["attention_mask"],
                batch["option_segments"],
                self.model.config._attn_implementation,
                self.model.dtype,
            )
            inputs["attention_mask"] = mask[:, :, start:]
        if start:
            inputs["past_key_values"] = copy.deepcopy(self._prefix)  # a pass extends it
            inputs["past_key_values"].batch_repeat_interleave(len(features))
            batch["option_positions"] = batch["option_positions"] - start
        hidden_states = self.model.base_model(**inputs, use_cache=bool(start)).last_hidden_state
        option_logits = score_options(self.model.get_output_embeddings(), hidden_states, batch, self.options)
        counts = [feature["num_options"] for feature in features]
        return [row[:count] for row, count in zip(option_logits.cpu().numpy(), counts, strict=True)]

    @torch.no_grad()
    def share_prefix(self, features: Sequence[Mapping[str, Any]]) -> None:
        """
        Read the tokens with which all these questions begin once, and reuse their keys and values for each question.

        Such tokens are a system message, the opening of a chat template, or worked examples. Nothing is reused if the
        model's cache holds something else than keys and values, or gives other scores for the shortest or the longest
        question.

        Args:
            features (`Sequence[Mapping]`):
                All questions that will be scored.
        """
        self._prefix, self._prefix_length = None, 0
        common = len(os.path.commonprefix([feature["input_ids"] for feature in features]))
        # Every question keeps the position that predicts its first option token.
        length = min(common, *(min(feature["option_positions"]) for feature in features))
        if length < MIN_PREFIX or len(features) < 2:
            return
        lengths = [len(feature["input_ids"]) for feature in features]
        compared = [features[int(np.argmin(lengths))], features[int(np.argmax(lengths))]]
        score = self._token_scores if self.branches else self._token_scores_alone
        prefix = torch.tensor([features[0]["input_ids"][:length]], device=self.model.device)
        try:
            cache = self.model.base_model(input_ids=prefix, use_cache=True).past_key_values
            if type(cache) is not DynamicCache or any(cache.is_sliding):
                return
            self._prefix, self._prefix_length = cache, length
            difference = difference_of_scores(
                self.model, compared, score, lambda feature: self._without_prefix(score, feature)
            )
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            difference = str(error)
        if difference is not None:
            self._prefix, self._prefix_length = None, 0

    def _without_prefix(self, score, feature: Mapping[str, Any]) -> np.ndarray:
        length, self._prefix_length = self._prefix_length, 0
        try:
            return score(feature)
        finally:
            self._prefix_length = length

    def check_tokens(self, features: Sequence[Mapping[str, Any]]) -> None:
        """Raise a `ValueError` that names the token if the model has no embedding for a token of the questions."""
        largest = max(max(*feature["input_ids"], *feature["option_tokens"]) for feature in features)
        check_token_ids(self.model, self.tokenizer, largest, "the questions")

    def check_branches(self, features: Sequence[Mapping[str, Any]]) -> None:
        """
        Check that the model scores packed options as it does options alone; otherwise score them one by one.

        The architecture must allow it, and some questions, the longest among them, are scored in both ways in the
        dtype in use. See [`~hf_calib.inference.packing`].

        Args:
            features (`Sequence[Mapping]`):
                All questions that will be scored.
        """
        branched = [feature for feature in features if any(feature["option_segments"])]
        if not branched:
            return
        self.obstacle = architecture_obstacle(self.model, branched)
        if self.obstacle is None:
            compared = compared_questions(branched)
            try:
                self.obstacle = difference_of_scores(
                    self.model, compared, self._token_scores, self._token_scores_alone
                )
            except (RuntimeError, TypeError, ValueError) as error:
                self.obstacle = str(error)
        self.branches = self.obstacle is None
        if not self.branches:
            logger.warning(
                f"{type(self.model).__name__} does not follow a branch attention mask ({self.obstacle}); options are "
                "scored one by one, which takes several times as long"
            )

    def _token_scores(self, feature: Mapping[str, Any]) -> np.ndarray:
        """Log-likelihood of each option token of a question, in the order of `option_tokens`."""
        count = len(feature["option_tokens"])
        return self._forward([{**feature, "option_index": list(range(count)), "num_options": count}])[0]

    def _token_scores_alone(self, feature: Mapping[str, Any]) -> np.ndarray:
        """The same, from one sequence for each option."""
        scores = np.empty(len(feature["option_tokens"]), dtype=np.float32)
        for k, single in enumerate(single_options(feature)):
            scores[np.flatnonzero(np.array(feature["option_index"]) == k)] = self._token_scores(single)
        return scores


def pad_rows(rows: Sequence[Sequence[float]], width: int, value: float) -> np.ndarray:
    """Stack rows of different lengths in one float32 array `(len(rows), width)`, padded with `value`."""
    padded = np.full((len(rows), width), value, dtype=np.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
