"""The optional parts of the installation: advice where one is missing, and the versions that were tried."""

from __future__ import annotations

import warnings
from importlib.metadata import version


# Minor releases of TRL that the tests ran with: from the first, up to but without the second.
TRIED_TRL = ((1, 16), (1, 17))

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
    """Warn where the installed TRL is one that the tests did not run with."""
    installed, (first, end) = version("trl"), TRIED_TRL
    if not first <= tuple(int(part) for part in installed.split(".")[:2]) < end:
        warnings.warn(
            f"hf_calib was not tried with TRL {installed}, whose losses it overrides, but with TRL "
            f"from {first[0]}.{first[1]} and below {end[0]}.{end[1]}.",
            stacklevel=2,
        )
