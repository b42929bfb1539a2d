"""A run under `accelerate launch`: what it leaves unsaid about CPUs, its end as its processes see it, and how they part."""

import ctypes
import os
import signal
import sys
import time


class Stopped(Exception):
    """Told to stop by SIGTERM, the work has saved what it had; what is said is where."""


def cpu_training_arguments() -> list[str]:
    """
    Arguments of [`~transformers.TrainingArguments`] that training on CPUs needs, alone or in several processes.

    Without them TRL's default precision, bf16, is refused; the processes of `recipes/accelerate_configs/ddp.yaml` do
    not find each other, so that each trains alone on all of the data; those of DeepSpeed take themselves for one and
    stop. DeepSpeed must be told the backend and not the device (given `use_cpu`, accelerate makes plain data
    parallelism of it), which leaves float32.

    Returns:
        `list[str]`: Command-line arguments to put in front of the user's own; empty where there is an accelerator.
    """
    import torch

    if torch.accelerator.is_available():
        return []
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return ["--ddp_backend", "gloo", "--bf16", "false", "--dataloader_pin_memory", "false"]
    return ["--use_cpu", "true"]


def end_with_launcher() -> None:
    """
    Have SIGTERM sent to this process when the `accelerate launch` above it ends.

    On one process the launcher hands no signal on: stopped by the scheduler, it would leave the training behind, to be killed
    without a checkpoint. Linux only; elsewhere, and without the launcher, this does nothing.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


def leave_process_group() -> None:
    """
    Part from the other processes, once there is nothing more to say to them.

    The last act of a script that ran under `accelerate launch`. Gloo's threads let go of the last tensors a moment after the
    collective that used them; where the interpreter is gone by then, the process aborts ("terminate called without an active
    exception", https://github.com/pytorch/pytorch/pull/179291). The barrier, and a second
    for its own tensor, which a busy machine can take, give them that moment. Alone, or called again, this does nothing.
    """
    distributed = sys.modules.get("torch.distributed")  # not imported: no group was joined
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        time.sleep(1)
        distributed.destroy_process_group()
