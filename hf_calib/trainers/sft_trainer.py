"""CFT and RCFT: TRL's SFTTrainer on option questions, with EM-ECE in the loss and calibration in the evaluation."""

from __future__ import annotations

import logging

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import SFTTrainer

from ..data.questions import adapt_questions
from ..inference.encoding import IGNORE_INDEX
from ..inference.option_scorer import OptionScorer, pad_rows
from ..losses.em_calibrator import EMCalibrator
from ..measures.calibration_error import calibration_report
from ..posthoc import TemperatureScaling
from ..posthoc.fold_temperature import fold_temperature
from .collators import DataCollatorForOptions
from .data import split_rows
from .e_step import hold_out
from .option_mixin import OptionTrainingMixin
from .reference import REFERENCE_COLUMN, add_reference
from .sft_config import CalibratedSFTConfig


logger = logging.getLogger(__name__)


class CalibratedSFTTrainer(OptionTrainingMixin, SFTTrainer):
    """
    Trainer for calibration-aware fine-tuning (CFT) and its regularised form (RCFT).

    Xiao et al., "Restoring Calibration for Aligned Large Language Models" (ICML 2025, arXiv 2505.01997). The training
    questions are option questions in the unified schema (`question`, `choices`, `answer`). Rows without `choices` (domain
    texts, instruction pairs in any format that [`~trl.SFTTrainer`] takes) may be mixed in; they count in the likelihood
    only. Everything else is [`~trl.SFTTrainer`]'s: PEFT, gradient accumulation, DeepSpeed, evaluation, checkpoints.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained; see [`~trl.SFTTrainer`].
        args ([`CalibratedSFTConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Questions, perhaps with rows of text among them.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Questions to evaluate on: every measure of [`calibration_report`] appears as `eval_ece`, `eval_accuracy`, ...
        estep_dataset ([`~datasets.Dataset`], *optional*):
            Questions for the E-step. By default a part of `train_dataset` is held out (`em_estep_set="holdout"`).
        unlabelled_dataset ([`~datasets.Dataset`], *optional*):
            Questions whose answers are not needed, and not read (`question`, `choices`), to train on beside the others: they
            count in EM-ECE and in the divergence from the reference, which ask for no label.
        kwargs:
            Further arguments of [`~trl.SFTTrainer`].

    Example:
    ```python
    >>> from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer
    >>> from hf_calib.data.questions import load_questions

    >>> trainer = CalibratedSFTTrainer(
    ...     model="HuggingFaceTB/SmolLM2-135M-Instruct",
    ...     args=CalibratedSFTConfig(output_dir="smollm2-rcft", objective="rcft", scoring="text"),
    ...     train_dataset=load_questions("allenai/ai2_arc", "ARC-Easy", split="train"),
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "sft", "hf_calib"]
    _name = "CFT"

    def __init__(
        self,
        model,
        args: CalibratedSFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        estep_dataset: Dataset | None = None,
        unlabelled_dataset: Dataset | None = None,
        **kwargs,
    ):
        if kwargs.get("data_collator") is not None:
            raise ValueError("CalibratedSFTTrainer brings its own data collator; leave data_collator out.")
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            args = CalibratedSFTConfig(f"{name.split('/')[-1]}-calibrated")
        if not isinstance(train_dataset, Dataset):
            raise TypeError(f"train_dataset must be a datasets.Dataset, got {type(train_dataset).__name__}.")
        if unlabelled_dataset is not None and not (args.takes_e_steps or args.has_reference):
            raise ValueError(
                "Nothing in this objective learns from unlabelled questions: give a reference_model_name_or_path, or "
                "objective='rcft' with lambda_ece > 0 and calibration_loss='em_ece'; or leave unlabelled_dataset out."
            )
        args.max_length = self._fitting_length(model, args)
        self._regularised = args.takes_e_steps
        self._trains_options = args.calibration_weight > 0 or args.option_loss_weight > 0 or args.has_reference
        if self._regularised and estep_dataset is None:
            train_dataset, estep_dataset = self._split_estep(train_dataset, args)
        # Questions that no gradient sees: a post-hoc calibrator can be fitted on what the trained model makes of them.
        self.held_out_questions = estep_dataset if self._regularised and args.em_estep_set == "holdout" else None
        self._init_options()
        self._train_prepared = False  # TRL names data sets by the keys of `eval_dataset`, "train" perhaps among them
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self._add_option_head()
        if unlabelled_dataset is not None:
            unlabelled = adapt_questions(unlabelled_dataset, labelled=False)
            unlabelled = self._encode(unlabelled, "unlabelled", args, args.max_length, True, args.likelihood)
            self.train_dataset = concatenate_datasets([self.train_dataset, unlabelled])
        self._num_questions = None  # of an optimizer step: with an answer, and in all
        self.estep_dataset = None
        if self._regularised:
            self.estep_dataset = self._prepare_dataset(
                estep_dataset, self.processing_class, args, False, None, "E-step"
            )
        self._init_em({"options": self.estep_dataset} if self._regularised else {})
        self.data_collator = DataCollatorForOptions(
            self._tokenizer.pad_token_id, **self._option_shape, pad_to_multiple_of=args.pad_to_multiple_of
        )
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        self._check_branches([self.train_dataset, self.estep_dataset, *evaluated])
        if args.has_reference:
            self._add_reference()
        if args.warm_start:
            self._warm_start()
        self.compute_metrics = self._option_metrics

    @property
    def calibrator(self) -> EMCalibrator | None:
        """The calibration map of the questions; there is none without EM-ECE."""
        return self.calibrators.get("options")

    # Data

    @staticmethod
    def _fitting_length(model, args: CalibratedSFTConfig) -> int | None:
        """`max_length`, or the model's context length where that is less: beyond it no position is defined."""
        if isinstance(model, str):
            revision = (args.model_init_kwargs or {}).get("revision") or "main"
            config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
        else:
            config = model.config
        lengths = args.max_length, getattr(config.get_text_config(), "max_position_embeddings", None)
        return min((length for length in lengths if length), default=None)

    @staticmethod
    def _split_estep(dataset: Dataset, args: CalibratedSFTConfig) -> tuple[Dataset, Dataset]:
        """Training rows and E-step questions."""
        questions, texts = split_rows(dataset)
        if not len(questions):
            raise ValueError(
                "objective='rcft' needs option questions (columns question, choices, answer); the training set has none: "
                f"{dataset.column_names}. Use hf_calib.data.questions.adapt_questions, or objective='cft'."
            )
        if args.em_estep_set == "train":
            return dataset, questions
        kept, held_out = hold_out(questions, questions["question"], args, "questions")
        return kept if texts is None else concatenate_datasets([kept, texts]), held_out

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if isinstance(dataset, Dataset) and "num_options" in dataset.column_names:
            return dataset  # encoded already; TRL's truncation would cut its branches off
        training, self._train_prepared = not self._train_prepared, True
        if not isinstance(dataset, Dataset) or "choices" not in dataset.column_names:
            if training and self._trains_options:
                raise ValueError(f"The training set has no column 'choices'; its columns are {dataset.column_names}.")
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        questions, texts = split_rows(dataset)
        prepared = []
        if len(questions):
            # A pure likelihood needs the right option alone; evaluation and the losses over options need all of them.
            branches = not training or self._trains_options
            likelihood = None if dataset_name == "E-step" else args.likelihood
            prepared.append(self._encode(questions, dataset_name, args, args.max_length, branches, likelihood))
        if texts is not None:
            if args.completion_only_loss is None:
                self.completion_only_loss = "completion" in texts.column_names
            prepared.append(
                super()._prepare_dataset(texts, processing_class, args, packing, formatting_func, dataset_name)
            )
        prepared = concatenate_datasets(prepared) if len(prepared) > 1 else prepared[0]
        return prepared.shuffle(seed=args.seed) if args.shuffle_dataset and training else prepared

    def get_eval_dataloader(self, eval_dataset=None):
        # A data set that came with the call to `evaluate` may have more options, or longer ones, than any before it.
        vars(self.data_collator).update(self._option_shape)
        return super().get_eval_dataloader(eval_dataset)

    # Before training

    def _add_reference(self) -> None:
        self.train_dataset = add_reference(
            self.train_dataset,
            self.args.reference_model_name_or_path,
            self._tokenizer,
            self.args.option_normalization,
            self.args.per_device_eval_batch_size,
            self.args.reference_pseudo_count,
            None if self.args.em_estep_set == "train" else self.estep_dataset,
            trust_remote_code=self.args.trust_remote_code,
        )

    def _warm_start(self) -> None:
        """Fold the temperature of the E-step questions into the model, before it is wrapped for training."""
        if self._option_shape["branched"] or hasattr(self.model, "peft_config") or is_deepspeed_zero3_enabled():
            raise ValueError(
                "warm_start folds a temperature into the model's own weights, read at one position: it goes with options of "
                "single tokens (scoring='letter'), full fine-tuning, and no ZeRO-3. Set warm_start=False."
            )
        scorer = OptionScorer(self.model, self._tokenizer, self.args.option_normalization)
        features, size = list(self.estep_dataset), self.args.per_device_eval_batch_size
        self.model.eval()
        rows = [row for i in range(0, len(features), size) for row in scorer(features[i : i + size])]
        option_logits = pad_rows(rows, self._option_shape["max_options"], -np.inf)
        calibrator = TemperatureScaling().fit(option_logits, [feature["option_label"] for feature in features])
        fold_temperature(self.model, calibrator.temperature.item())
        logger.info(f"Warm start: temperature {calibrator.temperature.item():.3f} folded into the weights.")

    # M-step

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batch_samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._trains_options:
            # Losses over options are means over all questions of an optimizer step, as the likelihood is over its tokens:
            # then 8x1 and 2x4 (batch x accumulation) train alike, and so does any number of processes.
            batches = [batch for batch in batch_samples if "option_label" in batch]
            answered = sum((batch["option_label"] != IGNORE_INDEX).sum() for batch in batches)
            questions = sum(batch["option_mask"].any(-1).sum() for batch in batches)
            counts = torch.tensor([[answered, questions]], device=device)
            if self.args.average_tokens_across_devices:
                counts = self.accelerator.gather(counts) // self.get_tp_size()
            self._num_questions = counts.sum(0).clamp(min=1)
            if num_items is not None:  # a step may have unlabelled questions alone
                num_items = torch.as_tensor(num_items, device=device).clamp(min=1)
        return batch_samples, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("CalibratedSFTTrainer keeps no logits; evaluation reads the option logits instead.")
        reference_logits = inputs.pop(REFERENCE_COLUMN, None)
        option_label, option_mask = inputs.get("option_label"), inputs.get("option_mask")
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self._option_logits = self.option_head.pop()
        if not self.model.training:
            return loss
        loss = self.args.likelihood_weight * loss
        if self._option_logits is None or not self._trains_options:
            return loss

        asked = option_mask.any(-1)  # the other rows are texts
        supervised, unsupervised = self._option_loss(
            self._option_logits[asked],
            option_label[asked],
            option_mask[asked],
            calibration_weight=self.args.calibration_weight,
            reference_logits=None if reference_logits is None else reference_logits[asked],
        )
        if num_items_in_batch is None:
            # Trainer itself divides by the accumulation steps: plain means over the micro-batch.
            counts, scale = torch.stack([(option_label != IGNORE_INDEX).sum(), asked.sum()]).clamp(min=1), 1
        else:
            counts = self._num_questions
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            scale = processes // self.get_tp_size()
        return loss + (supervised / counts[0] + unsupervised / counts[1]) * scale

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("option_label")
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        if prediction_loss_only or labels is None or self._option_logits is None:
            return loss, None, None
        # Padding by the evaluation loop would be -100, a possible log-likelihood: probabilities leave no doubt.
        return loss, self._option_logits.softmax(-1).nan_to_num(0.0), labels

    @staticmethod
    def _option_metrics(predictions) -> dict[str, float]:
        probabilities, labels = predictions.predictions, predictions.label_ids
        answered = labels != IGNORE_INDEX
        return calibration_report(probabilities[answered], labels[answered]) if answered.any() else {}
