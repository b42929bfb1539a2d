"""Arguments that several commands share: questions, model, prompt and measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.columns import ColumnArguments
from ..data.prompts import PromptArguments


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..inference.predictions import OptionPredictions


@dataclass(kw_only=True)
class MeasuringArguments:
    """Arguments of the commands that compute measures."""

    seed: int = field(default=0, metadata={"help": "Seed of the random draws: questions, intervals, folds."})
    alpha: float = field(default=0.05, metadata={"help": "Significance level of the regime test, in (0, 0.5)."})
    n_bins: int = field(default=10, metadata={"help": "Number of bins of the binned measures."})
    binning: str = field(
        default="equal_width", metadata={"help": "Kind of bins.", "choices": ["equal_width", "equal_mass"]}
    )
    n_bootstrap: int = field(
        default=1000, metadata={"help": "Bootstrap draws of the interval and of the noise floor."}
    )

    def __post_init__(self):
        for name in ("n_bins", "n_bootstrap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must lie in (0, 0.5), got {self.alpha}.")

    @property
    def measuring(self) -> dict[str, Any]:
        """Options of the measures and of the reliability diagram."""
        return {name: getattr(self, name) for name in ("n_bins", "binning", "n_bootstrap", "seed")}


@dataclass(kw_only=True)
class RegimeArguments:
    """Arguments that decide the regime, for classes that inherit from [`MeasuringArguments`], too."""

    reference_predictions: str | None = field(
        default=None,
        metadata={
            "help": "Saved predictions of the model before alignment for the same questions: OUTPUT_DIR of evaluate, "
            "predictions.npz, or a file that `hf-calib measure` reads. They decide the regime."
        },
    )
    critical_accuracy: float | None = field(
        default=None, metadata={"help": "Critical accuracy in (0, 1), if it is known. It decides the regime."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.critical_accuracy is not None and not 0 < self.critical_accuracy < 1:
            raise ValueError(f"critical_accuracy must lie in (0, 1), got {self.critical_accuracy}.")


@dataclass(kw_only=True)
class QuestionArguments(ColumnArguments):
    """Arguments of the commands that run a model on option questions: the questions, the model, how it is run."""

    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set on the Hub."})
    split: str = field(default="test", metadata={"help": "Split of the data set."})
    limit: int | None = field(default=None, metadata={"help": "Number of questions, drawn by --seed (default: all)."})
    drop_invalid: bool = field(
        default=False, metadata={"help": "Leave out malformed questions and pairs instead of stopping."}
    )
    no_resume: bool = field(
        default=False, metadata={"help": "Start over instead of resuming from what --output_dir holds."}
    )
    batch_size: int = field(default=8, metadata={"help": "Questions per forward pass; more if they are short."})
    max_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens of a question with one option (default: the model's)."}
    )
    drop_too_long: bool = field(default=False, metadata={"help": "Leave out longer questions instead of stopping."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation; text scoring needs 'sdpa' or 'eager'."}
    )
    revision: str = field(default="main", metadata={"help": "Revision of the model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})

    def check_values(self) -> None:
        """Raise `ValueError` for a value that is not allowed."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}.")

    def questions(self, dataset: str, split: str | None = None, labelled: bool = True, records=None) -> Dataset:
        """Load and check questions, or those of `records`. The class that inherits has the `seed` of their draw."""
        from ..data.questions import load_questions

        return load_questions(
            dataset,
            self.dataset_config,
            split or self.split,
            limit=self.limit,
            seed=self.seed,
            drop_invalid=self.drop_invalid,
            labelled=labelled,
            records=records,
            **self.reading,
        )

    @property
    def loading(self) -> dict[str, Any]:
        """Options of [`~hf_calib.inference.model_loading.load_model`]."""
        names = ("dtype", "attn_implementation", "revision", "trust_remote_code")
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True)
class PredictionArguments(PromptArguments, QuestionArguments, MeasuringArguments):
    """Arguments of the commands that score option questions with a model and measure the predictions."""

    def __post_init__(self):
        super().__post_init__()
        self.check_values()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, questions: Dataset) -> None:
        """Encode the first question: fails if the letters of the options are not single tokens."""
        from ..inference.encoding import OptionEncoder

        OptionEncoder(tokenizer, self.prompt_format()).encode(questions[0])

    def load(self, model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load a model with its tokenizer."""
        from ..inference.model_loading import load_model
        from ..training.library_warnings import ignore_library_warnings

        ignore_library_warnings()
        return load_model(model, **self.loading)

    def predict(self, model, tokenizer, questions: Dataset, output_path: Path, **options) -> OptionPredictions:
        """Score questions, resuming from `output_path`. `options` are those of `predict_options`."""
        from ..evaluation.protocol import EvaluationProtocol

        protocol = EvaluationProtocol.of(self)
        return protocol.predict(
            model, tokenizer, questions, self.batch_size, output_path, resume=not self.no_resume, **options
        )
