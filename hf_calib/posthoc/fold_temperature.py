"""Fold a temperature into the weights of a model, so that its logits are divided by the temperature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..inference.model_loading import load_merged
from ..inference.option_head import unwrap_causal_lm


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_folded(name_or_path: str, temperature: float, output_dir: str | Path, **loading) -> bool:
    """
    Save a checkpoint whose logits are those of a model divided by a temperature.

    Tokenizer and generation settings are kept; an adapter is merged into its base model. Where the model samples by
    default (`do_sample` in `generation_config.json`), its sampling temperature is divided by as much, so that it
    writes as before. `config.json` records the temperature as `calibration_temperature`, multiplied by that of earlier
    folds.

    Args:
        name_or_path (`str`):
            A local folder or a name on the Hub, of a model or of a PEFT adapter.
        temperature (`float`):
            The temperature, positive; see [`fold_temperature`].
        output_dir (`str` or `Path`):
            Folder to write.
        loading:
            Options of [`~hf_calib.inference.model_loading.load_model`], e.g. `dtype`.

    Returns:
        `bool`: whether the sampling temperature was divided.
    """
    model, tokenizer = load_merged(name_or_path, **loading)
    fold_temperature(model, temperature)
    model.config.calibration_temperature = temperature * getattr(model.config, "calibration_temperature", 1.0)
    sampling = model.generation_config
    if sampling.do_sample:  # transformers refuses a temperature without do_sample
        sampling.temperature = (1.0 if sampling.temperature is None else sampling.temperature) / temperature
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return bool(sampling.do_sample)


@torch.no_grad()
def fold_temperature(model: PreTrainedModel, temperature: float) -> None:
    """
    Divide a model's logits by a temperature, by changing its weights in place.

    The output embeddings are divided. If they are tied to the input embeddings, the weight of the last norm is divided
    instead, also if the norm stores its weight minus 1. A soft cap of the logits is divided in the config.
    Probabilities of single-token options then equal those of temperature scaling. The temperature affects all
    generation: sampled text becomes more varied, and greedy text stays the same.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, not wrapped for distribution.
        temperature (`float`):
            Positive; above 1 makes the model less confident.

    Raises:
        `ValueError`: if the temperature is not positive and finite, or if the logits are not divided by it afterwards,
            which is checked by running the model. The model is then restored.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"A temperature must be positive and finite, got {temperature}.")
    model = unwrap_causal_lm(model)
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    scaled = _last_norm(model) if tied else head
    weight, bias = scaled.weight, getattr(scaled, "bias", None)
    cap = getattr(config, "final_logit_softcapping", None)
    before = _probe_logits(model)
    kept = weight.detach().clone(), None if bias is None else bias.detach().clone()
    # Rounding depends on the type of the weights. A weight that does not scale the logits errs by much more.
    tolerance = 8 * torch.finfo(weight.dtype).eps * before.abs().max() * max(temperature, 1.0)
    divisions: list[Callable] = [lambda weight: weight / temperature]
    if tied:
        divisions.append(lambda weight: (1 + weight) / temperature - 1)
    for divide in divisions:
        weight.copy_(divide(kept[0].float()))
        if bias is not None:
            bias.copy_(kept[1] / temperature)
        if cap is not None:
            config.final_logit_softcapping = cap / temperature
        if (_probe_logits(model) * temperature - before).abs().max() <= tolerance:
            return
    weight.copy_(kept[0])
    if bias is not None:
        bias.copy_(kept[1])
    if cap is not None:
        config.final_logit_softcapping = cap
    raise ValueError(
        f"{type(model).__name__} does not divide its logits by {temperature:.3g} when its "
        f"{'last norm' if tied else 'head'} is divided; save the temperature as a calibrator instead."
    )


def _last_norm(model: PreTrainedModel) -> nn.Module:
    """The last normalisation layer before the output embeddings."""
    norms = [
        module
        for name, module in model.base_model.named_children()
        if "norm" in name.lower() or "norm" in type(module).__name__.lower()
    ]
    if not norms or getattr(norms[-1], "weight", None) is None:
        raise ValueError(
            f"{type(model).__name__} has tied embeddings and no norm before its head; save the temperature as a "
            "calibrator instead."
        )
    return norms[-1]


def _probe_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a fixed sequence of tokens."""
    training = model.training
    model.eval()
    tokens = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    model.train(training)
    return logits
