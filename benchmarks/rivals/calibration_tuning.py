"""
Calibration-tuning of P(True): cross-entropy on the judgement, and a divergence from the model as it was.

After Kapoor et al., "Large Language Models Must Be Taught to Know What They Don't Know",
https://huggingface.co/papers/2406.08391. Differences: letters or words of our own question about the answer; the KL is
taken at all tokens of this question; the number of epochs is chosen on a held-out fifth of the labels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset

from hf_calib import PromptFormat
from hf_calib.inference.encoding import OptionEncoder, collate_options


class CalibrationTuning:
    """
    Train a model to judge its own answers.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model; it is not changed.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt_format ([`~hf_calib.PromptFormat`]):
            How the judgement is written; each option is one token.
        lora_rank (`int`, *optional*):
            Rank of LoRA adapters; by default all weights are trained.
        learning_rate (`float`, *optional*, defaults to `1e-3`), kl_weight (`float`, *optional*, defaults to `1.0`):
            Of AdamW, and of the divergence, in nats a token.
        epochs (`int`, *optional*, defaults to `20`), batch_size (`int`, *optional*, defaults to `32`):
            Largest number of epochs, and questions in a batch.
        seed (`int`, *optional*, defaults to `0`):
            Seed of order, held-out fifth and adapters.
    """

    def __init__(self, model, tokenizer, prompt_format: PromptFormat, lora_rank: int | None = None, **options):
        known = {"learning_rate": 1e-3, "kl_weight": 1.0, "epochs": 20, "batch_size": 32, "seed": 0}
        self.options, self.base = {**known, **options}, model.eval()
        self.encoder, self.pad = OptionEncoder(tokenizer, prompt_format), tokenizer.pad_token_id or 0
        torch.manual_seed(self.options["seed"])
        self.model = copy.deepcopy(model)
        if lora_rank is not None:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(
                r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            self.model = get_peft_model(self.model, config)

    def fit(self, judgements: Dataset) -> CalibrationTuning:
        """Train on labelled judgements of [`~hf_calib.p_true_questions`]; the best epoch's weights are kept."""
        rows = [self.encoder.encode(row) for row in judgements]
        rng = np.random.default_rng(self.options["seed"])
        order = rng.permutation(len(rows))
        held_out, train = ([rows[i] for i in part] for part in np.split(order, [len(rows) // 5]))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.options["learning_rate"], weight_decay=0.0)
        best, kept, self.epochs = self._held_out_loss(held_out), _weights(trained), 0
        for epoch in range(1, self.options["epochs"] + 1):
            self.model.train()
            for batch in self._batches([train[i] for i in rng.permutation(len(train))]):
                loss = self._loss(batch)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
            if (loss := self._held_out_loss(held_out)) < best:
                best, kept, self.epochs = loss, _weights(trained), epoch
        for parameter, value in zip(trained, kept, strict=True):
            parameter.data.copy_(value)
        self.model.eval()
        return self

    def _batches(self, rows: list) -> Iterator[dict[str, torch.Tensor]]:
        size = self.options["batch_size"]
        for first in range(0, len(rows), size):
            yield collate_options(rows[first : first + size], self.pad)

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        log_probs = self.model(**inputs).logits.float().log_softmax(-1)
        with torch.no_grad():
            before = self.base(**inputs).logits.float().log_softmax(-1)
        kept = inputs["attention_mask"].bool()
        divergence = (before.exp() * (before - log_probs)).sum(-1)[kept].mean()
        return self._judgement_loss(log_probs, batch) + self.options["kl_weight"] * divergence

    @staticmethod
    def _judgement_loss(log_probs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = torch.arange(len(log_probs))[:, None]
        options = log_probs[rows, batch["option_positions"], batch["option_tokens"]]
        return torch.nn.functional.cross_entropy(options, batch["option_label"])

    @torch.no_grad()
    def _held_out_loss(self, rows: list) -> float:
        self.model.eval()
        total = 0.0
        for batch in self._batches(rows):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            log_probs = self.model(**inputs).logits.float().log_softmax(-1)
            total += float(self._judgement_loss(log_probs, batch)) * len(log_probs)
        return total / len(rows)


def _weights(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
