"""`hf-calib push-predictions`: predictions to the Hub, as a data set that others score again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .parser import command_parser


DESCRIPTION = "Publish predictions as a data set that others can score again."

_EXAMPLES = """\
examples:
  hf-calib push-predictions --evaluation after --repo_id org/calibrated-model-predictions

  # anybody, then, without the model:
  #   rows = load_dataset("org/calibrated-model-predictions", split="test")
  #   calibration_report(rows["probabilities"][:], rows["label"][:])
  hf-calib calibrate --predictions org/calibrated-model-predictions

Published are ids, labels, option logits and probabilities (subjects and target probabilities where there are any), results.json
and a card; the questions themselves are not.
"""


@dataclass
class PushPredictionsArguments:
    """What is published, and where."""

    evaluation: str = field(metadata={"help": "OUTPUT_DIR of `hf-calib evaluate`."})
    repo_id: str = field(metadata={"help": "Name of the data set on the Hub."})
    private: bool = field(default=False, metadata={"help": "Make it private."})
    revision: str | None = field(default=None, metadata={"help": "Branch to commit on; made if it is not there."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing."})
    overwrite: bool = field(default=False, metadata={"help": "Replace data that were not published by hf-calib."})
    commit_message: str | None = field(default=None, metadata={"help": "Message of the commit."})


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib push-predictions`: read the evaluation and check the repository; the result sends."""
    usage = "--evaluation OUTPUT_DIR --repo_id ORG/NAME"
    (args,) = command_parser(
        "push-predictions", PushPredictionsArguments, DESCRIPTION, usage, _EXAMPLES
    ).parse_args_and_config(argv)
    from ..hub.prediction_dataset import METADATA, publish_predictions
    from ..hub.publish import Evaluation
    from ..hub.repository import Repository

    evaluation = Evaluation.load(args.evaluation)
    repository = Repository(args.repo_id, "dataset", args.private or None, args.revision, args.create_pr)
    repository.refuse_if_foreign(METADATA, ("*.parquet", "*.csv", "*.json", "*.jsonl", "*.arrow"), args.overwrite)

    def push() -> None:
        commit = publish_predictions(evaluation, repository, args.commit_message)
        print(f"published: {commit.pr_url or commit.commit_url}")

    return push
