"""`hf-calib diagnose`: compare a model before and after alignment, and after a repair."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .arguments import PredictionArguments
from .parser import CommandParser
from .reading import ReadingArguments


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..evaluation.alignment import AlignmentMeter
    from ..inference.predictions import OptionPredictions

REFERENCE, ALIGNED, REPAIRED = "reference", "aligned", "repaired"

_EXAMPLES = """\
examples:
  # two checkpoints, scored by the letters of the options
  hf-calib diagnose --reference ./my-sft-model --model ./my-dpo-model --dataset questions.parquet

  # with held-out preference pairs; beta and loss are those of the alignment
  hf-calib diagnose --reference ./my-sft-model --model ./my-ipo-model --dataset questions.parquet \\
      --pairs held_out_pairs.parquet --beta 0.1 --loss_type ipo

  # after a repair: calibration, and how much of the alignment is kept
  hf-calib diagnose --reference ./my-sft-model --model ./my-dpo-model --repaired restored/model \\
      --dataset questions.parquet --pairs held_out_pairs.parquet --texts texts.txt

  # saved predictions: output folders of two evaluations, or their predictions.npz
  hf-calib diagnose --reference_predictions before --predictions after

  # predictions of another tool; `hf-calib measure --help` lists formats and columns
  hf-calib diagnose --reference_predictions sft.csv --predictions dpo.csv --columns probabilities=p_yes,p_no,label=gold

writes to OUTPUT_DIR:
  report.md              measures before and after, differences with intervals, command of the recommended repair
  results.json           flat: the aligned model's measures; those of the reference as reference/...; differences as
                         change/...; order/..., pairs/..., repaired/... and alignment/... if measured
  alignment.json         with --repaired, --prompts or --texts: the alignment report, for `hf-calib push --alignment`
  reliability, confidence, positions (.png, .svg)
  reference/, aligned/, repaired/   predictions and texts of each model, from which an interrupted run resumes
"""


@dataclass
class DiagnoseArguments(ReadingArguments, PredictionArguments):
    """Arguments of `hf-calib diagnose`."""

    needed = ("reference", "model", "dataset", "reference_predictions", "predictions")

    reference: str | None = field(
        default=None, metadata={"help": "Model before alignment: a folder or a name on the Hub."}
    )
    model: str | None = field(default=None, metadata={"help": "Model or adapter after alignment."})
    repaired: str | None = field(
        default=None, metadata={"help": "Model or adapter after a repair: shows how much of the alignment it keeps."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Questions: a parquet, csv or json(l) file, a folder, or a name on the Hub."}
    )
    reference_predictions: str | None = field(
        default=None, metadata={"help": "Saved predictions of the model before alignment, instead of --reference."}
    )
    predictions: str | None = field(
        default=None,
        metadata={
            "help": "Saved predictions of the aligned model, instead of --model: as of evaluate, or a file or folder "
            "that `hf-calib measure` reads."
        },
    )
    output_dir: str = field(default="diagnosis", metadata={"help": "Folder of the report."})
    columns: str | None = field(
        default=None, metadata={"help": "Names of columns: of questions as in evaluate, of predictions as in measure."}
    )
    pairs: str | None = field(default=None, metadata={"help": "Preference pairs in the format of TRL's DPOTrainer."})
    pairs_limit: int = field(default=1000, metadata={"help": "Maximum number of pairs, drawn by --seed."})
    beta: float | None = field(
        default=None,
        metadata={"help": "For --pairs: beta of the alignment (default: as in MODEL/training.json, or 0.1)."},
    )
    loss_type: str | None = field(
        default=None,
        metadata={
            "help": "For --pairs: TRL's loss_type of the alignment, or cdpo (default: as in MODEL/training.json, or "
            "sigmoid). It decides which probability a margin implies."
        },
    )
    label_smoothing: float | None = field(
        default=None,
        metadata={"help": "For --pairs: label_smoothing of the alignment (default: as in MODEL/training.json, or 0)."},
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "Prompts for the alignment report: a txt file with one on each line, or a data set with a column "
            "prompt or messages (default: 64 chat prompts of the package)."
        },
    )
    prompts_limit: int = field(default=64, metadata={"help": "Maximum number of prompts, drawn by --seed."})
    max_new_tokens: int = field(default=128, metadata={"help": "Maximum tokens of a text written after a prompt."})
    texts: str | None = field(
        default=None,
        metadata={"help": "Texts for a perplexity: a txt file with paragraphs, or a data set with a column text."},
    )
    texts_limit: int = field(default=200, metadata={"help": "Maximum number of texts, drawn by --seed."})
    order_limit: int = field(
        default=500,
        metadata={"help": "Number of questions scored with their options in every cyclic order; 0 scores none."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.model and self.option_normalization not in (None, "sum", "mean"):
            raise ValueError(f"option_normalization {self.option_normalization} is for --predictions of other tools.")
        if self.model:
            self.option_normalization = self.option_normalization or "sum"
        models, predictions = (self.reference, self.model), (self.reference_predictions, self.predictions)
        if any(models) == any(predictions) or not (all(models) or all(predictions)):
            raise ValueError(
                "give --reference and --model with --dataset, or --reference_predictions and --predictions."
            )
        if all(models) and not self.dataset:
            raise ValueError("--dataset is missing: name the questions to evaluate both models on.")
        if all(predictions) and self.pairs:
            raise ValueError("--pairs needs --reference and --model: saved predictions hold no scores of pairs.")
        if all(predictions) and self.measures_alignment:
            raise ValueError("--repaired, --prompts and --texts need --reference and --model: the models are run.")
        if self.order_limit < 0:
            raise ValueError(f"order_limit must be at least 0, got {self.order_limit}.")
        for name in ("pairs_limit", "prompts_limit", "texts_limit", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.beta is not None and not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}.")

    @property
    def measures_alignment(self) -> bool:
        """Whether the alignment report is made."""
        return bool(self.repaired or self.prompts or self.texts)

    @property
    def shows_options(self) -> bool:
        """Whether the prompt lists the options, so that their order can matter."""
        return self.scoring == "letter" or "{options}" in (self.prompt_template or "")


@dataclass
class ModelPredictions:
    """
    Predictions of one model.

    Attributes:
        predictions ([`OptionPredictions`]): Those of the questions.
        orders (`list[OptionPredictions]`): Those of questions with their options in every cyclic order; may be empty.
        pairs (`np.ndarray`, *optional*): Log-likelihoods of the chosen and the rejected answers, `(N, 2)`.
    """

    predictions: OptionPredictions
    orders: list[OptionPredictions] = field(default_factory=list)
    pairs: np.ndarray | None = None


@dataclass
class Inputs:
    """
    What the models are evaluated on.

    Attributes:
        questions (`Dataset`): Option questions.
        rotations (`list[Dataset]`): Some of them in every cyclic order of the options; may be empty.
        pairs (`Dataset`, *optional*): Preference pairs.
        meter ([`AlignmentMeter`], *optional*): Measurement of the alignment.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): That of the aligned model.
    """

    questions: Dataset
    rotations: list[Dataset] = field(default_factory=list)
    pairs: Dataset | None = None
    meter: AlignmentMeter | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Load and check questions, pairs and tokenizers; the result predicts, compares and writes."""
    usage = "{--reference MODEL --model MODEL --dataset DATASET | --reference_predictions DIR --predictions DIR}"
    (args,) = CommandParser("diagnose", DiagnoseArguments, usage, _EXAMPLES).parse(argv)
    from ..evaluation.diagnose import same_questions
    from ..evaluation.tables import check_output_dir
    from ..hub.saved_predictions import load_option_predictions

    if args.predictions:
        reference, aligned = (
            load_option_predictions(path, **args.file_reading)
            for path in (args.reference_predictions, args.predictions)
        )
        same_questions(reference, aligned)
        check_output_dir(args.output_dir, args.reference_predictions, args.predictions)
        return lambda: _report(args, {REFERENCE: ModelPredictions(reference), ALIGNED: ModelPredictions(aligned)})

    inputs = _inputs(args)
    check_output_dir(args.output_dir)
    # The meter needs the aligned model first.
    models = {ALIGNED: args.model, REFERENCE: args.reference, **({REPAIRED: args.repaired} if args.repaired else {})}

    def work() -> None:
        # One model after the other: they need not fit in memory together.
        answers = {role: _answers(args, name, role, inputs) for role, name in models.items()}
        _report(args, answers, inputs)

    return work


def _inputs(args: DiagnoseArguments) -> Inputs:
    """Load and check questions, pairs, prompts and texts, with the tokenizers of all models."""
    from ..data.preference_pairs import load_pairs
    from ..evaluation.alignment import AlignmentMeter
    from ..inference.model_loading import check_same_vocabulary, load_tokenizer
    from ..losses.preference_links import preference_link

    inputs = Inputs(args.questions(args.dataset))
    if args.order_limit and args.shows_options:
        inputs.rotations = _rotations(inputs.questions, args)
    if args.pairs:
        _set_loss(args)
        preference_link(args.loss_type.split(", "), args.label_smoothing)  # raises where there is none
        inputs.pairs = load_pairs(args.pairs, limit=args.pairs_limit, seed=args.seed, drop_invalid=args.drop_invalid)
    names = filter(None, (args.model, args.reference, args.repaired))
    tokenizers = {name: load_tokenizer(name, args.revision, args.trust_remote_code) for name in names}
    for tokenizer in tokenizers.values():
        args.check_tokenizer(tokenizer, inputs.questions)
    inputs.tokenizer = tokenizers[args.model]
    if args.measures_alignment:
        check_same_vocabulary(tokenizers)
        inputs.meter = AlignmentMeter(
            inputs.tokenizer,
            inputs.pairs,
            args.prompts,
            args.texts,
            max_new_tokens=args.max_new_tokens,
            prompts_limit=args.prompts_limit,
            texts_limit=args.texts_limit,
            batch_size=args.batch_size,
            max_length=args.max_length,
            n_bootstrap=args.n_bootstrap,
            seed=args.seed,
        )
    return inputs


def _set_loss(args: DiagnoseArguments) -> None:
    """Set beta, loss and label smoothing where they are not given: those of the training, or TRL's defaults."""
    from ..hub.publish import TRAINING_RECORD

    record = Path(args.model) / TRAINING_RECORD
    known = json.loads(record.read_text(encoding="utf-8")).get("settings", {}) if record.is_file() else {}
    for name, default in (("beta", 0.1), ("loss_type", "sigmoid"), ("label_smoothing", 0.0)):
        if getattr(args, name) is None:
            setattr(args, name, known.get(name, default))


def _rotations(questions: Dataset, args: DiagnoseArguments) -> list[Dataset]:
    """Sample questions with the most frequent number of options; return them in all cyclic orders of the options."""
    from ..data.questions import permute_options

    lengths = [len(choices) for choices in questions["choices"]]
    count = Counter(lengths).most_common(1)[0][0]
    sample = [index for index, length in enumerate(lengths) if length == count]
    if len(sample) > args.order_limit:
        sample = sorted(np.random.default_rng(args.seed).choice(sample, args.order_limit, replace=False).tolist())
    chosen = questions.select(sample)
    return [permute_options(chosen, shift) for shift in range(count)]


def _answers(args: DiagnoseArguments, name: str, role: str, inputs: Inputs) -> ModelPredictions:
    """Score the questions with one model, their rotations and the pairs, and measure its alignment."""
    from ..inference.preference_scores import score_pairs

    folder, resume = Path(args.output_dir) / role, not args.no_resume
    model, tokenizer = args.load(name)
    answers = ModelPredictions(args.predict(model, tokenizer, inputs.questions, folder / "predictions.npz"))
    if role != REPAIRED:
        answers.orders = [
            args.predict(model, tokenizer, rotated, folder / f"order-{shift}.npz")
            for shift, rotated in enumerate(inputs.rotations)
        ]
    if inputs.meter is not None:
        inputs.meter.measure(role, model, folder, resume)
        answers.pairs = inputs.meter.behaviours[role].pair_scores
    elif inputs.pairs is not None:
        kept = {"output_path": folder / "pairs.npz", "resume": resume}
        answers.pairs = score_pairs(model, tokenizer, inputs.pairs, args.batch_size, args.max_length, **kept)
    return answers


def _preferences(
    args: DiagnoseArguments, reference: ModelPredictions, aligned: ModelPredictions, inputs: Inputs
) -> tuple[np.ndarray, np.ndarray | None]:
    """Probability that the chosen answer is preferred: by the aligned model, and by annotators if known."""
    from ..inference.preference_scores import completion_lengths, preference_probabilities

    pairs, kept = inputs.pairs, np.isfinite(reference.pairs).all(axis=1) & np.isfinite(aligned.pairs).all(axis=1)
    if not kept.any():
        raise ValueError("every pair is longer than the models' context (or --max_length).")
    truth = None
    if "preference_probability" in pairs.column_names:
        truth = np.array(pairs["preference_probability"])[kept]
    loss = args.beta, args.loss_type.split(", "), args.label_smoothing
    lengths = completion_lengths(inputs.tokenizer, pairs.select(np.flatnonzero(kept)))
    return preference_probabilities(aligned.pairs[kept], reference.pairs[kept], *loss, lengths), truth


def _report(args: DiagnoseArguments, answers: Mapping[str, ModelPredictions], inputs: Inputs | None = None) -> None:
    """Compare the predictions, write the report and print its tables, on the main process."""
    from accelerate import PartialState

    from ..evaluation.alignment_report import ALIGNMENT
    from ..evaluation.diagnose import changes_table, diagnose, repair_command, stages, summary, write_diagnosis
    from ..evaluation.tables import print_plain, print_table, write_json

    reference, aligned = answers[REFERENCE], answers[ALIGNED]
    pairs, meter = (None, None) if inputs is None else (inputs.pairs, inputs.meter)
    preferences = None if pairs is None else _preferences(args, reference, aligned, inputs)
    if not PartialState().is_main_process:
        return
    before, after = reference.predictions, aligned.predictions
    repaired = answers[REPAIRED].predictions if REPAIRED in answers else None
    orders = (reference.orders, aligned.orders) if aligned.orders else None
    results = diagnose(before, after, orders, preferences, repaired, alpha=args.alpha, **args.measuring)
    model = args.model or after.metadata.get("model") or "MODEL"
    described = {"reference": args.reference or before.metadata.get("model"), "model": model, "seed": args.seed}
    command = repair_command(results, model, after.metadata)
    title = f"{Path(model).name} before and after alignment"
    if preferences is not None:
        described |= {f"pairs/{name}": getattr(args, name) for name in ("beta", "loss_type", "label_smoothing")}
    results = {**described, **results}
    alignment = None if meter is None else meter.report()
    if alignment is not None:
        write_json(Path(args.output_dir) / ALIGNMENT, alignment.to_dict())
        results |= {f"alignment/{key}": value for key, value in alignment.to_dict().items()}
    shown = {REFERENCE: before, ALIGNED: after, **({} if repaired is None else {REPAIRED: repaired})}
    report = write_diagnosis(args.output_dir, shown, results, title, command, **args.measuring)
    print_table(stages(results), title)
    print_plain(changes_table(results), 140)
    print(summary(results))
    if "order/n" in results:
        print(
            f"order of the options: {results['order/flip_rate']:.1%} of the answers depend on it "
            f"({results['order/reference/flip_rate']:.1%} before)"
        )
    if "pairs/n" in results:
        read = f"beta {args.beta:g}, loss_type {args.loss_type}"
        print(f"pairs ({read}): {results['pairs/saturation']:.1%} saturated, ECE {results['pairs/ece']:.3f}")
    if alignment is not None:
        alignment.print()
        print("\n".join([alignment.method(), *alignment.lines()]))
    print(f"{results['regime']}: {results['explanation']}")
    needed = "recommended" if results["ece_p_value"] < 0.05 else "if more questions show an error beyond noise"
    print(f"{needed}: {command}\nreport: {report}")
