"""Option encoding: one question becomes one token sequence from which the logits of all its options can be read.

The sequence is the prompt, then (for training) the right option and the end of the turn, then the remaining options as
*branches*: each branch continues the prompt, sees the prompt and itself, and no other branch. One forward pass therefore
scores every option, whatever their number and length, and the likelihood of the right answer comes out of the same pass.

    input_ids         [ prompt ........ | right option, turn end | option B | option C ]
    option_segments   [ 0 0 0 0 0 0 0 0 | 1 1 1 1 1              | 2 2 2    | 3 3      ]
    labels            [ -100 or prompt  | right option, turn end | -100 ............. ]

Where options are single tokens (letters, say) no branch is needed: all of them are read at the end of the prompt.
What is to be read is listed as *option tokens*: token `option_tokens[e]`, a part of option `option_index[e]`, is predicted
by the hidden state at `option_positions[e]`. Positions are indices, carried with every example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data.questions import PromptFormat

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
    """A question whose prompt and longest option do not fit in `max_length`; its answer is never truncated away."""


class OptionEncoder:
    """
    Turns a question into the token sequence from which its options are scored.

    Option tokens are found *in context*: the prompt is tokenised together with each candidate, so that `" A"`, `"A"` and
    `"▁A"` come out as this tokenizer writes them after this prompt. In letter mode every letter must be one token and no
    two letters the same one.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompt_format ([`~hf_calib.data.questions.PromptFormat`]):
            How a question is written, and whether letters or texts are scored.
        max_length (`int`, *optional*):
            Longest sequence, in tokens, of prompt and one option. A longer question raises [`QuestionTooLongError`].

    Example:
    ```python
    >>> encoder = OptionEncoder(tokenizer, PromptFormat(scoring="letter"))
    >>> features = encoder.encode({"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1})
    >>> len(features["option_tokens"])  # two letters, both read at the end of the prompt
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
                A question in the unified schema: `question`, `choices`, `answer`, optionally `id` and `subject`. Without an
                answer (`None`) it has options to score, and no likelihood: all its `labels`, and `option_label`, are -100.
            branches (`bool`, *optional*, defaults to `True`):
                Whether the options are to be scored. Without it the result is a plain language-modelling example.
            likelihood (`"completion"` or `"sequence"`, *optional*):
                Append the right option and label it (`"completion"`, L_SFT1 of Xiao et al. 2025) or label question and
                answer (`"sequence"`, L_SFT2). By default nothing is appended: the row is only scored.

        Returns:
            `dict`: `input_ids`; `labels` if `likelihood`; with `branches` also `option_segments` (one per token),
            `option_positions`, `option_tokens`, `option_index` (one per option token), `num_options`, `option_label`.

        Raises:
            [`QuestionTooLongError`]: if the prompt and an option are longer than `max_length`.
            `ValueError`: if letters do not come out as different single tokens.
        """
        prompt, candidates, suffix = self.prompt_format.render(
            self.tokenizer, row["question"], row["choices"], subject=row.get("subject")
        )
        context, options = self._tokenize(prompt, candidates)
        if self.prompt_format.scoring == "letter":
            self._check_letters(candidates, options)
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
        # The hidden state before the first branch predicts the first token of every option.
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
                # The last token of an option is predicted but predicts nothing, so it is not fed.
                features["input_ids"] += tokens[:-1]
                segments += [max(segments) + 1] * (len(tokens) - 1)
        if likelihood is not None:
            features["labels"] += [IGNORE_INDEX] * (len(features["input_ids"]) - len(features["labels"]))
        if all(len(tokens) == 1 for tokens in options):
            # Every option is read at the end of the prompt: the causal mask serves.
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
        """Token ids of the context that all candidates share with the prompt, and of each candidate after it."""
        special = self.prompt_format.add_special_tokens(self.tokenizer)
        encoded = self.tokenizer(
            [prompt, *(prompt + candidate for candidate in candidates)], add_special_tokens=special
        )
        eos = self.tokenizer.eos_token_id
        sequences = []
        for text, ids in zip([prompt, *(prompt + c for c in candidates)], encoded["input_ids"], strict=True):
            # Tokenizers that close every text with EOS (`add_eos_token=True`) would end the prompt before its answer.
            if special and ids and ids[-1] == eos and not text.endswith(self.tokenizer.eos_token):
                ids = ids[:-1]
            sequences.append(list(ids))
        # A token may merge across the end of the prompt: the context ends where the first candidate departs.
        length = min(_common_prefix(sequences[0], ids) for ids in sequences[1:])
        if length == 0:
            raise ValueError(f"The prompt {prompt!r} comes out as no token of its own; write a longer template.")
        context, options = sequences[0][:length], [ids[length:] for ids in sequences[1:]]
        for candidate, ids in zip(candidates, options, strict=True):
            if not ids:
                raise ValueError(
                    f"The option {candidate!r} adds no token to the prompt ending in {prompt[-20:]!r}; its text is empty "
                    "to this tokenizer."
                )
        return context, options

    def _check_letters(self, candidates: Sequence[str], options: Sequence[list[int]]) -> None:
        if all(len(ids) == 1 for ids in options) and len({ids[0] for ids in options}) == len(options):
            return
        shown = ", ".join(
            f"{candidate!r} -> {self.tokenizer.convert_ids_to_tokens(ids)}"
            for candidate, ids in zip(candidates, options, strict=True)
        )
        raise ValueError(
            "Letter scoring needs every letter to be one token of its own after the prompt, but this tokenizer gives "
            f"{shown}. Use another template (end it differently) or scoring='text'."
        )


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
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
    Pad encoded questions, and plain language-modelling examples among them, to one batch.

    Args:
        features (`Sequence[Mapping]`):
            Results of [`OptionEncoder.encode`], or mappings with `input_ids` and `labels` alone (no options).
        pad_token_id (`int`):
            Token to pad `input_ids` with.
        padding_side (`"right"` or `"left"`, *optional*, defaults to `"right"`):
            Side to pad on; option positions move along.
        max_options (`int`, *optional*):
            Width K of `option_mask`; by default the largest number of options in the batch, and no option columns at all
            where that is 0.
        branched (`bool`, *optional*):
            Whether to give `option_segments`; by default where a feature has branches. Processes that train together want
            the same columns in every batch, hence the two arguments.
        pad_to_multiple_of (`int`, *optional*):
            Pad the length to a multiple of this value.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids` and `attention_mask` `(batch, length)`, `labels` `(batch, length)` where the
        features have them; where there are options `option_positions`, `option_tokens` and `option_index`
        `(batch, num_option_tokens)` padded with -1, `option_mask` `(batch, K)` (bool) and `option_label` `(batch,)` (-100
        without options); with branches or left padding `position_ids`, and with branches `option_segments`, `(batch, length)`.
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
    """Position of each token counted along its own path: every branch goes on where the prompt ended."""
    prompt_length = sum(segment == 0 for segment in segments)
    positions, seen = [], {}
    for segment in segments:
        base = 0 if segment == 0 else prompt_length
        positions.append(base + seen.get(segment, 0))
        seen[segment] = seen.get(segment, 0) + 1
    return positions
