"""Folding a temperature into a model: plain transformers then gives `logits / temperature`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .option_head import unwrap_causal_lm


if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def fold_temperature(model: PreTrainedModel, temperature: float) -> None:
    """
    Divide a model's logits by a temperature, in place, by its weights alone.

    The output embeddings are divided; where they are tied to the input embeddings, the last norm before them is. Option
    probabilities read at one position (letters, single-token texts) then are those of temperature scaling. The same
    temperature acts on everything else the model writes: sampled text becomes more varied, greedy text stays as it is.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, not wrapped for distribution.
        temperature (`float`):
            Positive; above 1 makes the model less confident.

    Raises:
        `ValueError`: if the temperature is not positive and finite, or the architecture offers no place to fold it
            (checked by running the model; it is then left as it was).
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"A temperature must be positive and finite, got {temperature}.")
    model = unwrap_causal_lm(model)
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    scaled = _last_norm(model) if tied else head
    parameters = [p for p in (scaled.weight, getattr(scaled, "bias", None)) if p is not None]
    before = _probe_logits(model)
    kept = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.div_(temperature)
    error = (_probe_logits(model) * temperature - before).abs().max()
    # Float types round by their own measure; a wrong place (a weight stored as 1 + w, a soft cap after it) errs grossly.
    if not error <= 8 * torch.finfo(parameters[0].dtype).eps * before.abs().max() * max(temperature, 1.0):
        for parameter, original in zip(parameters, kept, strict=True):
            parameter.copy_(original)
        raise ValueError(
            f"{type(model).__name__} does not divide its logits by {temperature:.3g} when its "
            f"{'last norm' if tied else 'head'} is divided; use the temperature beside the model instead."
        )


def _last_norm(model: PreTrainedModel) -> nn.Module:
    norms = [
        module
        for name, module in model.base_model.named_children()
        if "norm" in name.lower() or "norm" in type(module).__name__.lower()
    ]
    if not norms or getattr(norms[-1], "weight", None) is None:
        raise ValueError(
            f"{type(model).__name__} has tied embeddings and no norm before its head; use the temperature beside the model."
        )
    return norms[-1]


def _probe_logits(model: PreTrainedModel) -> torch.Tensor:
    training = model.training
    model.eval()
    tokens = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    model.train(training)
    return logits
