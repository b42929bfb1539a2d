"""Encode a question as one token sequence from which the logits of all its options are computed in one forward pass.

The sequence is the prompt, then (for training) the right option and the end of the turn, then the other options as
*branches*. A branch continues the prompt: it attends to the prompt and to itself, and to no other branch. So one
forward pass scores all options, and also gives the likelihood of the right answer.

    input_ids         [ prompt ........ | right option, turn end | option B | option C ]
    option_segments   [ 0 0 0 0 0 0 0 0 | 1 1 1 1 1              | 2 2 2    | 3 3      ]
    labels            [ -100 or prompt  | right option, turn end | -100 ............. ]

Options of one token, such as letters, need no branch: all of them are predicted at the end of the prompt. The tokens
to score are listed as *option tokens*: token `option_tokens[e]`, of option `option_index[e]`, is predicted by the
hidden state at index `option_positions[e]`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..data.questions import PromptFormat

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
OPTION_COLUMNS = (
    "option_positions",
    "option_tokens",
    "option_index",
    "option_segments",
    "num_options",
    "option_label",
)


class QuestionTooLongError(ValueError):
    """Raised for a question whose prompt and longest option exceed `max_length`. Questions are never truncated."""


class OptionEncoder:
    """
    Encode questions as token sequences from which their options are scored.

    Option tokens are found in context: the prompt is tokenised together with each candidate, so a letter becomes the
    token that this tokenizer produces after this prompt, e.g. `" A"`, `"A"` or `"▁A"`. In letter mode every letter
    must be a single token, and different from the others.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompt_format ([`~hf_calib.data.questions.PromptFormat`]):
            How a question is written, and whether letters or texts are scored.
        max_length (`int`, *optional*):
            Largest number of tokens of a prompt with one option. A longer question raises [`QuestionTooLongError`].

    Example:
    ```python
    >>> encoder = OptionEncoder(tokenizer, PromptFormat(scoring="letter"))
    >>> features = encoder.encode({"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1})
    >>> len(features["option_tokens"])  # two letters, both predicted at the end of the prompt
    2

    ```
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, max_length: int | None = None):
        self.tokenizer = tokenizer
        self.prompt_format = prompt_format
        self.max_length = max_length

    def encode(
        self,
        row: Mapping[str, Any],
        branches: bool = True,
        likelihood: Literal["completion", "sequence"] | None = None,
    ) -> dict[str, list[int] | int]:
        """
        Encode one question.

        Args:
            row (`Mapping`):
                A question in the unified schema: `question`, `choices`, `answer`, optionally `id` and `subject`. If
                the answer is `None`, all `labels` and `option_label` are -100: it has options but no likelihood.
            branches (`bool`, *optional*, defaults to `True`):
                Encode the options for scoring. Otherwise the result is a plain language-modelling example.
            likelihood (`"completion"` or `"sequence"`, *optional*):
                Append the right option, with labels for its tokens (`"completion"`, L_SFT1 of Xiao et al., arXiv
                2505.01997) or for prompt and option (`"sequence"`, L_SFT2). By default nothing is appended.

        Returns:
            `dict`: `input_ids`; `labels` if `likelihood`; with `branches` also `option_segments` (one per token),
            `option_positions`, `option_tokens`, `option_index` (one per option token), `num_options`, `option_label`.

        Raises:
            [`QuestionTooLongError`]: if the prompt and an option are longer than `max_length`.
            `ValueError`: if letters are not different single tokens, or different options have the same unknown ones.
        """
        prompt, candidates, suffix = self.prompt_format.render(
            self.tokenizer, row["question"], row["choices"], subject=row.get("subject")
        )
        context, options = self._tokenize(prompt, candidates)
        if self.prompt_format.scoring == "letter":
            self._check_letters(candidates, options)
        self._check_unknown(candidates, options)
        answer = row.get("answer")
        completion = []
        if likelihood is not None and answer is not None:
            ending = self.tokenizer(suffix, add_special_tokens=False)["input_ids"] if suffix else []
            completion = options[answer] + ending
        longest = len(context) + max(map(len, [*options, completion]))
        if self.max_length is not None and longest > self.max_length:
            raise QuestionTooLongError(
                f"Question {row.get('id', row['question'][:60])!r} needs {longest} tokens with its longest option, "
                f"max_length is {self.max_length}. Raise max_length, or leave the question out."
            )

        features = {"input_ids": list(context)}
        segments = [0] * len(context)
        # Index of the first token of each option. The end of the prompt predicts it, whatever this index is.
        starts = [None] * len(options)
        if likelihood is not None:
            features["input_ids"] += completion
            segments += [1] * len(completion)
            masked = list(context) if likelihood == "sequence" and completion else [IGNORE_INDEX] * len(context)
            features["labels"] = masked + completion
        if completion:
            starts[answer] = len(context)
        if not branches:
            return features

        for k, tokens in enumerate(options):
            if starts[k] is None:
                starts[k] = len(features["input_ids"])
                # The last token of an option predicts nothing, so it is not part of the input.
                features["input_ids"] += tokens[:-1]
                segments += [max(segments) + 1] * (len(tokens) - 1)
        if likelihood is not None:
            features["labels"] += [IGNORE_INDEX] * (len(features["input_ids"]) - len(features["labels"]))
        if all(len(tokens) == 1 for tokens in options):
            # All options are predicted at the end of the prompt, so the causal mask is enough.
            segments = [0] * len(segments)
        features["option_segments"] = segments
        features["option_positions"] = [
            len(context) - 1 if j == 0 else starts[k] + j - 1
            for k, tokens in enumerate(options)
            for j in range(len(tokens))
        ]
        features["option_tokens"] = [token for tokens in options for token in tokens]
        features["option_index"] = [k for k, tokens in enumerate(options) for _ in tokens]
        features["num_options"] = len(options)
        features["option_label"] = IGNORE_INDEX if answer is None else answer
        return features

    def _tokenize(self, prompt: str, candidates: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids of the context, the prefix that prompt and candidates share, and of each candidate after it."""
        special = self.prompt_format.add_special_tokens(self.tokenizer)
        encoded = self.tokenizer(
            [prompt, *(prompt + candidate for candidate in candidates)], add_special_tokens=special
        )
        eos = self.tokenizer.eos_token_id
        sequences = []
        for text, ids in zip([prompt, *(prompt + c for c in candidates)], encoded["input_ids"], strict=True):
            # Tokenizers with `add_eos_token=True` would end the prompt before its answer.
            if special and ids and ids[-1] == eos and not text.endswith(self.tokenizer.eos_token):
                ids = ids[:-1]
            sequences.append(list(ids))
        # A token may span the end of the prompt, so the context ends where the first candidate differs from it.
        length = min(_common_prefix(sequences[0], ids) for ids in sequences[1:])
        if length == 0:
            raise ValueError(f"The prompt {prompt!r} shares no token with its continuations; write a longer template.")
        context, options = sequences[0][:length], [ids[length:] for ids in sequences[1:]]
        for candidate, ids in zip(candidates, options, strict=True):
            if not ids:
                raise ValueError(
                    f"The option {candidate!r} adds no token to the prompt ending in {prompt[-20:]!r}: this tokenizer "
                    "treats its text as empty."
                )
        return context, options

    def _check_unknown(self, candidates: Sequence[str], options: Sequence[list[int]]) -> None:
        """Raise a `ValueError` for different options that are one to the model: their words are unknown tokens."""
        unknown, seen = self.tokenizer.unk_token_id, {}
        for candidate, ids in zip(candidates, options, strict=True):
            other = seen.setdefault(tuple(ids), candidate)
            if other != candidate and unknown is not None and unknown in ids:
                raise ValueError(
                    f"The options {other!r} and {candidate!r} are the same tokens, "
                    f"{self.tokenizer.convert_ids_to_tokens(ids)}: this tokenizer does not know their words."
                )

    def _check_letters(self, candidates: Sequence[str], options: Sequence[list[int]]) -> None:
        unknown = self.tokenizer.unk_token_id
        different = len({tuple(ids) for ids in options}) == len(options)
        if different and all(len(ids) == 1 and ids[0] != unknown for ids in options):
            return
        shown = ", ".join(
            f"{candidate!r} -> {self.tokenizer.convert_ids_to_tokens(ids)}"
            for candidate, ids in zip(candidates, options, strict=True)
        )
        raise ValueError(
            "Letter scoring needs every letter to be a different single token after the prompt, and a known one, but "
            f"this tokenizer gives {shown}. Use a template with another ending, or scoring='text'."
        )


def encode_fitting(
    encoder: OptionEncoder, questions: Dataset, drop_too_long: bool
) -> tuple[list[int], list[dict[str, Any]]]:
    """
    Encode the questions that fit in the encoder's `max_length`.

    Args:
        encoder ([`OptionEncoder`]):
            The encoder.
        questions (`Dataset`):
            Questions in the unified schema.
        drop_too_long (`bool`):
            Leave out longer questions, and log their number, instead of raising.

    Returns:
        `tuple[list[int], list[dict]]`: row numbers of the questions, and their features.

    Raises:
        [`QuestionTooLongError`]: for a longer question, or if none fits.
    """
    kept, features = [], []
    for index, row in enumerate(questions):
        try:
            features.append(encoder.encode(row))
            kept.append(index)
        except QuestionTooLongError as error:
            if not drop_too_long:
                raise QuestionTooLongError(f"{error} `drop_too_long=True` leaves out all such questions.") from None
    if not kept:
        raise QuestionTooLongError(
            f"none of {len(questions)} questions fits in max_length={encoder.max_length}; raise it, or shorten the "
            "prompt_template"
        )
    if len(kept) < len(questions):
        left_out = len(questions) - len(kept)
        logger.warning(f"left out {left_out} of {len(questions)} questions longer than {encoder.max_length} tokens")
    return kept, features


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    for length, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return length
    return min(len(left), len(right))


def collate_options(
    features: Sequence[Mapping[str, Any]],
    pad_token_id: int,
    padding_side: Literal["right", "left"] = "right",
    max_options: int | None = None,
    branched: bool | None = None,
    pad_to_multiple_of: int | None = None,
) -> dict[str, torch.Tensor]:
    """
    Pad encoded questions and plain language-modelling examples to one batch.

    Args:
        features (`Sequence[Mapping]`):
            Results of [`OptionEncoder.encode`], or mappings with only `input_ids` and `labels`.
        pad_token_id (`int`):
            Token that pads `input_ids`.
        padding_side (`"right"` or `"left"`, *optional*, defaults to `"right"`):
            Side of the padding; option positions are shifted with it.
        max_options (`int`, *optional*):
            Width K of `option_mask`. Defaults to the largest number of options in the batch. If it is 0, there are no
            option columns.
        branched (`bool`, *optional*):
            Whether to return `option_segments`. Defaults to whether any question has branches. Set `max_options` and
            `branched` where all processes need the same columns in every batch.
        pad_to_multiple_of (`int`, *optional*):
            Pad the length to a multiple of this value.

    Returns:
        `dict[str, torch.Tensor]`:
            - `input_ids` and `attention_mask`, and `labels` if the features have them, all `(batch, length)`;
            - with options: `option_positions`, `option_tokens` and `option_index` `(batch, num_option_tokens)`, padded
              with -1; `option_mask` `(batch, K)`, bool; `option_label` `(batch,)`, -100 for a row without options;
            - with branches or left padding `position_ids`, with branches `option_segments`, both `(batch, length)`.
    """
    length = max(len(feature["input_ids"]) for feature in features)
    if pad_to_multiple_of:
        length += -length % pad_to_multiple_of

    def pad(rows: Sequence[Sequence[int]], value: int, width: int, side: str = padding_side) -> torch.Tensor:
        filled = torch.full((len(rows), width), value, dtype=torch.long)
        for i, row in enumerate(rows):
            if row:
                start = width - len(row) if side == "left" else 0
                filled[i, start : start + len(row)] = torch.as_tensor(row)
        return filled

    ids = [feature["input_ids"] for feature in features]
    batch = {
        "input_ids": pad(ids, pad_token_id, length),
        "attention_mask": pad([[1] * len(row) for row in ids], 0, length),
    }
    if any("labels" in feature for feature in features):
        labels = [feature.get("labels") or [] for feature in features]
        batch["labels"] = pad(labels, IGNORE_INDEX, length)
    segments = [feature.get("option_segments") or [0] * len(feature["input_ids"]) for feature in features]
    branched = any(map(any, segments)) if branched is None else branched
    if branched or padding_side == "left":
        batch["position_ids"] = pad([_branch_positions(row) for row in segments], 0, length)
    counts = [feature.get("num_options") or 0 for feature in features]
    max_options = max(counts) if max_options is None else max_options
    if not max_options:
        return batch

    if branched:
        batch["option_segments"] = pad(segments, 0, length)
    width = max(len(feature.get("option_tokens") or []) for feature in features)
    shifts = [length - len(row) if padding_side == "left" else 0 for row in ids]
    for name in ("option_positions", "option_tokens", "option_index"):
        rows = [feature.get(name) or [] for feature in features]
        if name == "option_positions":
            rows = [[position + shift for position in row] for row, shift in zip(rows, shifts, strict=True)]
        batch[name] = pad(rows, -1, width, side="right")
    batch["option_mask"] = torch.arange(max_options) < torch.tensor(counts)[:, None]
    batch["option_label"] = torch.tensor(
        [feature["option_label"] if feature.get("num_options") else IGNORE_INDEX for feature in features]
    )
    return batch


def _branch_positions(segments: Sequence[int]) -> list[int]:
    """Position id of each token: every branch continues the positions of the prompt."""
    prompt_length = sum(segment == 0 for segment in segments)
    positions, seen = [], {}
    for segment in segments:
        base = 0 if segment == 0 else prompt_length
        positions.append(base + seen.get(segment, 0))
        seen[segment] = seen.get(segment, 0) + 1
    return positions
