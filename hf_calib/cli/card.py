"""`hf-calib card`: results.json in, model card out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .parser import command_parser


DESCRIPTION = "Write the model card that a results.json gives."

_EXAMPLES = """\
examples:
  # what `hf-calib evaluate` wrote becomes a section of the card beside it, or a card
  hf-calib card --results after

  # the card of a published model made again, without the model
  hf download org/calibrated-model results.json README.md --local-dir card
  hf-calib card --results card

README.md is written beside results.json. A card that is there stays: the calibration section is replaced between its markers, or
put before the references; in the front matter, the evaluation (model-index), tags and what was inherited from the base model
are set. Done again, it changes nothing.
"""


@dataclass
class CardArguments:
    """What the card is made from."""

    results: str = field(default=".", metadata={"help": "A results.json, or the folder that holds it."})
    validate: bool = field(default=False, metadata={"help": "Have the Hub check the card, too."})


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib card`: read and check results.json; the result writes the card."""
    (args,) = command_parser("card", CardArguments, DESCRIPTION, "--results RESULTS", _EXAMPLES).parse_args_and_config(
        argv
    )
    from ..hub.card import CalibrationCard
    from ..hub.publish import write_card

    CalibrationCard.from_file(args.results)  # what is wrong with it is better said as a wrong call

    def write() -> None:
        path = write_card(Path(args.results))
        if args.validate:
            from ..hub.publish import validate_card

            validate_card(path)
        print(f"card: {path}")

    return write
