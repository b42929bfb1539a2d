"""CFT and RCFT: TRL's SFTTrainer on option questions, with EM-ECE in the loss and calibration in the evaluation."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer
from trl.trainer.utils import global_then_local_main_first, maybe_gather_lm_head_ctx

from ..calibration_error import calibration_report
from ..em_ece import EMCalibrator, em_ece_loss
from ..folding import fold_temperature
from ..option_head import OptionHead, unwrap_causal_lm
from ..option_scorer import OptionScorer, pad_rows
from ..options import IGNORE_INDEX, OPTION_COLUMNS, OptionEncoder
from ..posthoc import TemperatureScaling
from .collators import DataCollatorForOptions
from .config import CalibratedSFTConfig
from .data import encode_questions, split_rows


logger = logging.getLogger(__name__)

EM_STATE_NAME = "em_state.json"


class CalibratedSFTTrainer(SFTTrainer):
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
        kwargs:
            Further arguments of [`~trl.SFTTrainer`].

    Example:
    ```python
    >>> from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer
    >>> from hf_calib.data.mcq import load_questions

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
        **kwargs,
    ):
        if kwargs.get("data_collator") is not None:
            raise ValueError("CalibratedSFTTrainer brings its own data collator; leave data_collator out.")
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            args = CalibratedSFTConfig(f"{name.split('/')[-1]}-calibrated")
        if not isinstance(train_dataset, Dataset):
            raise TypeError(f"train_dataset must be a datasets.Dataset, got {type(train_dataset).__name__}.")
        args.max_length = self._fitting_length(model, args)
        self._regularised = args.objective == "rcft" and args.lambda_ece > 0
        self._trains_options = self._regularised or args.option_loss_weight > 0
        if self._regularised and estep_dataset is None:
            train_dataset, estep_dataset = self._split_estep(train_dataset, args)
        # Filled in while the data sets are encoded: every batch, on every process, then has the same columns.
        self._option_shape = {"max_options": 0, "branched": False}
        self._train_prepared = False  # TRL names data sets by the keys of `eval_dataset`, "train" perhaps among them
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.option_head = OptionHead(self.model, args.option_normalization, gather=maybe_gather_lm_head_ctx)
        self.calibrator = EMCalibrator(args.em_estimator, args.em_n_bins, args.em_pseudo_count)
        self._num_questions = None
        self._last_estep = None  # epoch ("epoch") or step at which the calibration map was estimated
        self._estep_dataloader = None
        self.estep_dataset = None
        if self._regularised:
            self.estep_dataset = self._prepare_dataset(
                estep_dataset, self.processing_class, args, False, None, "E-step"
            )
            self.add_callback(_EStepCallback(self))
        self.data_collator = DataCollatorForOptions(
            self._tokenizer.pad_token_id, **self._option_shape, pad_to_multiple_of=args.pad_to_multiple_of
        )
        if self._option_shape["branched"]:
            self._check_branches()
        if args.warm_start:
            self._warm_start()
        self.compute_metrics = self._option_metrics

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
                f"{dataset.column_names}. Use hf_calib.data.mcq.adapt_questions, or objective='cft'."
            )
        if args.em_estep_set == "train":
            return dataset, questions
        size = round(len(questions) * args.em_holdout_fraction)
        if not 0 < size < len(questions):
            raise ValueError(
                f"em_holdout_fraction={args.em_holdout_fraction} of {len(questions)} questions leaves {size} for the "
                f"E-step and {len(questions) - size} for training; give more questions or another fraction."
            )
        parts = questions.train_test_split(test_size=size, seed=args.seed)
        rest = parts["train"] if texts is None else concatenate_datasets([parts["train"], texts])
        return rest, parts["test"]

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if isinstance(dataset, Dataset) and "num_options" in dataset.column_names:
            return dataset  # encoded already; TRL's truncation would cut its branches off
        training, self._train_prepared = not self._train_prepared, True
        if not isinstance(dataset, Dataset) or "choices" not in dataset.column_names:
            if training and self._regularised:
                raise ValueError(f"The training set has no column 'choices'; its columns are {dataset.column_names}.")
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        questions, texts = split_rows(dataset)
        prepared = []
        if len(questions):
            # A pure likelihood needs the right option alone; evaluation and the losses over options need all of them.
            branches = not training or self._trains_options
            likelihood = None if dataset_name == "E-step" else args.likelihood
            encoder = OptionEncoder(self._tokenizer, args.prompt_format(), args.max_length)
            with global_then_local_main_first():
                encoded = encode_questions(
                    questions, encoder, branches, likelihood, dataset_name, args.dataset_num_proc
                )
            if branches:
                shape = self._option_shape
                shape["max_options"] = max(shape["max_options"], *encoded["num_options"])
                shape["branched"] = shape["branched"] or any(map(any, encoded["option_segments"]))
            prepared.append(encoded)
        if texts is not None:
            if args.completion_only_loss is None:
                self.completion_only_loss = "completion" in texts.column_names
            prepared.append(
                super()._prepare_dataset(texts, processing_class, args, packing, formatting_func, dataset_name)
            )
        prepared = concatenate_datasets(prepared) if len(prepared) > 1 else prepared[0]
        return prepared.shuffle(seed=args.seed) if args.shuffle_dataset and training else prepared

    def _check_branches(self) -> None:
        """Refuse, before any training, an architecture that scores an option otherwise when the others stand beside it."""
        if is_deepspeed_zero3_enabled():
            return  # the parameters are spread already, and only the engine brings them together
        datasets = [self.train_dataset, self.estep_dataset]
        datasets += self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
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

    def get_eval_dataloader(self, eval_dataset=None):
        # A data set that came with the call to `evaluate` may have more options, or longer ones, than any before it.
        vars(self.data_collator).update(self._option_shape)
        return super().get_eval_dataloader(eval_dataset)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in OPTION_COLUMNS if name not in self._signature_columns]

    # E-step

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

    def e_step(self) -> None:
        """Estimate the calibration map with the model frozen, on the E-step questions of all processes."""
        if self._estep_dataloader is None:
            # Under a key of its own: `get_eval_dataloader` would hand persistent workers on to the evaluation.
            self._estep_dataloader = self._get_dataloader(
                self.estep_dataset,
                "E-step",
                self.args.eval_batch_size,
                self._get_eval_sampler,
                dataloader_key="E-step",
            )
        training = self.model.training
        self.model_wrapped.eval()
        probabilities, labels = [], []
        # The data loader draws a seed, which may not move the random state that training, and a resumed run, rely on. It
        # does so on the CPU; to fork the state of every accelerator would have each process open them all.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self.compute_loss_context_manager():
            for inputs in self._estep_dataloader:
                inputs = self._prepare_inputs(inputs)
                inputs.pop("labels", None)
                option_logits = self.model_wrapped(**inputs, options_only=True).logits
                batch = self.accelerator.gather_for_metrics((option_logits.softmax(-1), inputs["option_label"]))
                probabilities.append(batch[0].cpu())
                labels.append(batch[1].cpu())
        self.model_wrapped.train(training)
        probabilities, labels = torch.cat(probabilities), torch.cat(labels)
        if probabilities.isnan().any():
            raise FloatingPointError("The option probabilities of the E-step set hold NaN: the model has diverged.")
        self.calibrator.fit(probabilities, labels)

    def _estep_due(self) -> bool:
        refresh, last = self.args.em_refresh, self._last_estep
        if last is None or refresh == "once":
            return last is None
        if refresh == "epoch":
            # At the first step of an epoch `state.epoch` may lack a rounding error to the whole number.
            return math.floor(self.state.epoch + 1e-6) > last
        return self.state.global_step >= last + int(refresh)

    def _maybe_e_step(self) -> None:
        if self._estep_due():
            self.e_step()
            epoch = math.floor((self.state.epoch or 0) + 1e-6)
            self._last_estep = epoch if self.args.em_refresh == "epoch" else self.state.global_step

    # M-step

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batch_samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._trains_options:
            # Losses over options are means over all questions of an optimizer step, as the likelihood is over its tokens:
            # then 8x1 and 2x4 (batch x accumulation) train alike, and so does any number of processes.
            count = sum((b["option_label"] != IGNORE_INDEX).sum() for b in batch_samples if "option_label" in b)
            count = torch.as_tensor(count, device=device)
            if self.args.average_tokens_across_devices:
                count = self.accelerator.gather(count).sum() // self.get_tp_size()
            self._num_questions = count.clamp(min=1)
        return batch_samples, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("CalibratedSFTTrainer keeps no logits; evaluation reads the option logits instead.")
        option_label, option_mask = inputs.get("option_label"), inputs.get("option_mask")
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self._option_logits = self.option_head.pop()
        if self._option_logits is None or not self._trains_options or not self.model.training:
            return loss

        answered = option_label != IGNORE_INDEX
        option_loss = self._option_loss(self._option_logits[answered], option_label[answered], option_mask[answered])
        if num_items_in_batch is None:
            # Trainer itself divides by the accumulation steps: a plain mean over the micro-batch.
            return loss + option_loss / answered.sum().clamp(min=1)
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss + option_loss / self._num_questions * (processes // self.get_tp_size())

    def _option_loss(self, option_logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Weighted sum, over the questions, of cross-entropy and EM-ECE; both are logged as means over all processes."""
        probabilities = option_logits.detach().softmax(-1)
        losses = {"option_loss": F.cross_entropy(option_logits, labels, reduction="sum")}
        loss = self.args.option_loss_weight * losses["option_loss"]
        if self._regularised:
            targets = self.calibrator.targets(probabilities, mask)
            losses["em_ece"] = em_ece_loss(option_logits, targets, mask, self.args.em_loss, reduction="sum")
            loss = loss + self.args.lambda_ece * losses["em_ece"]
        confidence, prediction = probabilities.max(-1)
        losses |= {"option_accuracy": (prediction == labels).sum(), "option_confidence": confidence.sum()}
        sums = torch.stack([loss.new_tensor(len(labels)), *(value.detach().to(loss) for value in losses.values())])
        # Every process gathers, even one whose micro-batch held no question.
        count, *sums = self.accelerator.gather(sums[None]).sum(0).tolist()
        for name, total in zip(losses, sums, strict=True):
            if count:
                self._metrics["train"][name].append(total / count)
        return loss

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

    # Checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no checkpoint in {self.args.output_dir!r} to resume from.")
        if resume_from_checkpoint and self._regularised:
            self._load_em_state(Path(resume_from_checkpoint) / EM_STATE_NAME)
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _load_em_state(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path.parent} holds no {EM_STATE_NAME}: it is no checkpoint of an RCFT run.")
        state = json.loads(path.read_text())
        self.calibrator = EMCalibrator.from_state_dict(state["calibrator"])
        self._last_estep = state["last_estep"]

    def _em_state(self) -> dict[str, Any]:
        return {"calibrator": self.calibrator.state_dict(), "last_estep": self._last_estep}

    def _save_checkpoint(self, model, trial):
        if self._regularised and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / EM_STATE_NAME).write_text(json.dumps(self._em_state(), indent=2))
        super()._save_checkpoint(model, trial)


class _EStepCallback(TrainerCallback):
    """Takes the E-step where an optimizer step begins."""

    def __init__(self, trainer: CalibratedSFTTrainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._maybe_e_step()
