"""`hf-calib quickstart`: align, repair and evaluate a small model of a synthetic world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .parser import CommandParser


_EXAMPLES = """\
examples:
  hf-calib quickstart
  hf-calib quickstart --seed 1 --limit 2000 --output_dir quickstart-1

Pre-trains a small model on a synthetic world, aligns it with DPO until it is overconfident, repairs it with
temperature scaling, CFT and RCFT, aligns it again with calibrated DPO, and evaluates every stage. Takes about five
minutes on two cores and downloads nothing.

writes to OUTPUT_DIR:
  report.md, results.json, reliability and regime (.png, .svg), and the models; an interrupted run resumes
"""


@dataclass
class QuickstartArguments:
    """Arguments of `hf-calib quickstart`."""

    output_dir: str = field(default="quickstart-report", metadata={"help": "Folder of the report and of the models."})
    seed: int = field(default=0, metadata={"help": "Seed of the world and of every stage."})
    limit: int = field(default=10_000, metadata={"help": "Number of test questions."})
    no_resume: bool = field(
        default=False, metadata={"help": "Start over instead of resuming from the stages in --output_dir."}
    )


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the call; the result trains and evaluates every stage."""
    (args,) = CommandParser("quickstart", QuickstartArguments, "", _EXAMPLES).parse(argv)
    from ..evaluation.tables import check_output_dir
    from ..training.quickstart import run_quickstart

    output_dir = check_output_dir(args.output_dir)
    return lambda: run_quickstart(output_dir, args.seed, args.limit, not args.no_resume)
