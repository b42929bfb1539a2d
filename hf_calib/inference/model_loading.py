"""Loading a causal language model, or an adapter on one, with its tokenizer."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .option_head import unwrap_causal_lm


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    name_or_path: str,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    use_safetensors: bool | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a model for evaluation, on this process's accelerator if there is one.

    Args:
        name_or_path (`str`):
            A local folder or a name on the Hub, of a model or of a PEFT adapter (its base model is found and loaded).
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights, `"auto"` as they were saved.
        attn_implementation (`str`, *optional*):
            See [`~transformers.PreTrainedModel.from_pretrained`].
        revision (`str`, *optional*, defaults to `"main"`):
            Revision on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that the repository brings.
        use_safetensors (`bool`, *optional*):
            `True`: no pickled weights are read, of the model or of an adapter's base model. By default they are where there are
            no others.

    Returns:
        `tuple`: model, in evaluation mode, and tokenizer.

    Raises:
        `OSError`: if there is no such model. `ValueError`: if it is no causal language model. `TypeError`: see
            [`~hf_calib.inference.option_head.unwrap_causal_lm`].
    """
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM
    from transformers.utils import find_adapter_config_file

    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(name_or_path, **options)
    auto = AutoModelForCausalLM
    if find_adapter_config_file(name_or_path, revision=revision) is not None:
        # PEFT's own loader also restores what was trained beside the adapter (`modules_to_save`).
        from peft import AutoPeftModelForCausalLM as auto
    model = auto.from_pretrained(
        name_or_path,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        attn_implementation=attn_implementation,
        use_safetensors=use_safetensors,
        **options,
    )
    unwrap_causal_lm(model)  # refuses what cannot be scored
    # Without an accelerator, processes find each other only if told that they run on CPUs.
    state = PartialState(cpu=not torch.accelerator.is_available())
    return model.to(state.device).eval(), tokenizer


def load_merged(name_or_path: str, **loading) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As [`load_model`], with the same options; an adapter is merged into its base model."""
    model, tokenizer = load_model(name_or_path, **loading)
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model, tokenizer


def merge_command(adapter: str, output_dir: str) -> str:
    """Command line that merges an adapter into its base model and writes it, with its tokenizer, to `output_dir`."""
    code = (
        f"from hf_calib.inference.model_loading import load_model; model, tokenizer = load_model({adapter!r}); "
        f"model.merge_and_unload().save_pretrained({output_dir!r}); tokenizer.save_pretrained({output_dir!r})"
    )
    return shlex.join(["python", "-c", code])


def load_tokenizer(
    name_or_path: str, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; arguments and errors as in [`load_model`]."""
    from transformers import AutoTokenizer

    check_model_name(name_or_path)
    return AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)


def check_model_name(name_or_path: str) -> None:
    """Raise an `OSError` for a folder that is not there or holds no model. What may be a name on the Hub passes."""
    path = Path(name_or_path)
    if path.exists() and not any(path.glob("*config.json")):
        raise OSError(f"{name_or_path} holds neither config.json nor adapter_config.json: it is no saved model.")
    if not path.exists():
        try:
            validate_repo_id(name_or_path)
        except HFValidationError:
            raise OSError(f"there is no folder {name_or_path}, and no model on the Hub can bear that name.") from None
