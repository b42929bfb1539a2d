"""Short runs of the trainers' tests, how they are cut off, and what is compared of them."""

import torch
from transformers import TrainerCallback


# A short run that prints nothing.
QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "logging_steps": 1,
}
DPO_RUN = {**QUIET, "max_length": 32, "beta": 0.3}
SFT_RUN = {**QUIET, "scoring": "text"}


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


class StopAt(TrainerCallback):
    """Ends the process's work as a kill does: nothing is saved after it."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt
