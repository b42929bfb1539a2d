"""The option head: option logits out of a causal LM's own forward pass, never the vocabulary over the sequence."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutput


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

# Option tokens whose vocabulary logits exist at one time: 256 x 128k float32 is 128 MiB.
_CHUNK_SIZE = 256


def branch_attention_mask(
    attention_mask: torch.Tensor, option_segments: torch.Tensor, implementation: str | None, dtype: torch.dtype
) -> torch.Tensor:
    """
    The mask under which every branch sees the prompt and itself.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            1 for tokens, 0 for padding.
        option_segments (`torch.Tensor` of shape `(batch, length)`):
            0 for the prompt, a number of its own for each branch.
        implementation (`str`):
            Attention implementation of the model: `"sdpa"` (a boolean mask) or `"eager"` (an additive one).
        dtype (`torch.dtype`):
            Type of the additive mask.

    Returns:
        `torch.Tensor` of shape `(batch, 1, length, length)`.

    Raises:
        `ValueError`: for an attention implementation that takes no such mask.
    """
    length = attention_mask.size(1)
    query, key = option_segments[:, :, None], option_segments[:, None, :]
    visible = ((key == 0) | (key == query)) & attention_mask[:, None, :].bool()
    visible &= torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
    # A padding query sees itself, for a softmax over nothing is NaN.
    visible |= torch.eye(length, dtype=torch.bool, device=visible.device)
    visible = visible[:, None]
    if implementation == "sdpa":
        return visible
    if implementation == "eager":
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
            ~visible, torch.finfo(dtype).min
        )
    raise ValueError(
        f"Options of several tokens are scored under a branch mask, which attn_implementation={implementation!r} does not "
        "take. Load the model with attn_implementation='sdpa' or 'eager', or use scoring='letter'."
    )


def score_options(
    lm_head: nn.Module,
    hidden_states: torch.Tensor,
    batch: dict[str, torch.Tensor],
    option_normalization: Literal["sum", "mean"] = "sum",
    transform: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
    over_vocabulary: bool = False,
    gather: Callable[..., AbstractContextManager] = lambda *parameters: nullcontext(),
    sparse_gradient: bool = False,
) -> torch.Tensor:
    """
    Option logits from the last hidden states.

    Single-token options read at one position differ by their logits alone, so only their rows of the head are used. The
    tokens of longer options sit at different positions: there each logit is turned into a log-likelihood.

    Args:
        lm_head (`torch.nn.Module`):
            Output embeddings, with `weight` `(vocabulary, hidden_size)` and perhaps `bias`.
        hidden_states (`torch.Tensor` of shape `(batch, length, hidden_size)`):
            Last hidden states of the backbone.
        batch (`dict[str, torch.Tensor]`):
            `option_positions`, `option_tokens`, `option_index` `(batch, num_option_tokens)`, `option_mask`
            `(batch, num_options)`, and `option_segments` where there are branches.
        option_normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            Log-likelihood of an option: sum over its tokens, or mean.
        transform (`Callable`, *optional*):
            What the model does to raw logits (scale, soft cap); see [`logit_transform`].
        over_vocabulary (`bool`, *optional*, defaults to `False`):
            Log-likelihoods under the whole vocabulary for single tokens too; their total is the option mass.
        gather (`Callable`, *optional*):
            Context manager over parameters that are to be read while sharded (ZeRO-3).
        sparse_gradient (`bool`, *optional*, defaults to `False`):
            Give the rows of the head their gradient alone, to be added to that of a loss over the vocabulary in the same
            backward pass. Otherwise it is one more tensor as large as the head, zero nearly everywhere.

    Returns:
        `torch.Tensor` of shape `(batch, num_options)`, float32; -inf where there is no option.
    """
    positions, tokens, index = batch["option_positions"], batch["option_tokens"], batch["option_index"]
    valid = index >= 0
    row = torch.arange(len(positions), device=positions.device)[:, None].expand_as(positions)[valid]
    flat_positions = row * hidden_states.size(1) + positions[valid]
    hidden_states = hidden_states.flatten(0, 1)
    with gather(lm_head.weight, lm_head.bias):
        rows, bias = _rows(lm_head.weight, tokens[valid], sparse_gradient), _rows(lm_head.bias, tokens[valid])
    logits = (hidden_states[flat_positions].float() * rows.float()).sum(-1)
    if bias is not None:
        logits = logits + bias.float()
    logits = transform(logits)
    if over_vocabulary or "option_segments" in batch:
        distinct, inverse = flat_positions.unique(return_inverse=True)
        logits = logits - _log_normalizer(lm_head, hidden_states[distinct], transform)[inverse]

    mask = batch["option_mask"]
    slot = row * mask.size(1) + index[valid]
    if option_normalization == "mean":
        counts = logits.new_zeros(mask.numel()).index_add(0, slot, torch.ones_like(logits))
        logits = logits / counts[slot]
    option_logits = logits.new_zeros(mask.numel()).index_add(0, slot, logits).view_as(mask)
    return option_logits.masked_fill(~mask, -torch.inf)


def _rows(parameter: torch.Tensor | None, index: torch.Tensor, sparse_gradient: bool = False) -> torch.Tensor | None:
    if parameter is None:
        return None
    if hasattr(parameter, "full_tensor"):  # DTensor, as FSDP2 shards it
        return parameter.full_tensor()[index]
    return embedding(index, parameter, sparse=True) if sparse_gradient else parameter[index]


def _log_normalizer(lm_head: nn.Module, hidden_states: torch.Tensor, transform: Callable) -> torch.Tensor:
    """Log-sum-exp of the vocabulary logits at each of the `(positions, hidden_size)` hidden states."""
    # Called as a module, so that the hooks of ZeRO-3 and FSDP bring its weight.
    return over_chunks(lambda chunk: transform(lm_head(chunk).float()).logsumexp(-1), lm_head, hidden_states)


def over_chunks(function: Callable[..., torch.Tensor], lm_head: nn.Module, *tensors: torch.Tensor) -> torch.Tensor:
    """
    What `function` makes of rows, a chunk at a time, so that the vocabulary logits of few exist at once.

    Args:
        function (`Callable`):
            From chunks of the tensors to one tensor of as many rows; it may call `lm_head`.
        lm_head (`torch.nn.Module`):
            Output embeddings.
        tensors (`torch.Tensor` of shape `(rows, ...)`):
            Hidden states, and what goes with them.

    Returns:
        `torch.Tensor` of shape `(rows, ...)`.
    """
    count = torch.tensor(max(1, math.ceil(len(tensors[0]) / _CHUNK_SIZE)), device=tensors[0].device)
    if hasattr(lm_head.weight, "ds_id"):
        # ZeRO-3 brings the weight at every call, all processes together: they must call equally often.
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
    chunks = list(zip(*(tensor.tensor_split(count.item()) for tensor in tensors), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([function(*chunk) for chunk in chunks])


def logit_transform(config: PretrainedConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    What an architecture does to the raw logits of its head: a scale and a soft cap, read from its config.

    Args:
        config ([`~transformers.PretrainedConfig`]):
            Config of the model. Read are `logit_scale`, `output_multiplier` and `lm_head_multiplier` (multiply),
            `logits_scaling` (divides, except in HyperCLOVA X) and `final_logit_softcapping`.

    Returns:
        `Callable`: from raw to final logits, elementwise.
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
    The transformers model inside a PEFT model, adapters in place; any other model as it is.

    Raises:
        `TypeError`: if the model has no output embeddings, an adapter on them (single rows of the head are read, which
            it would miss), or is a prompt-learning PEFT model, whose virtual tokens shift every position.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise TypeError("Prompt-learning adapters shift every position; use LoRA or another weight adapter.")
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = model.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(model).__name__} has no output embeddings: it is not a causal language model.")
    if "base_layer" in dict(head.named_children()):
        raise TypeError(
            f"{type(model).__name__} has an adapter on its output embeddings, which option scoring would miss. Merge it "
            "into the model first: `model.merge_and_unload().save_pretrained(...)`."
        )
    return model


class OptionHead:
    """
    Lets `model(...)` score options in the pass that computes its loss.

    The forward of `model` is extended: it accepts the option columns of [`~hf_calib.inference.encoding.collate_options`] beside its
    own inputs. They are read off the last hidden state of that same pass and kept until [`OptionHead.pop`] fetches them.
    With `options_only=True` the language-modelling head is skipped altogether and the option logits are returned as
    `logits`. Calls without option columns are left as they were, so that generation and saving are unchanged.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model.
        option_normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            See [`score_options`].
        gather (`Callable`, *optional*):
            See [`score_options`].

    Raises:
        `TypeError`: see [`unwrap_causal_lm`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        option_normalization: Literal["sum", "mean"] = "sum",
        gather: Callable[..., AbstractContextManager] = lambda *parameters: nullcontext(),
    ):
        self.model = unwrap_causal_lm(model)
        self.option_normalization = option_normalization
        self.gather = gather
        self.transform = logit_transform(self.model.config)
        self._option_logits = None
        self._extend_forward()

    def pop(self) -> torch.Tensor | None:
        """Option logits `(batch, num_options)` of the last forward pass, once; `None` if it had no options."""
        option_logits, self._option_logits = self._option_logits, None
        return option_logits

    def _extend_forward(self) -> None:
        head, original = self, self.model.forward

        def forward(
            self,
            *args,
            option_positions=None,
            option_tokens=None,
            option_index=None,
            option_mask=None,
            option_label=None,
            option_segments=None,
            options_only=False,
            over_vocabulary=False,
            **kwargs,
        ):
            head._option_logits = None
            if option_positions is None:
                return original(*args, **kwargs)
            batch = {
                "option_positions": option_positions,
                "option_tokens": option_tokens,
                "option_index": option_index,
                "option_mask": option_mask,
            }
            mask = kwargs["attention_mask"]
            if option_segments is not None:
                batch["option_segments"] = option_segments
                mask = branch_attention_mask(mask, option_segments, self.config._attn_implementation, self.dtype)
            with head._last_hidden_state(mask) as kept:
                if options_only:
                    kwargs.pop("labels", None)
                    self.base_model(*args, **{**kwargs, "use_cache": False})
                    outputs = None
                else:
                    outputs = original(*args, **kwargs)
            option_logits = score_options(
                self.get_output_embeddings(),
                kept[-1],
                batch,
                head.option_normalization,
                head.transform,
                over_vocabulary,
                head.gather,
                # The loss over the vocabulary of the same pass gives the gradient to add to.
                sparse_gradient=not options_only and kwargs.get("labels") is not None,
            )
            if options_only:
                return CausalLMOutput(logits=option_logits)
            head._option_logits = option_logits
            return outputs

        # `generate` validates its arguments against the signature of the class's own forward.
        forward.__wrapped__ = getattr(original, "__wrapped__", type(self.model).forward)
        self.model.forward = types.MethodType(forward, self.model)

    @contextmanager
    def _last_hidden_state(self, attention_mask: torch.Tensor):
        """What the backbone gives under a mask that it alone sees: a load-balancing loss over experts wants the plain one."""
        kept, backbone = [], self.model.base_model
        handles = [
            backbone.register_forward_pre_hook(
                lambda module, args, kwargs: (args, {**kwargs, "attention_mask": attention_mask}), with_kwargs=True
            ),
            backbone.register_forward_hook(lambda module, args, outputs: kept.append(outputs.last_hidden_state)),
        ]
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()
