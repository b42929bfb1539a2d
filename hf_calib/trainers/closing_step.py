"""
The closing step of CFT and RCFT: a calibrated copy of the trained model is distilled into its weights.

Before the first step, the aligned model is evaluated on all questions, and writes some generic texts. After the last
one, the trained model is frozen; its option logits and the calibrated probabilities of the aligned model give targets
for every question, labelled or not ([`~hf_calib.posthoc.teacher.blend`]). The weights are then trained towards these
targets. No label enters, so no answer is memorised. A second term keeps the next-token distributions on the generic
texts at those of the aligned model. The result needs no calibrator beside it.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Features, concatenate_datasets
from safetensors.numpy import load_file, save_file
from scipy.special import softmax
from transformers import EarlyStoppingCallback, TrainerCallback
from trl.models.utils import unwrap_model_for_generation

from ..data.questions import adapt_questions
from ..data.recombine import recombine_options
from ..data.unified import OPTIONAL_FEATURES, REQUIRED_FEATURES
from ..evaluation.no_harm import NoHarm, log_losses
from ..inference.encoding import IGNORE_INDEX, OptionEncoder, encode_fitting
from ..inference.generic_texts import continue_prompts, evaluation_mode, sample_texts
from ..inference.packing import single_options
from ..inference.predict import context_length
from ..losses.em_ece_loss import em_ece_loss
from ..posthoc.teacher import AlignedMap, blend
from .last_checkpoint import agreed_checkpoint
from .reference import REFERENCE_COLUMN
from .text_anchor import anchor_texts


# Kinds of questions: answers trained on; answers held out; no answers; options of several questions.
LABELLED, HELD_OUT, UNLABELLED, RECOMBINED = range(4)

MOST_LEARNING_RATE = 3e-4  # by default; docs/research/closing-step.md has what adapters lose above it

LEAST_QUESTIONS = 10  # labelled, for five folds; and not trained on, for the temperatures

logger = logging.getLogger(__name__)

_ALIGNED, _TEXTS, _REPORT = "aligned.safetensors", "texts.json", "report.json"
_FEATURES = Features({**REQUIRED_FEATURES, "subject": OPTIONAL_FEATURES["subject"]})


class ClosingStepMixin:
    """
    The closing step, for a trainer of option questions.

    Attributes:
        closing_report (`dict`, *optional*):
            After `train`: numbers of the closing step, see [`ClosingStepMixin._close`].
    """

    closing_report: dict[str, Any] | None = None
    _closing = False

    def _init_closing(self, labelled: Dataset, held_out: Dataset | None, unlabelled: Dataset | None) -> None:
        """
        Set up the closing step.

        Args:
            labelled ([`~datasets.Dataset`]), held_out ([`~datasets.Dataset`], *optional*):
                Questions whose answers are trained on, and those held out, in the unified schema.
            unlabelled ([`~datasets.Dataset`], *optional*):
                Questions without answers.
        """
        parts = [labelled, held_out, None if unlabelled is None else adapt_questions(unlabelled, labelled=False)]
        kinds = [np.full(0 if part is None else len(part), kind) for kind, part in enumerate(parts)]
        questions = concatenate_datasets([_known_columns(part) for part in parts if part is not None and len(part)])
        self._closing_questions, self._closing_kinds = questions, np.concatenate(kinds)
        num_labelled, num_untrained = sum(map(len, kinds[:2])), sum(map(len, kinds[1:]))
        if min(num_labelled, num_untrained) < LEAST_QUESTIONS:
            problem = (
                f"The closing step needs {LEAST_QUESTIONS} labelled questions or more, and as many whose answers are "
                f"not trained on (held out or unlabelled); there are {num_labelled} and {num_untrained}. Give more "
                "questions, hold out more (em_holdout), or set closing_step=False."
            )
            if self.args.closing_step is not None:
                raise ValueError(problem)
            logger.warning(f"{problem} It is left out.")
            self._closing_options = None
            return
        self.add_callback(_ClosingCallback(self))

    @property
    def _closing_dir(self) -> Path:
        return Path(self.args.output_dir) / "closing_step"

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if self._closing_options is None or self._closing:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.args.should_save and not resume_from_checkpoint:
            shutil.rmtree(self._closing_dir, ignore_errors=True)
        elif self.args.should_save and isinstance(resume_from_checkpoint, (str, Path)):
            before = Path(resume_from_checkpoint).parent / self._closing_dir.name
            if before.is_dir() and not self._closing_dir.exists():  # a checkpoint of another folder
                shutil.copytree(before, self._closing_dir)
        self.accelerator.wait_for_everyone()
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self.closing_report = self._close()
        return output

    # Before the training: what the closing step needs of the aligned model

    def _prepare_closing(self) -> None:
        """Evaluate the aligned model on the questions, and have it write texts; or load that in a resumed run."""
        options, args, folder = self._closing_options, self.args, self._closing_dir
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        self._closing_steps = max(1, round(options.steps * self.state.max_steps))
        self._closing_rows = rows * self._closing_steps
        begins = self.state.global_step == 0
        if not begins and not (folder / _TEXTS).is_file():
            raise FileNotFoundError(
                f"{folder / _TEXTS} is missing: it keeps what the model wrote before the training. Start the training "
                "anew, or resume with closing_step=False."
            )
        kept = {} if begins else json.loads((folder / _TEXTS).read_text())
        missing = kept.get("num_recombined", max(0, self._closing_rows - len(self._closing_questions)))
        if missing:
            more = _known_columns(recombine_options(self._closing_questions, missing, args.seed))
            self._closing_questions = concatenate_datasets([self._closing_questions, more])
            self._closing_kinds = np.concatenate([self._closing_kinds, np.full(missing, RECOMBINED)])
        self._encode_closing_questions()
        if begins:
            self._aligned = self._closing_logits()
            wanted = options.text_weight and options.num_texts + options.num_continuations
            texts = self._anchor_texts() if wanted else []
            kept = {"num_recombined": missing, "texts": list(texts)}
            if args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                save_file({"aligned": self._aligned}, folder / _ALIGNED)
                (folder / _TEXTS).write_text(json.dumps(kept))
            self.accelerator.wait_for_everyone()
        else:
            self._aligned = load_file(folder / _ALIGNED)["aligned"]
        self._anchors = kept["texts"]

    def _encode_closing_questions(self) -> None:
        """Encode the questions that fit in `max_length`."""
        encoder = OptionEncoder(self._tokenizer, self.args.prompt_format(), self.args.max_length)
        kept, features = encode_fitting(encoder, self._closing_questions, drop_too_long=True)
        self._closing_questions = self._closing_questions.select(kept)
        self._closing_kinds = self._closing_kinds[kept]
        self._closing_encoded = Dataset.from_list(features)
        self._widen_batches(self._closing_encoded)
        self._check_branches([self._closing_encoded])
        vars(self.data_collator).update(self._option_shape)

    def _closing_logits(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Log-probabilities `(N, K)` of rows (by default all) under the frozen model, `-inf` as padding."""
        encoded = self._closing_encoded if rows is None else self._closing_encoded.select(rows)
        name = "closing questions" if rows is None else "closing questions, held out"
        probabilities, _ = self._score_dataset("options", encoded, name)
        if probabilities.isnan().any():
            raise FloatingPointError("The option probabilities contain NaN: the model has diverged.")
        counts = np.array(encoded["num_options"])
        probabilities = probabilities.double().numpy()[:, : counts.max()]
        present = np.arange(counts.max()) < counts[:, None]
        return np.where(present, np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)), -np.inf)

    def _anchor_texts(self) -> Dataset:
        options, accelerator, seed = self._closing_options, self.accelerator, 2 * self.args.seed
        texts = [[]]
        with unwrap_model_for_generation(self.model_wrapped, accelerator) as model:
            if options.num_texts:
                texts[0] += sample_texts(model, self._tokenizer, options.num_texts, seed=seed)
            if answered := self._answered_questions(context_length(model)):
                texts[0] += continue_prompts(model, self._tokenizer, answered, seed=seed)
        if accelerator.num_processes > 1:
            broadcast_object_list(texts)
        with evaluation_mode(self.model_wrapped), self.compute_loss_context_manager():
            pad, batch_size = self._tokenizer.pad_token_id, self.args.per_device_eval_batch_size
            return anchor_texts(self.model_wrapped, texts[0], pad, accelerator.device, batch_size)

    def _answered_questions(self, length: int | None) -> list[list[int]]:
        """
        Token ids of questions with an answer that the aligned model would give, drawn by its probabilities.

        Questions that fill more than half of the context, of `length` tokens, leave too little space for a text.
        """
        rng, lengths = np.random.default_rng(self.args.seed), map(len, self._closing_encoded["input_ids"])
        rows = [row for row, tokens in enumerate(lengths) if length is None or 2 * tokens <= length]
        prompts = []
        for row in rng.choice(rows, size=self._closing_options.num_continuations).tolist() if rows else ():
            features, probabilities = self._closing_encoded[row], softmax(self._aligned[row])
            answered = single_options(features)[rng.choice(len(probabilities), p=probabilities)]
            prompts.append([*answered["input_ids"], answered["option_tokens"][-1]])
        return prompts

    # The step itself

    def _close(self) -> dict[str, Any]:
        """
        Take the closing step.

        Returns:
            `dict`: `closing_method`, the calibrator of the aligned model; `closing_labels` and `closing_untrained`,
            numbers of questions; `closing_steps` and `closing_seconds`; `nll_before_closing` on the held-out
            questions, and there `no_harm_...`, the fields of [`~hf_calib.evaluation.no_harm.NoHarm`].
        """
        start, kinds = time.perf_counter(), self._closing_kinds
        labels = np.array([IGNORE_INDEX if answer is None else answer for answer in self._closing_questions["answer"]])
        groups, labelled, held_out = self._closing_groups(), kinds <= HELD_OUT, kinds == HELD_OUT
        known = None if groups is None else groups[labelled]
        aligned_map = AlignedMap.fit(self._aligned[labelled], labels[labelled], known, self.args.seed)
        trained = self._closing_logits()
        untrained = (kinds == HELD_OUT) | (kinds == UNLABELLED)
        calibrated, num_trained = aligned_map.transform(self._aligned, groups), int((kinds == LABELLED).sum())
        targets = blend(calibrated, trained, untrained, labels, num_trained, groups)
        self.accelerator.print(
            f"Closing step: {self._closing_steps} steps towards the trained model and the aligned one, calibrated by "
            f"{aligned_map.describe()} on {labelled.sum()} labels."
        )
        with self._closing_arguments(self._rows_with(targets)) as resume:
            super().train(resume_from_checkpoint=resume)
        report = {
            "closing_method": aligned_map.method,
            "closing_labels": int(labelled.sum()),
            "closing_untrained": int(untrained.sum()),
            "closing_steps": self._closing_steps,
            "closing_seconds": round(time.perf_counter() - start, 1),
        }
        if held_out.any():
            closed = softmax(self._closing_logits(np.flatnonzero(held_out)), axis=1)
            posthoc = log_losses(aligned_map.outcomes[held_out[labelled]], labels[held_out])
            no_harm = NoHarm.from_losses(log_losses(closed, labels[held_out]), posthoc, aligned_map.method)
            before = log_losses(softmax(trained[held_out], axis=1), labels[held_out])
            report["nll_before_closing"] = float(before.mean())
            report |= {f"no_harm_{name}": value for name, value in no_harm.to_dict().items()}
        if self.args.should_save:
            for folder in self._closing_dir.glob("checkpoint-*"):
                shutil.rmtree(folder)
            (self._closing_dir / _REPORT).write_text(json.dumps(report, indent=2) + "\n")
        return report

    def _closing_groups(self) -> np.ndarray | None:
        """Subject of each question; `None` unless all have one."""
        subjects = self._closing_questions["subject"]
        return None if any(subject is None for subject in subjects) else np.array(subjects, dtype=np.str_)

    def _rows_with(self, targets: np.ndarray) -> Dataset:
        """Questions with targets and texts with anchors, as many as the steps take."""
        rng = np.random.default_rng(self.args.seed)
        num_texts = min(len(self._anchors), max(1, self._closing_rows // 4))
        chosen = rng.permutation(len(targets))[: max(self._closing_rows - num_texts, 1)]
        logits = np.log(np.maximum(targets, 1e-30))
        counts = self._closing_encoded["num_options"]
        rows = self._closing_encoded.select(chosen)
        rows = rows.add_column(REFERENCE_COLUMN, [logits[row, : counts[row]].tolist() for row in chosen])
        if num_texts:
            texts = Dataset.from_list([self._anchors[row] for row in rng.permutation(len(self._anchors))[:num_texts]])
            rows = concatenate_datasets([rows, texts])
        return rows.shuffle(seed=self.args.seed)

    @contextmanager
    def _closing_arguments(self, rows: Dataset) -> Iterator[str | None]:
        """Arguments, data and callbacks of the closing step in place of those of the training; where to resume."""
        args, state, callbacks, data = self.args, self.state, self.callback_handler.callbacks, self.train_dataset
        changes = {
            "output_dir": str(self._closing_dir),
            "max_steps": self._closing_steps,
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "save_total_limit": 1,
            "train_sampling_strategy": "random",  # by length, questions and texts would take turns
            "learning_rate": self._closing_options.learning_rate or min(args.learning_rate, MOST_LEARNING_RATE),
        }
        kept, checkpoint = {name: getattr(args, name) for name in changes}, agreed_checkpoint(self._closing_dir)
        for name, value in changes.items():
            setattr(args, name, value)
        self.train_dataset, self.optimizer, self.lr_scheduler, self._closing = rows, None, None, True
        if self.is_deepspeed_enabled:
            self.model_wrapped = self.model  # the engine is made anew, with an optimizer without moments
        self.callback_handler.callbacks = [each for each in callbacks if not _only_training(each)]
        try:
            yield checkpoint
        finally:
            for name, value in kept.items():
                setattr(args, name, value)
            self.train_dataset, self._closing = data, False
            self.callback_handler.callbacks = callbacks
            for entry in self.state.log_history:
                state.log_history.append(entry | {"step": state.global_step + entry["step"]})
            self.state = state

    def _count_closing(self, batches: list[dict[str, torch.Tensor]], device) -> None:
        """Count the questions and the anchored tokens of an optimizer step, on all processes."""
        counts = torch.zeros(2, dtype=torch.long)
        for batch in batches:
            counts[0] += batch["option_mask"].any(-1).sum().cpu()
            counts[1] += (batch["text_positions"] >= 0).sum().cpu() if "text_positions" in batch else 0
        self._closing_counts = self.accelerator.gather(counts.to(device)[None]).sum(0).clamp(min=1)

    def _closing_loss(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Compute the divergence from the targets, a mean over questions, plus that from the anchors, a mean over tokens.

        Both are means over the optimizer step, however it is divided into micro-batches and processes.
        """
        targets, mask, positions = inputs.pop(REFERENCE_COLUMN), inputs["option_mask"], inputs.get("text_positions")
        outputs = model(**inputs, options_only=True)
        is_question = mask.any(-1)  # the other rows are texts
        option_logits = outputs.logits[is_question]
        total = em_ece_loss(option_logits, targets[is_question].softmax(-1), mask[is_question], "kl", reduction="sum")
        self._log_means({"closing_kl": total}, int(is_question.sum()))
        loss = total / self._closing_counts[0]
        if positions is not None:
            self._log_means({"closing_text_kl": outputs.loss}, int((positions >= 0).sum()))
            loss = loss + self._closing_options.text_weight * outputs.loss / self._closing_counts[1]
        # Trainer divides by the first, and takes the mean over the second.
        return loss * self.current_gradient_accumulation_steps * self.accelerator.num_processes


class _ClosingCallback(TrainerCallback):
    """Prepare the closing step when the training begins."""

    only_training = True

    def __init__(self, trainer: ClosingStepMixin):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._prepare_closing()


def _only_training(callback: TrainerCallback) -> bool:
    """Whether a callback has no place in the closing step, which evaluates nothing."""
    return getattr(callback, "only_training", False) or isinstance(callback, EarlyStoppingCallback)


def _known_columns(questions: Dataset) -> Dataset:
    """Questions with the columns that the targets need."""
    columns = {name: questions[name] for name in ("id", "question", "choices", "answer")}
    columns["subject"] = questions["subject"] if "subject" in questions.column_names else [None] * len(questions)
    return Dataset.from_dict({name: list(column) for name, column in columns.items()}, features=_FEATURES)
