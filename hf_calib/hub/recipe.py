"""The recipe of a training as it is published: all arguments that were given, without secrets."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


# Arguments that may contain a secret.
_SECRETS = ("hub_token", "env")


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
        return _dump({name: v for name, v in recipe.items() if name not in _SECRETS and not name.startswith(left_out)})

    def command(self) -> str:
        """Return the command of the training."""
        command = ["hf-calib", "train", *(["--config", self.path] if self.path else [])]
        for name, value in self.command_line.items():
            if name not in _SECRETS:
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
    """Return the text of a recipe without the arguments that may contain a token."""
    content = read_recipe(path)
    if not any(name in content for name in _SECRETS):
        return Path(path).read_text(encoding="utf-8")
    return _dump({name: value for name, value in content.items() if name not in _SECRETS})


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


def _dump(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
