"""Arguments of `hf-calib evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .arguments import PredictionArguments, RegimeArguments
from .served_arguments import ServedArguments


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..served.client import ServedModel


@dataclass(kw_only=True)
class ShortAnswerArguments:
    """Arguments of evaluations of written answers."""

    help_group = "short answers"

    confidence: list[str] | None = field(
        default=None,
        metadata={
            "help": "Let the model write its answers, also to option questions, whose options it then does not see. "
            "Confidences: likelihood, sequence_likelihood, agreement, p_true (default: all but the second, for "
            "questions without options)."
        },
    )
    max_new_tokens: int = field(default=32, metadata={"help": "Largest number of tokens of an answer."})
    num_samples: int = field(default=10, metadata={"help": "Number of samples of a question, for agreement."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of these samples."})
    grader: str | None = field(
        default=None,
        metadata={
            "help": "Function module:function that gets an answer and the accepted texts and tells whether the answer "
            "is right (default: exact match after normalisation)."
        },
    )


@dataclass
class EvaluateArguments(ServedArguments, ShortAnswerArguments, RegimeArguments, PredictionArguments):
    """Arguments of `hf-calib evaluate`."""

    model: str = field(
        metadata={
            "help": "Model or adapter: a local folder or a name on the Hub; with --endpoint its name on the server."
        }
    )
    dataset: str = field(
        metadata={"help": "Questions: a parquet, csv or json(l) file, a folder, or a name on the Hub."}
    )
    output_dir: str = field(default="evaluation", metadata={"help": "Folder of results, predictions and diagram."})

    def load_asked(self) -> tuple[PreTrainedModel | ServedModel, PreTrainedTokenizerBase | None]:
        """The model, loaded here or served, and its tokenizer, if it is here."""
        if self.endpoint is None:
            return self.load(self.model)
        return self.served_model(self.model), self.served_tokenizer()
