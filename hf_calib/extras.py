"""The optional parts of the installation: advice where one is missing, and the versions that were tried."""

from __future__ import annotations

import warnings
from importlib.metadata import version


# Minor releases of TRL that the tests ran with: from the first, up to but without the second.
# The losses of 1.15 are Triton kernels: its tests ran in Triton's interpreter.
TRIED_TRL = ((1, 15), (1, 17))
# From this release on, TRL computes its losses without Triton where there is no GPU.
TRL_ON_CPUS = (1, 16)

_EXTRA_OF = {
    "trl": "train",
    "peft": "train",
    "deepspeed": "deepspeed",
    "gradio": "app",
    "mapie": "conformal",
    "openai": "served",
}


def with_advice(error: ImportError) -> ImportError:
    """
    Say which extra of the installation brings a missing package.

    Args:
        error (`ImportError`):
            Raised by an import.

    Returns:
        `ImportError`: the same error, or, where an extra brings the package, one whose message names the extra.
    """
    extra = _EXTRA_OF.get((error.name or "").split(".")[0])
    if extra is None:
        return error
    return ImportError(f'This needs {error.name}: pip install "hf_calib[{extra}]".', name=error.name)


def warn_untried_trl() -> None:
    """Warn where the installed TRL is one that the tests did not run with, or that cannot train on this machine."""
    import torch

    installed, (first, end) = version("trl"), TRIED_TRL
    release = tuple(int(part) for part in installed.split(".")[:2])
    if release < TRL_ON_CPUS and not (torch.cuda.is_available() or torch.xpu.is_available()):
        warnings.warn(
            f"TRL {installed} computes its losses with Triton, which needs a GPU: to train on this machine, install "
            f"TRL {TRL_ON_CPUS[0]}.{TRL_ON_CPUS[1]} or newer.",
            stacklevel=2,
        )
    if not first <= release < end:
        warnings.warn(
            f"hf_calib was not tried with TRL {installed}, whose losses it overrides, but with TRL "
            f"from {first[0]}.{first[1]} and below {end[0]}.{end[1]}.",
            stacklevel=2,
        )
