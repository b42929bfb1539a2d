"""Stopping on SIGTERM: all processes save a checkpoint after the same step, and the training ends."""

from __future__ import annotations

import signal
import threading

import torch
from transformers import Trainer, TrainerCallback

from .distributed import Stopped


class StopOnSigterm(TrainerCallback):
    """
    Saves a checkpoint and stops after the optimizer step in which a process receives SIGTERM.

    Slurm, Kubernetes and pre-emptible machines send it before they stop a process. All processes write a checkpoint
    together, but the signal may reach only one of them, or each at another step: after every step they exchange one
    number. (With `enable_jit_checkpoint` of [`~transformers.TrainingArguments`], each process decides for itself.)

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer to which the callback is added.

    Raises:
        [`~hf_calib.training.distributed.Stopped`]: by `trainer.train()`, once the checkpoint is saved.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.received = False
        self.stopping = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():  # only this thread may set a handler
            self._previous = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number, frame):
        self.received = True  # launcher and scheduler may both send it

    def on_step_end(self, args, state, control, **kwargs):
        accelerator = self.trainer.accelerator
        received = torch.tensor(int(self.received), device=accelerator.device)
        if accelerator.num_processes > 1:
            received = accelerator.reduce(received)
        # After the last step the training ends anyway.
        if received.item() and state.global_step < state.max_steps:
            self.stopping = control.should_save = True
            control.should_evaluate = False

    def on_save(self, args, state, control, **kwargs):
        if not self.stopping:
            return
        # Trainer would load the best checkpoint, and perhaps delete this one. Trackers are notified here.
        self.trainer.callback_handler.on_train_end(args, state, control)
        raise Stopped(f"{args.output_dir}/checkpoint-{state.global_step}")

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Restore the previous handler of SIGTERM."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
