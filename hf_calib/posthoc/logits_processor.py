"""A logits processor for `generate` that applies a calibrator to the probabilities of the options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor


if TYPE_CHECKING:
    from . import PostHocCalibrator


class OptionCalibrationProcessor(LogitsProcessor):
    """
    Calibrate the probabilities of the options at the first generated token.

    The total probability of the options is kept, and the calibrator divides it among them. All other tokens, and all
    later positions, keep their probabilities.

    Args:
        calibrator ([`~hf_calib.posthoc.PostHocCalibrator`]):
            A fitted calibrator of any kind.
        option_tokens (`Sequence[int]`):
            Token id of each option, e.g. of " A", " B", " C" and " D". Options must be single tokens.
        prompt_length (`int`):
            Length of the padded prompts, `inputs["input_ids"].shape[1]`.
        group (`str`, *optional*):
            Subject of the prompts, for a `grouped` calibrator.

    Raises:
        `ValueError`: for fewer than two different option tokens, and for a `grouped` calibrator without a group.

    Example:

    ```python
    >>> import torch
    >>> from hf_calib.posthoc import TemperatureScaling
    >>> calibrator = TemperatureScaling().fit([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]], [0, 0, 0, 0])
    >>> processor = OptionCalibrationProcessor(calibrator, option_tokens=[1, 2], prompt_length=3)
    >>> scores = torch.tensor([[3.0, 4.0, 0.0]])
    >>> processor(torch.zeros(1, 3), scores).softmax(-1).mul(100).round().tolist()  # 27, 72 and 1 before
    [[27.0, 55.0, 18.0]]

    ```
    """

    def __init__(
        self,
        calibrator: PostHocCalibrator,
        option_tokens: Sequence[int],
        prompt_length: int,
        group: str | None = None,
    ):
        if len(set(option_tokens)) != len(option_tokens) or len(option_tokens) < 2:
            raise ValueError(f"option_tokens must be two or more different tokens, got {list(option_tokens)}.")
        if calibrator.grouped and group is None:
            raise ValueError(f"{type(calibrator).__name__} needs `group`, the subject of the prompts.")
        self.calibrator = calibrator
        self.group = group
        self.option_tokens = list(option_tokens)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] != self.prompt_length:
            return scores
        log_probabilities = scores.float().log_softmax(-1)
        options = log_probabilities[:, self.option_tokens]
        groups = None if self.group is None else [self.group] * len(options)
        calibrated = torch.from_numpy(self.calibrator.transform(options.cpu().numpy(), groups=groups)).to(options)
        log_probabilities[:, self.option_tokens] = calibrated.log() + options.logsumexp(-1, keepdim=True)
        return log_probabilities.to(scores.dtype)
