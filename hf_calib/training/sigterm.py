"""Being told to stop: on SIGTERM a run saves a checkpoint after the step in hand, on all processes alike, and ends."""

from __future__ import annotations

import signal
import threading

import torch
from transformers import Trainer, TrainerCallback

from .distributed import Stopped


class StopOnSigterm(TrainerCallback):
    """
    Saves a checkpoint and stops after the optimizer step in which a process receives SIGTERM.

    So Slurm, Kubernetes and pre-emptible machines announce their end. A checkpoint is written by all processes together, and
    the signal may reach one of them alone, or each at another step: they ask each other after every step, which costs the sum
    of one number. ([`~transformers.TrainingArguments`]'s `enable_jit_checkpoint` has each process decide for itself.)

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer to which the callback is added.

    Raises:
        [`~hf_calib.training.distributed.Stopped`]: out of `trainer.train()`, once the checkpoint is there.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.received = False
        self.stopping = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():  # no other may set a handler
            self._previous = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number, frame):
        self.received = True  # again and again: launcher and scheduler may both send it

    def on_step_end(self, args, state, control, **kwargs):
        accelerator = self.trainer.accelerator
        received = torch.tensor(int(self.received), device=accelerator.device)
        if accelerator.num_processes > 1:
            received = accelerator.reduce(received)
        # After the last step what is left to do is short.
        if received.item() and state.global_step < state.max_steps:
            self.stopping = control.should_save = True
            control.should_evaluate = False

    def on_save(self, args, state, control, **kwargs):
        if not self.stopping:
            return
        # The trainer itself would load the best checkpoint, and perhaps delete this one. Trackers want to hear of the end.
        self.trainer.callback_handler.on_train_end(args, state, control)
        raise Stopped(f"{args.output_dir}/checkpoint-{state.global_step}")

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Give SIGTERM back to whoever had it, also where training ends by an error."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
