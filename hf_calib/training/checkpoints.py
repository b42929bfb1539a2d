"""Checkpoints: which one to resume from, their disk space, and resuming with another number of processes."""

from __future__ import annotations

import errno
import logging
import math
import shutil
from argparse import Namespace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy

from ..trainers.last_checkpoint import agreed_checkpoint


logger = logging.getLogger(__name__)


def resume_point(resume_from_checkpoint: str | bool | None, output_dir: str) -> str | bool | None:
    """
    Convert `--resume_from_checkpoint` into the argument of `Trainer.train`.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*):
            `"auto"`: the newest complete checkpoint of `output_dir`, or a new run if there is none. `"true"`: the
            same, but there must be one. `"false"`: a new run. Otherwise the folder of a checkpoint.
        output_dir (`str`):
            Folder of the run.

    Raises:
        `FileNotFoundError`: if the folder is not a complete checkpoint.
    """
    text = str(resume_from_checkpoint)  # on the command line the argument is text
    if text.lower() == "auto":
        return agreed_checkpoint(output_dir)
    if text.lower() == "true":
        return agreed_checkpoint(output_dir) or True
    if text.lower() in ("false", "none"):
        return None
    if not (Path(text) / TRAINER_STATE_NAME).is_file():
        raise FileNotFoundError(
            f"resume_from_checkpoint={text!r} has no {TRAINER_STATE_NAME}, so it is not a complete checkpoint; "
            "'auto' takes the newest complete one of output_dir."
        )
    return text


def checkpoint_bytes(trainer: Trainer) -> tuple[int, int]:
    """
    Estimate the size of a checkpoint and of the saved model.

    A checkpoint has the weights (only those of the adapter, if there is one) and, unless `save_only_model`, the state
    of the optimizer: with Adam two numbers per trained weight. DeepSpeed adds the weights in float32 and in their own
    type.

    Args:
        trainer ([`~transformers.Trainer`]):
            A trainer with its model.

    Returns:
        `tuple[int, int]`: bytes of a checkpoint, bytes of the model.
    """
    args, model, saved, state = trainer.args, trainer.model, 0, 0
    numbers = _numbers_per_weight(str(getattr(args.optim, "value", args.optim)))
    for parameter in model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())  # partitioned by ZeRO-3
        if parameter.requires_grad or not isinstance(model, PeftModel):
            saved += count * parameter.element_size()
        if parameter.requires_grad and trainer.is_deepspeed_enabled:
            state += count * (4 + 4 * numbers + parameter.element_size())
        elif parameter.requires_grad:
            state += count * parameter.element_size() * numbers
    return int(saved + (0 if args.save_only_model else state)), saved


def _numbers_per_weight(optimizer: str) -> float:
    """Return how many numbers of the weight's size an optimizer keeps per weight."""
    if "adafactor" in optimizer or optimizer in ("sgd", "adagrad", "rmsprop"):
        return 0 if "adafactor" in optimizer or optimizer == "sgd" else 1
    moments = 1 if "lion" in optimizer else 2
    return moments * (0.25 if "8bit" in optimizer else 0.125 if "4bit" in optimizer else 1)


def check_disk_space(trainer: Trainer) -> None:
    """
    Check that the checkpoints of a training will fit on the disk.

    Args:
        trainer ([`~transformers.Trainer`]):
            A trainer with its model and data.

    Raises:
        `OSError`: if the checkpoints that exist at one time and the model need more than the free space.
    """
    args = trainer.args
    checkpoint, model = checkpoint_bytes(trainer)
    count = _planned_saves(trainer)
    if args.save_total_limit is not None:
        # A checkpoint is written before an old one is deleted, and the best one is kept.
        count = min(count, args.save_total_limit + 1 + args.load_best_model_at_end)
    there = len(list(Path(args.output_dir).glob("checkpoint-*")))  # overwritten or deleted
    count = max(count - there, min(count, 1))
    needed, free = count * checkpoint + model, shutil.disk_usage(args.output_dir).free
    if needed > free:
        raise OSError(
            f"output_dir {args.output_dir!r} has {_readable(free)} free, but the run will write {_readable(needed)}: "
            f"{count} checkpoints of {_readable(checkpoint)} and the model, {_readable(model)}. Free some space, "
            "choose another output_dir, keep fewer checkpoints (--save_total_limit 2), save less often (--save_steps) "
            "or save no state of the optimizer (--save_only_model true)."
        )


def _planned_saves(trainer: Trainer) -> int:
    args = trainer.args
    if args.save_strategy == SaveStrategy.NO:
        return 0
    rows = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    epoch = math.ceil(len(trainer.train_dataset) / rows)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(epoch * args.num_train_epochs)
    if args.save_strategy == SaveStrategy.STEPS:
        every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * steps)
        return math.ceil(steps / every)
    return math.ceil(steps / epoch)


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):  # noqa: B007
        if size < 1000:
            break
        size /= 1000
    else:
        unit = "TB"
    return f"{size:.3g} {unit}"


def is_full_disk(error: BaseException, trainer: Trainer) -> bool:
    """Whether an error of any of the libraries means that the disk is full."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return True
    # torch's archive writer does not report the reason
    return (
        "PytorchStreamWriter" in str(error)
        and shutil.disk_usage(trainer.args.output_dir).free < checkpoint_bytes(trainer)[0]
    )


def adapt_to_processes(trainer: Trainer, checkpoint: str) -> None:
    """
    Make a DeepSpeed checkpoint readable for another number of processes.

    ZeRO partitions the state of the optimizer over the processes. If their number has changed, the checkpoint is
    converted to DeepSpeed's universal format, in the same folder, and the engine is configured to read that.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer that resumes.
        checkpoint (`str`):
            Folder of the checkpoint.
    """
    parts = sorted(Path(checkpoint).glob("global_step*/*_optim_states.pt"))
    if not trainer.is_deepspeed_enabled or not parts or len(parts) == trainer.accelerator.num_processes:
        return
    from deepspeed.checkpoint import ds_to_universal

    folder = parts[0].parent
    if trainer.args.should_save and not (Path(checkpoint) / "latest_universal").exists():
        logger.warning(
            f"{checkpoint} was written by {len(parts)} processes and is converted for "
            f"{trainer.accelerator.num_processes}."
        )
        ds_to_universal.main(
            Namespace(
                input_folder=str(folder),
                output_folder=f"{folder}_universal",
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
    trainer.accelerator.wait_for_everyone()
    trainer.add_callback(_RepairUniversalState(trainer))
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}


class _RepairUniversalState(TrainerCallback):
    """
    Repairs the state that DeepSpeed 0.19.8 loads from a universal ZeRO-3 checkpoint with several parameter groups.

    `load_hp_checkpoint_state_from_checkpoint_dir_stage3` gives all groups the same step counter, which each of them
    then advances, and the weight decay of the first group, where the trainer's second group has none.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        optimizer = self.trainer.model_wrapped.optimizer.optimizer
        for values in optimizer.state.values():
            if torch.is_tensor(step := values.get("step")):
                values["step"] = step.clone()
        for group in optimizer.param_groups[1:]:
            group["weight_decay"] = 0.0
