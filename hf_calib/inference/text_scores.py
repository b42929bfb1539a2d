"""Score texts with a model: its log-likelihoods, and its divergence from another model on texts of that model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel

from .encoding import collate_options
from .generic_texts import GenericText, check_whole, evaluation_mode, progress_batches
from .option_head import logit_transform, over_chunks, unwrap_causal_lm


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class TextStates:
    """
    Last hidden states of a model at the generated tokens of texts, with its head.

    It replaces the model in a comparison: two models need not be in memory together.

    Args:
        texts (`list[GenericText]`):
            The texts.
        states (`list[torch.Tensor]`):
            Hidden states `(tokens, hidden_size)` that predict the generated tokens of each text, on the CPU.
        head (`torch.nn.Module`):
            A copy of the output embeddings.
        transform (`Callable`):
            See [`~hf_calib.inference.option_head.logit_transform`].
    """

    texts: list[GenericText]
    states: list[torch.Tensor]
    head: torch.nn.Module
    transform: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel | PeftModel, texts: Sequence[GenericText], batch_size: int = 8) -> TextStates:
        """Compute the states of a model; a later change of its weights does not matter."""
        model = _whole(model)
        states: list[torch.Tensor | None] = [None] * len(texts)
        with torch.no_grad(), evaluation_mode(model):
            for indices, hidden_states, _ in _passes(model, texts, batch_size, "Reading texts"):
                parts = hidden_states.cpu().split([len(texts[index]) for index in indices])
                for index, part in zip(indices, parts, strict=True):
                    states[index] = part
        head = copy.deepcopy(model.get_output_embeddings()).requires_grad_(False)
        return cls(list(texts), states, head, logit_transform(model.config))

    def check_vocabulary(self, model: PreTrainedModel | PeftModel) -> None:
        """Raise a `ValueError` if a model has a vocabulary of another size."""
        sizes = [head.weight.shape[0] for head in (_whole(model).get_output_embeddings(), self.head)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"The vocabularies differ: {sizes[0]} tokens of the model, {sizes[1]} of the other one.")


@dataclass(frozen=True)
class TextComparison:
    r"""
    Sums over the generated tokens of each text.

    Args:
        tokens (`np.ndarray` of shape `(N,)`):
            Number of generated tokens, also the last of a text (EOS).
        divergence (`np.ndarray` of shape `(N,)`):
            Divergence of the model from the one whose states were given, in nats,

            .. math:: \sum_t KL(\pi_{states}(\cdot | x_{<t}) \,\|\, \pi(\cdot | x_{<t}))
        agreement (`np.ndarray` of shape `(N,)`):
            Number of tokens at which both models have the same most probable token.
        losses (`np.ndarray` of shape `(N,)`):
            Negative log-likelihood under the model, in nats.
    """

    tokens: np.ndarray
    divergence: np.ndarray
    agreement: np.ndarray
    losses: np.ndarray

    def rows(self) -> list[tuple[float, ...]]:
        """The sums of one text after the other."""
        return list(
            zip(*(each.tolist() for each in (self.tokens, self.divergence, self.agreement, self.losses)), strict=True)
        )


def compare_texts(model: PreTrainedModel | PeftModel, reference: TextStates, batch_size: int = 8) -> TextComparison:
    """
    Compare the next-token distributions of a model with those of another one on texts.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model in question, wrapped for distribution or not, but not partitioned by ZeRO-3.
        reference ([`TextStates`]):
            States of the other model, of the same vocabulary, usually on texts that it sampled.
        batch_size (`int`, *optional*, defaults to `8`):
            Texts in one forward pass.

    Returns:
        [`TextComparison`]: sums of each text.

    Raises:
        `ValueError`: if there are no texts, if the models differ in the size of their vocabulary, or if ZeRO-3 has
            partitioned the weights.
    """
    if not reference.texts:
        raise ValueError("There are no texts to compare the models on.")
    reference.check_vocabulary(model)
    model = _whole(model)
    head, transform = model.get_output_embeddings(), logit_transform(model.config)

    def statistics(states: torch.Tensor, others: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        log_q = transform(head(states).float()).log_softmax(-1)
        others = others.to(reference.head.weight.device)
        log_p = reference.transform(reference.head(others).float()).log_softmax(-1).to(log_q.device)
        divergence = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        agreement = (log_q.argmax(-1) == log_p.argmax(-1)).float()
        return torch.stack([divergence, agreement, -log_q.gather(-1, tokens[:, None])[:, 0]], dim=-1)

    counts, sums = np.array([len(text) for text in reference.texts]), np.zeros((len(reference.texts), 3))
    with torch.no_grad(), evaluation_mode(model):
        for indices, hidden_states, tokens in _passes(model, reference.texts, batch_size, "Comparing texts"):
            others = torch.cat([reference.states[index] for index in indices])
            sums[indices] = _sums(over_chunks(statistics, head, hidden_states, others, tokens), counts[indices])
    return TextComparison(counts, *sums.T)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[GenericText]]:
    """
    Cut texts into windows of at most `max_length` tokens, in which every token after the first of a text is predicted
    once.

    A window begins with the last token of the one before. A text of fewer than two tokens has no window.
    """
    windows = []
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        starts = range(0, max(len(ids) - 1, 0), max_length - 1)
        windows.append([GenericText(tuple(ids[start : start + max_length]), 1) for start in starts])
    return windows


def text_losses(model: PreTrainedModel | PeftModel, texts: Sequence[GenericText], batch_size: int = 8) -> np.ndarray:
    """
    Compute the negative log-likelihood of each text's tokens from its `start` on.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, as in [`compare_texts`].
        texts (`Sequence[GenericText]`):
            Texts, for example of [`encode_texts`].
        batch_size (`int`, *optional*, defaults to `8`):
            Texts in one forward pass.

    Returns:
        `np.ndarray` of shape `(N,)`: sums, in nats.
    """
    model = _whole(model)
    head, transform = model.get_output_embeddings(), logit_transform(model.config)

    def losses(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        log_q = transform(head(states).float()).log_softmax(-1)
        return -log_q.gather(-1, tokens[:, None])

    counts, sums = np.array([len(text) for text in texts]), np.zeros((len(texts), 1))
    with torch.no_grad(), evaluation_mode(model):
        for indices, hidden_states, tokens in _passes(model, texts, batch_size, "Scoring texts"):
            sums[indices] = _sums(over_chunks(losses, head, hidden_states, tokens), counts[indices])
    return sums[:, 0]


def _whole(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside a wrapped one."""
    model = unwrap_causal_lm(extract_model_from_parallel(model))
    check_whole(model)
    return model


def _passes(
    model: PreTrainedModel, texts: Sequence[GenericText], batch_size: int, description: str
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """
    Forward passes over texts of similar length, the longest first, with a progress bar.

    Yields indices of the texts, and the hidden states `(tokens, hidden_size)` and tokens `(tokens,)` of all of them.
    """
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index].input_ids))
    for indices in progress_batches(order, batch_size, description):
        batch = [texts[index] for index in indices]
        inputs = collate_options([{"input_ids": text.input_ids} for text in batch], pad_token_id=0)
        row = torch.cat([torch.full((len(text),), i) for i, text in enumerate(batch)])
        position = torch.cat([torch.arange(text.start, len(text.input_ids)) for text in batch])
        tokens = inputs["input_ids"][row, position]
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        states = model.base_model(**inputs, use_cache=False).last_hidden_state
        yield indices, states[row.to(states.device), position.to(states.device) - 1], tokens.to(states.device)


def _sums(statistics: torch.Tensor, counts: np.ndarray) -> np.ndarray:
    """Sums over the tokens of each text, `(texts, k)`, of statistics `(tokens, k)`."""
    return np.array([part.sum(0).numpy() for part in statistics.double().cpu().split(counts.tolist())])
