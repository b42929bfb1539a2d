"""`hf-calib register`: the metric under its bare name, in every folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .parser import CommandParser


_EXAMPLES = """\
examples:
  hf-calib register            # once; then, from every folder, online and offline:
                               #   evaluate.load("ece_regime").compute(predictions=probabilities, references=labels)
  hf-calib register --check    # what the name stands for here, and why; exit status 1 if it is not this metric
  hf-calib register --remove

A script of a few lines is put into evaluate's cache of modules, below $HF_MODULES_CACHE or $HF_HOME/modules. It imports the
metric from the installed package, so an upgrade of the package needs no new registration.
"""


@dataclass
class RegisterArguments:
    """Whether to look or to undo; by default the metric is registered."""

    check: bool = field(default=False, metadata={"help": "Say what evaluate.load finds, and why; change nothing."})
    remove: bool = field(default=False, metadata={"help": "Undo the registration."})

    def __post_init__(self):
        if self.check and self.remove:
            raise ValueError("--check and --remove exclude each other")


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib register`: make `evaluate.load("ece_regime")` work from every folder."""
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
