"""Mean option mass of letters, and what to do where it is small."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..inference.predictions import OptionPredictions

LEAST_MASS = 0.5  # below it, most of what the model would write is no letter


def mean_option_mass(predictions: OptionPredictions) -> float | None:
    """Mean probability of all letters together, in [0, 1]; `None` where the options are not letters."""
    scoring = predictions.metadata.get("prompt_format", {}).get("scoring")
    return float(predictions.option_mass.mean()) if scoring == "letter" and len(predictions) else None


def small_mass_sentence(predictions: OptionPredictions) -> str | None:
    """What a mean option mass below 1/2 means, and what to do; `None` if it is larger or not known."""
    mass = mean_option_mass(predictions)
    if mass is None or not mass < LEAST_MASS:
        return None
    return (
        f"option mass {mass:.3f}: the model would mostly write something else than a letter, so its letters may not "
        'be its answers. Try --system_prompt "Answer with the letter alone.", a --prompt_template in which '
        "{assistant}Answer: begins the answer, another --use_chat_template, or --scoring text."
    )
