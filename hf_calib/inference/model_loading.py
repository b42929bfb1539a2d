"""Load a causal language model, or a PEFT adapter on one, with its tokenizer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError

from ..extras import with_advice
from .option_head import unwrap_causal_lm


if TYPE_CHECKING:
    from accelerate import PartialState
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
            A local folder or a name on the Hub, of a model or of a PEFT adapter, whose base model is loaded too.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights, e.g. `"bfloat16"`; `"auto"` keeps the type in which they were saved.
        attn_implementation (`str`, *optional*):
            See [`~transformers.PreTrainedModel.from_pretrained`].
        revision (`str`, *optional*, defaults to `"main"`):
            Revision on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code of the repository.
        use_safetensors (`bool`, *optional*):
            `True`: refuse pickled weights, of the model and of an adapter's base model. By default they are read where
            there are no others.

    Returns:
        `tuple`: model, in evaluation mode, and tokenizer.

    Raises:
        `ImportError`: if it is an adapter and peft is not installed.
        `OSError`: if there is no such model, or its weights are damaged or not all there.
        `ValueError`: if it is not a causal language model.
        `TypeError`: see [`~hf_calib.inference.option_head.unwrap_causal_lm`].
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import find_adapter_config_file

    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(name_or_path, **options)
    auto, is_adapter = AutoModelForCausalLM, find_adapter_config_file(name_or_path, revision=revision) is not None
    if is_adapter:
        # PEFT's own loader also restores what was trained beside the adapter (`modules_to_save`).
        try:
            from peft import AutoPeftModelForCausalLM as auto
        except ModuleNotFoundError as error:
            raise with_advice(error) from error
    else:
        options["output_loading_info"] = True
    try:
        loaded = auto.from_pretrained(
            name_or_path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attn_implementation,
            use_safetensors=use_safetensors,
            **options,
        )
    except SafetensorError as error:
        raise OSError(
            f"the weights of {name_or_path} are damaged or incomplete ({error}): save or download them again."
        ) from error
    model, info = (loaded, {}) if is_adapter else loaded
    if missing := sorted(info.get("missing_keys", ())):
        raise OSError(
            f"the weights of {name_or_path} lack {len(missing)} of the model's tensors, {missing[0]} among them, and "
            "these would be random: save or download them again."
        )
    if hasattr(model, "peft_config"):
        model.adapter_name_or_path = str(name_or_path)
    unwrap_causal_lm(model)  # raises for a model that cannot be scored
    return model.to(process_state().device).eval(), tokenizer


def process_state() -> PartialState:
    """State of the processes. Without an accelerator, they only find each other if told that they run on CPUs."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def load_merged(name_or_path: str, **loading) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model as [`load_model`] does, with the same options, and merge an adapter into its base model."""
    model, tokenizer = load_model(name_or_path, **loading)
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model, tokenizer


def merge_command(adapter: str, output_dir: str) -> str:
    """Command line that merges an adapter into its base model and saves the result with its tokenizer."""
    code = (
        f"from hf_calib.inference.model_loading import load_model; model, tokenizer = load_model({adapter!r}); "
        f"model.merge_and_unload().save_pretrained({output_dir!r}); tokenizer.save_pretrained({output_dir!r})"
    )
    return shlex.join(["python", "-c", code])


def load_tokenizer(
    name_or_path: str, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; arguments and errors as in [`load_model`]."""
    from transformers import AutoTokenizer

    check_model_name(name_or_path)
    return AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)


def check_same_vocabulary(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """
    Check that the tokenizers of several models, by their names, have the same tokens.

    Raises:
        `ValueError`: if one differs from the first.
    """
    (first, tokenizer), *others = tokenizers.items()
    vocabulary = tokenizer.get_vocab()
    for name, other in others:
        if (found := other.get_vocab()) != vocabulary:
            differing = sorted(vocabulary.items() ^ found.items())[0][0]
            raise ValueError(
                f"{name} has another vocabulary than {first} (token {differing!r}): name a model that was trained "
                "from it, or from which it was trained."
            )


def check_model_name(name_or_path: str) -> None:
    """
    Check the name of a model without loading it.

    Raises:
        `OSError`: for a folder without a saved model, and for what is neither a folder nor a valid name on the Hub.
    """
    path = Path(name_or_path)
    if path.exists() and not any(path.glob("*config.json")):
        raise OSError(f"{name_or_path} holds neither config.json nor adapter_config.json: it is not a saved model.")
    if not path.exists():
        try:
            validate_repo_id(name_or_path)
        except HFValidationError:
            raise OSError(
                f"there is no folder {name_or_path}, and it is not a valid name of a model on the Hub."
            ) from None


def num_embeddings(model: PreTrainedModel) -> int:
    """Number of tokens that a model has embeddings for."""
    embeddings = model.get_input_embeddings()
    return getattr(embeddings, "num_embeddings", None) or model.config.get_text_config().vocab_size


def check_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, largest: int, what: str) -> None:
    """
    Check that a model has an embedding for the largest token id in its input.

    Raises:
        `ValueError`: if it has none; the message names the token and `what` it is part of, e.g. `"the questions"`.
    """
    if largest >= (size := num_embeddings(model)):
        raise ValueError(
            f"Token {largest} of {what}, {tokenizer.convert_ids_to_tokens(largest)!r}, has no embedding: the "
            f"tokenizer knows {len(tokenizer)} tokens, the model {size}. Load the tokenizer of this model, or "
            "train with `model.resize_token_embeddings(len(tokenizer))`."
        )
