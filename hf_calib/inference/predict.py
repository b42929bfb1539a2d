"""Prediction: a model and questions in, the log-likelihood of every option out, saved as they come."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data.adapters import adapt_questions, digest
from ..data.prompts import PromptFormat
from .encoding import IGNORE_INDEX, OptionEncoder, QuestionTooLongError
from .option_scorer import OptionScorer, pad_rows
from .predictions import OptionPredictions, npz_path, save_npz


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

# Seconds of work that a killed process may lose.
SAVE_INTERVAL = 10.0

# A question that says nothing (Zhao et al., arXiv 2102.09690): what an option is worth after it, it is worth by its own wording.
CONTENT_FREE = "N/A"


def predict_options(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    scoring: Literal["letter", "text"] | None = None,
    prompt_format: PromptFormat | None = None,
    option_normalization: Literal["sum", "mean"] = "sum",
    batch_size: int = 8,
    max_length: int | None = None,
    drop_too_long: bool = False,
    output_path: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    votes: bool = False,
    labelled: bool = True,
) -> OptionPredictions:
    """
    Scores the options of every question with one forward pass each.

    Under `accelerate launch` the questions are divided among the processes and every process returns all of them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, on the device where it is to run.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset (`Dataset`):
            Questions in any layout that [`~hf_calib.data.questions.adapt_questions`] knows.
        scoring (`"letter"` or `"text"`, *optional*):
            Whether letters or texts of the options are scored. Defaults to that of `prompt_format`, else `"letter"`.
        prompt_format ([`~hf_calib.data.questions.PromptFormat`], *optional*):
            How a question is written. Defaults to the default format of `scoring`.
        option_normalization (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            Log-likelihood of an option: sum over its tokens, or mean.
        batch_size (`int`, *optional*, defaults to 8):
            Questions per forward pass where they are the longest of all. Shorter ones go together in larger numbers,
            so that a pass always has about as many tokens.
        max_length (`int`, *optional*):
            Most tokens of a prompt with one of its options. Defaults to the context length of the model.
        drop_too_long (`bool`, *optional*, defaults to `False`):
            Leave out the questions that are longer, and log how many, instead of raising. Nothing is ever truncated.
        output_path (`str` or `Path`, *optional*):
            `.npz` file to write. While the work goes on, results are kept in a folder `<output_path>.partial`.
        resume (`bool`, *optional*, defaults to `True`):
            Go on from the results at `output_path`, finished or not, if they are of the same model and questions.
            `False` overwrites them.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.
        votes (`bool`, *optional*, defaults to `False`):
            Note in `votes` which option is likeliest by the sum of its tokens' log-likelihoods, and by that sum less the one after
            the question "N/A" (pointwise mutual information, Holtzman et al., arXiv 2104.08315). Every question is then scored
            a second time, as short as "N/A". For [`~hf_calib.posthoc.TransferredTemperature`].
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the answers are wanted. Otherwise they are neither read nor missed, and all labels are -100.

    Returns:
        [`OptionPredictions`]: in the order of the data set.

    Raises:
        `ValueError`: for a malformed question, letters that are no single tokens, results of something else at
            `output_path`, NaN in the logits. All but the last are raised before the model runs.
        [`~hf_calib.inference.encoding.QuestionTooLongError`]: for a question longer than `max_length`.
    """
    if prompt_format is None:
        prompt_format = PromptFormat(scoring=scoring or "letter")
    elif scoring not in (None, prompt_format.scoring):
        raise ValueError(f"scoring={scoring!r} contradicts prompt_format.scoring={prompt_format.scoring!r}; drop one")
    if option_normalization not in ("sum", "mean"):
        raise ValueError(f"option_normalization={option_normalization!r}; choose 'sum' or 'mean'")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; at least 1 is wanted")

    questions = adapt_questions(dataset, labelled=labelled)
    encoder = OptionEncoder(tokenizer, prompt_format, max_length or context_length(model))
    kept, features = _encode(encoder, questions, drop_too_long)
    questions = questions.select(kept) if len(kept) < len(questions) else questions
    num_options = max(feature["num_options"] for feature in features)
    single_tokens = all(len(feature["option_tokens"]) == feature["num_options"] for feature in features)
    if votes:
        features += [encoder.encode({**row, "question": CONTENT_FREE}) for row in questions]
    fingerprint = {
        "weights": weights_digest(model),
        "questions": digest(*questions["id"], *questions["answer"]),
        # Tokenizer, chat template and prompt format in one: what the model reads.
        "prompts": digest(json.dumps(features)),
        "option_normalization": option_normalization,
    }
    metadata = {
        "model": model.name_or_path,
        "prompt_format": asdict(prompt_format),
        "option_normalization": option_normalization,
        # Then a temperature of the options is one of the model's logits.
        "single_tokens": single_tokens,
        "too_long": len(dataset) - len(kept),
        "fingerprint": fingerprint,
    }

    # Without an accelerator, processes find each other only if told that they run on CPUs.
    state = PartialState(cpu=not torch.accelerator.is_available())
    results = Results(None if output_path is None else npz_path(output_path), fingerprint, resume, state)
    if results.finished is not None:
        return results.finished
    was_training = model.training
    model.eval()
    try:
        score_features(
            OptionScorer(model, tokenizer, option_normalization),
            features,
            batch_size,
            results,
            "question",
            lambda index: f"question {questions[index % len(questions)]['id']!r} has option logits",
            progress,
        )
    finally:
        model.train(was_training)

    rows = results.gather()
    answers = [IGNORE_INDEX if answer is None else answer for answer in questions["answer"]]
    predictions = OptionPredictions(
        option_logits=pad_rows(rows[: len(questions)], num_options, -np.inf),
        labels=np.array(answers, dtype=np.int64),
        ids=np.array(questions["id"], dtype=np.str_),
        metadata=metadata,
    )
    if votes:
        predictions.votes, metadata["votes"] = _votes(rows, features, option_normalization), ["sum", "pmi"]
    if "target_probabilities" in questions.column_names:
        if all(targets is not None for targets in questions["target_probabilities"]):
            predictions.target_probabilities = pad_rows(questions["target_probabilities"], num_options, 0.0)
    if "subject" in questions.column_names:
        if all(subject is not None for subject in questions["subject"]):
            predictions.subjects = np.array(questions["subject"], dtype=np.str_)
    results.finish(predictions)
    return predictions


def _votes(rows: Sequence[np.ndarray], features: Sequence[Mapping[str, Any]], option_normalization: str) -> np.ndarray:
    """What is likeliest by the sum, and by the pointwise mutual information, `(N, 2)`. The second half of the rows are those after "N/A"."""
    if option_normalization == "mean":
        rows = [row * np.bincount(feature["option_index"]) for row, feature in zip(rows, features, strict=True)]
    half = len(rows) // 2
    return np.array(
        [
            [int(np.argmax(row)), int(np.argmax(row - before))]
            for row, before in zip(rows[:half], rows[half:], strict=True)
        ]
    )


def score_features(
    scorer: OptionScorer,
    features: Sequence[Mapping[str, Any]],
    batch_size: int,
    results: Results,
    unit: str,
    has: Callable[[int], str],
    progress: bool = True,
) -> None:
    """
    Score this process's share of the encoded questions, or pairs, into the results; those that are there already are not
    scored again, and what has been scored is kept, whatever happens. `has` begins the sentence about a row that is not finite.
    """
    pending = [index for index in range(len(features)) if index not in results.done]
    state = results.state
    share = make_batches(features, pending, batch_size)[state.process_index :: state.num_processes]
    if share:
        scorer.check_branches(features)
        scorer.share_prefix(features)
    try:
        with tqdm(
            total=sum(map(len, share)), desc=f"Scoring {unit}s", unit=unit,
            disable=not (progress and state.is_local_main_process),
        ) as bar:  # fmt: skip
            for batch in share:
                rows = scorer([features[index] for index in batch])
                for index, row in zip(batch, rows, strict=True):
                    if not np.isfinite(row).all():
                        raise ValueError(
                            f"{has(index)} {row.tolist()}; look for NaN in the weights, or load the model in bfloat16 or "
                            "float32 if it runs in float16"
                        )
                results.add(batch, rows)
                bar.update(len(batch))
    finally:
        results.flush()


def context_length(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _encode(encoder: OptionEncoder, questions: Dataset, drop_too_long: bool) -> tuple[list[int], list[dict[str, Any]]]:
    """Indices and token sequences of the questions that fit."""
    kept, features = [], []
    for index, row in enumerate(questions):
        try:
            features.append(encoder.encode(row))
            kept.append(index)
        except QuestionTooLongError as error:
            if not drop_too_long:
                raise QuestionTooLongError(f"{error} `drop_too_long=True` leaves out all such questions.") from None
    if not kept:
        raise QuestionTooLongError(
            f"none of {len(questions)} questions fits in max_length={encoder.max_length}; raise it, or shorten the "
            "prompt_template"
        )
    if len(kept) < len(questions):
        left_out = len(questions) - len(kept)
        logger.warning(f"left out {left_out} of {len(questions)} questions longer than {encoder.max_length} tokens")
    return kept, features


def weights_digest(model: PreTrainedModel) -> str:
    """Tells two sets of weights apart by a few values of every tensor: a model retrained in place keeps its name."""
    samples = []
    for name, parameter in model.named_parameters():
        if parameter.device.type != "meta" and parameter.numel():
            values = parameter.detach().flatten()
            samples.append((name, values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes().hex()))
    return digest(*samples)


def make_batches(features: Sequence[Mapping[str, Any]], pending: Sequence[int], batch_size: int) -> list[list[int]]:
    """
    Groups of similar length, the longest first (a lack of memory shows at once), of about equally many tokens. Where
    padding would be more than an eighth of a group, the next begins: a long question must not stretch the short ones.
    """
    lengths = [len(feature["input_ids"]) for feature in features]
    budget, batches, tokens = batch_size * max(lengths, default=0), [], 0
    for index in sorted(pending, key=lambda index: -lengths[index]):
        padded = (len(batches[-1]) + 1) * lengths[batches[-1][0]] if batches else 0
        if not batches or padded > budget or padded > (tokens + lengths[index]) * 8 / 7:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += lengths[index]
    return batches


class Results:
    """
    Results by index of the question. Beside the output file stands a folder with the fingerprint of the work and
    shards, each whole from the moment it has its name. Any number of processes add to it, and any other may go on.
    """

    def __init__(self, path: Path | None, fingerprint: dict[str, str], resume: bool, state: PartialState):
        self.path, self.state = path, state
        self.done: dict[int, np.ndarray] = {}
        self.finished: OptionPredictions | None = None
        self._own: dict[int, np.ndarray] = {}
        self._unsaved: list[int] = []
        self._saved_at = time.monotonic()
        if path is None:
            return
        self.folder = path.with_name(f"{path.name}.partial")
        if resume and path.exists():
            predictions = OptionPredictions.load(path)
            self._check(predictions.metadata.get("fingerprint", {}), fingerprint, path)
            self.finished = predictions
            return
        if state.is_main_process:
            self._prepare(fingerprint, resume)
        state.wait_for_everyone()
        for shard in sorted(self.folder.glob("*.npz")):
            with np.load(shard) as arrays:
                for index, row in zip(arrays["index"], arrays["option_logits"], strict=True):
                    self.done[int(index)] = row[np.isfinite(row)]
        if self.done and state.is_main_process:
            logger.info(f"{self.folder}: going on from {len(self.done)} questions that are scored")
        # Nobody writes a shard before everybody has read the old ones.
        state.wait_for_everyone()

    def _prepare(self, fingerprint: dict[str, str], resume: bool) -> None:
        record = self.folder / "fingerprint.json"
        try:
            if resume and record.exists():
                self._check(json.loads(record.read_text()), fingerprint, self.folder)
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            record.write_text(json.dumps(fingerprint))
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{error.strerror}: predictions cannot be written; choose another output_path",
                str(self.path),
            ) from error

    @staticmethod
    def _check(found: dict[str, str], wanted: dict[str, str], path: Path) -> None:
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            raise ValueError(
                f"{path} holds predictions with other {' and '.join(differing)}; choose another output_path, or "
                "overwrite it with resume=False (`--no_resume`)"
            )

    def add(self, indices: Sequence[int], rows: Sequence[np.ndarray]) -> None:
        self._own.update(zip(indices, rows, strict=True))
        self._unsaved += indices
        if time.monotonic() - self._saved_at >= SAVE_INTERVAL:
            self.flush()

    def flush(self) -> None:
        if self.path is not None and self._unsaved:
            rows = [self._own[index] for index in self._unsaved]
            arrays = {"index": np.array(self._unsaved), "option_logits": pad_rows(rows, max(map(len, rows)), -np.inf)}
            # A question is scored once, so that the first index names the shard.
            save_npz(self.folder / f"{self._unsaved[0]:08d}.npz", arrays)
        self._unsaved = []
        self._saved_at = time.monotonic()

    def gather(self) -> list[np.ndarray]:
        """The results of all processes and of earlier runs, in the order of the questions."""
        for own in gather_object([self._own]):
            self.done.update(own)
        return [self.done[index] for index in sorted(self.done)]

    def finish(self, predictions: OptionPredictions) -> None:
        if self.path is not None:
            if self.state.is_main_process:
                predictions.save(self.path)
                shutil.rmtree(self.folder)
            self.state.wait_for_everyone()
