"""The recipe and the record of a training as they are published: without secrets and local paths."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.protocol import is_hub_id
from .card import inherit


# Arguments that may contain a secret, also inside others such as model_init_kwargs.
_SECRETS = ("hub_token", "token", "use_auth_token", "env")
# Endings of files, which no repository on the Hub has.
_FILES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".gz", ".yaml", ".yml", ".jinja", ".npz")


@dataclass(frozen=True)
class Recipe:
    """
    The arguments of a training, as they were given.

    Args:
        path (`str`, *optional*):
            YAML file of the recipe.
        content (`dict`, *optional*):
            Arguments in that file, by name.
        command_line (`dict`, *optional*):
            Arguments of the command line, by name; they override those of the file.
    """

    path: str | None = None
    content: dict[str, Any] = field(default_factory=dict)
    command_line: dict[str, Any] = field(default_factory=dict)

    @property
    def names_other_data(self) -> bool:
        """Whether the command line names other data than the file, and no `dataset_config` of them."""
        names = [_as_list(given.get("dataset_name")) for given in (self.command_line, self.content)]
        return names[0] not in ([], names[1]) and "dataset_config" not in self.command_line

    def effective(self) -> str:
        """Return a recipe in YAML that trains the same model; whether and where it is pushed is left out."""
        recipe = self.content | self.command_line
        if self.names_other_data:
            recipe.pop("dataset_config", None)
        left_out = ("hub_", "push_to_hub")
        return _dump(_public({name: value for name, value in recipe.items() if not name.startswith(left_out)}))

    def command(self) -> str:
        """Return the command of the training."""
        command = ["hf-calib", "train", *(["--config", self.path] if self.path else [])]
        for name, value in _public(self.command_line).items():
            command += [f"--{name}", *map(_as_text, _as_list(value))]
        return shlex.join(command)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """
    Read the arguments of a recipe.

    Args:
        path (`str` or `Path`):
            YAML file.

    Raises:
        `ValueError`: if there is no such file, or it is not a YAML mapping.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no recipe {path}")
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a recipe is a YAML file of arguments and their values")
    return content


def without_secrets(path: str | Path) -> str:
    """Return the text of a recipe without the arguments that may contain a token, with names for local paths."""
    content = read_recipe(path)
    shown = with_names(_public(content))
    return Path(path).read_text(encoding="utf-8") if shown == content else _dump(shown)


def _public(value: Any) -> Any:
    """Leave out of dictionaries, and of those inside them, as JSON too, what may contain a secret."""
    if isinstance(value, str) and value.lstrip().startswith("{"):  # an argument of the command line
        try:
            content = json.loads(value)
        except ValueError:
            return value
        return value if (shown := _public(content)) == content else json.dumps(shown)
    if isinstance(value, dict):
        return {name: _public(each) for name, each in value.items() if name not in _SECRETS}
    return [_public(each) for each in value] if isinstance(value, (list, tuple)) else value


def with_names(value: Any) -> Any:
    """
    Replace local paths by the names of their files, and keep names on the Hub.

    Args:
        value:
            A text, or lists and dictionaries of texts. What is no text stays as it is.
    """
    if isinstance(value, dict):
        return {name: with_names(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_names(each) for each in value]
    return Path(value).name or value if isinstance(value, str) and _is_local(value) else value


def _command_with_names(command: str) -> str:
    """Replace local paths in command lines, as [`with_names`] does."""
    lines = []
    for line in command.splitlines():
        words = [word.partition("=") if word.startswith("--") else ("", "", word) for word in shlex.split(line)]
        lines.append(shlex.join("".join([flag, sign, with_names(value)]) for flag, sign, value in words))
    return "\n".join(lines)


def _recipe_with_names(recipe: str) -> str:
    """Replace local paths in a recipe in YAML, as [`with_names`] does."""
    return _dump(with_names(yaml.safe_load(recipe)))


def published_record(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """
    Training record with names in place of local paths.

    A base model in a local folder becomes `None`, with what its card says of license and language in `inherited`.
    """
    if record is None:
        return None
    record, base_model = dict(record), record.get("base_model")
    if base_model and not is_hub_id(base_model):
        record |= {"base_model": None, "inherited": inherit(base_model)}
    for key, shown in (("command", _command_with_names), ("recipe", _recipe_with_names)):
        if record.get(key):
            record[key] = shown(record[key])
    return record


def _is_local(text: str) -> bool:
    """Whether a text is a path with a folder, rather than a name on the Hub, an address, a prompt or a template."""
    if "/" not in text.lstrip("/") or "://" in text or re.search(r"[\n{]", text):
        return False
    if Path(text).exists():
        return True
    named = not re.search(r"\s", text) and text.startswith(("/", "~", "./", "../"))
    return named or Path(text).suffix in _FILES


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


def _dump(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
