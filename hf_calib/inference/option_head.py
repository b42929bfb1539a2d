"""
Compute the option logits of a causal language model from its last hidden states.

Vocabulary logits are only computed where an option's tokens are predicted, not over the whole sequence.
[`score_options`] does the computation; [`OptionHead`] adds it to a model's forward pass, so that training gets option
logits and the language-modelling loss from one pass.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutput

from ..losses.text_divergence import anchor_divergence
from .packing import branch_attention_mask, unpack_batch


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

# Columns of `collate_options` that the extended forward accepts.
OPTION_INPUTS = (
    "option_positions",
    "option_tokens",
    "option_index",
    "option_mask",
    "option_label",
    "option_segments",
)
# Columns of [`~hf_calib.trainers.text_anchor.collate_anchors`], which it accepts beside them.
ANCHOR_INPUTS = ("text_positions", "text_tokens", "text_log_probabilities")

# Number of positions whose vocabulary logits exist at one time: 256 x 128k float32 values are 128 MiB.
_CHUNK_SIZE = 256


def _same(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _no_gather(*parameters: torch.Tensor | None) -> AbstractContextManager:
    return nullcontext()


@dataclass(frozen=True)
class HeadOptions:
    """
    Options of [`score_options`].

    Args:
        option_normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            Log-likelihood of an option: sum over its tokens, or mean.
        transform (`Callable`, *optional*):
            What the model applies to the raw logits (scale, soft cap), by default nothing; see [`logit_transform`].
        over_vocabulary (`bool`, *optional*, defaults to `False`):
            Compute log-likelihoods under the whole vocabulary for single-token options too. Their total is the option
            mass.
        gather (`Callable`, *optional*):
            From parameters to a context manager inside which they are whole, for ZeRO-3.
        sparse_gradient (`bool`, *optional*, defaults to `False`):
            Give the head a sparse gradient, for its option rows alone. It has to be added to the gradient of a loss
            over the vocabulary in the same backward pass. Saves one tensor of the size of the head.
    """

    option_normalization: Literal["sum", "mean"] = "sum"
    transform: Callable[[torch.Tensor], torch.Tensor] = _same
    over_vocabulary: bool = False
    gather: Callable[..., AbstractContextManager] = _no_gather
    sparse_gradient: bool = False


def score_options(
    lm_head: nn.Module,
    hidden_states: torch.Tensor,
    batch: dict[str, torch.Tensor],
    options: HeadOptions | None = None,
) -> torch.Tensor:
    """
    Compute option logits from the last hidden states.

    Options of one token that are read at one position share their normalizer, so their raw logits suffice, and only
    their rows of the head are used. The tokens of longer options are read at different positions, so each logit is
    turned into a log-likelihood.

    Args:
        lm_head (`torch.nn.Module`):
            Output embeddings, with `weight` `(vocabulary, hidden_size)` and perhaps `bias`.
        hidden_states (`torch.Tensor` of shape `(batch, length, hidden_size)`):
            Last hidden states of the model.
        batch (`dict[str, torch.Tensor]`):
            `option_positions`, `option_tokens`, `option_index` `(batch, num_option_tokens)`, `option_mask`
            `(batch, num_options)`, and `option_segments` where there are branches.
        options ([`HeadOptions`], *optional*):
            How options are scored.

    Returns:
        `torch.Tensor` of shape `(batch, num_options)`, float32; -inf where there is no option.
    """
    options = options or HeadOptions()
    positions, tokens, index = batch["option_positions"], batch["option_tokens"], batch["option_index"]
    valid = index >= 0
    row = torch.arange(len(positions), device=positions.device)[:, None].expand_as(positions)[valid]
    flat_positions = row * hidden_states.size(1) + positions[valid]
    hidden_states = hidden_states.flatten(0, 1)
    with options.gather(lm_head.weight, lm_head.bias):
        rows = _rows(lm_head.weight, tokens[valid], options.sparse_gradient)
        bias = _rows(lm_head.bias, tokens[valid])
    logits = (hidden_states[flat_positions].float() * rows.float()).sum(-1)
    if bias is not None:
        logits = logits + bias.float()
    logits = options.transform(logits)
    if options.over_vocabulary or "option_segments" in batch:
        distinct, inverse = flat_positions.unique(return_inverse=True)
        logits = logits - _log_normalizer(lm_head, hidden_states[distinct], options.transform)[inverse]

    mask = batch["option_mask"]
    slot = row * mask.size(1) + index[valid]
    if options.option_normalization == "mean":
        counts = logits.new_zeros(mask.numel()).index_add(0, slot, torch.ones_like(logits))
        logits = logits / counts[slot]
    option_logits = logits.new_zeros(mask.numel()).index_add(0, slot, logits).view_as(mask)
    return option_logits.masked_fill(~mask, -torch.inf)


def _rows(parameter: torch.Tensor | None, index: torch.Tensor, sparse_gradient: bool = False) -> torch.Tensor | None:
    """Rows `index` of a parameter of the head; `None` where it has none (no bias)."""
    if parameter is None:
        return None
    if hasattr(parameter, "full_tensor"):  # a DTensor of FSDP2
        return parameter.full_tensor()[index]
    return embedding(index, parameter, sparse=True) if sparse_gradient else parameter[index]


def _log_normalizer(lm_head: nn.Module, hidden_states: torch.Tensor, transform: Callable) -> torch.Tensor:
    """Log-sum-exp of the vocabulary logits at each of the `(positions, hidden_size)` hidden states."""
    # Called as a module, so that the hooks of ZeRO-3 and FSDP gather its weight.
    return over_chunks(lambda chunk: transform(lm_head(chunk).float()).logsumexp(-1), lm_head, hidden_states)


def over_chunks(function: Callable[..., torch.Tensor], lm_head: nn.Module, *tensors: torch.Tensor) -> torch.Tensor:
    """
    Apply a function to tensors in chunks of rows, so that few vocabulary logits exist at one time.

    The backward pass recomputes each chunk.

    Args:
        function (`Callable`):
            From a chunk of each tensor to one tensor with as many rows; it may call `lm_head`.
        lm_head (`torch.nn.Module`):
            Output embeddings.
        tensors (`torch.Tensor` of shape `(rows, ...)`):
            Hidden states, and other tensors with as many rows.

    Returns:
        `torch.Tensor` of shape `(rows, ...)`.
    """
    count = torch.tensor(max(1, math.ceil(len(tensors[0]) / _CHUNK_SIZE)), device=tensors[0].device)
    if hasattr(lm_head.weight, "ds_id"):
        # ZeRO-3 gathers the weight at every call in all processes together, so they must call equally often.
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
    chunks = list(zip(*(tensor.tensor_split(count.item()) for tensor in tensors), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([function(*chunk) for chunk in chunks])


def logit_transform(config: PretrainedConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Read from a config what its architecture applies to the raw logits of the head: a scale and a soft cap.

    Args:
        config ([`~transformers.PretrainedConfig`]):
            Config of the model. `logit_scale`, `output_multiplier` or `lm_head_multiplier` multiply, `logits_scaling`
            divides (in HyperCLOVA X it multiplies), and `final_logit_softcapping` is the soft cap.

    Returns:
        `Callable`: elementwise, from raw to final logits.
    """
    config = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            scale = getattr(config, name)
            break
    else:
        scaling = getattr(config, "logits_scaling", None)
        if scaling is not None:
            scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: torch.Tensor) -> torch.Tensor:
        logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return transform


def unwrap_causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """
    Return the transformers model inside a PEFT model, with its adapters, or the model itself.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model.

    Raises:
        `TypeError`: if the model has no output embeddings; if they have an adapter, which reading single rows of the
            head would miss; or if it is a prompt-learning PEFT model, whose virtual tokens shift every position.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise TypeError("Prompt-learning adapters shift every position; use LoRA or another weight adapter.")
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = model.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(model).__name__} has no output embeddings: it is not a causal language model.")
    if "base_layer" in dict(head.named_children()):
        raise TypeError(
            f"{type(model).__name__} has an adapter on its output embeddings, which option scoring would miss. Merge "
            "it into the model first: `model.merge_and_unload().save_pretrained(...)`."
        )
    return model


class OptionHead:
    """
    Extend a model's forward pass to score options.

    `model(...)` then also accepts the option columns of [`~hf_calib.inference.encoding.collate_options`]. The option
    logits are computed from the last hidden states of the same pass and kept until [`OptionHead.pop`] is called. With
    `options_only=True` the language-modelling head is skipped and the option logits are returned as `logits`; with
    anchors of generic texts in the batch, the divergence from them, summed over the positions, as `loss`. Calls
    without option columns are unchanged, and so are generation and saving.

    While the attribute `packed` is `True`, the options of a question share its sequence. Set it to `False` for a model
    that does not support this (see [`~hf_calib.inference.packing`]): then every option of several tokens is a sequence
    of its own, in a second pass through the backbone.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model.
        option_normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`), gather (`Callable`, *optional*):
            See [`HeadOptions`].

    Raises:
        `TypeError`: see [`unwrap_causal_lm`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        option_normalization: Literal["sum", "mean"] = "sum",
        gather: Callable[..., AbstractContextManager] = _no_gather,
    ):
        self.model = unwrap_causal_lm(model)
        self.option_normalization = option_normalization
        self.gather = gather
        self.transform = logit_transform(self.model.config)
        self.packed = True
        self._option_logits = None
        self._extend_forward()

    def pop(self) -> torch.Tensor | None:
        """Return the option logits `(batch, num_options)` of the last pass and forget them; `None` without options."""
        option_logits, self._option_logits = self._option_logits, None
        return option_logits

    def _extend_forward(self) -> None:
        head, original = self, self.model.forward

        def forward(self, *args, options_only=False, over_vocabulary=False, **kwargs):
            head._option_logits = None
            batch = {name: kwargs.pop(name) for name in OPTION_INPUTS if name in kwargs}
            anchors = [kwargs.pop(name, None) for name in ANCHOR_INPUTS]
            batch = {name: tensor for name, tensor in batch.items() if tensor is not None}
            if "option_positions" not in batch:
                return original(*args, **kwargs)
            mask, segments = kwargs["attention_mask"], batch.get("option_segments")
            packed = head.packed or segments is None
            if packed and segments is not None:
                mask = branch_attention_mask(mask, segments, self.config._attn_implementation, self.dtype)
            elif not packed:
                kwargs["attention_mask"] = mask = mask * (segments <= 1)  # without the branches
            outputs, kept = None, []
            with head._last_hidden_state(mask, kept):
                if not options_only:
                    outputs = original(*args, **kwargs)
                elif packed or anchors[0] is not None:
                    kwargs.pop("labels", None)
                    self.base_model(*args, **{**kwargs, "use_cache": False})
            options = HeadOptions(
                head.option_normalization,
                head.transform,
                over_vocabulary,
                head.gather,
                # Only beside the dense gradient of a loss over the vocabulary.
                sparse_gradient=not options_only and kwargs.get("labels") is not None,
            )
            if packed:
                option_logits = score_options(self.get_output_embeddings(), kept[-1], batch, options)
            else:
                option_logits = head._score_unpacked(kwargs["input_ids"], batch, options)
            if options_only:
                loss = None if anchors[0] is None else head._anchor_divergence(kept[-1], *anchors)
                return CausalLMOutput(loss=loss, logits=option_logits)
            head._option_logits = option_logits
            return outputs

        # `generate` checks its arguments against this signature.
        forward.__wrapped__ = getattr(original, "__wrapped__", type(self.model).forward)
        self.model.forward = types.MethodType(forward, self.model)

    def _score_unpacked(self, input_ids, batch, options: HeadOptions) -> torch.Tensor:
        """Compute the option logits with one sequence for each option."""
        inputs, places = unpack_batch(input_ids, batch)
        hidden_states = self.model.base_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state
        options = replace(options, over_vocabulary=True)  # as in a packed sequence
        scores = score_options(self.model.get_output_embeddings(), hidden_states, inputs, options)[: len(places[0]), 0]
        option_logits = scores.new_full(batch["option_mask"].shape, -torch.inf)
        return option_logits.index_put(places, scores)

    def _anchor_divergence(self, hidden_states, positions, tokens, targets) -> torch.Tensor:
        """Sum of the divergences from the anchors of generic texts; 0 for a batch without texts."""
        valid = positions >= 0
        row = torch.arange(len(positions), device=positions.device)[:, None].expand_as(positions)[valid]
        lm_head = self.model.get_output_embeddings()

        def divergences(chunk, tokens, targets):
            log_probabilities = self.transform(lm_head(chunk).float()).log_softmax(-1)
            return anchor_divergence(log_probabilities, tokens, targets)

        states = hidden_states[row, positions[valid]]
        return over_chunks(divergences, lm_head, states, tokens[valid], targets[valid]).sum()

    @contextmanager
    def _last_hidden_state(self, attention_mask: torch.Tensor, kept: list[torch.Tensor]):
        """
        Append the last hidden states of the backbone, which gets `attention_mask` in place of its own, to `kept`.

        Only the backbone gets the mask: a load-balancing loss over experts needs the plain mask.
        """
        backbone = self.model.base_model
        handles = [
            backbone.register_forward_pre_hook(
                lambda module, args, kwargs: (args, {**kwargs, "attention_mask": attention_mask}), with_kwargs=True
            ),
            backbone.register_forward_hook(lambda module, args, outputs: kept.append(outputs.last_hidden_state)),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
