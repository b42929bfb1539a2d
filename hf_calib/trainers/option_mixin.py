"""Option questions in a trainer: encoding, scoring in the model's own forward pass, and losses."""

from __future__ import annotations

import logging
import math

import torch
from datasets import Dataset
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.trainer.utils import global_then_local_main_first, maybe_gather_lm_head_ctx

from ..inference.encoding import IGNORE_INDEX, OPTION_COLUMNS, OptionEncoder
from ..inference.option_head import OptionHead, unwrap_causal_lm
from ..inference.option_scorer import OptionScorer
from ..inference.packing import architecture_obstacle
from ..losses.em_ece_loss import em_ece_loss
from ..losses.option_losses import option_cross_entropy
from ..losses.released_code import ReleasedCodeLoss
from .data import encode_questions, longest_questions
from .e_step import EMTrainerMixin
from .reference import REFERENCE_COLUMN
from .text_anchor import TEXT_COLUMNS


logger = logging.getLogger(__name__)

QUESTION_INDEX = "question_index"  # number of a question of the M-step, -1 in other rows


class OptionTrainingMixin(EMTrainerMixin):
    """Option questions, their losses and their E-step, for a TRL trainer configured with [`PromptArguments`]."""

    def compute_option_loss(
        self, option_logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """
        Compute the supervised loss over the options of a micro-batch: `option_loss_weight` times the cross-entropy.

        Override this method to add or replace a loss over the options.

        Args:
            option_logits (`torch.Tensor` of shape `(batch, num_options)`):
                Option logits of the labelled questions; -inf where there is no option. The batch may be empty.
            labels (`torch.Tensor` of shape `(batch,)`):
                Index of the right option.
            mask (`torch.Tensor` of shape `(batch, num_options)`):
                True where there is an option.

        Returns:
            `torch.Tensor`: a scalar, the sum over the questions. The trainer divides it by the number of labelled
            questions of the optimizer step.
        """
        return self.args.option_loss_weight * option_cross_entropy(option_logits, labels, mask)

    def _init_options(self) -> None:
        """Call this before any data set is encoded."""
        # Updated while the data sets are encoded, so that every batch has the same columns on every process.
        self._option_shape = {"max_options": 0, "branched": False}
        self._branches_checked = False

    def _encode(
        self, questions: Dataset, name: str, args, max_length: int | None, branches: bool, likelihood: str | None
    ) -> Dataset:
        encoder = OptionEncoder(self._tokenizer, args.prompt_format(), max_length)
        with global_then_local_main_first():
            encoded = encode_questions(questions, encoder, branches, likelihood, name, args.dataset_num_proc)
        if branches:
            self._widen_batches(encoded)
            if self._branches_checked:  # a data set that came after the constructor
                self._check_branches([encoded])
        return encoded

    def _widen_batches(self, encoded: Dataset) -> None:
        """Make room in the batches for the options of encoded questions."""
        shape = self._option_shape
        shape["max_options"] = max(shape["max_options"], *encoded["num_options"])
        shape["branched"] = shape["branched"] or any(map(any, encoded["option_segments"]))

    def _add_option_head(self) -> None:
        self.option_head = OptionHead(self.model, self.args.option_normalization, gather=maybe_gather_lm_head_ctx)

    def _check_branches(self, datasets: list[Dataset | None]) -> None:
        """Score options of several tokens in sequences of their own where the model does not support packed ones."""
        checked, self._branches_checked = self._branches_checked, True
        if not (self._option_shape["branched"] and self.option_head.packed):
            return
        features = [row for dataset in datasets if dataset is not None for row in longest_questions(dataset)]
        features = [row for row in features if any(row["option_segments"])]
        if not features:
            return
        if is_deepspeed_zero3_enabled() or (checked and self.is_fsdp_enabled):  # partitioned: it cannot be run here
            obstacle = architecture_obstacle(unwrap_causal_lm(self.model), features)
        else:
            scorer = OptionScorer(self.model, self._tokenizer, self.args.option_normalization)
            training = self.model.training
            self.model.eval()
            scorer.check_branches(features)
            self.model.train(training)
            obstacle = scorer.obstacle
        if obstacle is not None:
            self.option_head.packed = False
            logger.warning(f"In training too, every option of several tokens takes a sequence of its own: {obstacle}.")

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns = ("input_ids", "labels", *OPTION_COLUMNS, REFERENCE_COLUMN, QUESTION_INDEX, *TEXT_COLUMNS)
        self._signature_columns += [name for name in columns if name not in self._signature_columns]

    def _score_rows(self, kind, inputs):
        inputs.pop("labels", None)
        option_logits = self.model_wrapped(**inputs, options_only=True).logits
        return option_logits.softmax(-1), inputs["option_label"]

    def _option_losses(
        self,
        option_logits: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor,
        calibration_weight: float,
        reference_logits: torch.Tensor | None = None,
        question_index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Compute three weighted sums: the loss of the labelled questions, EM-ECE, and the divergence from the reference.

        EM-ECE acts on the questions with a number in `question_index`, by default on all.
        """
        probabilities = option_logits.detach().softmax(-1)
        confidence, prediction = probabilities.max(-1)
        labelled = labels != IGNORE_INDEX
        known = option_logits[labelled], labels[labelled], mask[labelled]
        supervised = self.compute_option_loss(*known)
        em_ece = reference_kl = option_logits.new_zeros((), dtype=torch.float32)
        logged = {"option_confidence": confidence.sum()}
        if calibration_weight and "options" in self.calibrators:
            acts = torch.ones_like(labelled) if question_index is None else question_index >= 0
            numbers = None if question_index is None else question_index[acts]
            em_ece = self._em_ece(option_logits[acts], mask[acts], numbers)
            self._log_means({"em_ece": em_ece}, int(acts.sum()))
        if reference_logits is not None:
            targets = reference_logits.softmax(-1)
            reference_kl = em_ece_loss(option_logits, targets, mask, "kl", reduction="sum")
            logged["reference_kl"] = reference_kl
            reference_kl = self.args.reference_weight * reference_kl
        correct = (prediction == labels).sum()
        self._log_means({"option_loss": option_cross_entropy(*known), "option_accuracy": correct}, len(known[1]))
        self._log_means(logged, len(labels))
        return supervised, calibration_weight * em_ece, reference_kl

    def _em_ece(
        self, option_logits: torch.Tensor, mask: torch.Tensor, question_index: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute EM-ECE of the questions of a micro-batch that it acts on, as a sum."""
        calibrator = self.calibrators["options"]
        if isinstance(calibrator, ReleasedCodeLoss):
            return calibrator(option_logits, mask)
        targets = self._mstep_targets(option_logits.detach().softmax(-1), mask, question_index)
        return em_ece_loss(option_logits, targets, mask, self.args.em_loss, reduction="sum")

    def _mstep_targets(
        self, probabilities: torch.Tensor, mask: torch.Tensor, question_index: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the targets of a micro-batch, here from its current probabilities."""
        return self.calibrators["options"].targets(probabilities, mask)

    def _log_means(self, sums: dict[str, torch.Tensor], count: int) -> None:
        """Log sums over the rows of a micro-batch as means over the rows of all processes."""
        values = torch.stack([value.detach().float() for value in sums.values()])
        # A collective operation: every process takes part, even with an empty micro-batch.
        totals = self.accelerator.gather(torch.cat([values, values.new_tensor([count])])[None]).sum(0).tolist()
        if totals[-1]:
            for name, total in zip(sums, totals, strict=False):
                if math.isnan(total):
                    raise FloatingPointError(
                        f"{name} is NaN at step {self.state.global_step + 1}: the model has diverged. Try a lower "
                        "learning_rate, or a smaller max_grad_norm."
                    )
                self._metrics["train"][name].append(total / totals[-1])
