"""Dependence of predictions on the order of the options, from predictions in all K cyclic orders."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .bootstrap import ResampledMeans
from .calibration_error import expected_calibration_error
from .validation import SMALLEST_PROBABILITY, as_labels, as_probabilities


MEANINGS = {
    "flip_rate": "Share of questions whose predicted option depends on the order of the options.",
    "agreement": "Share of pairs of orders with the same prediction; 0 if it depends on the place alone.",
    "accuracy": "Accuracy over all orders. Every place is right equally often.",
    "position_shift": "Share of predictions that must move until all places are predicted equally often.",
    "averaged_accuracy": "Accuracy of the option probabilities averaged over the orders.",
    "averaged_ece": "conf-ECE of the option probabilities averaged over the orders.",
}


def order_report(
    probabilities,
    labels,
    reference_probabilities=None,
    n_bins: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """
    Compute measures of position bias with 95% intervals. `MEANINGS` explains them.

    Over the K cyclic orders of a question every option is in every place once, so an unbiased model predicts the same
    option in all orders, and each place equally often. The letter prior is the softmax over places of the mean
    log-probability of a place over the orders, averaged over questions.

    Args:
        probabilities (array-like of shape `(K, N, K)`):
            Option probabilities of N questions with K options each, by place. In entry s every option is s places
            further down (`permute_options(questions, s)`).
        labels (array-like of shape `(N,)`):
            Place of the right option in entry 0.
        reference_probabilities (array-like of shape `(K, N, K)`, *optional*):
            Option probabilities of the model before alignment.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins of the ECE.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of draws behind the intervals.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `dict[str, float]`: `n`, `num_options`; `flip_rate`, `agreement`, `accuracy`, `averaged_accuracy` and
        `position_shift`, each with `_low` and `_high`; `averaged_ece`, `position_shift_noise_floor`; for every place p
        from 0 `accuracy_at/p` (where the right option is in that place, with `_low` and `_high`), `predicted_at/p` and
        `letter_prior/p`. With a reference also the same keys as `reference/<key>`, and `change/<key>` of `flip_rate`,
        `agreement`, `accuracy` and `position_shift`.

    Raises:
        TypeError: An array has the wrong type.
        ValueError: A value is outside its range, or the shapes do not fit.

    References:
        Zheng et al. (2023), "Large Language Models Are Not Robust Multiple Choice Selectors", arXiv 2309.03882.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_calib.measures.position_bias import order_report
    >>> always_a = np.tile([0.7, 0.3], (2, 50, 1))
    >>> report = order_report(always_a, np.arange(50) % 2)
    >>> report["flip_rate"], report["accuracy_at/0"], report["accuracy_at/1"], round(report["letter_prior/0"], 2)
    (1.0, 1.0, 0.0, 0.7)

    ```
    """
    stacks = {"": _checked(probabilities, "probabilities")}
    count, n, _ = stacks[""].shape
    labels = as_labels(labels, n, count)
    if reference_probabilities is not None:
        stacks["reference/"] = _checked(reference_probabilities, "reference_probabilities")
        if stacks["reference/"].shape != stacks[""].shape:
            raise ValueError(
                f"`reference_probabilities` has shape {stacks['reference/'].shape}, `probabilities` "
                f"{stacks[''].shape}: both must hold the same questions, options and orders."
            )
    shares = ("flip_rate", "averaged_accuracy", *(f"accuracy_at/{place}" for place in range(count)))
    means = ResampledMeans(
        [dict(item for prefix, stack in stacks.items() for item in _quantities(stack, labels, prefix))],
        n,
        {prefix + name for prefix in stacks for name in shares},
        n_bootstrap,
        seed,
    )
    report: dict[str, float] = {"n": n, "num_options": count}
    shifts = {}
    for prefix, stack in stacks.items():
        for name in ("agreement", "accuracy", *shares):
            report |= means.estimate(prefix + name).named(prefix + name)
        averaged = np.mean([np.roll(entry, -shift, axis=1) for shift, entry in enumerate(stack)], axis=0)
        report[f"{prefix}averaged_ece"] = expected_calibration_error(averaged, labels, n_bins)
        shifts[prefix], floor = means.total_variation(f"{prefix}predicted_at", 1 / count)
        report |= shifts[prefix].named(f"{prefix}position_shift")
        report[f"{prefix}position_shift_noise_floor"] = floor
        for name in ("predicted_at", "letter_prior"):
            report |= {f"{prefix}{name}/{place}": float(v) for place, v in enumerate(means.means[prefix + name])}
    if reference_probabilities is not None:
        for name in ("flip_rate", "agreement", "accuracy"):
            report |= means.estimate(name, minus=f"reference/{name}").named(f"change/{name}")
        report |= shifts[""].minus(shifts["reference/"]).named("change/position_shift")
    return report


def _checked(probabilities, name: str) -> np.ndarray:
    stack = np.stack([as_probabilities(entry, name) for entry in probabilities])
    if len(stack) != stack.shape[2]:
        raise ValueError(
            f"`{name}` has {len(stack)} orders of questions with {stack.shape[2]} options: give all {stack.shape[2]} "
            "cyclic orders."
        )
    return stack


def _quantities(stack: np.ndarray, labels: np.ndarray, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Quantities of every question: `(N,)`, or `(K, N)` with one line per place."""
    from scipy.special import softmax

    count, n, _ = stack.shape
    shifts, rows = np.arange(count)[:, None], np.arange(n)
    place = stack.argmax(axis=2)  # (K, N): predicted place in each order
    option = (place - shifts) % count
    right = option == labels
    averaged = np.mean([np.roll(entry, -shift, axis=1) for shift, entry in enumerate(stack)], axis=0)
    prior = softmax(np.log(np.maximum(stack, SMALLEST_PROBABILITY)).mean(axis=0, dtype=np.float64), axis=1)
    yield f"{prefix}flip_rate", (option != option[0]).any(axis=0).astype(np.float64)
    same = (option[:, None] == option).sum(axis=(0, 1)) - count
    yield f"{prefix}agreement", same / (count * (count - 1))
    yield f"{prefix}accuracy", right.mean(axis=0)
    yield f"{prefix}averaged_accuracy", (averaged.argmax(axis=1) == labels).astype(np.float64)
    for here in range(count):
        yield f"{prefix}accuracy_at/{here}", right[(here - labels) % count, rows].astype(np.float64)
    yield f"{prefix}predicted_at", np.stack([(place == here).mean(axis=0) for here in range(count)])
    yield f"{prefix}letter_prior", prior.T
