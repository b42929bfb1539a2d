"""The mean of models, as of those that were each trained without another part of the labels (cross-fitting)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..inference.model_loading import load_model, load_tokenizer


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_NOT_JOINED = (
    "use_dora", "use_rslora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication",
)  # fmt: skip


def average_models(models: Sequence[str | Path], output_dir: str | Path, trust_remote_code: bool = False) -> None:
    """
    Write the mean of models, with the tokenizer of the first.

    The mean of LoRA adapters on one base model is an adapter again, which adds the mean of what they add; its rank is the sum of
    theirs. Whole models are averaged in float32, parameter by parameter, and saved in the type of the first.

    Args:
        models (`Sequence[str | Path]`):
            Local folders of two models or more of one architecture, or of as many adapters.
        output_dir (`str` or `Path`):
            Folder to write.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that the models bring.

    Raises:
        `ValueError`: for what [`check_models`] refuses, and for models of different shape.
    """
    models = [str(model) for model in models]
    loading = {"trust_remote_code": trust_remote_code}
    base = check_models(models)
    if base is None:
        _average_weights(models, **loading).save_pretrained(output_dir)
    else:
        # Only an adapter of that name is saved in the folder itself.
        _average_adapters(models, base, **loading).save_pretrained(output_dir, selected_adapters=["default"])
    load_tokenizer(models[0], **loading).save_pretrained(output_dir)


def check_models(models: Sequence[str | Path]) -> str | None:
    """
    The base model, if these are adapters, after a look at their configurations; `None` for whole models.

    Raises:
        `ValueError`: for what is no folder, for fewer than two, for adapters beside whole models or on different ones, and for
            adapters that are more than plain LoRA, or on other layers.
    """
    from peft import LoraConfig, PeftConfig

    if missing := [str(model) for model in models if not Path(model).is_dir()]:
        raise ValueError(f"no folder: {', '.join(missing)}")
    if len(models) < 2:
        raise ValueError(f"An average is of two models or more, got {len(models)}.")
    adapters = [model for model in models if Path(model, "adapter_config.json").is_file()]
    if adapters and len(adapters) < len(models):
        raise ValueError(
            "Some of the models are adapters and some are not: merge the adapters into their base model first."
        )
    configs = [PeftConfig.from_pretrained(adapter) for adapter in adapters]
    if len(bases := {config.base_model_name_or_path for config in configs}) > 1:
        raise ValueError(f"The adapters belong to different base models: {', '.join(sorted(bases))}.")
    for adapter, config in zip(adapters, configs, strict=True):
        # PEFT joins the two matrices of plain LoRA, and leaves out whatever else an adapter has learnt.
        more = [name for name in _NOT_JOINED if getattr(config, name, None)]
        if type(config) is not LoraConfig or config.bias != "none" or more:
            raise ValueError(
                f"{adapter} is more than plain LoRA: merge each adapter into the base model and average those."
            )
        # Of adapters on other layers it keeps those of the first alone.
        if config.layers_to_transform != configs[0].layers_to_transform:
            raise ValueError(f"{adapter} adapts other layers than {adapters[0]}: train all by one recipe.")
    return bases.pop() if bases else None


def _average_adapters(adapters: Sequence[str], base: str, **loading) -> PeftModel:
    from peft import PeftModel

    names = [f"fold-{number}" for number in range(len(adapters))]
    model = PeftModel.from_pretrained(load_model(base, **loading)[0], adapters[0], adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(adapter, name)
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), "default", combination_type="cat")
    return model


@torch.no_grad()
def _average_weights(models: Sequence[str], **loading) -> PreTrainedModel:
    total, _ = load_model(models[0], **loading)
    dtype = total.dtype
    total.float()
    for name in models[1:]:
        _add(name, total, **loading)
    for parameter in total.parameters():
        parameter.div_(len(models))
    return total.to(dtype)


def _add(name: str, total: PreTrainedModel, **loading) -> None:
    """Add a model's parameters; it is gone before the next is loaded, so that two at most are in memory."""
    model, _ = load_model(name, dtype="float32", **loading)
    sums, added = dict(total.named_parameters()), dict(model.named_parameters())
    if {key: value.shape for key, value in sums.items()} != {key: value.shape for key, value in added.items()}:
        raise ValueError(f"{name} and {total.name_or_path} are models of different shape.")
    for key, value in added.items():
        sums[key].add_(value)
