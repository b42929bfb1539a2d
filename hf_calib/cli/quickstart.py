"""`hf-calib quickstart`: the whole story on a synthetic world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .parser import CommandParser


_EXAMPLES = """\
example:
  hf-calib quickstart --output_dir quickstart-report

Pre-trains a small model in a synthetic world, aligns it with DPO until it is overconfident, repairs it with temperature
scaling, CFT and RCFT, aligns it once more with calibrated DPO, and evaluates every stage. Some five minutes on two cores;
nothing is downloaded.
"""


@dataclass
class QuickstartArguments:
    """Where the quickstart reports, and how large it is."""

    output_dir: str = field(default="quickstart-report", metadata={"help": "Folder of the report and of the models."})
    seed: int = field(default=0, metadata={"help": "Seed of the world and of every stage."})
    num_test_questions: int = field(default=10_000, metadata={"help": "Questions that every stage is evaluated on."})
    no_resume: bool = field(default=False, metadata={"help": "Start over instead of keeping finished stages."})


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib quickstart`: the whole story on a synthetic world."""
    (args,) = CommandParser("quickstart", QuickstartArguments, "", _EXAMPLES).parse(argv)
    from ..evaluation.tables import check_output_dir
    from ..training.quickstart import run_quickstart

    output_dir = check_output_dir(args.output_dir)
    return lambda: run_quickstart(output_dir, args.seed, args.num_test_questions, not args.no_resume)
