"""CFT and RCFT: TRL's SFTTrainer on option questions, with EM-ECE in the loss and calibration in the evaluation."""

from __future__ import annotations

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig
from trl import SFTTrainer

from ..data.questions import adapt_questions
from ..inference.encoding import IGNORE_INDEX
from ..losses.em_calibrator import EMCalibrator
from ..measures.calibration_error import calibration_report
from .closing_step import ClosingStepMixin
from .collators import DataCollatorForOptions
from .data import check_has_rows, check_tokens, report_too_long, split_rows
from .e_step import RELEASED_CODE, hold_out
from .m_step import MStepMixin
from .option_mixin import QUESTION_INDEX, OptionTrainingMixin
from .reference import REFERENCE_COLUMN, Reference, add_reference
from .sft_config import CalibratedSFTConfig


class CalibratedSFTTrainer(ClosingStepMixin, MStepMixin, SFTTrainer):
    """
    Trainer for calibration-aware fine-tuning (CFT) and regularised calibration-aware fine-tuning (RCFT).

    The training data are option questions in the unified schema (`question`, `choices`, `answer`). Rows without
    `choices` (texts, instruction pairs in any format of [`~trl.SFTTrainer`]) may be mixed in; they count in the
    likelihood only.

    EM-ECE acts on the labelled training questions, and on unlabelled ones, but not on those held out for the E-step.
    Unlabelled questions are rows of the training set: they add to the steps of an epoch, unless the batch grows as the
    rows do.

    PEFT, gradient accumulation, DeepSpeed, evaluation and checkpoints work as in [`~trl.SFTTrainer`].

    To add or replace a loss over the options, override
    [`~hf_calib.trainers.option_mixin.OptionTrainingMixin.compute_option_loss`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained; see [`~trl.SFTTrainer`].
        args ([`CalibratedSFTConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Questions, and rows of text among them.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Questions to evaluate on. Every measure of [`calibration_report`] is logged, as `eval_ece`,
            `eval_accuracy`, ...
        estep_dataset ([`~datasets.Dataset`], *optional*):
            Questions for the E-step. By default a part of `train_dataset` is held out; see `em_holdout`.
        unlabelled_dataset ([`~datasets.Dataset`], *optional*):
            Questions without answers (`question`, `choices`; an answer is not read) to train on. They count in EM-ECE
            and in the divergence from the reference, which need no label. EM-ECE scores them at every E-step.
        kwargs:
            Further arguments of [`~trl.SFTTrainer`].

    References:
        Xiao et al., "Restoring Calibration for Aligned Large Language Models: A Calibration-Aware Fine-Tuning
        Approach", ICML 2025, https://huggingface.co/papers/2505.01997.

    Example:

    ```python
    >>> from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, load_questions

    >>> trainer = CalibratedSFTTrainer(
    ...     model="HuggingFaceTB/SmolLM2-135M-Instruct",
    ...     args=CalibratedSFTConfig(output_dir="smollm2-rcft", objective="rcft", scoring="text"),
    ...     train_dataset=load_questions("allenai/ai2_arc", "ARC-Easy", split="train"),
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "sft", "hf_calib"]

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
            raise ValueError("CalibratedSFTTrainer has its own data collator; leave data_collator out.")
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            args = CalibratedSFTConfig(f"{name.split('/')[-1]}-calibrated")
        if not isinstance(train_dataset, Dataset):
            raise TypeError(f"train_dataset must be a datasets.Dataset, got {type(train_dataset).__name__}.")
        check_has_rows(train_dataset=train_dataset, eval_dataset=eval_dataset, unlabelled_dataset=unlabelled_dataset)
        if unlabelled_dataset is not None and args.em_preset == RELEASED_CODE:
            raise ValueError("em_preset='released_code' has no unlabelled questions: leave unlabelled_dataset out.")
        learns = args.calibration_weight or args.has_reference
        if unlabelled_dataset is not None and not (learns or args.closing_options):
            raise ValueError(
                "Nothing in this objective learns from unlabelled questions: give a reference_model_name_or_path, or "
                "objective='rcft' with lambda_ece > 0, or closing_step=True; or leave unlabelled_dataset out."
            )
        args.max_length = self._fitting_length(model, args)
        overridden = type(self).compute_option_loss is not OptionTrainingMixin.compute_option_loss
        weights = (args.calibration_weight, args.option_loss_weight, args.has_reference)
        self._trains_options = any(weights) or overridden
        self._closing_options = args.closing_options
        if not (args.calibration_weight or self._closing_options):
            estep_dataset = None
        elif estep_dataset is None:
            train_dataset, estep_dataset = self._split_estep(train_dataset, args)
        # No gradient sees these questions, so a post-hoc calibrator can be fitted on them.
        self.held_out_questions = estep_dataset if args.holds_out else None
        questions = split_rows(train_dataset)[0] if self._closing_options else None
        self._init_options()
        self._train_prepared = False  # TRL names data sets by the keys of `eval_dataset`, perhaps "train"
        self._name = args.objective.upper()  # in TRL's model card
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        check_tokens(self.model, self._tokenizer, self.train_dataset)
        self._add_option_head()
        self._num_questions = None  # in an optimizer step: labelled, of the M-step, and all
        self._prepare_option_datasets(estep_dataset, unlabelled_dataset)
        self._init_em({"options": self.estep_dataset} if args.calibration_weight else {})
        self.data_collator = DataCollatorForOptions(
            self._tokenizer.pad_token_id, **self._option_shape, pad_to_multiple_of=args.pad_to_multiple_of
        )
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        self._check_branches([self.train_dataset, self.estep_dataset, *evaluated])
        if args.has_reference:
            self._add_reference()
        if self._closing_options:
            self._init_closing(questions, self.held_out_questions, unlabelled_dataset)
        self.compute_metrics = self._option_metrics

    @property
    def calibrator(self) -> EMCalibrator | None:
        """Calibration map of the questions; `None` without EM-ECE."""
        return self.calibrators.get("options")

    # Data

    @staticmethod
    def _fitting_length(model, args: CalibratedSFTConfig) -> int | None:
        """Return the smaller one of `max_length` and the model's context length."""
        if isinstance(model, str):
            revision = (args.model_init_kwargs or {}).get("revision") or "main"
            config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
        else:
            config = model.config
        lengths = args.max_length, getattr(config.get_text_config(), "max_position_embeddings", None)
        return min((length for length in lengths if length), default=None)

    @staticmethod
    def _split_estep(dataset: Dataset, args: CalibratedSFTConfig) -> tuple[Dataset, Dataset]:
        """Divide the training set into training rows and E-step questions."""
        questions, texts = split_rows(dataset)
        if not len(questions):
            raise ValueError(
                "objective='rcft' needs option questions (columns question, choices, answer); the training set has "
                f"none: {dataset.column_names}. Use hf_calib.data.questions.adapt_questions, or objective='cft'."
            )
        if not args.holds_out:
            return dataset, questions
        kept, held_out = hold_out(questions, questions["question"], args, "questions")
        return kept if texts is None else concatenate_datasets([kept, texts]), held_out

    def _prepare_option_datasets(self, estep_dataset: Dataset | None, unlabelled_dataset: Dataset | None) -> None:
        args = self.args
        unlabelled = self.estep_dataset = None
        if estep_dataset is not None:
            self.estep_dataset = self._prepare_dataset(
                estep_dataset, self.processing_class, args, False, None, "E-step"
            )
        if unlabelled_dataset is not None and (args.calibration_weight or args.has_reference):
            unlabelled = adapt_questions(unlabelled_dataset, labelled=False)
            unlabelled = self._encode(unlabelled, "unlabelled", args, args.max_length, True, args.likelihood)
        self._add_mstep_rows(unlabelled, on_labelled=args.calibrates_labelled or unlabelled is None)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if isinstance(dataset, Dataset) and "num_options" in dataset.column_names:
            return dataset  # encoded already; TRL would truncate its branches
        training, self._train_prepared = not self._train_prepared, True
        if not isinstance(dataset, Dataset) or "choices" not in dataset.column_names:
            if training and self._trains_options:
                raise ValueError(f"The training set has no column 'choices'; its columns are {dataset.column_names}.")
            return self._prepare_texts(dataset, processing_class, args, packing, formatting_func, dataset_name)
        questions, texts = split_rows(dataset)
        prepared = []
        if len(questions):
            # The likelihood alone needs no other option than the right one.
            branches = not training or self._trains_options
            likelihood = None if dataset_name == "E-step" else args.likelihood
            prepared.append(self._encode(questions, dataset_name, args, args.max_length, branches, likelihood))
        if texts is not None:
            if args.completion_only_loss is None:
                self.completion_only_loss = "completion" in texts.column_names
            prepared.append(self._prepare_texts(texts, processing_class, args, packing, formatting_func, dataset_name))
        prepared = concatenate_datasets(prepared) if len(prepared) > 1 else prepared[0]
        return prepared.shuffle(seed=args.seed) if args.shuffle_dataset and training else prepared

    def _prepare_texts(self, texts, processing_class, args, packing, formatting_func, dataset_name):
        """Prepare other rows than questions as TRL does, and log how many are too long."""
        prepared = super()._prepare_dataset(texts, processing_class, args, packing, formatting_func, dataset_name)
        prepared_before = isinstance(texts, Dataset) and "input_ids" in texts.column_names
        if not packing and not prepared_before:
            report_too_long(texts, prepared, args.max_length, f"{dataset_name} texts")
        return prepared

    def get_eval_dataloader(self, eval_dataset=None):
        # A data set passed to `evaluate` may have more options, or longer ones, than those of the constructor.
        vars(self.data_collator).update(self._option_shape)
        return super().get_eval_dataloader(eval_dataset)

    def _add_reference(self) -> None:
        args = self.args
        reference = Reference(
            args.reference_model_name_or_path,
            args.option_normalization,
            args.per_device_eval_batch_size,
            args.reference_pseudo_count,
            {"trust_remote_code": args.trust_remote_code},
        )
        held_out = self.estep_dataset if args.holds_out else None
        self.train_dataset = add_reference(self.train_dataset, reference, self._tokenizer, held_out)

    # Loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batch_samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._closing:
            self._count_closing(batch_samples, device)
        elif self._trains_options:
            # Losses over options are means over the questions of an optimizer step, as the likelihood is over its
            # tokens: the result does not depend on how the step is divided into micro-batches and processes.
            counts = [_count_questions(batch) for batch in batch_samples if "option_label" in batch]
            counts = sum(counts, torch.zeros(3, dtype=torch.long)).to(device)[None]
            if self.args.average_tokens_across_devices:
                counts = self.accelerator.gather(counts) // self.get_tp_size()
            self._num_questions = counts.sum(0).clamp(min=1)
            if num_items is not None:  # 0 in a step of unlabelled questions
                num_items = torch.as_tensor(num_items, device=device).clamp(min=1)
        return batch_samples, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("CalibratedSFTTrainer keeps no logits of the vocabulary: return_outputs must be False.")
        if self._closing and self.model.training:
            return self._closing_loss(model, inputs)
        reference_logits, question_index = inputs.pop(REFERENCE_COLUMN, None), inputs.pop(QUESTION_INDEX, None)
        labels, mask = inputs.get("option_label"), inputs.get("option_mask")
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self._option_logits = self.option_head.pop()
        if not self.model.training:
            return loss
        loss = self.args.likelihood_factor * loss
        if self._option_logits is None or not self._trains_options:
            return loss

        is_question = mask.any(-1)  # the other rows are texts
        losses = self._option_losses(
            self._option_logits[is_question],
            labels[is_question],
            mask[is_question],
            calibration_weight=self.args.calibration_weight,
            reference_logits=None if reference_logits is None else reference_logits[is_question],
            question_index=None if question_index is None else question_index[is_question],
        )
        if num_items_in_batch is None:
            # A mean over the micro-batch: Trainer divides by the accumulation steps.
            counts, scale = _count_questions({**inputs, QUESTION_INDEX: question_index}).clamp(min=1), 1
        else:
            counts = self._num_questions
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            scale = processes // self.get_tp_size()
        if self.args.em_preset == RELEASED_CODE:  # its calibration loss is a sum over the questions of the step
            counts = torch.stack([counts[0], torch.ones_like(counts[1]), counts[2]])
        return loss + scale * sum(term / count for term, count in zip(losses, counts, strict=True))

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("option_label")
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        if prediction_loss_only or labels is None or self._option_logits is None:
            return loss, None, None
        # The evaluation loop pads with -100, which could be a log-likelihood, but not a probability.
        return loss, self._option_logits.softmax(-1).nan_to_num(0.0), labels

    @staticmethod
    def _option_metrics(predictions) -> dict[str, float]:
        probabilities, labels = predictions.predictions, predictions.label_ids
        labelled = labels != IGNORE_INDEX
        return calibration_report(probabilities[labelled], labels[labelled]) if labelled.any() else {}


def _count_questions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Count the labelled questions of a batch, those of the M-step, and all."""
    questions = batch["option_mask"].any(-1).sum()
    numbers = batch.get(QUESTION_INDEX)
    acts = torch.zeros_like(questions) if numbers is None else (numbers >= 0).sum()
    return torch.stack([(batch["option_label"] != IGNORE_INDEX).sum(), acts, questions])
