"""Warnings of the libraries that say nothing to a user of `hf-calib train`."""

import os
import warnings


# Category, beginning of the message, and module of each warning that is ignored.
_IGNORED = (
    # TRL 1.16 passes the old name of an argument that transformers 5.23 has renamed.
    (FutureWarning, "`gradient_checkpointing` is deprecated", r"transformers\.training_args"),
    (FutureWarning, "`is_gradient_checkpointing` is deprecated", r"transformers\.modeling_utils"),
    (FutureWarning, "`gradient_checkpointing_(en|dis)able` is deprecated", r"transformers\.modeling_utils"),
    # DeepSpeed 0.19 calls an old name of a collective of torch 2.13.
    (FutureWarning, "`torch.distributed.all_gather_into_tensor` is deprecated", r"torch\.distributed\.c10d_logger"),
    # DeepSpeed builds its communication for CPUs by torch, which imports distutils before setuptools.
    (UserWarning, "Distutils was imported before Setuptools", "_distutils_hack"),
    (UserWarning, "Setuptools is replacing distutils", "_distutils_hack"),
)


def ignore_library_warnings() -> None:
    """Ignore warnings that arise between the libraries; call this before TRL and DeepSpeed are imported."""
    import torch

    for category, message, module in _IGNORED:
        warnings.filterwarnings("ignore", message, category, module)
    if not torch.accelerator.is_available():
        # Named, the accelerator is not searched for; DeepSpeed warns where it finds none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
