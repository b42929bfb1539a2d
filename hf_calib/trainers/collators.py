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
from .option_mixin import QUESTION_INDEX
from .reference import REFERENCE_COLUMN
from .text_anchor import collate_anchors


@dataclass
class DataCollatorForOptions(DataCollatorMixin):
    """
    Data collator that pads option questions, and plain language-modeling rows among them.

    See [`~hf_calib.inference.encoding.collate_options`]. The option logits of a reference are padded with -inf;
    the number of a question of the M-step (`question_index`) is kept. See also
    [`~hf_calib.trainers.text_anchor.collate_anchors`].

    Args:
        pad_token_id (`int`):
            Token to pad with.
        max_options (`int`, *optional*):
            Largest number of options in the data set: the width of the option logits of every batch.
        branched (`bool`, *optional*):
            Whether any question of the data set has options of several tokens.
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
            rows = [row or [] for row in rows]  # a text among questions has none
            batch[REFERENCE_COLUMN] = torch.from_numpy(pad_rows(rows, batch["option_mask"].size(1), -torch.inf))
        if QUESTION_INDEX in examples[0]:
            batch[QUESTION_INDEX] = torch.tensor([example[QUESTION_INDEX] for example in examples])
        if "text_positions" in examples[0]:
            batch |= collate_anchors(examples)
        return batch


@dataclass
class DataCollatorForCalibratedPreference:
    """
    Data collator that pads preference pairs, with their preference probability, or option questions.

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
            values = [example[PREFERENCE_COLUMN] for example in examples]
            if faulty := [value for value in values if value is None or not 0 <= value <= 1]:
                raise ValueError(f"the preference probability {faulty[0]!r} of a pair is not in [0, 1].")
            batch[PREFERENCE_COLUMN] = torch.tensor(values)
        return batch
