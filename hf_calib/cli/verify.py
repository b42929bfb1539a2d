"""`hf-calib verify`: repeat the evaluation of a published model and compare it with the card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..data.columns import ColumnArguments
from .parser import CommandParser
from .served_arguments import ServedArguments


_EXAMPLES = """\
examples:
  hf-calib verify org/calibrated-model                          # every figure of its results.json
  hf-calib verify org/calibrated-model --limit 200              # on a sample of 200 of its questions
  hf-calib verify org/calibrated-model --dataset test.parquet   # questions that are not on the Hub, or other questions
  hf-calib verify ./calibrated-model --dataset test.parquet     # a folder that `hf-calib push` completed

  # a served model: repeat the evaluation in a folder of hf-calib evaluate, and check its gate
  hf-calib verify served --endpoint http://localhost:8000/v1 --dataset test.parquet --gate gate/gate.json

The evaluation is repeated as results.json states it: scoring, prompt, number of questions and seed. On all of the same
questions, every figure must agree within --tolerance and one question; on a sample or on other questions, within the
sampling error. A published gate must belong to the model, its prompt and its calibrator; on its own questions coverage
and accuracy of the answers must agree, on others the guarantee is tested. Answers in free text are written again. Of a
served model the folder holds the evaluation, and with --gate the gate is checked, too. Prints a table; the exit status
is 1 if a figure or the gate does not hold. Only safetensors are loaded, and no code of the repository is run without
--trust_remote_code. With --output_dir, an interrupted run resumes.
"""


@dataclass
class VerifyArguments(ServedArguments, ColumnArguments):
    """Arguments of `hf-calib verify`."""

    model: str = field(
        metadata={
            "help": "Model on the Hub, or its folder; with --endpoint a folder of hf-calib evaluate. The word --model "
            "may be left out."
        }
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Questions, if those of the evaluation are not on the Hub (default: those)."}
    )
    gate: str | None = field(
        default=None, metadata={"help": "gate.json of hf-calib threshold (default: the one published with the model)."}
    )
    calibrator: str | None = field(
        default=None, metadata={"help": "Calibrator of --gate (default: the one published with the model)."}
    )
    limit: int | None = field(default=None, metadata={"help": "Number of questions, drawn by --seed (default: all)."})
    seed: int = field(default=0, metadata={"help": "Seed of the sample."})
    tolerance: float = field(
        default=0.005, metadata={"help": "Difference between machines allowed in each figure, absolute."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub (default: main)."})
    batch_size: int = field(default=8, metadata={"help": "Questions per forward pass; more if they are short."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder to keep the predictions in (default: they are not kept)."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})

    def __post_init__(self):
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit must be at least 2, got {self.limit}.")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, got {self.tolerance}.")


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Download, load and check model and questions; the result predicts, compares and prints."""
    argv = ["--model", *argv] if argv and not argv[0].startswith("-") else argv
    (args,) = CommandParser("verify", VerifyArguments, "--model ORG/MODEL", _EXAMPLES).parse(argv)
    from ..evaluation.tables import check_output_dir
    from ..hub.verify import fetch, sample_questions
    from ..inference.model_loading import load_model

    output = check_output_dir(args.output_dir) / "predictions.npz" if args.output_dir else None
    published = fetch(args.model, args.revision, args.trust_remote_code)
    stated = {name: value for name, value in args.reading.items() if value is not None}
    questions = replace(published.protocol, **stated).load_questions(args.dataset)
    sample = sample_questions(questions, args.limit, args.seed)
    if args.endpoint is None:
        loading = {"trust_remote_code": args.trust_remote_code, "use_safetensors": True}
        model, tokenizer = load_model(str(published.folder), dtype=published.protocol.dtype, **loading)
    else:
        model, tokenizer = args.served_model(published.results["model"]), args.served_tokenizer()

    def verify() -> None:
        from ..evaluation.tables import print_plain
        from ..hub.verify import checks_table, compare, same_questions
        from ..hub.verify_gate import verify_gate, verify_given_gate
        from ..inference.predict import weights_digest

        predictions = published.protocol.predict(model, tokenizer, sample, args.batch_size, output)
        same = same_questions(published, questions, predictions)
        checks, gate, problem = compare(published, predictions, same, args.tolerance), [], None
        try:
            if args.gate is None:
                repeated, gate = verify_gate(published, predictions, same, args.tolerance)
            else:
                given = (args.gate, args.calibrator)
                repeated, gate = verify_given_gate(published, predictions, same, *given, args.tolerance)
            checks += repeated
        except (ValueError, OSError) as error:
            problem = f"the gate of {args.model} does not hold: {error}"
        stated = published.results["n"]
        which = f"of its {stated:,} questions" if same else "other questions"
        title = f"{args.model} on {len(predictions):,} {which}"
        print_plain(checks_table(checks, title), 100)
        if args.endpoint is None and published.results.get("weights") not in (None, weights_digest(model)):
            print("The weights differ from those of the evaluation, or were loaded with another dtype.")
        print("".join(f"{line}\n" for line in gate), end="")
        wrong = [check.name for check in checks if not check.holds]
        if wrong:
            figures = f"{len(wrong)} of {len(checks)} figures of {args.model} do not hold: {', '.join(wrong)}"
            raise ValueError("\n".join(filter(None, (figures, problem))))
        if problem:
            raise ValueError(problem)
        print(f"All {len(checks)} figures hold.")

    return verify
