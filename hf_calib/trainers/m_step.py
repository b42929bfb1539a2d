"""The M-step on option questions: the questions that EM-ECE acts on, and their targets between two E-steps."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..inference.encoding import OPTION_COLUMNS
from .option_mixin import QUESTION_INDEX, OptionTrainingMixin


EM_TARGETS_NAME = "em_targets.safetensors"


class MStepMixin(OptionTrainingMixin):
    """
    EM-ECE with targets that are fixed at each E-step, on questions that are not those of the E-step.

    A model soon fits the targets of the questions of its own E-step. The map would find nothing wrong on them while
    other questions are off, so they are left out.

    The questions are numbered; the column `question_index` of the training rows holds the number, or -1. The targets
    are a table `(questions, options)`, the same on every process. A target computed from the current probabilities
    would apply the map to its own result, step after step; a fixed one applies it once.
    """

    _fixes_targets = False
    fixed_targets: dict[str, torch.Tensor]

    def _init_options(self) -> None:
        super()._init_options()
        self.fixed_targets = {}

    def _add_mstep_rows(self, unlabelled: Dataset | None, on_labelled: bool) -> None:
        """
        Append unlabelled questions to the training rows, and number the questions of the M-step.

        Args:
            unlabelled ([`~datasets.Dataset`], *optional*):
                Encoded questions.
            on_labelled (`bool`):
                Whether EM-ECE acts on the labelled training questions too.
        """
        num_rows = len(self.train_dataset)
        if unlabelled is not None:
            self.train_dataset = concatenate_datasets([self.train_dataset, unlabelled])
        if self.args.calibration_weight:
            counts = self.train_dataset["num_options"]
            acts = np.array([bool(count) and (on_labelled or row >= num_rows) for row, count in enumerate(counts)])
            self.train_dataset = self._number_questions(self.train_dataset, acts)

    def _number_questions(self, rows: Dataset, acts: np.ndarray) -> Dataset:
        """Add the numbers of the M-step's questions to encoded rows; `acts` is True where EM-ECE acts."""
        self._fixes_targets = self.args.fixes_targets
        numbered = rows.select(np.flatnonzero(acts))
        self._mstep_num_options = torch.tensor(numbered["num_options"])
        if self._fixes_targets:
            self._mstep_dataset = numbered.select_columns(["input_ids", *OPTION_COLUMNS])
        return rows.add_column(QUESTION_INDEX, np.where(acts, np.cumsum(acts) - 1, -1))

    def _fit_map(self, kind, probabilities, truth):
        super()._fit_map(kind, probabilities, truth)
        if not self._fixes_targets or kind != "options":
            return
        probabilities, _ = self._score_dataset(kind, self._mstep_dataset, "M-step")
        there = torch.arange(probabilities.size(1)) < self._mstep_num_options[:, None]
        targets = self.calibrators[kind].targets(probabilities, there)
        if targets.isnan().any():
            raise FloatingPointError(
                "The probabilities of the M-step's questions contain NaN: the model has diverged."
            )
        self.fixed_targets[kind] = targets.to(self.accelerator.device)

    def _mstep_targets(self, probabilities, mask, question_index):
        if not self._fixes_targets:
            return super()._mstep_targets(probabilities, mask, question_index)
        targets = self.fixed_targets["options"][question_index]
        # A data set that was evaluated meanwhile may have widened the batches.
        return F.pad(targets, (0, mask.size(1) - targets.size(1)))

    def _load_em_state(self, folder: Path) -> None:
        super()._load_em_state(folder)
        if not self._fixes_targets:
            return
        path = folder / EM_TARGETS_NAME
        if not path.exists():
            raise FileNotFoundError(f"{folder} has no {EM_TARGETS_NAME} with the targets of the last E-step.")
        self.fixed_targets = load_file(path, device=str(self.accelerator.device))
        with safe_open(path, "pt") as file:
            questions = (file.metadata() or {}).get("questions")
        if questions != self._mstep_digest():
            raise ValueError(
                f"{path} has the targets of other questions than those that EM-ECE acts on: resume with the data, the "
                "prompt, em_holdout and em_fold that the run began with."
            )

    def _save_em_state(self, folder: Path) -> None:
        super()._save_em_state(folder)
        if self.fixed_targets:
            targets = {kind: targets.cpu() for kind, targets in self.fixed_targets.items()}
            save_file(targets, folder / EM_TARGETS_NAME, {"questions": self._mstep_digest()})

    def _mstep_digest(self) -> str:
        """Digest of the tokens of the M-step's questions, in their order."""
        ids = self._mstep_dataset.with_format("arrow")[:]["input_ids"].combine_chunks()
        tokens, lengths = pc.list_flatten(ids).to_numpy(), pc.list_value_length(ids).to_numpy()
        return hashlib.sha256(tokens.tobytes() + lengths.tobytes()).hexdigest()
