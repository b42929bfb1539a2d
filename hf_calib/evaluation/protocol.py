"""The protocol of an evaluation, as recorded in its results.json, so that it can be repeated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..data.layouts import digest
from ..data.prompts import ANSWER_TEMPLATE, DEFAULT_TEMPLATES, PromptFormat
from .asking import ask
from .tables import evaluation_results


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data.grading import Grader
    from ..inference.answer_options import AnswerOptions
    from ..inference.predictions import OptionPredictions
    from ..served.client import ServedModel

# Fields that only evaluations of written answers state.
_OF_ANSWERS = ("answer_confidence", "max_new_tokens", "num_samples", "temperature", "grader")


@dataclass(kw_only=True)
class EvaluationProtocol:
    """
    Everything that the results of an evaluation depend on, except the model.

    Args:
        dataset (`str`), dataset_config (`str`, *optional*), split (`str`, *optional*):
            The questions: a data set on the Hub, a file or a folder.
        columns, answers_from:
            How the questions are read; see [`~hf_calib.data.columns.ColumnArguments`].
        limit (`int`, *optional*), seed (`int`, *optional*, defaults to `0`):
            Largest number of questions, and the seed of their draw and of the intervals.
        drop_invalid (`bool`, *optional*, defaults to `False`), drop_too_long (`bool`, *optional*, defaults to
        `False`):
            Whether invalid questions, and those longer than `max_length`, are left out.
        max_length (`int`, *optional*):
            Largest number of tokens of a prompt with one option.
        scoring, option_normalization, prompt_template, use_chat_template, system_prompt:
            How questions are written and scored; see [`~hf_calib.data.prompts.PromptArguments`].
        n_bins, binning, n_bootstrap, alpha:
            How predictions are measured; see [`~hf_calib.evaluation.evaluate.evaluate_probabilities`].
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights during prediction.
        answer_confidence (`str`, *optional*):
            Confidence of written answers that is measured; see
            [`~hf_calib.inference.answer_options.AnswerOptions`]. By default options are scored. `prompt_template`
            is then that of the answer, and `scoring` that of P(True).
        max_new_tokens, num_samples, temperature:
            How answers are written and sampled; see the same.
        grader (`str`, *optional*):
            Function that graded the answers, as `module:function`.
    """

    dataset: str
    dataset_config: str | None = None
    split: str | None = None
    columns: str | None = None
    answers_from: int | None = None
    limit: int | None = None
    seed: int = 0
    drop_invalid: bool = False
    drop_too_long: bool = False
    max_length: int | None = None
    scoring: str = "letter"
    option_normalization: str = "sum"
    prompt_template: str | None = None
    use_chat_template: bool | None = None
    system_prompt: str | None = None
    n_bins: int = 10
    binning: str = "equal_width"
    n_bootstrap: int = 1000
    alpha: float = 0.05
    dtype: str = "auto"
    answer_confidence: str | None = None
    max_new_tokens: int = 32
    num_samples: int = 10
    temperature: float = 1.0
    grader: str | None = None

    @classmethod
    def of(cls, source: Any) -> EvaluationProtocol:
        """
        Read the protocol from the arguments of a command, or from a results.json.

        Args:
            source (`Mapping` or an object with such attributes):
                Values by name; missing ones have their defaults.
        """
        found = source if isinstance(source, Mapping) else vars(source)
        known = {field.name: found[field.name] for field in fields(cls) if field.name in found}
        return cls(**{"dataset": "", **known})

    def statement(self, predictions: OptionPredictions, tokenizer: PreTrainedTokenizerBase | None = None) -> dict:
        """
        Describe the protocol for a results.json.

        Defaults of the prompt are replaced by their values. `questions` and `weights` are digests, to check that an
        evaluation is repeated with the same questions and weights.
        """
        default = ANSWER_TEMPLATE if self.answer_confidence else DEFAULT_TEMPLATES[self.scoring]
        stated = {**asdict(self), "prompt_template": self.prompt_template or default}
        if not self.answer_confidence:
            stated = {name: value for name, value in stated.items() if name not in _OF_ANSWERS}
        if tokenizer is not None:
            stated["use_chat_template"] = self.prompt_format().uses_chat_template(tokenizer)
        stated["questions"] = questions_digest(predictions.ids, predictions.labels)
        stated["weights"] = predictions.metadata.get("fingerprint", {}).get("weights")
        return stated

    def prompt_format(self) -> PromptFormat:
        """How a question is written: with its options, or to be answered in free text."""
        rest = (self.use_chat_template, self.system_prompt)
        if self.answer_confidence:
            return PromptFormat("text", self.prompt_template or ANSWER_TEMPLATE, *rest)
        return PromptFormat(self.scoring, self.prompt_template, *rest)

    def answer_options(self, confidences: Sequence[str], grader: Grader | None = None, **more) -> AnswerOptions:
        """
        Options of [`~hf_calib.predict_answers`].

        Args:
            confidences (`Sequence[str]`):
                Confidences to compute.
            grader (`Callable`, *optional*):
                The function of `grader`, imported. A name in a results.json is not imported, because it is code.
            more:
                Further options, e.g. `batch_size`.

        Raises:
            `ValueError`: if a function graded the answers and is not given.
        """
        from ..inference.answer_options import AnswerOptions

        if self.grader and grader is None:
            raise ValueError(
                f"the answers were graded by the function {self.grader}, which a results.json cannot bring along: run "
                "`hf-calib evaluate` with --grader."
            )
        names = ("max_new_tokens", "num_samples", "temperature", "seed", "max_length", "drop_too_long")
        return AnswerOptions(
            confidences,
            replace(self, answer_confidence=confidences[0]).prompt_format(),
            PromptFormat(self.scoring, None, self.use_chat_template, self.system_prompt),
            grader=grader,
            **{name: getattr(self, name) for name in names},
            **more,
        )

    def load_questions(self, dataset: str | None = None) -> Dataset:
        """
        Load the questions of the protocol, or from another source.

        Args:
            dataset (`str`, *optional*):
                File, folder, or data set on the Hub. Defaults to the one of the protocol, which must then be on the
                Hub: a path may be of another machine.

        Raises:
            `ValueError`: if no data set is given and that of the protocol is not on the Hub.
        """
        if dataset is None and not is_hub_id(self.dataset):
            raise ValueError(
                f"the questions of the evaluation are {self.dataset!r}, which is not a data set on the Hub: pass the "
                "file with --dataset."
            )
        from ..data.questions import load_questions
        from ..data.short_answers import load_short_questions

        load = load_short_questions if self.answer_confidence else load_questions
        same = dataset is None
        return load(
            self.dataset if same else dataset,
            self.dataset_config if same else None,
            self.split if same or not Path(dataset).is_file() else None,
            limit=self.limit,
            seed=self.seed,
            drop_invalid=self.drop_invalid,
            columns=self.columns,
            answers_from=self.answers_from,
        )

    def predict(
        self,
        model: PreTrainedModel | ServedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        questions: Dataset,
        batch_size: int = 8,
        output_path: Path | None = None,
        **options,
    ) -> OptionPredictions:
        """Predict with the options of the protocol; `options` are further ones of [`PredictionOptions`]."""
        from ..inference.predict import PredictionOptions

        if self.answer_confidence:
            folder = None if output_path is None else Path(output_path).parent
            options |= {"batch_size": batch_size, "output_dir": folder}
            given = self.answer_options([self.answer_confidence], **options)
            return ask(model, tokenizer, questions, given).predictions[self.answer_confidence]
        names = ("option_normalization", "max_length", "drop_too_long")
        options |= {"batch_size": batch_size, "output_path": output_path, "prompt_format": self.prompt_format()}
        given = PredictionOptions(**{name: getattr(self, name) for name in names}, **options)
        return ask(model, tokenizer, questions, given)

    def measure(self, predictions: OptionPredictions, reference: OptionPredictions | None = None, **more) -> dict:
        """Compute all measures with the options of the protocol, for each subject too if there are several."""
        options = {name: getattr(self, name) for name in ("n_bins", "binning", "n_bootstrap", "seed", "alpha")}
        if predictions.subjects is not None and len(set(predictions.subjects.tolist())) > 1:
            options["groups"] = predictions.subjects
        return evaluation_results(predictions, reference, **options, **more)

    @property
    def drawing(self) -> dict[str, Any]:
        """Options of a reliability diagram with the same measures."""
        return {name: getattr(self, name) for name in ("n_bins", "binning", "n_bootstrap", "seed")}


def questions_digest(ids, labels) -> str:
    """Digest of a set of questions and their answers, independent of their order."""
    return digest(
        *sorted(f"{name}\x1e{label}" for name, label in zip(np.asarray(ids), np.asarray(labels), strict=True))
    )


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be a data set on the Hub, with or without a configuration, and is not a file."""
    if not name or re.search(r"\s", name) or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(name.partition(":")[0])
    except HFValidationError:
        return False
    # "test.parquet" would be a valid name of a repository.
    return Path(name).suffix not in (".parquet", ".jsonl", ".json", ".csv", ".tsv")
