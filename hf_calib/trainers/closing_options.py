"""Options of the closing step, and its result in words."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

from ..evaluation.no_harm import NoHarm


@dataclass(frozen=True)
class ClosingOptions:
    """
    Options of the closing step.

    Args:
        steps (`float`, *optional*, defaults to `0.5`):
            Optimizer steps, as a fraction of those of the training.
        learning_rate (`float`, *optional*):
            Its learning rate. Defaults to that of the training, but at most 3e-4: adapters lose accuracy above it.
        text_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the divergence on texts, in nats a token; at least 0.
        num_texts (`int`, *optional*, defaults to `32`):
            Number of generic texts, which the model before training samples; 0 for none.
        num_continuations (`int`, *optional*, defaults to `32`):
            Number of texts that this model writes after an answer of its own to a question; 0 for none. The answer
            itself is not kept.
    """

    steps: float = 0.5
    learning_rate: float | None = None
    text_weight: float = 1.0
    num_texts: int = 32
    num_continuations: int = 32

    def __post_init__(self):
        if not 0 < self.steps < math.inf:
            raise ValueError(f"closing_step: steps must be above 0, got {self.steps}.")
        if not (0 <= self.text_weight < math.inf and min(self.num_texts, self.num_continuations) >= 0):
            raise ValueError(
                f"closing_step: text_weight={self.text_weight}, num_texts={self.num_texts} and "
                f"num_continuations={self.num_continuations} must be at least 0."
            )

    @classmethod
    def parse(cls, value: Any) -> ClosingOptions:
        """Read the field `closing_step`: `None`, `True`, a mapping, or its JSON."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(f"closing_step={value!r} is neither true, false nor JSON: {error}.") from None
        if value is None or value is True:
            return cls()
        known = [field.name for field in fields(cls)]
        if not isinstance(value, dict) or set(value) - set(known):
            raise ValueError(f"closing_step must be true, false or a mapping of {', '.join(known)}; got {value!r}.")
        return cls(**value)


def describe_closing(report: dict[str, Any]) -> str:
    """State whether the closed model is better than the aligned one with a calibrator, on the held-out questions."""
    found = {field.name: report.get(f"no_harm_{field.name}") for field in fields(NoHarm)}
    if found["n"] is None:
        return "No labels were held out, so the model is not compared with the aligned one and a calibrator."
    no_harm = NoHarm(**found)
    sentence = no_harm.sentence("held-out questions")
    if no_harm.better:
        return sentence
    return f"{sentence} The simpler way: keep the aligned model; hf-calib evaluate, then hf-calib calibrate."
