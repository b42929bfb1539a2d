"""`hf-calib push-metric`: the metric `ece_regime` to the Hub, as a Space that `evaluate.load` takes by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .parser import command_parser


DESCRIPTION = "Publish the metric ece_regime as a Space."

_EXAMPLES = """\
example:
  hf-calib push-metric --repo_id org/ece_regime

Then, wherever hf_calib is installed: evaluate.load("org/ece_regime"). The Space's own page starts once hf_calib can be installed
there: its requirements.txt names it.
"""


@dataclass
class PushMetricArguments:
    """Where the metric goes."""

    repo_id: str = field(metadata={"help": "Name of the Space; the part behind the slash must be ece_regime."})
    private: bool = field(default=False, metadata={"help": "Make it private."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a Space that is there and is another."})
    commit_message: str | None = field(default=None, metadata={"help": "Message of the commit."})

    def __post_init__(self):
        if self.repo_id.rpartition("/")[2] != "ece_regime":
            raise ValueError(
                f"evaluate looks for a script of the Space's own name, so it must be called ece_regime: ORG/ece_regime, not "
                f"{self.repo_id}."
            )


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib push-metric`: check the Space; the result sends the metric."""
    (args,) = command_parser(
        "push-metric", PushMetricArguments, DESCRIPTION, "--repo_id ORG/ece_regime", _EXAMPLES
    ).parse_args_and_config(argv)
    from ..hub.repository import Repository
    from ..paths import metric_path

    folder = Path(metric_path())
    files = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".py", ".md", ".txt")]
    repository = Repository(args.repo_id, "space", args.private or None, space_sdk="gradio")
    repository.refuse_if_foreign("ece_regime.py", ("*.py", "Dockerfile", "*.html"), args.overwrite)

    def push() -> None:
        commit = repository.commit(folder, files, args.commit_message or "ECE and calibration regime")
        print(f'published: {commit.commit_url}\nevaluate.load("{repository.id}")')

    return push
