"""Checkpoints of long runs: the one to go on from, the room that they will take, and another number of processes."""

from __future__ import annotations

import errno
import json
import logging
import math
import re
import shutil
from argparse import Namespace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint


logger = logging.getLogger(__name__)


# Which one


def last_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest checkpoint that is whole, `None` if there is none.

    The trainer writes `trainer_state.json` last: a checkpoint without it was cut off by a kill or a full disk.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
    """
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
            found[int(match[1])] = path
    for step in sorted(found, reverse=True):
        try:
            if json.loads((found[step] / TRAINER_STATE_NAME).read_text())["global_step"] == step:
                return str(found[step])
        except (OSError, ValueError, KeyError):
            pass
        logger.warning(f"{found[step]} is not complete: it was cut off while being written. An older one is taken.")
    return None


def resume_point(resume_from_checkpoint: str | bool | None, output_dir: str) -> str | bool | None:
    """
    What `--resume_from_checkpoint` says, as `Trainer.train` takes it.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*):
            `"auto"`: the newest whole checkpoint of `output_dir`, or a new run if there is none. `"true"`: the newest one,
            which must be there. `"false"`: a new run. Anything else: a checkpoint's folder.
        output_dir (`str`):
            Folder of the run.

    Raises:
        `FileNotFoundError`: if the folder is no checkpoint.
    """
    text = str(resume_from_checkpoint)  # on the command line the argument is text
    if text.lower() == "auto":
        return last_checkpoint(output_dir)
    if text.lower() == "true":
        return get_last_checkpoint(output_dir) or True
    if text.lower() in ("false", "none"):
        return None
    if not (Path(text) / TRAINER_STATE_NAME).is_file():
        raise FileNotFoundError(
            f"resume_from_checkpoint={text!r} holds no {TRAINER_STATE_NAME}, so that it is no (whole) checkpoint; 'auto' takes the "
            "newest one of output_dir that is."
        )
    return text


# How large


def checkpoint_bytes(trainer: Trainer) -> tuple[int, int]:
    """
    Size of a checkpoint and of the saved model, estimated.

    Saved are the weights (of an adapter, its own alone) and, unless `save_only_model`, the optimizer's state: two numbers for
    each trained weight with Adam. DeepSpeed adds the weights in float32 and once more as they are.

    Args:
        trainer ([`~transformers.Trainer`]):
            A trainer that has its model.

    Returns:
        `tuple[int, int]`: bytes of a checkpoint, bytes of the model.
    """
    args, model, saved, state = trainer.args, trainer.model, 0, 0
    numbers = _numbers_per_weight(str(getattr(args.optim, "value", args.optim)))
    for parameter in model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 has spread it already
        if parameter.requires_grad or not isinstance(model, PeftModel):
            saved += count * parameter.element_size()
        if parameter.requires_grad and trainer.is_deepspeed_enabled:
            state += count * (4 + 4 * numbers + parameter.element_size())
        elif parameter.requires_grad:
            state += count * parameter.element_size() * numbers
    return int(saved + (0 if args.save_only_model else state)), saved


def _numbers_per_weight(optimizer: str) -> float:
    """Numbers of the weight's own size that an optimizer keeps for it."""
    if "adafactor" in optimizer or optimizer in ("sgd", "adagrad", "rmsprop"):
        return 0 if "adafactor" in optimizer or optimizer == "sgd" else 1
    moments = 1 if "lion" in optimizer else 2
    return moments * (0.25 if "8bit" in optimizer else 0.125 if "4bit" in optimizer else 1)


def check_disk_space(trainer: Trainer) -> None:
    """
    Say before training that its checkpoints will not fit on the disk.

    Args:
        trainer ([`~transformers.Trainer`]):
            A trainer that has its model and data.

    Raises:
        `OSError`: if the checkpoints to be kept at one time and the model need more than is free.
    """
    args = trainer.args
    checkpoint, model = checkpoint_bytes(trainer)
    count = _planned_saves(trainer)
    if args.save_total_limit is not None:
        # The new one is written before an old one goes, and the best stays.
        count = min(count, args.save_total_limit + 1 + args.load_best_model_at_end)
    there = len(list(Path(args.output_dir).glob("checkpoint-*")))  # to be overwritten, or to go
    count = max(count - there, min(count, 1))
    needed, free = count * checkpoint + model, shutil.disk_usage(args.output_dir).free
    if needed > free:
        raise OSError(
            f"output_dir {args.output_dir!r} has {_readable(free)} free, but the run is to write {_readable(needed)}: {count} "
            f"checkpoints of {_readable(checkpoint)} and the model, {_readable(model)}. Make room, choose another output_dir, keep fewer "
            "(--save_total_limit 2), save less often (--save_steps), or leave out what only a resumed run needs "
            "(--save_only_model true)."
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
    """Whether a save failed for want of room, which the libraries below say in as many ways as there are of them."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return True
    # torch's archive writer has lost the reason
    return (
        "PytorchStreamWriter" in str(error)
        and shutil.disk_usage(trainer.args.output_dir).free < checkpoint_bytes(trainer)[0]
    )


# By how many processes


def adapt_to_processes(trainer: Trainer, checkpoint: str) -> None:
    """
    Make a DeepSpeed checkpoint readable for another number of processes than wrote it.

    ZeRO's optimizer state is cut into one part for each process. Where their number has changed, the checkpoint is converted
    to DeepSpeed's universal format, beside its own, and the engine is told to read that.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer that is to resume.
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
            f"{checkpoint} was written by {len(parts)} processes; it is converted for {trainer.accelerator.num_processes}."
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
    Sets right what DeepSpeed 0.19.8 makes of a universal ZeRO-3 checkpoint with several parameter groups
    (`load_hp_checkpoint_state_from_checkpoint_dir_stage3`): all share the step counter, which each then advances, and all have
    the first one's weight decay, where the trainer's second group has none.
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
