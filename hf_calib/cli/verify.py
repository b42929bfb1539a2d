"""`hf-calib verify`: a published model downloaded, its evaluation made again, its figures held against the card's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .parser import CommandParser


_EXAMPLES = """\
examples:
  hf-calib verify org/calibrated-model                             # everything that its results.json states
  hf-calib verify org/calibrated-model --limit 200                # on 200 of its questions
  hf-calib verify org/calibrated-model --dataset test.parquet      # questions that are not on the Hub, or others
  hf-calib verify ./calibrated-model --dataset test.parquet        # a folder that `hf-calib push` has completed

The checkpoint is asked as results.json says: scoring, template, number of questions and seed. Of the same questions, all asked,
every figure must come out again, but for --tolerance and one question; on a sample, within what chance allows; other questions
are recognised, and chance is allowed for in both figures. Exit status 1 if a figure does not hold. Only safetensors are
loaded, and no code of the repository is run unless --trust_remote_code true.
"""


@dataclass
class VerifyArguments:
    """What is verified, and how far."""

    model: str = field(metadata={"help": "Model on the Hub, or the folder of one (may be given without --model)."})
    dataset: str | None = field(
        default=None, metadata={"help": "Questions, where those of the evaluation are not on the Hub, or others."}
    )
    limit: int | None = field(default=None, metadata={"help": "Ask so many of the questions (default: all)."})
    seed: int = field(default=0, metadata={"help": "Seed of the sample."})
    tolerance: float = field(default=0.005, metadata={"help": "What another machine may change in a figure."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    batch_size: int = field(default=8, metadata={"help": "Questions of the longest kind in a forward pass."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Keep the predictions there, and go on from them if cut off."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that the model's repository brings."})

    def __post_init__(self):
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit must be at least 2, got {self.limit}.")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, got {self.tolerance}.")


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib verify`: download, load and check model and questions; the result asks, compares and prints."""
    argv = ["--model", *argv] if argv and not argv[0].startswith("-") else argv
    (args,) = CommandParser("verify", VerifyArguments, "ORG/MODEL", _EXAMPLES).parse(argv)
    from ..evaluation.tables import check_output_dir
    from ..hub.verify import fetch, sample_questions
    from ..inference.model_loading import load_model

    output = check_output_dir(args.output_dir) / "predictions.npz" if args.output_dir else None
    published = fetch(args.model, args.revision, args.trust_remote_code)
    questions = published.protocol.load_questions(args.dataset)
    sample = sample_questions(questions, args.limit, args.seed)
    model, tokenizer = load_model(
        str(published.folder),
        dtype=published.protocol.dtype,
        trust_remote_code=args.trust_remote_code,
        use_safetensors=True,
    )

    def verify() -> None:
        from rich.console import Console

        from ..hub.verify import checks_table, compare, same_questions
        from ..inference.predict import weights_digest

        predictions = published.protocol.predict(model, tokenizer, sample, args.batch_size, output)
        same = same_questions(published, questions, predictions)
        checks = compare(published, predictions, same, args.tolerance)
        stated = published.results["n"]
        asked = (
            f"{len(predictions):,} of its {stated:,} questions" if same else f"{len(predictions):,} other questions"
        )
        Console(width=max(Console().width, 100)).print(checks_table(checks, f"{args.model}, asked {asked}"))
        if published.results.get("weights") not in (None, weights_digest(model)):
            print("The weights are not those that the evaluation was made with, or were read in another type.")
        wrong = [check.name for check in checks if not check.holds]
        if wrong:
            raise ValueError(f"{len(wrong)} of {len(checks)} figures of {args.model} do not hold: {', '.join(wrong)}")
        print(f"All {len(checks)} figures hold.")

    return verify
