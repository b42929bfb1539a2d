"""The recipe of a training, as it is published: what was run in fact, and no secret in it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


# Arguments that may hold a secret.
_SECRETS = ("hub_token", "env")


def without_secrets(text: str) -> str:
    """A recipe without the arguments that may hold a token."""
    content = yaml.safe_load(text) or {}
    if not isinstance(content, dict):
        raise ValueError("a recipe is a YAML file of arguments and their values")
    if not any(name in content for name in _SECRETS):
        return text
    return _dump({name: value for name, value in content.items() if name not in _SECRETS})


def effective_recipe(argv: Sequence[str]) -> str:
    """
    What a command line amounts to: the recipe of its `--config`, with what its other arguments change.

    Args:
        argv (`Sequence[str]`):
            Arguments of `hf-calib train`.

    Returns:
        `str`: a recipe that trains the same, in YAML; that it was pushed, and where to, is left out.
    """
    given = _arguments(argv)
    recipe = _recipe_of(given) | given
    if names_other_data(argv):
        recipe.pop("dataset_config", None)
    left_out = ("hub_", "push_to_hub")
    published = {name: v for name, v in recipe.items() if name != "config" and not name.startswith(left_out)}
    return without_secrets(_dump(published))


def names_other_data(argv: Sequence[str]) -> bool:
    """
    Whether a command line names other training data than its recipe, and no configuration: the recipe's is not of them.

    Args:
        argv (`Sequence[str]`):
            Arguments of `hf-calib train`.
    """
    given = _arguments(argv)
    named = given.get("dataset_name")
    return named not in (None, _recipe_of(given).get("dataset_name")) and "dataset_config" not in given


def _recipe_of(given: Mapping[str, Any]) -> dict[str, Any]:
    config = given.get("config")
    return yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {} if config else {}


def shown_command(argv: Sequence[str]) -> str:
    """The command line of a training, without what may hold a token."""
    shown, hidden = [], False
    for part in argv:
        name = _name_of(part)
        hidden = name in _SECRETS if name else hidden
        if not hidden:
            shown.append(part)
    return shlex.join(["hf-calib", "train", *shown])


def _name_of(part: str) -> str | None:
    """The name of the argument that begins here; the parser takes `--hub-token` for `--hub_token`."""
    return part.removeprefix("--").partition("=")[0].replace("-", "_") if part.startswith("--") else None


def _arguments(argv: Sequence[str]) -> dict[str, Any]:
    given: dict[str, list] = {}
    name = None
    for part in argv:
        if argument := _name_of(part):
            name, (_, equals, value) = argument, part.partition("=")
            given[name] = [_value(value)] if equals else []
        elif name is not None:
            given[name].append(_value(part))
    return {name: True if not values else values[0] if len(values) == 1 else values for name, values in given.items()}


def _value(text: str) -> Any:
    """A number or truth value as such; any other text as it is, whatever YAML makes of its braces."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, bool):  # "no" and "off" are values of their own: `--save_strategy no`
        return value if text.lower() in ("true", "false") else text
    return value if isinstance(value, (int, float)) else text


def _dump(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
