"""What `accelerate launch` leaves unsaid on a machine without an accelerator."""

import os


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
        return ["--ddp_backend", "gloo", "--bf16", "false"]
    return ["--use_cpu", "true"]
