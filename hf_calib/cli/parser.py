"""The parser of a command's arguments: dataclasses in, help with examples out."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from trl import TrlParser


def command_parser(command: str, dataclass_types, description: str, usage: str, examples: str) -> TrlParser:
    """
    The parser of a command.

    Args:
        command (`str`):
            Its name.
        dataclass_types (`type` or `tuple[type, ...]`):
            Dataclasses of which the fields are its arguments.
        description (`str`):
            What it does, in a sentence.
        usage (`str`):
            The arguments that it cannot do without. Generated, the usage would fill the screen: a training run has some
            two hundred arguments.
        examples (`str`):
            Calls with explanations, printed as they are under the arguments.
    """
    from trl import TrlParser

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    class Parser(TrlParser):
        def parse_args_and_config(self, *args, **kwargs):
            parsed = super().parse_args_and_config(*args, **kwargs)
            for arguments in parsed:
                for name, value in vars(arguments).items():
                    if (expanded := _at_home(value)) != value:
                        setattr(arguments, name, expanded)
            return parsed

    return Parser(
        dataclass_types,
        prog=f"hf-calib {command}",
        usage=f"hf-calib {command} {usage} [--argument value ...]",
        description=description,
        epilog=examples,
        formatter_class=Formatter,
        allow_abbrev=False,  # what is typed is what a recipe and a card show
    )


def _at_home(value):
    """`~/` spelt out, which a shell does not do behind `--argument=`, nor anybody in a recipe."""
    if isinstance(value, list):
        return [_at_home(part) for part in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value
