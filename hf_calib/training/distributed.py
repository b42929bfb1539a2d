"""Helpers for `accelerate launch`: arguments for CPUs, the end of the launcher, and the end of the process group."""

import ctypes
import os
import signal
import sys
import time


class Stopped(Exception):
    """Raised when SIGTERM stopped a training; the message is the checkpoint that was saved."""


def cpu_training_arguments() -> list[str]:
    """
    Return the arguments of [`~transformers.TrainingArguments`] that training on CPUs needs.

    Without them TRL's default precision, bf16, is refused; the processes of `recipes/accelerate_configs/ddp.yaml` do
    not find each other, and each trains alone on all data; those of DeepSpeed stop. DeepSpeed needs the backend and
    not the device (with `use_cpu`, accelerate replaces it by plain data parallelism), and float32.

    Returns:
        `list[str]`: command-line arguments, to be placed before those of the user; empty where there is an
        accelerator.
    """
    import torch

    if torch.accelerator.is_available():
        return []
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return ["--ddp_backend", "gloo", "--bf16", "false", "--dataloader_pin_memory", "false"]
    return ["--use_cpu", "true"]


def end_with_launcher() -> None:
    """
    Have SIGTERM sent to this process when the `accelerate launch` that started it ends.

    With one process the launcher does not forward signals: if a scheduler stops it, the training would go on and be
    killed without a checkpoint. Linux only; elsewhere, and without the launcher, this does nothing.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


def leave_process_group() -> None:
    """
    Destroy the process group, at the end of a script under `accelerate launch`.

    Gloo's threads release the tensors of the last collective a moment after it. If the interpreter has ended by then,
    the process aborts ("terminate called without an active exception",
    https://github.com/pytorch/pytorch/pull/179291). A barrier and a second of waiting prevent that. Without a group,
    or called again, this does nothing.
    """
    distributed = sys.modules.get("torch.distributed")  # not imported: there is no group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        time.sleep(1)
        distributed.destroy_process_group()
