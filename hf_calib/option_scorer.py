"""Option scoring without gradients: encoded questions in, the log-likelihood of every option out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel

from .option_head import branch_attention_mask, logit_transform, score_options, unwrap_causal_lm
from .options import collate_options


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class OptionScorer:
    """
    Log-likelihoods of all options of a few encoded questions; the vocabulary is only seen where an option is read.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, wrapped or not.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            See [`~hf_calib.option_head.score_options`].
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, normalization: str = "sum"):
        self.model = unwrap_causal_lm(extract_model_from_parallel(model))
        self.transform = logit_transform(self.model.config)
        self.normalization = normalization
        # Padding is masked, so that any token serves.
        self.pad_token_id = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
        self.branches = True

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """Log-likelihoods `(num_options,)` of each question that [`~hf_calib.options.OptionEncoder`] encoded."""
        if self.branches:
            return self._forward(features)
        single = [option for feature in features for option in _single_options(feature)]
        scores = []
        for start in range(0, len(single), len(features)):
            scores += self._forward(single[start : start + len(features)])
        ends = np.cumsum([feature["num_options"] for feature in features])
        return np.split(np.concatenate(scores), ends[:-1])

    @torch.no_grad()
    def _forward(self, features: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        batch = collate_options(features, self.pad_token_id)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        if "option_segments" in batch:
            inputs["attention_mask"] = branch_attention_mask(
                batch["attention_mask"],
                batch["option_segments"],
                self.model.config._attn_implementation,
                self.model.dtype,
            )
        hidden_states = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        option_logits = score_options(
            self.model.get_output_embeddings(),
            hidden_states,
            batch,
            self.normalization,
            self.transform,
            over_vocabulary=True,
        )
        counts = [feature["num_options"] for feature in features]
        return [row[:count] for row, count in zip(option_logits.cpu().numpy(), counts, strict=True)]

    def check_branches(self, features: Sequence[Mapping[str, Any]]) -> None:
        """
        Scores the last long option of the longest question among all options and by itself. An architecture that does
        not follow the branch mask (a recurrent one, a window shorter than the question) gives itself away: no option has
        more foreign tokens before it.
        """
        branched = [feature for feature in features if any(feature["option_segments"])]
        if not branched:
            return
        longest = max(branched, key=lambda feature: len(feature["input_ids"]))
        alone = _single_options(longest)
        # Options need not stand in their own order: training puts the right one first.
        places = zip(longest["option_positions"], longest["option_index"], strict=True)
        _, last = max(place for place in places if len(alone[place[1]]["option_tokens"]) > 1)
        expected = self._forward([alone[last]])[0][0]
        tolerance = {"rtol": 1e-3, "atol": 1e-3} if self.model.dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
        try:
            packed = self._forward([longest])[0][last]
            self.branches = bool(np.allclose(packed, expected, **tolerance, equal_nan=True))
            reason = f"log-likelihood {packed:.2f} instead of {expected:.2f}"
        except (RuntimeError, TypeError, ValueError) as error:
            self.branches, reason = False, str(error)
        if not self.branches:
            logger.warning(
                f"{type(self.model).__name__} does not follow a branch attention mask ({reason}); options are scored "
                "one by one, which takes several times as long"
            )


def _single_options(feature: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An encoded question as one plain sequence per option."""
    context = feature["input_ids"][: min(feature["option_positions"]) + 1]
    options = [[] for _ in range(feature["num_options"])]
    for token, k in zip(feature["option_tokens"], feature["option_index"], strict=True):
        options[k].append(token)
    return [
        {
            "input_ids": context + tokens[:-1],
            "option_positions": list(range(len(context) - 1, len(context) - 1 + len(tokens))),
            "option_tokens": tokens,
            "option_index": [0] * len(tokens),
            "num_options": 1,
            "option_label": 0,
        }
        for tokens in options
    ]


def pad_rows(rows: Sequence[Sequence[float]], width: int, value: float) -> np.ndarray:
    """Rows of different length as one float32 array `(len(rows), width)`, filled up with `value`."""
    padded = np.full((len(rows), width), value, dtype=np.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
