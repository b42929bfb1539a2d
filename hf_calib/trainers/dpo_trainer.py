"""Calibrated DPO: TRL's DPOTrainer, with EM-ECE on the pairs and on option questions interleaved with them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer
from trl.trainer.utils import get_config_model_id

from ..data.preference_pairs import PREFERENCE_COLUMN, check_pairs
from ..data.questions import adapt_questions
from ..losses.em_ece_loss import em_ece_loss
from ..losses.preference_links import LINKED_LOSSES, loss_of_margin, preference_link
from ..measures.calibration_error import calibration_report
from .collators import DataCollatorForCalibratedPreference, DataCollatorForOptions
from .data import check_has_rows, check_tokens, report_too_long
from .dpo_config import CalibratedDPOConfig
from .e_step import hold_out
from .m_step import MStepMixin
from .option_mixin import QUESTION_INDEX
from .preference import (
    as_two_options,
    column_names,
    comparisons,
    preference_margins,
    rename_preferences,
    sequence_log_probs,
    soft_label_slope,
)


logger = logging.getLogger(__name__)


class CalibratedDPOTrainer(MStepMixin, DPOTrainer):
    """
    Trainer for Direct Preference Optimization (DPO) that keeps the model calibrated.

    The loss is that of [`~trl.DPOTrainer`], plus `lambda_pref` times EM-ECE on the preference probabilities that the
    margins imply ([`~hf_calib.losses.preference_links.preference_link`]), plus `lambda_options` times the loss on
    option questions. Where the pairs have the annotators' agreement (a column `preference_probability`), it is the
    label of DPO's own loss, and EM-ECE on the pairs has nothing to add. The margins come from TRL's own forward
    passes; the option questions take one more. Losses, PEFT, the reference model, precomputed reference
    log-probabilities, gradient accumulation, DeepSpeed and checkpoints work as in [`~trl.DPOTrainer`].

    On the option questions the targets of EM-ECE are fixed at each E-step, as in [`CalibratedSFTTrainer`]. On the
    pairs they follow the current probabilities: the policy begins as its reference, where every pair is a tie, and
    targets of an early E-step would hold it there.

    Evaluation adds every measure of [`calibration_report`]: of the pairs as `eval_pair_ece`, `eval_pair_accuracy`,
    ..., and of the questions as `eval_option_ece`, ... Losses without a link (such as hinge) have no measures of the
    pairs.

    To add or replace a loss over the pairs, override [`~CalibratedDPOTrainer.compute_pair_loss`]; over the options,
    [`~hf_calib.trainers.option_mixin.OptionTrainingMixin.compute_option_loss`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained; see [`~trl.DPOTrainer`].
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference; see [`~trl.DPOTrainer`].
        args ([`CalibratedDPOConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`], or with `lambda_pref=0` [`~datasets.IterableDataset`]):
            Preference pairs in any format of [`~trl.DPOTrainer`], optionally with a column `preference_probability`.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Pairs to evaluate on.
        option_dataset ([`~datasets.Dataset`], *optional*):
            Option questions (`question`, `choices`, `answer`) to train on, for `lambda_options > 0`.
        eval_option_dataset ([`~datasets.Dataset`], *optional*):
            Option questions to evaluate on, whenever the pairs are.
        estep_dataset ([`~datasets.Dataset`], *optional*):
            Pairs for the E-step. By default a part of `train_dataset` is held out, unless it has the column
            `preference_probability`: then there is nothing to estimate.
        estep_option_dataset ([`~datasets.Dataset`], *optional*):
            Questions for the E-step. By default a part of `option_dataset` is held out.
        kwargs:
            Further arguments of [`~trl.DPOTrainer`].

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from hf_calib import CalibratedDPOConfig, CalibratedDPOTrainer, load_questions

    >>> trainer = CalibratedDPOTrainer(
    ...     model="HuggingFaceTB/SmolLM2-135M-Instruct",
    ...     args=CalibratedDPOConfig(output_dir="smollm2-dpo", lambda_options=1.0, scoring="text"),
    ...     train_dataset=load_dataset("trl-lib/ultrafeedback_binarized", split="train"),
    ...     option_dataset=load_questions("allenai/ai2_arc", "ARC-Easy", split="train"),
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "dpo", "hf_calib"]
    _name = "Calibrated DPO"

    def __init__(
        self,
        model,
        ref_model=None,
        args: CalibratedDPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        option_dataset: Dataset | None = None,
        eval_option_dataset: Dataset | None = None,
        estep_dataset: Dataset | None = None,
        estep_option_dataset: Dataset | None = None,
        **kwargs,
    ):
        if kwargs.get("compute_metrics") is not None:
            raise ValueError("CalibratedDPOTrainer computes its own metrics; leave compute_metrics out.")
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = CalibratedDPOConfig(f"{name.split('/')[-1]}-calibrated-dpo")
        if args.lambda_pref and not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"train_dataset is a {type(train_dataset).__name__}: give a datasets.Dataset, or set lambda_pref=0."
            )
        if args.lambda_options and option_dataset is None:
            raise ValueError(
                f"lambda_options={args.lambda_options} needs option questions to train on: give option_dataset "
                "(columns question, choices, answer), or set lambda_options=0."
            )
        if option_dataset is not None and not args.lambda_options:
            logger.warning("option_dataset is not used: lambda_options=0.")
        check_has_rows(train_dataset=train_dataset, eval_dataset=eval_dataset, estep_dataset=estep_dataset)
        self._init_options()
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        check_tokens(self.model, self._tokenizer, self.train_dataset)
        self._preference_logits = None
        linked = loss_of_margin(self.loss_types) in LINKED_LOSSES
        self.preference_link = preference_link(self.loss_types, self.label_smoothing) if linked else None
        self._soft_label_slope = None
        if PREFERENCE_COLUMN in column_names(self.train_dataset):
            losses = self.loss_types, self.loss_weights, self.beta, self.label_smoothing
            self._soft_label_slope = soft_label_slope(*losses, args.use_weighting)
        self.option_dataset, self.eval_option_dataset, self.held_out_questions = None, None, None
        estep_datasets = {}
        # Where the training pairs have a preference probability, it is their target, and there is nothing to estimate.
        if args.lambda_pref and PREFERENCE_COLUMN not in self.train_dataset.column_names:
            estep_datasets["pairs"] = self._prepare_estep_pairs(estep_dataset)
        if args.lambda_options:
            estep_datasets["options"] = self._prepare_options(option_dataset, estep_option_dataset)
        if eval_option_dataset is not None:
            self.eval_option_dataset = self._encode_options(adapt_questions(eval_option_dataset), "evaluation")
        if self._option_shape["max_options"]:
            self._add_option_head()
            self._check_branches([self.option_dataset, self.eval_option_dataset, estep_datasets.get("options")])
        self._init_em(estep_datasets)
        options = DataCollatorForOptions(
            self._tokenizer.pad_token_id, **self._option_shape, pad_to_multiple_of=args.pad_to_multiple_of
        )
        self.data_collator = DataCollatorForCalibratedPreference(self.data_collator, options)
        self.compute_metrics = self._pair_metrics

    # Data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if "chosen_ids" in column_names(dataset):
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        dataset = rename_preferences(dataset, args.preference_probability_column)
        if not isinstance(dataset, Dataset):  # rows of a stream are read once, in training
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        check_pairs(dataset, f"{dataset_name} pairs")
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        report_too_long(dataset, prepared, args.max_length, f"{dataset_name} pairs")
        return prepared

    def _prepare_estep_pairs(self, dataset: Dataset | None) -> Dataset:
        """Tokenize the pairs of the E-step, or hold out a part of the training pairs, which are tokenized already."""
        args = self.args
        if dataset is None:
            keys = comparisons(self.train_dataset)
            self.train_dataset, dataset = hold_out(self.train_dataset, keys, args, "pairs")
            return dataset
        dataset = self._prepare_dataset(dataset, self.processing_class, args, "E-step")
        if not self.precompute_ref_logps:
            return dataset
        batch_size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
        return self._precompute_ref_logps(dataset, "E-step", batch_size)

    def _prepare_options(self, questions: Dataset, estep_questions: Dataset | None) -> Dataset:
        """Encode the option questions of the training; return those of the E-step."""
        questions = adapt_questions(questions)
        if estep_questions is None:
            questions, estep_questions = hold_out(questions, questions["question"], self.args, "questions")
        estep_questions = adapt_questions(estep_questions)
        if self.args.holds_out:  # no gradient sees them, as in CalibratedSFTTrainer
            self.held_out_questions = estep_questions
        likelihood = "completion" if self.args.option_likelihood_weight else None
        encoded = self._encode_options(questions, "training", likelihood)
        self.option_dataset = self._number_questions(encoded, np.ones(len(encoded), dtype=bool))
        return self._encode_options(estep_questions, "E-step")

    def _encode_options(self, questions: Dataset, name: str, likelihood: str | None = None) -> Dataset:
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        max_length = min((length for length in (self.args.max_length, context) if length), default=None)
        return self._encode(questions, name, self.args, max_length, True, likelihood)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if PREFERENCE_COLUMN not in self._signature_columns:
            self._signature_columns.append(PREFERENCE_COLUMN)

    def compute_ref_log_probs(self, model, inputs):
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != PREFERENCE_COLUMN})

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.option_dataset is not None and batches:
            # The number of questions in an optimizer step does not depend on its division into micro-batches.
            questions = self._draw_questions()
            parts = np.array_split(questions, min(len(batches), len(questions)))
            for batch, part in zip(batches, parts, strict=False):
                batch["options"] = self.data_collator.options([self.option_dataset[int(i)] for i in part])
        return batches, num_items

    @property
    def _questions_per_step(self) -> int:
        """Number of option questions of an optimizer step, on each process."""
        args = self.args
        return max(1, round(args.option_ratio * args.per_device_train_batch_size * args.gradient_accumulation_steps))

    def _draw_questions(self) -> np.ndarray:
        """Draw the questions of this step and process, as a function of seed and step, so that a run can resume."""
        processes, size = self.accelerator.num_processes, len(self.option_dataset)
        count = self._questions_per_step * processes
        numbers = self.state.global_step * count + np.arange(self.accelerator.process_index, count, processes)
        orders = {epoch: np.random.default_rng([self.args.seed, epoch]).permutation(size) for epoch in numbers // size}
        return np.array([orders[number // size][number % size] for number in numbers])

    # Loss

    def compute_pair_loss(
        self, preference_logits: torch.Tensor, preference_probability: torch.Tensor | None = None
    ) -> torch.Tensor | float:
        """
        Compute what is added to DPO's loss on a micro-batch of pairs.

        With preference probabilities it turns the loss of votes into that of soft labels; see
        [`~hf_calib.trainers.preference.soft_label_slope`]. Without them it is `lambda_pref` times EM-ECE, which is 0
        until the first calibration map. Override this method to add or replace a loss over the pairs.

        Args:
            preference_logits (`torch.Tensor` of shape `(batch,)`):
                `beta * margin`. `self.preference_link` maps it to the probability that the chosen completion is
                preferred.
            preference_probability (`torch.Tensor` of shape `(batch,)`, *optional*):
                That probability according to the annotators, where the data have it.

        Returns:
            `torch.Tensor` or `float`: a scalar, the mean over the pairs.
        """
        soft = preference_probability is not None
        if not (soft or self.args.lambda_pref):
            return 0.0
        logits = self.preference_link.log_odds(preference_logits)
        logits = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
        probabilities = logits.detach().float().softmax(-1)
        confidence, count = probabilities.amax(-1).sum(), len(logits)
        if soft:
            self._log_means({"pair_confidence": confidence}, count)
            return self._soft_label_slope * ((1 - preference_probability) * preference_logits).mean()
        calibrator = self.calibrators["pairs"]
        targets = calibrator.targets(probabilities) if calibrator.fitted else probabilities
        loss = em_ece_loss(logits, targets, loss_type=self.args.em_loss)
        self._log_means({"pair_em_ece": loss * count, "pair_confidence": confidence}, count)
        return self.args.lambda_pref * loss

    def _compute_loss(self, model, inputs, return_outputs):
        if return_outputs:
            raise ValueError("CalibratedDPOTrainer keeps no logits of the vocabulary: return_outputs must be False.")
        preference_probability = inputs.get(PREFERENCE_COLUMN)
        inputs = {name: value for name, value in inputs.items() if name not in (PREFERENCE_COLUMN, "options")}
        policy, reference = [], []

        def forward(**kwargs):
            outputs = model(**kwargs)
            policy.append(outputs.log_probs)
            return outputs

        with _keep_outputs(self.ref_model or self.model, reference, "log_probs"):
            loss = super()._compute_loss(forward, inputs, return_outputs)
        # The policy's pass is the first one. Where the model is its own reference (PEFT), that pass is the last one.
        self._preference_logits = self.beta * self._margins(policy[0], reference[-1:], inputs)
        if self.model.training:
            loss = loss + self.compute_pair_loss(self._preference_logits, preference_probability)
        return loss

    def _margins(self, policy: torch.Tensor, reference: list[torch.Tensor], inputs: dict) -> torch.Tensor:
        mask = inputs["completion_mask"]
        width = mask.size(1) - 1  # prompt-learning adapters prepend virtual tokens
        if self.precompute_ref_logps:
            reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        else:
            reference = sequence_log_probs(reference[0][:, -width:], mask[:, 1:], self.ld_alpha)
        policy = sequence_log_probs(policy[:, -width:], mask[:, 1:], self.ld_alpha)
        divergence = self.f_divergence_type, self.f_alpha_divergence_coef
        return preference_margins(policy, reference, mask, self.loss_types, *divergence)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "options" in inputs:
            loss = loss + self.args.lambda_options * self._question_loss(model, dict(inputs["options"]))
        return loss

    def _question_loss(self, model, options: dict[str, torch.Tensor]) -> torch.Tensor:
        args, labels, question_index = self.args, options.pop("labels", None), options.pop(QUESTION_INDEX)
        if labels is None:
            option_logits, likelihood = model(**options, options_only=True).logits, 0.0
        else:
            likelihood = -model(**options, labels=labels, fused_lm_head=True).log_probs.sum()
            option_logits = self.option_head.pop()
        losses = self._option_losses(
            option_logits,
            options["option_label"],
            options["option_mask"],
            calibration_weight=1.0,
            question_index=question_index,
        )
        loss = sum(losses) + args.option_likelihood_weight * likelihood
        # A mean over the questions of the step; Trainer divides by its micro-batches.
        return loss / self._questions_per_step * self.current_gradient_accumulation_steps

    # E-step

    def _score_rows(self, kind, inputs):
        if kind == "options":
            return super()._score_rows(kind, inputs)
        # TRL logs metrics in its loss; those of the E-step are discarded.
        metrics, self._metrics = self._metrics, {"eval": defaultdict(list)}
        self._compute_loss(self.model_wrapped, inputs, False)
        self._metrics = metrics
        chosen = self.preference_link.probabilities(self._preference_logits.float())
        return chosen, inputs.get(PREFERENCE_COLUMN, torch.ones_like(chosen))

    def _fit_map(self, kind, probabilities, truth):
        if kind == "pairs":
            probabilities, truth = as_two_options(probabilities), as_two_options(truth)
            if probabilities.max() < 0.51:
                logger.info(
                    "The policy equals its reference, and every pair is a tie: no calibration map of the pairs."
                )
                return
        super()._fit_map(kind, probabilities, truth)

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        if prediction_loss_only or self.preference_link is None:
            return loss, None, None
        chosen = self.preference_link.probabilities(self._preference_logits.float())
        return loss, chosen, inputs.get(PREFERENCE_COLUMN, torch.full_like(chosen, torch.nan))

    @staticmethod
    def _pair_metrics(predictions) -> dict[str, float]:
        """Compute the measures of the pairs, as questions of two options."""
        probabilities, labels = as_two_options(predictions.predictions), np.arange(len(predictions.predictions)) % 2
        truth = None if np.isnan(predictions.label_ids).any() else as_two_options(predictions.label_ids)
        return {f"pair_{name}": v for name, v in calibration_report(probabilities, labels, truth).items()}

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        output: EvalLoopOutput = super().evaluation_loop(
            dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        if self.eval_option_dataset is not None:
            probabilities, labels = self._score_dataset("options", self.eval_option_dataset, "evaluation options")
            report = calibration_report(probabilities.numpy(), labels.numpy())
            output.metrics.update({f"{metric_key_prefix}_option_{name}": value for name, value in report.items()})
        return output


@contextmanager
def _keep_outputs(module: torch.nn.Module, kept: list[torch.Tensor], name: str) -> Iterator[None]:
    """Append the output of that name, of every forward pass of the module, to a list."""
    handle = module.register_forward_hook(lambda module, args, outputs: kept.append(getattr(outputs, name)))
    try:
        yield
    finally:
        handle.remove()
