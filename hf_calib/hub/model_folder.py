"""The folder of a model or adapter: which of its files are published, and its base model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports

from ..evaluation.protocol import is_hub_id


ADAPTER = "adapter_config.json"
# Files of a model's folder that are published: no optimizer, no pickle, no checkpoints.
# Python files only where a configuration names them, see `code_files`.
MODEL_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "*.jinja",
    "chat_template.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


def model_files(folder: Path) -> list[str]:
    """List the files of a model or adapter that are published."""
    files = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, kind) for kind in MODEL_FILES)
    )
    if not any(name in files for name in ("config.json", ADAPTER)):
        raise ValueError(f"{folder} holds neither config.json nor adapter_config.json: it is not a saved model.")
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{folder} holds no weights as safetensors: save the model again with save_pretrained.")
    if "tokenizer_config.json" not in files:
        raise ValueError(f"{folder} holds no tokenizer: save it there with tokenizer.save_pretrained.")
    if ADAPTER in files:  # a trainer may write the base model's configuration beside it
        files = [name for name in files if name not in ("config.json", "generation_config.json")]
    return [*files, *(name for name in code_files(folder, files) if (folder / name).is_file())]


def code_files(folder: Path, files: Sequence[str]) -> list[str]:
    """
    List the Python files that `auto_map` in the configurations of a folder names, and those that they import.

    Args:
        folder (`Path`):
            Folder of the model or adapter.
        files (`Sequence[str]`):
            Its files that are published, such as config.json.

    Returns:
        `list[str]`: names of files, which the folder may lack.
    """
    named = []
    for name in files:
        if name.endswith("config.json"):
            auto_map = json.loads((folder / name).read_text(encoding="utf-8")).get("auto_map") or {}
            for classes in auto_map.values():
                named += classes if isinstance(classes, list) else [classes]
    # ORG/NAME--module.Class is in another repository
    pending = [reference.partition(".")[0] for reference in named if reference and "--" not in reference]
    found = set()
    while pending:
        name = f"{pending.pop()}.py"
        if name not in found and (folder / name).is_file():
            pending += get_relative_imports(folder / name)
        found.add(name)
    return sorted(found)


def base_model_of(folder: Path, base_model: str | None) -> str | None:
    """
    Return the name of the base model under which an adapter is published; `None` for a whole model.

    Args:
        folder (`Path`):
            Folder of the model or adapter.
        base_model (`str`, *optional*):
            Name that replaces the one in adapter_config.json.
    """
    path = folder / ADAPTER
    if not path.is_file():
        return None
    found = base_model or json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    if not is_hub_id(found):
        raise ValueError(
            f"the base model of the adapter {folder} is the local folder {found!r}: publish that model and name it "
            "with --base_model ORG/MODEL, or publish the merged model with --merge true."
        )
    return found


def names_another_base(folder: Path, base_model: str | None) -> bool:
    """Whether a folder holds an adapter on a base model of another name than the given one."""
    path = folder / ADAPTER
    if not (base_model and path.is_file()):
        return False
    return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"] != base_model
