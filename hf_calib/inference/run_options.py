"""Options of everything that runs a model on questions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """
    How a model is run on questions.

    Args:
        batch_size (`int`, *optional*, defaults to `8`):
            Number of questions in a forward pass of the longest questions, at least 1. Shorter questions go together
            in larger numbers, so that all passes have about as many tokens. When answers are written, number of
            answers in a batch.
        max_length (`int`, *optional*):
            Largest number of tokens of a prompt with one of its options, or with its answer. Defaults to the context
            length of the model.
        drop_too_long (`bool`, *optional*, defaults to `False`):
            Leave out longer questions, and log their number, instead of raising. Nothing is truncated.
        resume (`bool`, *optional*, defaults to `True`):
            Reuse what the output path or folder holds, finished or not, if it is of the same model and questions.
            `False` overwrites it.
        progress (`bool`, *optional*, defaults to `True`):
            Show progress bars.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the questions need answers. With `False` answers are ignored, and all labels are -100.

    Raises:
        `ValueError`: for a value that is not allowed.
    """

    batch_size: int = 8
    max_length: int | None = None
    drop_too_long: bool = False
    resume: bool = True
    progress: bool = True
    labelled: bool = True

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}; it must be at least 1")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length={self.max_length}; it must be at least 1, or None")
