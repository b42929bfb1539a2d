"""Argument parsers of the commands: dataclasses become arguments in groups, with a help that shows examples."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser

from . import COMMANDS, MORE_COMMANDS
from .suggestions import did_you_mean


# Arguments shown after all others, under "advanced arguments".
RARELY_USED = frozenset({
    "alpha", "answers_from", "attn_implementation", "base_model", "batch_size", "binning", "commit_message",
    "create_pr", "drop_invalid", "drop_too_long", "drop_unanswered", "dtype", "em_estimator", "em_fold", "em_loss",
    "em_pseudo_count", "extra_body", "likelihood_weight", "max_length", "max_retries", "n_bins", "n_bootstrap",
    "no_resume", "overwrite", "prompts_limit", "recipe", "reference_pseudo_count", "request_timeout", "revision",
    "seed", "texts_limit", "tolerance", "trust_remote_code",
})  # fmt: skip


class CommandFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows one spelling of each argument, its choices, and its default where there is one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(119, max(80, shutil.get_terminal_size().columns)))

    def _format_action_invocation(self, action):
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        name = action.option_strings[0]
        if action.type is not None and action.nargs == "?":  # a switch
            return name
        return f"{name} {self._format_args(action, self._get_default_metavar_for_optional(action))}"

    def _get_default_metavar_for_optional(self, action):
        if action.choices:
            return "{" + ",".join(map(str, action.choices)) + "}"
        name = getattr(action.type, "__name__", "")
        return {"int": "INT", "float": "FLOAT", "string_to_bool": "{true,false}"}.get(name, "TEXT")

    def _get_help_string(self, action):
        text = action.help or ""
        stated = action.default in (None, argparse.SUPPRESS) or action.default is False or "default" in text.lower()
        return text if stated or action.required else f"{text.rstrip('.')} (default: %(default)s)."


class _ShowAll(argparse.Action):
    """`--help-all`: the help with the arguments of the libraries."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        parser.group_arguments(everything=True)
        parser.print_help()
        parser.exit()


class CommandParser(HfArgumentParser):
    """
    [`~transformers.HfArgumentParser`] with arguments in groups, `~` expanded, and the nearest name for an unknown one.

    The arguments of a dataclass are shown under the title `help_group` of the class that declares them. Those without
    a default, and those that the class lists as `needed`, come first, rarely used ones last. Those that classes
    outside this package declare are left to `--help-all`.

    Args:
        command (`str`):
            Name of the command.
        dataclass_types (`type` or `tuple[type, ...]`):
            Dataclasses with the arguments.
        usage (`str`):
            The arguments without which the command cannot run.
        examples (`str`):
            Calls with explanations, and what the command writes, printed below the arguments.
    """

    often_used: tuple[str, ...] = ()  # arguments of other packages that the help shows
    needed: tuple[str, ...] = ()  # arguments of other packages without which the command cannot run

    def __init__(self, command: str, dataclass_types, usage: str, examples: str):
        super().__init__(
            dataclass_types,
            prog=f"hf-calib {command}",
            usage=" ".join(["hf-calib", command, *usage.split(), "[arguments]"]),
            description=(COMMANDS | MORE_COMMANDS)[command],
            epilog=examples,
            formatter_class=CommandFormatter,
            allow_abbrev=False,  # recipes and cards show the full names
        )
        self.group_arguments()

    def group_arguments(self, everything: bool = False) -> None:
        """Arrange the help: required arguments first, then group by group."""
        declared = {}
        for dataclass_type in self.dataclass_types:
            for cls in dataclass_type.__mro__:
                for name in vars(cls).get("__annotations__", {}):
                    declared.setdefault(name, cls)
        needed = {*self.needed, *(name for cls in self.dataclass_types for name in getattr(cls, "needed", ()))}
        groups: dict[str, list[argparse.Action]] = {"required arguments": []}
        hidden = False
        for action in self._actions:
            cls = declared.get(action.dest)
            ours = cls is None or cls.__module__.startswith("hf_calib.")
            if action.required or action.dest in needed:
                title = "required arguments"
            elif not (ours or everything):
                hidden = True
                if action.dest not in self.often_used:
                    continue
                title = "often used arguments of TRL and transformers"
            elif ours and action.dest in RARELY_USED:
                title = "advanced arguments"
            elif cls is None:
                title = "recipe" if action.dest == "config" else "help"
            elif ours:
                title = vars(cls).get("help_group", "arguments")
            else:
                title = f"arguments of {cls.__module__.partition('.')[0]}"
            groups.setdefault(title, []).append(action)
        if hidden and not any("--help-all" in action.option_strings for action in self._actions):
            text = "show the arguments of TRL and transformers, too"
            groups.setdefault("help", []).append(self.add_argument("--help-all", action=_ShowAll, help=text))
        self._action_groups = []
        first = ["required arguments", "recipe", "arguments", "data", "objective", "EM-ECE", "prompt and scoring"]
        order = {title: place for place, title in enumerate([*first, "", "advanced arguments", "help"])}
        for title, actions in sorted(groups.items(), key=lambda group: order.get(group[0], order[""])):
            if actions:
                self.add_argument_group(title)._group_actions.extend(actions)

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """
        Parse the arguments of the command.

        Args:
            argv (`Sequence[str]`):
                Arguments behind the name of the command.

        Returns:
            `tuple`: an instance of each dataclass.

        Raises:
            `SystemExit`: for an unknown, missing or malformed argument, which is named on standard error.
        """
        for part in argv:
            if part.startswith("--"):
                self.check_known(part.partition("=")[0])
        parsed = self.instances(argv)
        for arguments in parsed:
            for field in dataclasses.fields(arguments):
                if (expanded := _expand_home(value := getattr(arguments, field.name, None))) != value:
                    setattr(arguments, field.name, expanded)
        return tuple(parsed)

    def instances(self, argv: Sequence[str]) -> Sequence[Any]:
        """The dataclasses, filled from the arguments."""
        return self.parse_args_into_dataclasses(list(argv), look_for_args_file=False)

    def check_known(self, name: str, where: str = "") -> None:
        """Name an unknown argument, and the nearest known one, on standard error, and exit."""
        if name not in self._option_string_actions:
            known = [action.option_strings[0] for action in self._actions if action.option_strings]
            self.error(f"unknown argument {name}{where}{did_you_mean(name, known)}")


def _expand_home(value):
    """Expand `~/`, which a shell does not do behind `--argument=`."""
    if isinstance(value, list):
        return [_expand_home(part) for part in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value
