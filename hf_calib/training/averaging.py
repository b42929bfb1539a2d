"""Average of models or LoRA adapters, such as those of cross-fitting (`em_fold`)."""

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
    "use_dora", "use_rslora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters",
    "layer_replication",
)  # fmt: skip


def average_models(models: Sequence[str | Path], output_dir: str | Path, trust_remote_code: bool = False) -> None:
    """
    Write the mean of models, with the tokenizer of the first one.

    The mean of LoRA adapters of one base model is an adapter with the mean of their updates; its rank is the sum of
    their ranks. Whole models are averaged parameter by parameter in float32, and saved in the type of the first one.

    Args:
        models (`Sequence[str | Path]`):
            Local folders of at least two models of one architecture, or of at least two adapters.
        output_dir (`str` or `Path`):
            Folder to write.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code from the folders of the models.

    Raises:
        `ValueError`: see [`check_models`]; also for models of different shapes.
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
    Check that models can be averaged.

    Args:
        models (`Sequence[str | Path]`):
            Local folders.

    Returns:
        `str` or `None`: the base model of adapters; `None` for whole models.

    Raises:
        `ValueError`: for a path that is not a folder, fewer than two models, a mixture of adapters and whole models,
        adapters
            of different base models or layers, and adapters that are not plain LoRA.
    """
    from peft import LoraConfig, PeftConfig

    if missing := [str(model) for model in models if not Path(model).is_dir()]:
        raise ValueError(f"not a folder: {', '.join(missing)}")
    if len(models) < 2:
        raise ValueError(f"At least two models are needed, got {len(models)}.")
    adapters = [model for model in models if Path(model, "adapter_config.json").is_file()]
    if adapters and len(adapters) < len(models):
        raise ValueError(
            "Some of the models are adapters and some are not: merge the adapters into their base model first."
        )
    configs = [PeftConfig.from_pretrained(adapter) for adapter in adapters]
    if len(bases := {config.base_model_name_or_path for config in configs}) > 1:
        raise ValueError(f"The adapters belong to different base models: {', '.join(sorted(bases))}.")
    for adapter, config in zip(adapters, configs, strict=True):
        # PEFT combines the two matrices of plain LoRA, and ignores all other weights of an adapter.
        more = [name for name in _NOT_JOINED if getattr(config, name, None)]
        if type(config) is not LoraConfig or config.bias != "none" or more:
            raise ValueError(
                f"{adapter} is not plain LoRA: merge each adapter into the base model and average the merged models."
            )
        # PEFT keeps only the layers of the first adapter.
        if config.layers_to_transform != configs[0].layers_to_transform:
            raise ValueError(f"{adapter} adapts other layers than {adapters[0]}: train all with one recipe.")
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
    """Add the parameters of a model to the sum; at most two models are in memory."""
    model, _ = load_model(name, dtype="float32", **loading)
    sums, added = dict(total.named_parameters()), dict(model.named_parameters())
    if {key: value.shape for key, value in sums.items()} != {key: value.shape for key, value in added.items()}:
        raise ValueError(f"{name} and {total.name_or_path} are models of different shapes.")
    for key, value in added.items():
        sums[key].add_(value)
