"""`hf-calib evaluate`: a model and questions in; measures, regime and diagrams out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.prompts import PromptArguments
from .parser import command_parser


DESCRIPTION = "Measure the calibration of a model on option questions."

_EXAMPLES = """\
examples:
  # letters of the options, on a local file with the columns question, choices, answer
  hf-calib evaluate --model ./my-dpo-model --dataset questions.parquet --output_dir before

  # texts of the options, 1,000 questions of ARC-Easy from the Hub
  hf-calib evaluate --model HuggingFaceTB/SmolLM2-135M-Instruct --dataset allenai/ai2_arc --dataset_config ARC-Easy \\
      --scoring text --limit 1000 --output_dir before

  # the regime, judged by the model before its alignment
  hf-calib evaluate --model ./my-base-model --dataset questions.parquet --output_dir base
  hf-calib evaluate --model ./my-dpo-model --dataset questions.parquet --output_dir aligned --reference base

  # on several GPUs
  accelerate launch --module hf_calib.cli evaluate --model ./my-dpo-model --dataset questions.parquet

OUTPUT_DIR then holds results.json (every measure, flat), predictions.npz (option_logits, probabilities, labels, ids, ...)
and reliability.png / .svg; where the questions have subjects, results.json also has the measures of each, and groups.png /
.svg shows them. A run that was cut off goes on where it stopped.
"""


@dataclass
class EvaluateArguments(PromptArguments):
    """What is evaluated, how, and where the results go."""

    model: str = field(metadata={"help": "Model or adapter: a local folder or a name on the Hub."})
    dataset: str = field(metadata={"help": "Questions: a parquet, jsonl or csv file, a folder, or a name on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set on the Hub."})
    split: str = field(default="test", metadata={"help": "Split of a data set that has several."})
    limit: int | None = field(default=None, metadata={"help": "Evaluate on so many questions, drawn by --seed."})
    seed: int = field(default=0, metadata={"help": "Seed of the draw of questions, the interval and the noise floor."})
    drop_invalid: bool = field(default=False, metadata={"help": "Leave out malformed questions instead of stopping."})
    output_dir: str = field(default="evaluation", metadata={"help": "Folder of results, predictions and diagram."})
    resume: bool = field(
        default=True, metadata={"help": "Go on from predictions already in --output_dir; 'false' makes them anew."}
    )
    batch_size: int = field(default=8, metadata={"help": "Questions of the longest kind in a forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens of a question with one option."})
    drop_too_long: bool = field(default=False, metadata={"help": "Leave out longer questions instead of stopping."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "'sdpa' or 'eager' for text scoring."})
    revision: str = field(default="main", metadata={"help": "Revision of the model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that the model's repository brings."})
    reference: str | None = field(
        default=None,
        metadata={
            "help": "Predictions of another model for the same questions, such as the one before its alignment: its "
            "OUTPUT_DIR, or predictions.npz. The regime is then judged by them."
        },
    )
    critical_accuracy: float | None = field(
        default=None, metadata={"help": "The critical accuracy, where it is known: decides the regime."}
    )
    alpha: float = field(default=0.05, metadata={"help": "Significance level of the regime test."})
    n_bins: int = field(default=10, metadata={"help": "Number of bins of the binned measures."})
    binning: str = field(
        default="equal_width", metadata={"help": "Kind of bins.", "choices": ["equal_width", "equal_mass"]}
    )
    n_bootstrap: int = field(default=1000, metadata={"help": "Draws behind the interval and behind the noise floor."})

    def __post_init__(self):
        for name in ("batch_size", "n_bins", "n_bootstrap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.critical_accuracy is not None and not 0 < self.critical_accuracy < 1:
            raise ValueError(f"critical_accuracy must lie in (0, 1), got {self.critical_accuracy}.")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must lie in (0, 0.5), got {self.alpha}.")


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """`hf-calib evaluate`: load and check questions and model; the result predicts, prints and writes."""
    (args,) = command_parser(
        "evaluate", EvaluateArguments, DESCRIPTION, "--model MODEL --dataset DATASET", _EXAMPLES
    ).parse_args_and_config(argv)
    from ..data.mcq import load_questions
    from ..loading import load_model
    from ..options import OptionEncoder
    from ..predict import predict_options
    from ..predictions import OptionPredictions
    from ..report import check_output_dir, evaluation_results, print_groups, print_table, write_evaluation

    output_dir = check_output_dir(args.output_dir)
    prompt_format = args.prompt_format()
    questions = load_questions(
        args.dataset, args.dataset_config, args.split, limit=args.limit, seed=args.seed, drop_invalid=args.drop_invalid
    )
    reference = None
    if args.reference:
        path = Path(args.reference)
        reference = OptionPredictions.load(path / "predictions.npz" if path.is_dir() else path)
    model, tokenizer = load_model(
        args.model,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )

    # Letters that are no tokens of their own show at the first question: a wrong call, not a failure while working.
    OptionEncoder(tokenizer, prompt_format).encode(questions[0])

    def evaluate() -> None:
        from accelerate import PartialState

        predictions = predict_options(
            model,
            tokenizer,
            questions,
            prompt_format=prompt_format,
            normalization=args.option_normalization,
            batch_size=args.batch_size,
            max_length=args.max_length,
            drop_too_long=args.drop_too_long,
            output_path=output_dir / "predictions.npz",
            resume=args.resume,
        )
        if not PartialState().is_main_process:
            return
        described = {"model": args.model, "dataset": args.dataset, "scoring": args.scoring, "seed": args.seed}
        names = ("critical_accuracy", "alpha", "n_bins", "binning", "n_bootstrap", "seed")
        options = {name: getattr(args, name) for name in names}
        if predictions.subjects is not None and len(set(predictions.subjects.tolist())) > 1:
            options["groups"] = predictions.subjects
        results = evaluation_results(predictions, reference, **options)
        diagram = {name: getattr(args, name) for name in ("n_bins", "binning", "n_bootstrap", "seed")}
        title = Path(args.model).name
        write_evaluation(output_dir, predictions, {**described, **results}, title, **diagram)
        print_table([{"stage": title, **results}])
        if "n_groups" in results:
            print_groups(results)
        print(f"{results['regime']}: {results['explanation']}")
        print(f"recommended: {results['recommended_method']}    results: {output_dir}")

    return evaluate
