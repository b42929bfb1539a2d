"""Generic texts in the closing step: the next-token distributions of the model before training, which are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from ..inference.encoding import collate_options
from ..inference.generic_texts import GenericText


TEXT_COLUMNS = ("text_positions", "text_tokens", "text_log_probabilities")

# Tokens kept of a distribution. The others count together, as the rest of the probability.
NUM_TOKENS = 32


@torch.no_grad()
def anchor_texts(
    forward: Callable[..., Any], texts: Sequence[GenericText], pad_token_id: int, device, batch_size: int
) -> Dataset:
    """
    Compute the most probable next tokens at every generated position of texts, and their log-probabilities.

    Args:
        forward (`Callable`):
            A causal language model in evaluation mode, wrapped for distribution or not.
        texts (`Sequence[GenericText]`):
            The texts.
        pad_token_id (`int`), device (`torch.device`), batch_size (`int`):
            How the batches are made.

    Returns:
        [`~datasets.Dataset`] with the columns `input_ids` `(length,)`, `text_positions` `(positions,)`, and
        `text_tokens` and `text_log_probabilities`, both `(positions, NUM_TOKENS)`.
    """
    rows = []
    for first in range(0, len(texts), batch_size):
        batch = texts[first : first + batch_size]
        inputs = collate_options([{"input_ids": text.input_ids} for text in batch], pad_token_id)
        logits = forward(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
        for text, row in zip(batch, logits, strict=True):
            positions = range(text.start - 1, len(text.input_ids) - 1)
            log_probabilities = row[positions.start : positions.stop].float().log_softmax(-1)
            top = log_probabilities.topk(min(NUM_TOKENS, log_probabilities.size(-1)))
            columns = list(positions), top.indices.tolist(), top.values.tolist()
            rows.append({"input_ids": list(text.input_ids), **dict(zip(TEXT_COLUMNS, columns, strict=True))})
    return Dataset.from_list(rows)


def collate_anchors(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """
    Pad the anchors of a batch, whose rows may be questions, which have none.

    Args:
        features (`Sequence[Mapping]`):
            Rows, with the columns of [`anchor_texts`] or without.

    Returns:
        `dict[str, torch.Tensor]`: `text_positions` `(batch, positions)`, padded with -1; `text_tokens` and
        `text_log_probabilities` `(batch, positions, tokens)`.
    """
    positions, tokens, values = ([feature.get(name) or [] for feature in features] for name in TEXT_COLUMNS)
    width = max(1, *map(len, positions))
    count = max((len(row[0]) for row in tokens if row), default=1)
    batch = {
        "text_positions": torch.full((len(features), width), -1),
        "text_tokens": torch.zeros((len(features), width, count), dtype=torch.long),
        "text_log_probabilities": torch.zeros((len(features), width, count)),
    }
    for name, rows in zip(TEXT_COLUMNS, (positions, tokens, values), strict=True):
        for target, row in zip(batch[name], rows, strict=True):
            if row:
                target[: len(row)] = torch.tensor(row)
    return batch
