"""Scores of options from the log-likelihoods of their texts."""

from __future__ import annotations

from collections.abc import Sequence


def normalized_scores(
    log_likelihoods: Sequence[float],
    normalization: str,
    texts: Sequence[str] | None = None,
    num_tokens: Sequence[int] | None = None,
    unconditional: Sequence[float] | None = None,
) -> Sequence[float]:
    """
    Score options.

    Args:
        log_likelihoods (`Sequence[float]`):
            Log-likelihood of each option, summed over its tokens.
        normalization (`str`):
            One of [`~hf_calib.prediction_files.options.NORMALIZATIONS`].
        texts (`Sequence[str]`, *optional*):
            Texts of the options.
        num_tokens (`Sequence[int]`, *optional*):
            Number of tokens of each option.
        unconditional (`Sequence[float]`, *optional*):
            Log-likelihood of each option without the question.

    Raises:
        `ValueError`: what the normalization needs is not in the file, or the log-likelihood of an option is missing.
    """
    if None in log_likelihoods:
        raise ValueError("the log-likelihood of an option is missing")
    if normalization == "sum":
        return log_likelihoods
    if normalization == "mutual_information":
        if not unconditional:
            raise ValueError(
                "there are no unconditional log-likelihoods for --option_normalization mutual_information"
            )
        return [score - prior for score, prior in zip(log_likelihoods, unconditional, strict=True)]
    if normalization == "mean":
        lengths = num_tokens
    else:
        encoded = [text.encode() if normalization == "bytes" else text for text in texts or ()]
        lengths = [len(text) for text in encoded]
    if not lengths or not all(lengths):
        raise ValueError(f"the file holds no lengths for --option_normalization {normalization}")
    return [score / length for score, length in zip(log_likelihoods, lengths, strict=True)]


def likeliest_right(scores: Sequence[float], right: Sequence[int]) -> int:
    """The right option with the highest score, where several are right."""
    return max(right, key=scores.__getitem__)
