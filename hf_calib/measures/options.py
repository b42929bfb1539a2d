"""Options that the measures share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .validation import check_whole


BINNINGS = ("equal_width", "equal_mass")


@dataclass(frozen=True)
class MeasureOptions:
    """
    Options of the calibration measures.

    Args:
        n_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the binned measures, at least 1.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"` or `"equal_mass"`.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of draws behind each 95% interval, and of simulations behind each noise floor. At least 1.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws; `None` for fresh randomness.

    Raises:
        ValueError: A value is outside its range.
    """

    n_bins: int = 10
    binning: str = "equal_width"
    n_bootstrap: int = 1000
    seed: int | None = 0

    def __post_init__(self):
        check_whole(self.n_bins, "n_bins")
        check_binning(self.binning)
        check_whole(self.n_bootstrap, "n_bootstrap")
        if self.seed is not None:
            check_whole(self.seed, "seed", least=0)

    def generator(self, *stream: int) -> np.random.Generator:
        """Random generator of one stream of draws."""
        return np.random.default_rng(None if self.seed is None else [self.seed, *stream])


def check_binning(binning: str) -> None:
    """Check the name of a binning."""
    if binning not in BINNINGS:
        raise ValueError(f"`binning` must be one of {BINNINGS}, got {binning!r}.")
