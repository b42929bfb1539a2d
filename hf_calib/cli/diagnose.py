"""`hf-calib diagnose`: a base and an aligned model in; what alignment did, and what repairs it, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .arguments import PredictionArguments
from .parser import CommandParser


if TYPE_CHECKING:
    from datasets import Dataset

    from ..inference.predictions import OptionPredictions

_EXAMPLES = """\
examples:
  # two checkpoints, letters of the options
  hf-calib diagnose --reference ./my-sft-model --model ./my-dpo-model --dataset questions.parquet

  # with the preferences of held-out pairs; the beta is that of the alignment
  hf-calib diagnose --reference ./my-sft-model --model ./my-dpo-model --dataset questions.parquet \\
      --pairs held_out_pairs.parquet --beta 0.1

  # predictions that are there already: OUTPUT_DIR of two evaluations, or their predictions.npz
  hf-calib diagnose --reference_predictions before --predictions after

OUTPUT_DIR then holds report.md, results.json (flat: the aligned model's measures, those of the base as reference/..., the
differences as change/..., each with its interval) and figures: reliability, confidence (before and after) and, where the
prompt shows the options, positions. A run that was cut off goes on where it stopped.
"""


@dataclass
class DiagnoseArguments(PredictionArguments):
    """What is compared, on what, and where the report goes."""

    reference: str | None = field(default=None, metadata={"help": "Model before alignment: a folder or a Hub name."})
    model: str | None = field(default=None, metadata={"help": "Model or adapter after alignment."})
    dataset: str | None = field(
        default=None, metadata={"help": "Questions: a parquet, jsonl or csv file, a folder, or a name on the Hub."}
    )
    reference_predictions: str | None = field(
        default=None, metadata={"help": "Instead of the base model: OUTPUT_DIR of its evaluation, or predictions.npz."}
    )
    predictions: str | None = field(
        default=None,
        metadata={"help": "Instead of the aligned model: OUTPUT_DIR of its evaluation, or predictions.npz."},
    )
    output_dir: str = field(default="diagnosis", metadata={"help": "Folder of the report."})
    order_limit: int = field(
        default=500, metadata={"help": "Ask so many questions in every order of their options; 0 leaves it out."}
    )
    pairs: str | None = field(default=None, metadata={"help": "Preference pairs, as TRL's DPOTrainer takes them."})
    pairs_limit: int = field(default=1000, metadata={"help": "Score so many pairs at most, drawn by --seed."})
    beta: float = field(default=0.1, metadata={"help": "The beta that the model was aligned with, for --pairs."})

    def __post_init__(self):
        super().__post_init__()
        models, predictions = (self.reference, self.model), (self.reference_predictions, self.predictions)
        if any(models) == any(predictions) or not (all(models) or all(predictions)):
            raise ValueError(
                "give --reference and --model with --dataset, or --reference_predictions and --predictions."
            )
        if all(models) and not self.dataset:
            raise ValueError("--dataset is missing: name the questions that both models are to be asked.")
        if all(predictions) and self.pairs:
            raise ValueError(
                "--pairs wants --reference and --model: predictions of questions say nothing about pairs."
            )
        if self.order_limit < 0 or self.pairs_limit < 1:
            raise ValueError("order_limit must be at least 0 and pairs_limit at least 1.")
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}.")

    @property
    def shows_options(self) -> bool:
        """Whether the prompt lists the options, so that their order can matter."""
        return self.scoring == "letter" or "{options}" in (self.prompt_template or "")


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib diagnose`: load and check questions, pairs and tokenizers; the result predicts, compares and writes."""
    usage = "{--reference MODEL --model MODEL --dataset DATASET | --reference_predictions DIR --predictions DIR}"
    (args,) = CommandParser("diagnose", DiagnoseArguments, usage, _EXAMPLES).parse(argv)
    from ..evaluation.diagnose import same_questions
    from ..evaluation.tables import check_output_dir
    from ..hub.prediction_dataset import load_predictions

    output_dir = check_output_dir(args.output_dir)
    if args.predictions:
        base, aligned = load_predictions(args.reference_predictions), load_predictions(args.predictions)
        same_questions(base, aligned)
        return lambda: _report(args, output_dir, base, aligned)

    from ..data.preference_pairs import load_pairs
    from ..inference.model_loading import load_tokenizer

    questions = args.questions(args.dataset)
    rotations = _rotations(questions, args) if args.order_limit and args.shows_options else []
    pairs = None
    if args.pairs:
        pairs = load_pairs(args.pairs, limit=args.pairs_limit, seed=args.seed, drop_invalid=args.drop_invalid)
    for model in (args.reference, args.model):
        args.check_tokenizer(load_tokenizer(model, args.revision, args.trust_remote_code), questions)

    def work() -> None:
        from ..inference.preference_scores import preference_probabilities

        # One model after the other: they need not fit in memory together.
        base = _ask(args, args.reference, output_dir / "base", questions, rotations, pairs)
        aligned = _ask(args, args.model, output_dir / "aligned", questions, rotations, pairs)
        preferences = None
        if pairs is not None:
            kept = np.isfinite(base[2]).all(axis=1) & np.isfinite(aligned[2]).all(axis=1)
            if not kept.any():
                raise ValueError("every pair is longer than the models' context (or --max_length).")
            truth = None
            if "preference_probability" in pairs.column_names:
                truth = np.array(pairs["preference_probability"])[kept]
            preferences = preference_probabilities(aligned[2][kept], base[2][kept], args.beta), truth
        orders = (base[1], aligned[1]) if rotations else None
        _report(args, output_dir, base[0], aligned[0], orders, preferences)

    return work


def _rotations(questions: Dataset, args: DiagnoseArguments) -> list[Dataset]:
    """A sample of the questions with the most frequent number of options, in all cyclic orders of these."""
    from ..data.questions import permute_options

    lengths = [len(choices) for choices in questions["choices"]]
    count = Counter(lengths).most_common(1)[0][0]
    sample = [index for index, length in enumerate(lengths) if length == count]
    if len(sample) > args.order_limit:
        sample = sorted(np.random.default_rng(args.seed).choice(sample, args.order_limit, replace=False).tolist())
    chosen = questions.select(sample)
    return [permute_options(chosen, shift) for shift in range(count)]


def _ask(
    args: DiagnoseArguments,
    name: str,
    folder: Path,
    questions: Dataset,
    rotations: list[Dataset],
    pairs: Dataset | None,
) -> tuple[OptionPredictions, list[OptionPredictions], np.ndarray | None]:
    """What one model says to the questions, to their rotations, and to the pairs."""
    from ..inference.preference_scores import score_pairs

    model, tokenizer = args.load(name)
    predictions = args.predict(model, tokenizer, questions, folder / "predictions.npz")
    orders = [
        args.predict(model, tokenizer, rotated, folder / f"order-{shift}.npz")
        for shift, rotated in enumerate(rotations)
    ]
    scores = None
    if pairs is not None:
        kept = {"output_path": folder / "pairs.npz", "resume": not args.no_resume}
        scores = score_pairs(model, tokenizer, pairs, args.batch_size, args.max_length, **kept)
    return predictions, orders, scores


def _report(
    args: DiagnoseArguments,
    output_dir: Path,
    base: OptionPredictions,
    aligned: OptionPredictions,
    orders: tuple | None = None,
    pairs: tuple | None = None,
) -> None:
    from accelerate import PartialState
    from rich.console import Console

    from ..evaluation.diagnose import changes_table, diagnose, repair_command, stages, summary, write_diagnosis
    from ..evaluation.tables import print_table

    if not PartialState().is_main_process:
        return
    results = diagnose(base, aligned, orders, pairs, alpha=args.alpha, **args.measuring)
    model = args.model or aligned.metadata.get("model") or "MODEL"
    described = {"reference": args.reference or base.metadata.get("model"), "model": model, "seed": args.seed}
    command = repair_command(results, model, aligned.metadata)
    title = f"What alignment did to {Path(model).name}"
    report = write_diagnosis(output_dir, base, aligned, {**described, **results}, title, command, **args.measuring)
    print_table(stages(results), title)
    Console(width=max(Console().width, 140)).print(changes_table(results))
    print(summary(results))
    if "order/n" in results:
        print(
            f"order of the options: {results['order/flip_rate']:.1%} of the answers depend on it "
            f"({results['order/reference/flip_rate']:.1%} before)"
        )
    if "pairs/n" in results:
        print(f"pairs: {results['pairs/saturation']:.1%} saturated, ECE {results['pairs/ece']:.3f}")
    print(f"{results['regime']}: {results['explanation']}")
    print(f"recommended: {command}\nreport: {report}")
