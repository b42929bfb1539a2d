"""Option questions in a trainer: encoded, scored in the model's own forward pass, and their losses."""

from __future__ import annotations

import math

import torch
from datasets import Dataset
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.trainer.utils import global_then_local_main_first, maybe_gather_lm_head_ctx

from ..inference.encoding import IGNORE_INDEX, OPTION_COLUMNS, OptionEncoder
from ..inference.option_head import OptionHead, unwrap_causal_lm
from ..inference.option_scorer import OptionScorer
from ..losses.em_ece_loss import em_ece_loss
from ..losses.option_losses import BATCH_CALIBRATION_LOSSES, option_cross_entropy
from .data import encode_questions
from .e_step import EMTrainerMixin
from .reference import REFERENCE_COLUMN


class OptionTrainingMixin(EMTrainerMixin):
    """Questions, their losses and their E-step, for a trainer of TRL whose configuration has [`PromptArguments`]."""

    def _init_options(self) -> None:
        """Called before any data set is encoded."""
        # Filled in while the data sets are encoded: every batch, on every process, then has the same columns.
        self._option_shape = {"max_options": 0, "branched": False}

    def _encode(
        self, questions: Dataset, name: str, args, max_length: int | None, branches: bool, likelihood: str | None
    ) -> Dataset:
        encoder = OptionEncoder(self._tokenizer, args.prompt_format(), max_length)
        with global_then_local_main_first():
            encoded = encode_questions(questions, encoder, branches, likelihood, name, args.dataset_num_proc)
        if branches:
            shape = self._option_shape
            shape["max_options"] = max(shape["max_options"], *encoded["num_options"])
            shape["branched"] = shape["branched"] or any(map(any, encoded["option_segments"]))
        return encoded

    def _add_option_head(self) -> None:
        self.option_head = OptionHead(self.model, self.args.option_normalization, gather=maybe_gather_lm_head_ctx)

    def _check_branches(self, datasets: list[Dataset | None]) -> None:
        """Refuse, before any training, an architecture that scores an option otherwise when the others stand beside it."""
        if not self._option_shape["branched"] or is_deepspeed_zero3_enabled():
            return  # under ZeRO-3 the parameters are spread already, and only the engine brings them together
        rows = [
            row for dataset in datasets if dataset is not None for row in dataset.select(range(min(len(dataset), 32)))
        ]
        features = [row for row in rows if row.get("num_options")]
        scorer = OptionScorer(self.model, self._tokenizer, self.args.option_normalization)
        training = self.model.training
        self.model.eval()
        scorer.check_branches(features)
        self.model.train(training)
        if not scorer.branches:
            raise ValueError(
                f"{type(unwrap_causal_lm(self.model)).__name__} does not score options of several tokens in one pass. "
                "Load it with attn_implementation='sdpa' or 'eager', or train with scoring='letter'."
            )

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns = ("input_ids", "labels", *OPTION_COLUMNS, REFERENCE_COLUMN)
        self._signature_columns += [name for name in columns if name not in self._signature_columns]

    def _score_rows(self, kind, inputs):
        inputs.pop("labels", None)
        option_logits = self.model_wrapped(**inputs, options_only=True).logits
        return option_logits.softmax(-1), inputs["option_label"]

    def _option_loss(
        self,
        option_logits: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor,
        calibration_weight: float,
        reference_logits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Weighted sums of the losses over options: over the questions with an answer, of those that ask for one, and over all
        questions, of the others. Each loss is logged as a mean over all processes.
        """
        args, probabilities = self.args, option_logits.detach().softmax(-1)
        answered = labels != IGNORE_INDEX
        known_logits, known_labels = option_logits[answered], labels[answered]
        confidence, prediction = probabilities.max(-1)
        smoothing = args.option_label_smoothing, args.option_focal_gamma
        asking = {"option_loss": option_cross_entropy(known_logits, known_labels, mask[answered], *smoothing)}
        supervised = args.option_loss_weight * asking["option_loss"]
        others, unsupervised = (
            {"option_confidence": confidence.sum()},
            option_logits.new_zeros((), dtype=torch.float32),
        )
        if calibration_weight and "options" in self.calibrators:
            targets = self.calibrators["options"].targets(probabilities, mask)
            others["em_ece"] = em_ece_loss(option_logits, targets, mask, args.em_loss, reduction="sum")
            unsupervised = unsupervised + calibration_weight * others["em_ece"]
        elif calibration_weight:
            name = args.calibration_loss
            asking[name] = BATCH_CALIBRATION_LOSSES[name](known_logits, known_labels) * len(known_labels)
            supervised = supervised + calibration_weight * asking[name]
        if reference_logits is not None:
            targets = reference_logits.softmax(-1)
            others["reference_kl"] = em_ece_loss(option_logits, targets, mask, "kl", reduction="sum")
            unsupervised = unsupervised + args.reference_weight * others["reference_kl"]
        asking["option_accuracy"] = (prediction == labels).sum()
        self._log_means(asking, len(known_labels))
        self._log_means(others, len(labels))
        return supervised, unsupervised

    def _log_means(self, sums: dict[str, torch.Tensor], count: int) -> None:
        """Log sums over the rows of a micro-batch as means over those of all processes."""
        values = torch.stack([value.detach().float() for value in sums.values()])
        # Every process gathers, even one whose micro-batch held no row.
        totals = self.accelerator.gather(torch.cat([values, values.new_tensor([count])])[None]).sum(0).tolist()
        if totals[-1]:
            for name, total in zip(sums, totals, strict=False):
                if math.isnan(total):
                    raise FloatingPointError(
                        f"{name} is NaN at step {self.state.global_step + 1}: the model has diverged. Try a lower "
                        "learning_rate, or a smaller max_grad_norm."
                    )
                self._metrics["train"][name].append(total / totals[-1])
