"""Options of reading predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


# How the log-likelihood of an option becomes its score.
NORMALIZATIONS = ("sum", "mean", "characters", "bytes", "mutual_information")


@dataclass(frozen=True)
class ReadOptions:
    """
    Options of reading predictions.

    Args:
        format (`str`, *optional*):
            Name of the format, one of [`~hf_calib.prediction_files.read.FORMATS`]. Defaults to the format that the
            content has.
        labels (`str` or `Path`, *optional*):
            File with the right options (csv, json, jsonl or parquet with the columns `id` and `label`), joined by id.
            They replace those in the predictions.
        filter (`str`, *optional*):
            Filter of lm-evaluation-harness, where a file holds several.
        columns (`Mapping[str, str]`, *optional*):
            Column of each role in csv, json or parquet: `id`, `label`, `probabilities`, `option_logits`,
            `confidence`, `correct`, `prediction`, `subject`, `target_probabilities`, `weight`. Several columns, one
            for each option, are joined by commas: `{"probabilities": "p_yes,p_no"}`.
        option_normalization (`str`, *optional*):
            Score of an option: `"sum"` of its tokens' log-likelihoods, `"mean"` over its tokens, `"characters"` or
            `"bytes"` (sum divided by the length of its text), `"mutual_information"` (sum minus the sum without the
            question). Defaults to the one by which the tool that wrote the file computes its accuracy.
        option_labels (`str`, *optional*):
            What the model writes for each option, e.g. `"A,B,C,D"` or `"yes,no"`, for log-probabilities of written
            tokens.
        num_options (`int`, *optional*):
            Number of options of each question, for log-probabilities of written letters and for confidences.
        answers_from (`int`, *optional*):
            Number of the first option where right options are numbers, 0 or 1. Without it they count from 0, and
            numbers that seem to count from 1 are an error.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave out rows that cannot be read or have no right option, and count them, instead of stopping.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether every question must have a right option.

    Raises:
        `ValueError`: a value is outside its range.
    """

    format: str | None = None
    labels: str | Path | None = None
    filter: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    option_normalization: str | None = None
    option_labels: str | None = None
    num_options: int | None = None
    answers_from: int | None = None
    drop_invalid: bool = False
    labelled: bool = True

    def __post_init__(self):
        if self.option_normalization not in (None, *NORMALIZATIONS):
            raise ValueError(
                f"option_normalization is {self.option_normalization!r}: use one of {', '.join(NORMALIZATIONS)}"
            )
        if self.num_options is not None and self.num_options < 2:
            raise ValueError(f"num_options must be at least 2, got {self.num_options}")
        if self.answers_from not in (None, 0, 1):
            raise ValueError(f"answers_from must be 0 or 1, got {self.answers_from}")
        if self.option_labels is not None and len(set(self.written_options)) < 2:
            raise ValueError(f"option_labels {self.option_labels!r} must name at least two options, e.g. A,B,C,D")

    @property
    def written_options(self) -> tuple[str, ...]:
        """What the model writes for each option; empty if it is not given."""
        return tuple(name.strip() for name in (self.option_labels or "").split(",") if name.strip())
