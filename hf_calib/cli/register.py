"""`hf-calib register`: make `evaluate.load("ece_regime")` find the metric in every folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .parser import CommandParser


_EXAMPLES = """\
examples:
  hf-calib register            # once; then, in every folder, online and offline:
                               #   evaluate.load("ece_regime").compute(predictions=probabilities, references=labels)
  hf-calib register --check    # show what evaluate.load("ece_regime") finds; exit status 1 if it is another metric
  hf-calib register --remove

Writes a short script into the module cache of evaluate, below $HF_MODULES_CACHE or $HF_HOME/modules. The script
imports the metric from the installed package: an upgrade of the package needs no new registration.
"""


@dataclass
class RegisterArguments:
    """Arguments of `hf-calib register`. Without any, the metric is registered."""

    check: bool = field(default=False, metadata={"help": "Show what evaluate.load finds, and why. Changes nothing."})
    remove: bool = field(default=False, metadata={"help": "Remove the registration."})

    def __post_init__(self):
        if self.check and self.remove:
            raise ValueError("--check and --remove exclude each other")


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the call; the result registers, checks or removes."""
    (args,) = CommandParser("register", RegisterArguments, "[--check | --remove]", _EXAMPLES).parse(argv)
    from ..evaluation.metric_registration import register, resolve, unregister

    def check() -> None:
        found = resolve()
        print(f'evaluate.load("ece_regime") resolves to: {found.resolves_to}\n  {found.path}\n  {found.reason}')
        if not found.ours:
            raise ValueError(f'evaluate.load("ece_regime") does not give the metric of hf_calib here: {found.reason}')

    def remove() -> None:
        removed = unregister()
        print("\n".join(f"removed {script}" for script in removed) or "nothing was registered")

    def add() -> None:
        print(f"registered {register()}")
        check()

    return check if args.check else remove if args.remove else add
