"""The E-step of the calibrated trainers: its arguments, the rows it is taken on, its schedule, its state in checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from ..losses.em_calibrator import ESTIMATORS, EMCalibrator


EM_STATE_NAME = "em_state.json"

# `em_preset: paper` is the authors' setting: Xiao et al. 2025, sections 5 and 6.
EM_PRESETS = {
    "paper": {
        "em_estimator": "bins",
        "em_n_bins": 10,
        "em_pseudo_count": 0.0,
        "em_estep_set": "train",
        "em_refresh": "once",
        "em_loss": "brier",
    }
}


@dataclass(kw_only=True)
class EMArguments:
    """
    How the E- and the M-step of EM-ECE are taken, as arguments of a trainer.

    Args:
        em_estimator (`str`, *optional*, defaults to `"isotonic"`):
            Estimator of the calibration map: `"isotonic"`, `"kernel"`, `"bins"` (equal-width) or `"equal_mass"`; see [`EMCalibrator`].
        em_n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of a binned estimator.
        em_pseudo_count (`float`, *optional*, defaults to `2.0`):
            Shrinkage of small bins, in rows; see [`EMCalibrator`].
        em_estep_set (`str`, *optional*, defaults to `"holdout"`):
            `"holdout"`: a part of the training rows that no gradient sees, nor any row of the same question (the same text, or
            the same two completions of a prompt). `"train"`: the training rows, the paper's choice; memorisation then looks
            like calibration.
        em_holdout_fraction (`float`, *optional*, defaults to `0.2`):
            Part of the training rows held out for the E-step, in (0, 1).
        em_max_rows (`int`, *optional*):
            Hold out no more rows than so many, whatever the fraction.
        em_fold (`int`, *optional*, defaults to `0`):
            Which part is held out: with a fraction of 1/K, each of the parts 0 to K - 1 holds out other rows. `hf-calib average`
            makes one of the K models trained so. Above 0 with `em_estep_set="train"`, which holds out nothing, it is an error.
        em_refresh (`str`, *optional*, defaults to `"epoch"`):
            When the E-step is taken: `"epoch"`, `"once"`, or a number of optimizer steps. A map that cannot be estimated
            yet, as that of pairs while the policy is its reference, is with `"once"` tried again after 1, 2, 4, 8, ... steps.
        em_loss (`str`, *optional*, defaults to `"kl"`):
            M-step: `"kl"`, or `"brier"`, the paper's squared error; see [`em_ece_loss`].
        em_preset (`str`, *optional*):
            `"paper"`: the authors' setting. It overrides the above fields, all but `em_holdout_fraction`, which it leaves
            without effect.
    """

    em_estimator: str = field(
        default="isotonic", metadata={"help": "Estimator of the calibration map.", "choices": list(ESTIMATORS)}
    )
    em_n_bins: int = field(default=10, metadata={"help": "Number of bins of a binned estimator."})
    em_pseudo_count: float = field(default=2.0, metadata={"help": "Shrinkage of small bins, in rows."})
    em_estep_set: str = field(
        default="holdout",
        metadata={"help": "E-step on 'holdout' rows or on the 'train' set.", "choices": ["holdout", "train"]},
    )
    em_holdout_fraction: float = field(
        default=0.2, metadata={"help": "Part of the training rows held out for the E-step, in (0, 1)."}
    )
    em_max_rows: int | None = field(default=None, metadata={"help": "Hold out no more rows than so many."})
    em_fold: int = field(
        default=0, metadata={"help": "Which part is held out: of a fraction of 1/K there are the parts 0 to K - 1."}
    )
    em_refresh: str = field(
        default="epoch", metadata={"help": "E-step every 'epoch', 'once', or every given number of optimizer steps."}
    )
    em_loss: str = field(
        default="kl", metadata={"help": "M-step: 'kl', or 'brier' (the paper's).", "choices": ["kl", "brier"]}
    )
    em_preset: str | None = field(
        default=None, metadata={"help": "'paper': the authors' setting.", "choices": list(EM_PRESETS)}
    )

    def _set_up_em(self) -> None:
        """Apply the preset and check the fields."""
        if self.em_preset is not None:
            if self.em_preset not in EM_PRESETS:
                raise ValueError(f"Unknown em_preset {self.em_preset!r}; there is {', '.join(EM_PRESETS)}.")
            for name, value in EM_PRESETS[self.em_preset].items():
                setattr(self, name, value)
        check_choices(self, em_estimator=ESTIMATORS, em_estep_set=("holdout", "train"), em_loss=("kl", "brier"))
        check_weights(self, "em_pseudo_count")
        if not 0 < self.em_holdout_fraction < 1:
            raise ValueError(f"em_holdout_fraction must lie between 0 and 1, got {self.em_holdout_fraction}.")
        if self.em_max_rows is not None and self.em_max_rows < 1:
            raise ValueError(f"em_max_rows must be at least 1, got {self.em_max_rows}.")
        if self.em_fold < 0:
            raise ValueError(f"em_fold must be at least 0, got {self.em_fold}.")
        if self.em_fold and self.em_estep_set == "train":
            raise ValueError(
                f"em_fold={self.em_fold}: an E-step on the training rows holds out nothing, so there are no folds."
            )
        if self.em_n_bins < 1:
            raise ValueError(f"em_n_bins must be at least 1, got {self.em_n_bins}.")
        if self.em_refresh not in ("epoch", "once") and not (
            str(self.em_refresh).isdigit() and int(self.em_refresh) > 0
        ):
            raise ValueError(f"em_refresh must be 'epoch', 'once' or a number of steps, got {self.em_refresh!r}.")


def check_choices(config, **choices: tuple[str, ...]) -> None:
    """Raise a `ValueError` for a field of `config` that holds none of its choices."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name}={getattr(config, name)!r} is none of {', '.join(allowed)}.")


def check_weights(config, *names: str) -> None:
    """Raise a `ValueError` for a field of `config` that is negative or no number."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be at least 0, got {getattr(config, name)}.")


def hold_out(rows: Dataset, asked: Iterable[Hashable], args: EMArguments, what: str) -> tuple[Dataset, Dataset]:
    """
    Training rows, and those of the E-step: the same ones with `em_estep_set="train"`.

    Rows that ask the same are held out together: of a question whose twin was trained on the model is too sure.

    Args:
        rows ([`~datasets.Dataset`]):
            All rows.
        asked (`Iterable[Hashable]`):
            What each row asks, e.g. the text of its question.
        args ([`EMArguments`] and [`~transformers.TrainingArguments`]):
            Where the E-step is taken, and the seed.
        what (`str`):
            What the rows are, in messages.

    Raises:
        `ValueError`: if the fraction leaves one of the two without rows.
    """
    if args.em_estep_set == "train":
        return rows, rows
    size = round(len(rows) * args.em_holdout_fraction)
    if args.em_max_rows is not None:
        size = min(size, args.em_max_rows)
    groups = {}
    for row, question in enumerate(asked):
        groups.setdefault(question, []).append(row)
    groups, held_out = list(groups.values()), set()
    # Every group goes to the first part that has room for it; one that none has room for is always trained on.
    room = [size] * (args.em_fold + 1)
    for number in np.random.default_rng(args.seed).permutation(len(groups)):
        part = next((part for part, left in enumerate(room) if len(groups[number]) <= left), None)
        if part is not None:
            room[part] -= len(groups[number])
        if part == args.em_fold:
            held_out.update(groups[number])
    if args.em_fold and size and not held_out:
        raise ValueError(
            f"em_fold={args.em_fold} of {len(rows)} {what} ({len(groups)} different) leaves 0 for the E-step: with {size} "
            f"held out by each, the folds are 0 to {math.ceil(len(rows) / size) - 1}."
        )
    if not 0 < len(held_out) < len(rows):
        raise ValueError(
            f"em_holdout_fraction={args.em_holdout_fraction} of {len(rows)} {what} leaves {len(held_out)} for the E-step and "
            f"{len(rows) - len(held_out)} for training ({len(groups)} different {what}); give more {what} or another fraction."
        )
    return rows.select([row for row in range(len(rows)) if row not in held_out]), rows.select(sorted(held_out))


class EMTrainerMixin:
    """
    E-steps for a [`~transformers.Trainer`].

    There is one calibration map for each kind of row that the trainer regularises: `calibrators` and `estep_datasets`,
    by kind (`"options"`, `"pairs"`). The trainer says with `_score_rows(kind, inputs)` what the model makes of a batch.
    """

    def _init_em(self, estep_datasets: dict[str, Dataset]) -> None:
        """Called once the data sets are prepared; without any there is no E-step."""
        args = self.args
        self.estep_datasets = estep_datasets
        self.calibrators = {
            kind: EMCalibrator(args.em_estimator, args.em_n_bins, args.em_pseudo_count) for kind in estep_datasets
        }
        self._last_estep = None  # epoch ("epoch") or step at which the calibration maps were estimated
        self._scoring_dataloaders = {}
        if estep_datasets:
            self.add_callback(_EStepCallback(self))

    def _score_rows(self, kind: str, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities `(batch, K)`, and the right columns `(batch,)` or how probable each is to be right `(batch, K)`."""
        raise NotImplementedError

    def _score_dataset(self, kind: str, dataset: Dataset, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """`_score_rows` of a whole data set, with the model frozen, gathered from all processes."""
        if key not in self._scoring_dataloaders:
            if "input_ids" in dataset.column_names:
                # Questions of one length together are padded least, and the longest first show at once whether they fit.
                lengths = [len(row) for row in dataset["input_ids"]]
                dataset = dataset.select(np.argsort(lengths, kind="stable")[::-1])
            # Under a key of its own: `get_eval_dataloader` would hand persistent workers on to the evaluation.
            self._scoring_dataloaders[key] = self._get_dataloader(
                dataset, key, self.args.eval_batch_size, self._get_eval_sampler, dataloader_key=key
            )
        training = self.model.training
        self.model_wrapped.eval()
        batches = []
        # The data loader draws a seed, which may not move the random state that training, and a resumed run, rely on. It
        # does so on the CPU; to fork the state of every accelerator would have each process open them all.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self.compute_loss_context_manager():
            for inputs in self._scoring_dataloaders[key]:
                scored = self._score_rows(kind, self._prepare_inputs(inputs))
                batches.append([array.cpu() for array in self.accelerator.gather_for_metrics(scored)])
        self.model_wrapped.train(training)
        probabilities, truth = (torch.cat(arrays) for arrays in zip(*batches, strict=True))
        return probabilities, truth

    def e_step(self, kinds: Iterable[str] | None = None) -> None:
        """Estimate the calibration maps (of these kinds) with the model frozen, on the E-step rows of all processes."""
        for kind in self.estep_datasets if kinds is None else kinds:
            dataset = self.estep_datasets[kind]
            probabilities, truth = self._score_dataset(kind, dataset, f"E-step {kind}")
            if probabilities.isnan().any():
                raise FloatingPointError(f"The E-step's probabilities of {kind} hold NaN: the model has diverged.")
            self._fit_map(kind, probabilities, truth)

    def _fit_map(self, kind: str, probabilities: torch.Tensor, truth: torch.Tensor) -> None:
        self.calibrators[kind].fit(probabilities, truth)

    def _estep_due(self) -> bool:
        refresh, last, step = self.args.em_refresh, self._last_estep, self.state.global_step
        if refresh == "once":
            return last is None and step & (step - 1) == 0  # 0, and the powers of two
        if last is None:
            return True
        if refresh == "epoch":
            # At the first step of an epoch `state.epoch` may lack a rounding error to the whole number.
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
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no checkpoint in {self.args.output_dir!r} to resume from.")
        if resume_from_checkpoint and self.calibrators:
            self._load_em_state(Path(resume_from_checkpoint) / EM_STATE_NAME)
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _load_em_state(self, path: Path) -> None:
        state = json.loads(path.read_text()) if path.exists() else {"calibrators": {}}
        if state["calibrators"].keys() != self.calibrators.keys():
            raise FileNotFoundError(
                f"{path.parent} holds no {EM_STATE_NAME} with the calibration maps of {', '.join(self.calibrators)}: it "
                "is no checkpoint of a run with these objectives."
            )
        self.calibrators = {kind: EMCalibrator.from_state_dict(s) for kind, s in state["calibrators"].items()}
        self._last_estep = state["last_estep"]

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # Written last, it says that the rest is there: one from an earlier run may not say it of this.
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        if self.calibrators and self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            maps = {kind: calibrator.state_dict() for kind, calibrator in self.calibrators.items()}
            state = {"calibrators": maps, "last_estep": self._last_estep}
            (folder / EM_STATE_NAME).write_text(json.dumps(state, indent=2))
        super()._save_checkpoint(model, trial)


class _EStepCallback(TrainerCallback):
    """Takes the E-step where an optimizer step begins."""

    def __init__(self, trainer: EMTrainerMixin):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._maybe_e_step()
