"""Arguments of the commands that read predictions of any format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.columns import split_pairs
from .parser import CommandParser


@dataclass(kw_only=True)
class ReadingArguments:
    """Arguments by which saved predictions are read; see [`~hf_calib.prediction_files.options.ReadOptions`]."""

    help_group = "reading the files"

    labels: str | None = field(
        default=None,
        metadata={"help": "File with the right options, joined by id: columns id and label, optionally choices."},
    )
    format: str | None = field(
        default=None, metadata={"help": "Format of the files, see below (default: recognised by content)."}
    )
    filter: str | None = field(
        default=None, metadata={"help": "Filter of lm-evaluation-harness, where a file holds several."}
    )
    columns: str | None = field(
        default=None, metadata={"help": "Names of columns: ROLE=COLUMN,..., several for one role as ROLE=A,B,C."}
    )
    option_normalization: str | None = field(
        default=None,
        metadata={
            "help": "Score of an option: sum or mean of its tokens' log-likelihoods, sum over characters or bytes, or "
            "sum less that without the question (default: by which the tool computes its accuracy).",
            "choices": ["sum", "mean", "characters", "bytes", "mutual_information"],
        },
    )
    option_labels: str | None = field(
        default=None, metadata={"help": "What the model writes for each option, e.g. yes,no (default: A,B,...)."}
    )
    num_options: int | None = field(default=None, metadata={"help": "Number of options, where the file has it not."})
    answers_from: int | None = field(
        default=None, metadata={"help": "Number of the first option where right options are numbers: 0 or 1."}
    )
    drop_invalid: bool = field(
        default=False, metadata={"help": "Leave out unreadable rows and questions without a right option; count them."}
    )

    @property
    def file_reading(self) -> dict[str, Any]:
        """Options of [`~hf_calib.prediction_files.options.ReadOptions`]."""
        names = ("labels", "format", "filter", "option_normalization", "option_labels", "num_options", "answers_from")
        given = {name: getattr(self, name) for name in (*names, "drop_invalid")}
        return {**given, "columns": parse_roles(self.columns or "")}


def parse_roles(text: str) -> dict[str, str]:
    """
    Parse `probabilities=p_yes,p_no,label=gold`: a part without `=` is a further column of the role before it.

    Raises:
        `ValueError`: the text does not begin with a role, or names a role twice.
    """
    roles: dict[str, str] = {}
    role = None
    for name, sign, column in split_pairs(text):
        if sign:
            if name in roles:
                raise ValueError(f"--columns names the role {name} twice")
            role = name
            roles[role] = column
        elif role is None:
            raise ValueError(f"--columns {text!r} must be ROLE=COLUMN,..., as in label=gold,probabilities=p_yes,p_no")
        else:
            roles[role] += f",{name}"
    return roles


class FilesParser(CommandParser):
    """Parser with the files as positional arguments, before or behind the others."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.add_argument("files", nargs="+", metavar="FILE", help="Predictions: files, or one folder.")
        self.group_arguments()

    def instances(self, argv: Sequence[str]) -> Sequence[Any]:
        args, positional = self.parse_args_into_dataclasses(list(argv), look_for_args_file=False)
        self.files = positional.files
        return [args]
