"""Data collators of the calibrated trainers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin

from ..data.preference_pairs import PREFERENCE_COLUMN
from ..inference.encoding import collate_options
from ..inference.option_scorer import pad_rows
from .reference import REFERENCE_COLUMN


@dataclass
class DataCollatorForOptions(DataCollatorMixin):
    """
    Pads option questions, and plain language-modelling rows among them, to one batch; see
    [`~hf_calib.inference.encoding.collate_options`]. A reference's option logits, where rows have them, are padded with -inf.

    Args:
        pad_token_id (`int`):
            Token to pad with.
        max_options (`int`, *optional*):
            Options of the widest question of the dataset: every batch has option logits of this width.
        branched (`bool`, *optional*):
            Whether any question of the dataset has options of several tokens.
        pad_to_multiple_of (`int`, *optional*):
            Pad the length to a multiple of this value.
    """

    pad_token_id: int
    max_options: int | None = None
    branched: bool | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate_options(
            examples,
            self.pad_token_id,
            max_options=self.max_options,
            branched=self.branched,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        if REFERENCE_COLUMN in examples[0]:
            rows = [example[REFERENCE_COLUMN] for example in examples]
            batch[REFERENCE_COLUMN] = torch.from_numpy(pad_rows(rows, batch["option_mask"].size(1), -torch.inf))
        return batch


@dataclass
class DataCollatorForCalibratedPreference:
    """
    Pads preference pairs, keeping their preference probability, or option questions, to one batch.

    Args:
        pairs (`Callable`):
            Collator of the pairs, such as TRL's.
        options ([`DataCollatorForOptions`]):
            Collator of the questions.
    """

    pairs: Callable[[list[dict[str, Any]]], dict[str, Any]]
    options: DataCollatorForOptions

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if "num_options" in examples[0]:
            return self.options(examples)
        batch = self.pairs(examples)
        if PREFERENCE_COLUMN in examples[0]:
            batch[PREFERENCE_COLUMN] = torch.tensor([example[PREFERENCE_COLUMN] for example in examples])
        return batch
