"""Measure how much of the alignment of a model is left after a repair of its calibration."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from accelerate.utils import broadcast_object_list, extract_model_from_parallel, gather_object

from ..data.layouts import digest
from ..data.preference_pairs import load_pairs
from ..data.texts import Prompt, load_prompts, load_texts
from ..inference.generic_texts import GenericText, continue_prompts, encode_prompts, evaluation_mode, first_token
from ..inference.model_loading import process_state
from ..inference.option_head import unwrap_causal_lm
from ..inference.predict import context_length, weights_digest
from ..inference.preference_scores import score_pairs
from ..inference.text_scores import TextComparison, TextStates, compare_texts, encode_texts, text_losses
from .alignment_estimates import Behaviour, Estimator
from .alignment_report import ALIGNED, REFERENCE, AlignmentReport


if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
Row = TypeVar("Row")

_WINDOW = 1024  # tokens of a forward pass over a given text


@dataclass(kw_only=True)
class AlignmentOptions:
    """
    Options of [`alignment_report`].

    Args:
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Largest number of tokens that a model writes after a prompt.
        prompts_limit (`int`, *optional*), texts_limit (`int`, *optional*):
            Largest number of prompts and of texts, drawn by `seed`. By default all.
        batch_size (`int`, *optional*, defaults to `8`):
            Texts or pairs in a forward pass.
        max_length (`int`, *optional*):
            Largest number of tokens of a pair, or of a prompt with its text. Defaults to the context length of the
            aligned model.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of draws behind every interval.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws.

    Raises:
        `ValueError`: if a number is below 1.
    """

    max_new_tokens: int = 128
    prompts_limit: int | None = None
    texts_limit: int | None = None
    batch_size: int = 8
    max_length: int | None = None
    n_bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self):
        for name in ("max_new_tokens", "prompts_limit", "texts_limit", "batch_size", "max_length", "n_bootstrap"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")


def alignment_report(
    aligned: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    repaired: PreTrainedModel | PeftModel | Mapping[str, PreTrainedModel | PeftModel] | None = None,
    reference: PreTrainedModel | PeftModel | None = None,
    pairs: Dataset | str | Path | None = None,
    prompts: Dataset | str | Path | Sequence[Prompt] | None = None,
    texts: Dataset | str | Path | Sequence[str] | None = None,
    **options,
) -> AlignmentReport:
    r"""
    Measure the alignment of a model before and after a repair.

    Preferences are measured on pairs, with the margin

    .. math:: m = \log\pi(y_w | x) - \log\pi(y_l | x)

    less the same of the reference where there is one (DPO's implicit reward at a beta of 1), and the margin retention
    :math:`E[m_{repaired}] / E[m_{aligned}]`, NaN where the aligned model's margin is not above zero beyond noise.
    Text is measured on what the aligned model samples on the prompts: the divergence
    :math:`KL(\pi_{aligned} \| \pi)` a token, and how often both models prefer the same token. Intervals are of the
    Bayesian bootstrap over pairs, prompts or texts, the same draws for all models.

    Args:
        aligned ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The aligned model, before the repair.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer of all models.
        repaired (*optional*):
            The repaired model, or several by their names.
        reference (*optional*):
            The model before alignment.
        pairs (`Dataset`, `str` or `Path`, *optional*):
            Held-out preference pairs; see [`~hf_calib.data.preference_pairs.load_pairs`]. Without them there are no
            measures of preferences.
        prompts (*optional*):
            Prompts; see [`~hf_calib.data.texts.load_prompts`]. Defaults to the 64 chat prompts of the package.
        texts (*optional*):
            Texts for the perplexity; see [`~hf_calib.data.texts.load_texts`]. Without them it is the perplexity of the
            texts that the aligned model samples.
        options:
            See [`AlignmentOptions`].

    Returns:
        [`AlignmentReport`]: all measures of all models, with intervals.

    Raises:
        `ValueError`: see [`AlignmentMeter`].

    Example:

    ```python
    >>> report = alignment_report(aligned, tokenizer, repaired, reference, pairs="pairs.parquet")  # doctest: +SKIP
    >>> report.models["repaired"]["margin_retention"]  # doctest: +SKIP
    Estimate(value=0.973, low=0.951, high=0.992)

    ```
    """
    meter = AlignmentMeter(tokenizer, pairs, prompts, texts, **options)
    meter.measure(ALIGNED, aligned)
    if reference is not None:
        meter.measure(REFERENCE, reference)
    if repaired is not None:
        for name, model in (repaired if isinstance(repaired, Mapping) else {"repaired": repaired}).items():
            meter.measure(name, model)
    return meter.report()


class AlignmentMeter:
    """
    Measures models one after the other; only one of them need be in memory.

    The aligned model comes first. Of it, the hidden states on its texts and a copy of the output embeddings are kept.
    Under `accelerate launch`, the processes share the work, and every process has the report.

    Args:
        tokenizer, pairs, prompts, texts, options:
            See [`alignment_report`].

    Attributes:
        behaviours (`dict[str, Behaviour]`): What was measured, by the name of the model.
        data_digest (`str`): Digest of pairs, prompts, texts and options.

    Raises:
        `ValueError`: if the tokenizer has no EOS token, if prompts or pairs are messages and there is no chat
            template, if there are no prompts, pairs or texts, or if their columns or rows are wrong.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Dataset | str | Path | None = None,
        prompts: Dataset | str | Path | Sequence[Prompt] | None = None,
        texts: Dataset | str | Path | Sequence[str] | None = None,
        **options,
    ):
        self.options, self.tokenizer = AlignmentOptions(**options), tokenizer
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no EOS token, so no text of the model ends: set `tokenizer.eos_token` to the token "
                "that ends an answer."
            )
        self.pairs = None if pairs is None else load_pairs(pairs)
        if self.pairs is not None and not isinstance(self.pairs[0]["prompt"], str):
            _check_chat_template(tokenizer, "pairs")
        self.prompts, self._num_prompts, self._prompts_kind = _prompt_ids(tokenizer, prompts, self.options)
        self.texts = None if texts is None else load_texts(texts, self.options.texts_limit, self.options.seed)
        rows = None if self.pairs is None else self.pairs.to_list()
        sizes = [self.options.max_new_tokens, self.options.max_length, self.options.seed]
        self.data_digest = digest(json.dumps([self.prompts, self.texts, rows, sizes], default=str))
        self.behaviours: dict[str, Behaviour] = {}
        self.weights: dict[str, str] = {}
        self._max_new_tokens = self.options.max_new_tokens
        self._states: TextStates | None = None
        self._windows: list[list[GenericText]] | None = None

    def measure(
        self, name: str, model: PreTrainedModel | PeftModel, folder: Path | None = None, resume: bool = True
    ) -> None:
        """
        Measure a model.

        Args:
            name (`str`):
                `"aligned"`, which comes first, `"reference"`, or the name of a repaired model.
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The model.
            folder (`Path`, *optional*):
                Folder in which `pairs.npz` and `alignment.npz` keep what was measured.
            resume (`bool`, *optional*, defaults to `True`):
                Whether to take what the folder holds of the same models and data.

        Raises:
            `ValueError`: if the aligned model was not measured before, the model has another vocabulary, or every
                prompt or pair is too long.
        """
        model = extract_model_from_parallel(model)
        if self._states is None and name != ALIGNED:
            raise ValueError(f"measure the model {ALIGNED!r} first, then {name!r}.")
        if name == ALIGNED:
            self._fit_context(unwrap_causal_lm(model))
        else:
            self._states.check_vocabulary(model)
        self.weights[name] = weights_digest(model)
        path = None if folder is None else folder / "alignment.npz"
        key = digest(self.weights[ALIGNED], self.weights[name], self.data_digest)
        found = self._saved(path, key) if resume and path is not None else None
        texts = self._sample(model) if found is None else found.texts
        if name == ALIGNED:
            self._states = TextStates.of(model, _share(texts), self.options.batch_size)
        if found is None:
            scores, losses = self._score_pairs(model, folder, resume), self._score_texts(model)
            found = Behaviour(texts, self._compare(model), scores, losses)
            if path is not None and process_state().is_main_process:
                found.save(path, key)
        self.behaviours[name] = found

    @staticmethod
    def _saved(path: Path, key: str) -> Behaviour | None:
        """What the main process finds, for all: they measure together, and may not see the same files."""
        state = process_state()
        found = [Behaviour.load(path, key) if state.is_main_process and path.is_file() else None]
        if state.num_processes > 1:
            broadcast_object_list(found)
        return found[0]

    def report(self) -> AlignmentReport:
        """Compute the measures of all models and their intervals."""
        windows = self._windows
        found = Estimator(self.behaviours, self.options.n_bootstrap, self.options.seed)
        models = found.text_measures()
        num_pairs = 0
        if self.pairs is not None:
            num_pairs = int(found.scored_pairs.sum())
            models = {name: measures | models[name] for name, measures in found.pair_measures().items()}
        tokens = None if windows is None else np.array([sum(map(len, row)) for row in windows], dtype=float)
        for name, measures in found.perplexities(tokens).items():
            models[name] |= measures
        return AlignmentReport(
            models=models,
            margin_kind=None if self.pairs is None else found.margin_kind,
            perplexity_texts="generated" if windows is None else "given",
            prompts_kind=self._prompts_kind,
            n_pairs=num_pairs,
            n_pairs_left_out=len(self.pairs or ()) - num_pairs,
            n_prompts=len(self.prompts),
            n_prompts_left_out=self._num_prompts - len(self.prompts),
            n_texts=len(windows or ()),
            n_tokens=int(self.behaviours[ALIGNED].comparison.tokens.sum()),
            max_new_tokens=self._max_new_tokens,
            weights=dict(self.weights),
        )

    def _fit_context(self, model: PreTrainedModel) -> None:
        """Leave out prompts after which the context has no space for a text, and cut the given texts into windows."""
        length = min(filter(None, (self.options.max_length, context_length(model))), default=None)
        if length is not None:
            most = length - min(self.options.max_new_tokens, length // 2)
            self.prompts = [ids for ids in self.prompts if len(ids) <= most]
            if not self.prompts:
                raise ValueError(f"every prompt is longer than {most} tokens, of a context of {length} tokens.")
            self._max_new_tokens = min(self.options.max_new_tokens, length - max(map(len, self.prompts)))
        if self.texts is not None:
            windows = encode_texts(self.tokenizer, self.texts, max(2, min(_WINDOW, length or _WINDOW)))
            self._windows = [row for row in windows if row]
            if not self._windows:
                raise ValueError("every given text has fewer than two tokens: there is no perplexity.")
            if short := len(windows) - len(self._windows):
                logger.warning(f"left out {short} of {len(windows)} texts, of fewer than two tokens")

    def _sample(self, model: PreTrainedModel | PeftModel) -> list[GenericText]:
        seed, prompts = self.options.seed + process_state().process_index, _share(self.prompts)
        # a token of every text in a step, instead of whole texts: more of them fit
        call = (self.tokenizer, prompts, self._max_new_tokens, seed, 4 * self.options.batch_size)
        return _gathered(continue_prompts(model, *call) if prompts else [], len(self.prompts))

    def _compare(self, model: PreTrainedModel | PeftModel) -> TextComparison:
        own = compare_texts(model, self._states, self.options.batch_size).rows() if self._states.texts else []
        return TextComparison(*np.transpose(_gathered(own, len(self.prompts))))

    def _score_pairs(self, model: PreTrainedModel | PeftModel, folder: Path | None, resume: bool) -> np.ndarray | None:
        if self.pairs is None:
            return None
        kept = {"output_path": None if folder is None else folder / "pairs.npz", "resume": resume}
        options = self.options
        with evaluation_mode(model):
            return score_pairs(model, self.tokenizer, self.pairs, options.batch_size, options.max_length, **kept)

    def _score_texts(self, model: PreTrainedModel | PeftModel) -> np.ndarray | None:
        """Negative log-likelihood of each given text."""
        if self._windows is None:
            return None
        windows = [window for row in self._windows for window in row]
        mine = _share(windows)
        own = text_losses(model, mine, self.options.batch_size).tolist() if mine else []
        text = np.repeat(np.arange(len(self._windows)), [len(row) for row in self._windows])  # of each window
        return np.bincount(text, _gathered(own, len(windows)))


def _prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Any, options: AlignmentOptions
) -> tuple[list[list[int]], int, str]:
    """Token ids of the prompts; how many prompts there are, some of which may be left out; and their kind."""
    rows = load_prompts(prompts, options.prompts_limit, options.seed)
    if any(not isinstance(row, str) for row in rows):
        _check_chat_template(tokenizer, "prompts")
    encoded, kind = encode_prompts(tokenizer, rows), "given"
    if prompts is None:
        known = [ids for ids in encoded if tokenizer.unk_token_id not in ids]
        if known:
            return known, len(encoded), "package"
        encoded, kind = [[] for _ in encoded], "none"
    return [ids or [first_token(tokenizer)] for ids in encoded], len(encoded), kind


def _check_chat_template(tokenizer: PreTrainedTokenizerBase, unit: str) -> None:
    """Raise a `ValueError` if there is no chat template for messages."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"The {unit} are messages, but the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat "
            f"template: set `tokenizer.chat_template`, or give {unit} that are texts."
        )


def _share(rows: Sequence[Row]) -> Sequence[Row]:
    """This process's share of rows."""
    state = process_state()
    return rows[state.process_index :: state.num_processes]


def _gathered(own: Sequence[Row], total: int) -> list[Row]:
    """Rows of all processes in their order; `own` are those of [`_share`]."""
    rows, parts = [None] * total, gather_object([list(own)])
    for process, part in enumerate(parts):
        rows[process :: len(parts)] = part
    return rows
