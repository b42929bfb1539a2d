"""`hf-calib restore`: from an aligned model and labelled questions to a calibrated checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from ..training.restore_options import RestoreOptions
from .parser import CommandParser


_EXAMPLES = """\
examples:
  # the file has the columns question, choices, answer; a third of it is kept for the test
  hf-calib restore --model org/aligned --dataset questions.parquet --output_dir restored

  # with the model before alignment, questions without answers, and a test set, in an hour
  hf-calib restore --model org/aligned --reference org/sft --dataset train.parquet --unlabelled more.parquet \\
      --test test.parquet --budget 60

  # with held-out preference pairs, to see how much of the alignment is kept
  hf-calib restore --model org/aligned --reference org/sft --dataset questions.parquet --pairs pairs.parquet

  # questions of the Hub; texts of the options, without the chat template
  hf-calib restore --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset allenai/ai2_arc --dataset_config ARC-Easy \\
      --test allenai/ai2_arc --limit 500 --test_limit 300 --scoring text --option_normalization mean \\
      --use_chat_template false

  # short answers (columns question, answers): the model answers, and learns to say whether it is right
  hf-calib restore --model org/aligned --dataset short.jsonl --output_dir restored

  # on several GPUs
  accelerate launch -m hf_calib restore --model org/aligned --dataset questions.parquet

Evaluates the model, decides from the labels whether and how it can be repaired, trains it (CFT or RCFT), evaluates it
again, compares it with the aligned model under post-hoc calibrators, and measures how much of the alignment it keeps.
Models above 50 million parameters are trained by LoRA, which is merged at the end. The same command again resumes; a
changed argument redoes what depends on it.

writes to OUTPUT_DIR:
  report.md              what was done and why, with a table and diagrams; results.json: its rows
  model/                 the checkpoint with its card and evaluation, for `hf-calib push`
  aligned/, reference/   predictions, for `hf-calib calibrate`
  data/, recipe.yaml     the questions, and the arguments of the training
"""


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Load and check questions and model, and make the plan; the result does the work."""
    usage = "--model MODEL --dataset DATASET"
    (options,) = CommandParser("restore", RestoreOptions, usage, _EXAMPLES).parse(argv)
    from ..training.restore import prepare_restore

    work = prepare_restore(options, shlex.join(["hf-calib", "restore", *argv]))

    def restore() -> None:
        work()

    return restore
