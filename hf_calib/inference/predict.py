"""Predict the log-likelihood of every option of every question with a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..data.adapters import adapt_questions
from ..data.layouts import digest
from ..data.prompts import PromptFormat
from .encoding import IGNORE_INDEX, OptionEncoder, encode_fitting
from .model_loading import process_state
from .option_scorer import OptionScorer, pad_rows
from .predictions import OptionPredictions, npz_path
from .resumable import ResumableScores, score_features
from .run_options import RunOptions


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# A question without content (Zhao et al., arXiv 2102.09690): it shows how likely an option is by its wording alone.
CONTENT_FREE = "N/A"


@dataclass(frozen=True)
class PredictionOptions(RunOptions):
    """
    Options of [`predict_options`].

    Args:
        prompt_format ([`~hf_calib.PromptFormat`], *optional*):
            How a question is written. Defaults to the default format of `scoring`.
        option_normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            Log-likelihood of an option: sum over its tokens, or mean.
        output_path (`str` or `Path`, *optional*):
            `.npz` file to write. Until it is complete, scores are kept in the folder `<output_path>.partial`.
        votes (`bool`, *optional*, defaults to `False`):
            Also store in `votes` the likeliest option by two scores: the sum of its tokens' log-likelihoods, and their
            pointwise mutual information, which is that sum minus the sum after the question "N/A" (Holtzman et al.,
            arXiv 2104.08315). Every question is then scored twice. For [`~hf_calib.TransferredTemperature`].
        batch_size, max_length, drop_too_long, resume, progress, labelled:
            See [`~hf_calib.inference.run_options.RunOptions`].

    Raises:
        `ValueError`: for a value that is not allowed.
    """

    prompt_format: PromptFormat | None = None
    option_normalization: Literal["sum", "mean"] = "sum"
    output_path: str | Path | None = None
    votes: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.option_normalization not in ("sum", "mean"):
            raise ValueError(f"option_normalization={self.option_normalization!r}; choose 'sum' or 'mean'")

    def prompt_format_for(self, scoring: str | None) -> PromptFormat:
        """The prompt format for this scoring; the two must not contradict each other."""
        if self.prompt_format is None:
            return PromptFormat(scoring=scoring or "letter")
        if scoring not in (None, self.prompt_format.scoring):
            raise ValueError(
                f"scoring={scoring!r} contradicts prompt_format.scoring={self.prompt_format.scoring!r}; drop one"
            )
        return self.prompt_format


def predict_options(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    scoring: Literal["letter", "text"] | None = None,
    options: PredictionOptions | None = None,
    **changes,
) -> OptionPredictions:
    """
    Score the options of every question with one forward pass each.

    Under `accelerate launch` the questions are divided among the processes, and every process returns all of them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, on the device where it is to run.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset (`Dataset`):
            Questions in any layout that [`~hf_calib.data.questions.adapt_questions`] knows.
        scoring (`"letter"` or `"text"`, *optional*):
            Whether the letters or the texts of the options are scored. Defaults to that of `prompt_format`, else
            `"letter"`.
        options ([`PredictionOptions`], *optional*):
            All other options.
        changes:
            Fields of [`PredictionOptions`] that replace those of `options`, e.g. `batch_size=32`.

    Returns:
        [`OptionPredictions`]: in the order of the data set.

    Raises:
        `ValueError`: for a malformed question, letters that are not single tokens, scores of another model or other
            questions at `output_path`, NaN in the logits. All but the last are raised before the model runs.
        [`~hf_calib.inference.encoding.QuestionTooLongError`]: for a question longer than `max_length`.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> questions = Dataset.from_list([{"question": "Ice is", "choices": ["hot", "cold"], "answer": 1}])
    >>> predictions = predict_options(model, tokenizer, questions, scoring="text", batch_size=32)  # doctest: +SKIP

    ```
    """
    options = replace(options or PredictionOptions(), **changes)
    prompt_format = options.prompt_format_for(scoring)
    questions = adapt_questions(dataset, labelled=options.labelled)
    encoder = OptionEncoder(tokenizer, prompt_format, options.max_length or context_length(model))
    kept, features = encode_fitting(encoder, questions, options.drop_too_long)
    questions = questions.select(kept) if len(kept) < len(questions) else questions
    single_tokens = all(len(feature["option_tokens"]) == feature["num_options"] for feature in features)
    if options.votes:
        features += [encoder.encode({**row, "question": CONTENT_FREE}) for row in questions]
    fingerprint = _fingerprint(model, questions, features, options.option_normalization)
    metadata = {
        "model": model_name(model),
        "prompt_format": asdict(prompt_format),
        "prompt_digest": prompt_format.digest(tokenizer),
        "option_normalization": options.option_normalization,
        # Only then can a temperature of the options be folded into the model.
        "single_tokens": single_tokens,
        "too_long": len(dataset) - len(kept),
        "fingerprint": fingerprint,
    }
    path = None if options.output_path is None else npz_path(options.output_path)
    results = ResumableScores(path, fingerprint, options.resume, process_state())
    if results.finished is not None:
        return _with_columns(results, questions, metadata["too_long"])
    _score(model, tokenizer, questions, features, results, options)
    rows = results.gather()
    predictions = collect_predictions(questions, rows[: len(questions)], metadata)
    if options.votes:
        predictions.votes, metadata["votes"] = _votes(rows, features, options.option_normalization), ["sum", "pmi"]
    results.finish(predictions)
    return predictions


def _with_columns(results: ResumableScores, questions: Dataset, too_long: int) -> OptionPredictions:
    """Predictions of an earlier run with the subjects and targets of these questions, which no score depends on."""
    saved = results.finished
    columns = collect_predictions(questions, saved.option_logits, {})
    changed = [
        name
        for name in ("subjects", "target_probabilities")
        if not np.array_equal(getattr(saved, name), getattr(columns, name))
    ]
    if not changed and saved.metadata.get("too_long") == too_long:
        return saved
    if "subjects" in changed and "calibrator_digest" in saved.metadata:
        raise ValueError(
            f"{results.path} holds calibrated predictions for questions with other subjects; choose another path, or "
            "overwrite it with resume=False (`--no_resume`)"
        )
    metadata = {**saved.metadata, "too_long": too_long}
    found = replace(saved, metadata=metadata, **{name: getattr(columns, name) for name in changed})
    if results.state.is_main_process:
        found.save(results.path)
    results.state.wait_for_everyone()
    return found


def _fingerprint(model, questions: Dataset, features: Sequence[Mapping[str, Any]], option_normalization: str) -> dict:
    """Digests of everything that the scores depend on."""
    return {
        "weights": weights_digest(model),
        "questions": digest(*questions["id"], *questions["answer"]),
        # The token ids depend on tokenizer, chat template and prompt format alike.
        "prompts": digest(json.dumps(features)),
        "option_normalization": option_normalization,
    }


def _score(model, tokenizer, questions: Dataset, features, results: ResumableScores, options) -> None:
    """Score the features in evaluation mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        score_features(
            OptionScorer(model, tokenizer, options.option_normalization),
            features,
            options.batch_size,
            results,
            "question",
            lambda index: f"question {questions[index % len(questions)]['id']!r} has option logits",
            options.progress,
        )
    finally:
        model.train(was_training)


def collect_predictions(
    questions: Dataset, rows: Sequence[Sequence[float]], metadata: dict[str, Any]
) -> OptionPredictions:
    """
    Combine the scores of each question with the columns of the data set.

    Args:
        questions (`Dataset`):
            Questions in the unified columns.
        rows (`Sequence[Sequence[float]]`):
            Log-likelihoods of the options of each question.
        metadata (`dict`):
            Metadata of the predictions.
    """
    num_options = max(map(len, rows))
    answers = [IGNORE_INDEX if answer is None else answer for answer in questions["answer"]]
    predictions = OptionPredictions(
        option_logits=pad_rows(rows, num_options, -np.inf),
        labels=np.array(answers, dtype=np.int64),
        ids=np.array(questions["id"], dtype=np.str_),
        metadata=metadata,
    )
    if "target_probabilities" in questions.column_names:
        if all(targets is not None for targets in questions["target_probabilities"]):
            predictions.target_probabilities = pad_rows(questions["target_probabilities"], num_options, 0.0)
    if "subject" in questions.column_names:
        if all(subject is not None for subject in questions["subject"]):
            predictions.subjects = np.array(questions["subject"], dtype=np.str_)
    return predictions


def _votes(rows: Sequence[np.ndarray], features: Sequence[Mapping[str, Any]], option_normalization: str) -> np.ndarray:
    """
    Index of the likeliest option by the sum and by the pointwise mutual information, `(N, 2)`.

    The second half of `rows` holds the scores after the question "N/A".
    """
    if option_normalization == "mean":
        rows = [row * np.bincount(feature["option_index"]) for row, feature in zip(rows, features, strict=True)]
    half = len(rows) // 2
    pairs = zip(rows[:half], rows[half:], strict=True)
    return np.array([[int(np.argmax(row)), int(np.argmax(row - content_free))] for row, content_free in pairs])


def model_name(model: PreTrainedModel) -> str:
    """Name or folder from which a model, or the adapter on it, was loaded."""
    return getattr(model, "adapter_name_or_path", model.name_or_path)


def context_length(model: PreTrainedModel) -> int | None:
    """Largest number of tokens that a model reads, where its configuration states one."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def weights_digest(model: PreTrainedModel) -> str:
    """
    Digest of a model's weights, from up to 127 values of every tensor.

    It tells a model from one that was trained further in the same folder.
    """
    samples = []
    for name, parameter in model.named_parameters():
        if parameter.device.type != "meta" and parameter.numel():
            values = parameter.detach().flatten()
            samples.append((name, values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes().hex()))
    return digest(*samples)
