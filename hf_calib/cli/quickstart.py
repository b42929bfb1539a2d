"""`hf-calib quickstart`: align a small model of a synthetic world, and restore its calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .parser import CommandParser


_EXAMPLES = """\
examples:
  hf-calib quickstart
  hf-calib quickstart --seed 1 --limit 2000 --output_dir quickstart-1

Pre-trains a small model on a synthetic world, aligns it with DPO until it is overconfident, restores its calibration
with `hf-calib restore` and 2,000 labelled questions, and compares it with post-hoc calibrators on the same labels. A
last model, trained too long on 200 labels, shows a regime in which no calibrator helps. Takes two to three
minutes on two cores and downloads nothing.

writes to OUTPUT_DIR:
  report.md, results.json, reliability and regime (.png, .svg); restore/ with the report and the checkpoint of restore;
  the other models; an interrupted run resumes
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
    from ..training.library_warnings import ignore_library_warnings

    ignore_library_warnings()
    from ..training.quickstart import run_quickstart
    from ..training.restore_data import LEAST_TEST

    if args.limit < LEAST_TEST:
        raise ValueError(f"limit must be at least {LEAST_TEST}, got {args.limit}.")

    output_dir = check_output_dir(args.output_dir)
    return lambda: run_quickstart(output_dir, args.seed, args.limit, not args.no_resume)
