"""
Packing: all options of a question in one sequence, under a mask that makes each of them a branch of the prompt.

A packed option has the positions that it would have alone, but not the same keys before it. A model that derives
positions from the place in the sequence (ALiBi, recurrence), or whose attention window the mask replaces, computes
other log-likelihoods. [`packing_obstacle`] finds such models, and their options are scored in sequences of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .encoding import collate_options


if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_COMPARED = 4  # questions that are scored in both ways

# Largest root mean square of the differences in log-likelihood, in nats a token.
_EXACT_TOLERANCE = 1e-3  # in float32
_NOISE_FACTOR = 2  # otherwise: in units of the noise that the model makes of a rounding error,
_ROUNDING_ERROR = 0.3  # the standard deviation of which is this, in steps of the dtype


def branch_attention_mask(
    attention_mask: torch.Tensor, option_segments: torch.Tensor, implementation: str | None, dtype: torch.dtype
) -> torch.Tensor:
    """
    Build the attention mask under which every branch attends to the prompt and to itself.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            1 for tokens, 0 for padding.
        option_segments (`torch.Tensor` of shape `(batch, length)`):
            0 for the prompt, and a different number for each branch.
        implementation (`str`):
            Attention implementation of the model: `"sdpa"` (a boolean mask) or `"eager"` (an additive one).
        dtype (`torch.dtype`):
            Type of the additive mask.

    Returns:
        `torch.Tensor` of shape `(batch, 1, length, length)`.

    Raises:
        `ValueError`: for an attention implementation that does not accept such a mask.
    """
    length = attention_mask.size(1)
    query, key = option_segments[:, :, None], option_segments[:, None, :]
    visible = ((key == 0) | (key == query)) & attention_mask[:, None, :].bool()
    visible &= torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
    # A padding token attends to itself: a softmax over nothing is NaN.
    visible |= torch.eye(length, dtype=torch.bool, device=visible.device)
    visible = visible[:, None]
    if implementation == "sdpa":
        return visible
    if implementation == "eager":
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
            ~visible, torch.finfo(dtype).min
        )
    raise ValueError(
        "Options of several tokens are scored under a branch mask, which attn_implementation="
        f"{implementation!r} does not accept. Load the model with attn_implementation='sdpa' or 'eager', or use "
        "scoring='letter'."
    )


def single_options(feature: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split an encoded question into one plain sequence for each option."""
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


def unpack_batch(
    input_ids: torch.Tensor, batch: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """
    Give every option of a packed batch a sequence of its own.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, length)`):
            Packed sequences, padded on the right.
        batch (`dict[str, torch.Tensor]`):
            Their option columns, see [`~hf_calib.inference.encoding.collate_options`].

    Returns:
        `tuple`: the collated sequences, and the row and the option of each. A batch without options becomes one
        sequence of one token, of no row, so that every process runs the model.
    """
    columns = ("option_positions", "option_tokens", "option_index")
    lists = [input_ids.tolist(), *(batch[name].tolist() for name in columns), batch["option_mask"].sum(-1).tolist()]
    singles, places = [], []
    for row, (ids, positions, tokens, index, count) in enumerate(zip(*lists, strict=True)):
        size = len(index) - index.count(-1)
        if size:
            feature = {
                "input_ids": ids,
                "option_positions": positions[:size],
                "option_tokens": tokens[:size],
                "option_index": index[:size],
                "num_options": count,
            }
            singles += single_options(feature)
            places += [(row, k) for k in range(count)]
    if not singles:
        one = {"option_positions": [0], "option_tokens": [0], "option_index": [0]}
        singles = [{"input_ids": [0], **one, "num_options": 1, "option_label": 0}]
    inputs = {name: tensor.to(input_ids.device) for name, tensor in collate_options(singles, 0).items()}
    rows, options = torch.tensor(places, dtype=torch.long, device=input_ids.device).reshape(-1, 2).unbind(1)
    return inputs, (rows, options)


def architecture_obstacle(model: PreTrainedModel, features: Sequence[Mapping[str, Any]]) -> str | None:
    """
    Find a reason in the architecture of a model not to pack, without running it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.
        features (`Sequence[Mapping]`):
            Encoded questions with branches.

    Returns:
        `str`, *optional*: the reason.
    """
    config, parameters = model.config.get_text_config(), inspect.signature(model.base_model.forward).parameters
    if getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False):
        return "its position bias (ALiBi) depends on the place in the sequence"
    if "position_ids" not in parameters and model.base_model.__module__.startswith("transformers."):
        return "it takes no position ids"
    alone = max(len(single["input_ids"]) for feature in features for single in single_options(feature))
    packed = max(len(feature["input_ids"]) for feature in features)
    # GPT-Neo applies its window to places in the sequence; the other windows are part of the mask that is replaced.
    lengths = {"sliding_window": alone, "attention_chunk_size": alone, "window_size": packed}
    layers = getattr(config, "layer_types", None) or ["sliding"]
    if all(layer == "full_attention" for layer in layers):
        return None
    for name, length in lengths.items():
        window = getattr(config, name, None)
        if isinstance(window, int) and window < length and getattr(config, "use_sliding_window", True):
            return f"its attention window of {window} tokens is shorter than a question"
    return None


def compared_questions(features: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose questions to score in both ways: the longest, the one with the longest branches, and others between."""
    by_length = sorted(features, key=lambda feature: -len(feature["input_ids"]))
    branched = max(features, key=lambda feature: sum(segment > 0 for segment in feature["option_segments"]))
    steps = np.linspace(0, len(by_length) - 1, NUM_COMPARED - 1).astype(int)
    chosen = [branched, *(by_length[step] for step in steps)]
    return list({id(feature): feature for feature in chosen}.values())


def difference_of_scores(
    model: PreTrainedModel,
    features: Sequence[Mapping[str, Any]],
    score: Callable[[Mapping[str, Any]], np.ndarray],
    expected: Callable[[Mapping[str, Any]], np.ndarray],
) -> str | None:
    """
    Compare two ways of scoring, token by token and in the differences between the options of a question.

    In float32 the scores must agree. Otherwise their difference may be as large as a rounding error makes it: the
    noise is measured as the change of `expected` where the embeddings are rounded differently.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in the dtype in use.
        features (`Sequence[Mapping]`):
            Encoded questions.
        score (`Callable`), expected (`Callable`):
            From a question to the log-likelihood of each of its option tokens, `(num_option_tokens,)`.

    Returns:
        `str`, *optional*: how the scores differ; `None` if they agree.
    """
    expectations = [expected(feature) for feature in features]
    found = _spread(features, [score(feature) for feature in features], expectations)
    if model.dtype in (torch.float32, torch.float64) and torch.backends.cuda.matmul.fp32_precision != "tf32":
        allowed = np.array([_EXACT_TOLERANCE] * 2)
    else:
        step = 2.0**-10 if model.dtype == torch.float32 else torch.finfo(model.dtype).eps
        allowed = np.array([step] * 2)
        if not (found <= allowed).all():
            with _rounded_differently(model, _ROUNDING_ERROR * step):
                noise = _spread(features, [expected(feature) for feature in features], expectations)
            allowed = np.maximum(allowed, _NOISE_FACTOR * noise)
    if (found <= allowed).all():  # NaN is no agreement
        return None
    return f"log-likelihoods of tokens differ by {found[0]:.3g} nats, where rounding makes {allowed[0]:.3g}"


def _spread(features, scores: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> np.ndarray:
    """
    Root mean square of the differences of tokens, and of those between options, in the question where it is largest.

    An option's difference is that of the sum of its tokens, less the mean over the options of its question, divided by
    the square root of its number of tokens: independent errors of tokens make both numbers equally large.
    """
    squares = []
    for feature, ours, theirs in zip(features, scores, expected, strict=True):
        tokens = np.where(ours == theirs, 0.0, ours - theirs)  # also where both are infinite
        sums = np.bincount(feature["option_index"], tokens)
        options = (sums - sums.mean()) / np.sqrt(np.bincount(feature["option_index"]))
        squares.append([np.mean(tokens**2), np.mean(options**2)])
    return np.sqrt(np.max(squares, axis=0))


@contextmanager
def _rounded_differently(model: PreTrainedModel, scale: float):
    """Add a relative error of this standard deviation to the embeddings."""
    generator = torch.Generator().manual_seed(0)

    def add_error(module, args, output):
        error = torch.randn(output.shape, generator=generator).to(output.device, torch.float32)
        return (output.float() * (1 + scale * error)).to(output.dtype)

    handle = model.get_input_embeddings().register_forward_hook(add_error)
    try:
        yield
    finally:
        handle.remove()
