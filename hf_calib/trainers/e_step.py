"""The E-step of the calibrated trainers: arguments, held-out rows, schedule and state in checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from ..losses.em_calibrator import ESTIMATORS, EMCalibrator
from ..losses.released_code import ReleasedCodeLoss
from .last_checkpoint import agreed_checkpoint


EM_STATE_NAME = "em_state.json"

# Xiao et al. 2025, sections 5 and 6; the authors' code has these settings too and another loss.
_PAPER = {
    "em_estimator": "bins",
    "em_pseudo_count": 0.0,
    "em_holdout": 0.0,
    "em_refresh": "once",
    "em_loss": "brier",
}
RELEASED_CODE = "released_code"
EM_PRESETS = {"paper": _PAPER, RELEASED_CODE: _PAPER}

# `em_holdout=None`: this fraction of the rows, and at most so many.
DEFAULT_FRACTION, DEFAULT_LIMIT = 0.1, 512


@dataclass(kw_only=True)
class EMArguments:
    """
    Arguments of the E-step and the M-step of EM-ECE.

    Args:
        em_estimator (`str`, *optional*, defaults to `"isotonic"`):
            Estimator of the calibration map: `"isotonic"`; ten equal-width `"bins"` or `"equal_mass"` bins;
            `"temperature"` (the default of CFT and RCFT) or `"beta"`, which need few labels. See [`EMCalibrator`].
        em_pseudo_count (`float`, *optional*, defaults to `2.0`):
            Shrinkage of the first three maps, in pseudo-questions; see [`EMCalibrator`].
        em_holdout (`float`, *optional*, defaults to `0.2`):
            Training rows that are held out for the E-step: a fraction in (0, 1), or a number of rows (as `test_size`
            of scikit-learn's `train_test_split`). Rows of the same question (the same text, or the same two
            completions of a prompt) are held out together. 0 takes the E-step on the training rows, as in the paper;
            memorisation then looks like calibration. `None` (the default of DPO) holds out a tenth of the rows, at
            most 512.
        em_fold (`int`, *optional*, defaults to `0`):
            Which rows are held out: with `em_holdout` = 1/K, the folds 0 to K - 1 hold out disjoint rows. `hf-calib
            average` averages the K models. Only for `em_holdout` > 0.
        em_refresh (`str`, *optional*, defaults to `"epoch"`):
            When the E-step is taken: `"epoch"`, `"once"`, or a number of optimizer steps. With `"once"`, a map that
            cannot be estimated yet (pairs, while the policy equals its reference) is tried again after 1, 2, 4, 8, ...
            steps.
        em_loss (`str`, *optional*, defaults to `"kl"`):
            Loss of the M-step: `"kl"`, or `"brier"`, the squared error of the paper; see [`em_ece_loss`].
        em_preset (`str`, *optional*):
            `"paper"`: the paper as written. It sets all fields above but `em_fold`. The likelihood of RCFT becomes
            that of question and answer (L_SFT2). EM-ECE acts on the labelled training questions, and its targets
            follow the current probabilities, with the paper's tail. `"released_code"` (CFT and RCFT only): the code
            that the authors published, see [`~hf_calib.losses.released_code.ReleasedCodeLoss`]. CFT is the likelihood
            of the answers, and RCFT is the calibration loss alone, times 0.001.
    """

    help_group = "EM-ECE"

    em_estimator: str = field(
        default="isotonic", metadata={"help": "Estimator of the calibration map.", "choices": list(ESTIMATORS)}
    )
    em_pseudo_count: float = field(default=2.0, metadata={"help": "Shrinkage of the map, in pseudo-questions."})
    em_holdout: float | None = field(
        default=0.2,
        metadata={
            "help": "Rows held out for the E-step: a fraction in (0, 1), a number of rows, or 0 for the training rows."
        },
    )
    em_fold: int = field(
        default=0, metadata={"help": "Which rows are held out: with em_holdout = 1/K, the folds 0 to K - 1."}
    )
    em_refresh: str = field(
        default="epoch", metadata={"help": "E-step every 'epoch', 'once', or every given number of optimizer steps."}
    )
    em_loss: str = field(
        default="kl",
        metadata={"help": "Loss of the M-step: 'kl', or 'brier' (the paper's).", "choices": ["kl", "brier"]},
    )
    em_preset: str | None = field(
        default=None,
        metadata={
            "help": "'paper': the paper as written; 'released_code' (CFT and RCFT): the code of its authors.",
            "choices": list(EM_PRESETS),
        },
    )

    def _set_up_em(self) -> None:
        """Apply the preset and check the fields."""
        if self.em_preset is not None:
            check_choices(self, em_preset=self.em_presets)
            for name, value in EM_PRESETS[self.em_preset].items():
                setattr(self, name, value)
        check_choices(self, em_estimator=ESTIMATORS, em_loss=("kl", "brier"))
        check_weights(self, "em_pseudo_count", "em_fold")
        size = self.em_holdout
        if size is not None and not (0 <= size < 1 or (math.isfinite(size) and size >= 1 and size == int(size))):
            raise ValueError(f"em_holdout must be a fraction in [0, 1) or a whole number of rows, got {size}.")
        if self.em_fold and not self.holds_out:
            raise ValueError(f"em_fold={self.em_fold}: em_holdout=0 holds out no rows, so there are no folds.")
        refresh = str(self.em_refresh)
        if refresh not in ("epoch", "once") and not (refresh.isdigit() and int(refresh) > 0):
            raise ValueError(f"em_refresh must be 'epoch', 'once' or a number of steps, got {self.em_refresh!r}.")

    @property
    def em_presets(self) -> tuple[str, ...]:
        """Presets that the trainer knows."""
        return ("paper",)

    @property
    def em_tail(self) -> str:
        """Tail of the targets; see [`EMCalibrator`]."""
        return "paper" if self.em_preset else "temperature"

    @property
    def fixes_targets(self) -> bool:
        """Whether the targets on option questions are kept from one E-step to the next; in the paper they are not."""
        return self.em_preset is None

    def new_map(self) -> EMCalibrator | ReleasedCodeLoss:
        """Return what an E-step fits, not fitted yet."""
        if self.em_preset == RELEASED_CODE:
            return ReleasedCodeLoss()
        return EMCalibrator(self.em_estimator, pseudo_count=self.em_pseudo_count, tail=self.em_tail)

    @property
    def holds_out(self) -> bool:
        """Whether the E-step has rows of its own, which are not trained on."""
        return self.em_holdout != 0

    def num_held_out(self, num_rows: int) -> int:
        """Number of rows, of `num_rows`, that are held out for the E-step."""
        if self.em_holdout is None:
            return min(round(num_rows * DEFAULT_FRACTION), DEFAULT_LIMIT)
        return round(num_rows * self.em_holdout) if self.em_holdout < 1 else int(self.em_holdout)


def check_choices(config, **choices: tuple[str, ...]) -> None:
    """Raise a `ValueError` for a field of `config` with a value that is none of its choices."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name}={getattr(config, name)!r} is none of {', '.join(allowed)}.")


def check_weights(config, *names: str) -> None:
    """Raise a `ValueError` for a field of `config` that is negative or not finite."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be at least 0, got {getattr(config, name)}.")


def hold_out(rows: Dataset, keys: Iterable[Hashable], args: EMArguments, what: str) -> tuple[Dataset, Dataset]:
    """
    Divide rows into those that are trained on and those of the E-step.

    Rows with the same key go to the same side: a model that was trained on a question is overconfident on it.

    Args:
        rows ([`~datasets.Dataset`]):
            All rows.
        keys (`Iterable[Hashable]`):
            Key of each row, such as the text of its question.
        args ([`EMArguments`] and [`~transformers.TrainingArguments`]):
            `em_holdout`, `em_fold` and `seed`.
        what (`str`):
            Name of the rows in messages, such as `"questions"`.

    Returns:
        `tuple[Dataset, Dataset]`: training rows and E-step rows; all rows twice if `em_holdout` is 0.

    Raises:
        `ValueError`: if one side would be empty.
    """
    if not args.holds_out:
        return rows, rows
    size = args.num_held_out(len(rows))
    groups = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    groups, held_out = list(groups.values()), set()
    # Each group goes to the first fold that it fits in; a group that fits in none is trained on in every fold.
    free = [size] * (args.em_fold + 1)
    for number in np.random.default_rng(args.seed).permutation(len(groups)):
        fold = next((fold for fold, left in enumerate(free) if len(groups[number]) <= left), None)
        if fold is not None:
            free[fold] -= len(groups[number])
        if fold == args.em_fold:
            held_out.update(groups[number])
    if args.em_fold and size and not held_out:
        raise ValueError(
            f"em_fold={args.em_fold} of {len(rows)} {what} ({len(groups)} different) leaves 0 for the E-step: with "
            f"{size} held out by each, the folds are 0 to {math.ceil(len(rows) / size) - 1}."
        )
    if not 0 < len(held_out) < len(rows):
        raise ValueError(
            f"em_holdout={args.em_holdout} of {len(rows)} {what} leaves {len(held_out)} for the E-step and "
            f"{len(rows) - len(held_out)} for training ({len(groups)} different {what}); give more {what} or another "
            "em_holdout."
        )
    return rows.select([row for row in range(len(rows)) if row not in held_out]), rows.select(sorted(held_out))


class EMTrainerMixin:
    """
    E-steps for a [`~transformers.Trainer`].

    There is one calibration map for each kind of row (`"options"`, `"pairs"`): `calibrators` and `estep_datasets` are
    dictionaries by kind. The trainer implements `_score_rows`.
    """

    def _init_em(self, estep_datasets: dict[str, Dataset]) -> None:
        """Set up the E-steps once the data sets are prepared; without data sets there are none."""
        args = self.args
        self.estep_datasets = estep_datasets
        self.calibrators = {kind: args.new_map() for kind in estep_datasets}
        self._last_estep = None  # epoch (em_refresh="epoch") or step of the last E-step
        self._scoring_dataloaders = {}
        if estep_datasets:
            self.add_callback(_EStepCallback(self))

    def _score_rows(self, kind: str, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute probabilities `(batch, K)` of a batch, and labels `(batch,)` or their probabilities `(batch, K)`."""
        raise NotImplementedError

    def _score_dataset(self, kind: str, dataset: Dataset, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Apply `_score_rows` to a data set, with the model frozen, and gather the results of all processes.

        The results are in the order of the data set. The batches are kept by `key`.
        """
        if key not in self._scoring_dataloaders:
            order = np.arange(len(dataset))
            if "input_ids" in dataset.column_names:
                # Sorted by length there is little padding; longest first, a lack of memory shows in the first batch.
                lengths = [len(row) for row in dataset["input_ids"]]
                order = np.argsort(lengths, kind="stable")[::-1].copy()
            # Trainer's own data loaders may group rows by length, leave out the last ones, or keep workers alive.
            rows = self._remove_unused_columns(dataset.select(order), description=key)
            loader = DataLoader(rows, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator)
            self._scoring_dataloaders[key] = self.accelerator.prepare(loader), np.argsort(order)
        loader, place = self._scoring_dataloaders[key]
        training = self.model.training
        self.model_wrapped.eval()
        batches = []
        # The data loader draws a seed on the CPU, which must not change the random state of training. Forking the
        # state of accelerators too would have each process open all of them.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self.compute_loss_context_manager():
            for inputs in loader:
                scored = self._score_rows(kind, self._prepare_inputs(inputs))
                batches.append([array.cpu() for array in self.accelerator.gather_for_metrics(scored)])
        self.model_wrapped.train(training)
        probabilities, truth = (torch.cat(arrays)[place] for arrays in zip(*batches, strict=True))
        return probabilities, truth

    def e_step(self, kinds: Iterable[str] | None = None) -> None:
        """Estimate the calibration maps (of these kinds; by default all), with the model frozen."""
        for kind in self.estep_datasets if kinds is None else kinds:
            dataset = self.estep_datasets[kind]
            probabilities, truth = self._score_dataset(kind, dataset, f"E-step {kind}")
            if probabilities.isnan().any():
                raise FloatingPointError(f"The E-step's probabilities of {kind} contain NaN: the model has diverged.")
            self._fit_map(kind, probabilities, truth)

    def _fit_map(self, kind: str, probabilities: torch.Tensor, truth: torch.Tensor) -> None:
        self.calibrators[kind].fit(probabilities, truth)

    def _estep_due(self) -> bool:
        refresh, last, step = self.args.em_refresh, self._last_estep, self.state.global_step
        if refresh == "once":
            return last is None and step & (step - 1) == 0  # 0 and powers of two
        if last is None:
            return True
        if refresh == "epoch":
            # At the first step of an epoch, `state.epoch` may be a rounding error below the whole number.
            return math.floor(self.state.epoch + 1e-6) > last
        return step >= last + int(refresh)

    def _maybe_e_step(self) -> None:
        if self._estep_due():
            once = self.args.em_refresh == "once"
            self.e_step([kind for kind, calibrator in self.calibrators.items() if not (once and calibrator.fitted)])
            if once and not all(calibrator.fitted for calibrator in self.calibrators.values()):
                return
            epoch = math.floor((self.state.epoch or 0) + 1e-6)
            self._last_estep = epoch if self.args.em_refresh == "epoch" else self.state.global_step

    # Checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = agreed_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no checkpoint in {self.args.output_dir!r} to resume from.")
        if resume_from_checkpoint and self.calibrators:
            self._load_em_state(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _load_em_state(self, folder: Path) -> None:
        path = folder / EM_STATE_NAME
        state = json.loads(path.read_text()) if path.exists() else {"calibrators": {}}
        if state["calibrators"].keys() != self.calibrators.keys():
            raise FileNotFoundError(
                f"{folder} has no {EM_STATE_NAME} with the calibration maps of {', '.join(self.calibrators)}: it "
                "is not a checkpoint of a run with this objective."
            )
        kind_of = type(self.args.new_map())
        self.calibrators = {kind: kind_of.from_state_dict(s) for kind, s in state["calibrators"].items()}
        self._last_estep = state["last_estep"]

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # Written last, this file marks a complete checkpoint; one from an earlier run must not.
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        if self.calibrators and self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            self._save_em_state(folder)
        super()._save_checkpoint(model, trial)

    def _save_em_state(self, folder: Path) -> None:
        maps = {kind: calibrator.state_dict() for kind, calibrator in self.calibrators.items()}
        state = {"calibrators": maps, "last_estep": self._last_estep}
        (folder / EM_STATE_NAME).write_text(json.dumps(state, indent=2))


class _EStepCallback(TrainerCallback):
    """Take the E-step at the beginning of an optimizer step."""

    only_training = True  # not in the closing step

    def __init__(self, trainer: EMTrainerMixin):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._maybe_e_step()
