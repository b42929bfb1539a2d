"""The option-order experiment: every question asked with its options in K cyclic orders. Does the place decide?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .bootstrap import ResampledMeans
from .calibration_error import expected_calibration_error
from .validation import as_labels, as_probabilities


_SMALLEST_PROBABILITY = 1e-12

MEANINGS = {
    "flip_rate": "Share of the questions whose answer depends on the order of the options.",
    "agreement": "How often two orders of a question get the same answer: 0 where the place alone decides.",
    "accuracy": "Accuracy over all orders: the right option has stood in every place equally often.",
    "position_shift": (
        "Share of the answers that would have to move to another place for all places to be chosen equally often, as they "
        "are right equally often."
    ),
    "averaged_accuracy": "Accuracy of the mean over the orders, which favours no place.",
    "averaged_ece": "conf-ECE of that mean.",
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
    What the order of the options does to the answers; see `MEANINGS`.

    In the K cyclic orders of a question every option stands in every place once, so that a model which reads the options
    alone answers all alike, and has no reason to prefer a place. The letter prior is the one of Zheng et al. (arXiv
    2309.03882): the softmax over the places of the mean log-probability that a place gets in all orders, averaged over the
    questions.

    Args:
        probabilities (array-like of shape `(K, N, K)`):
            Option probabilities of N questions of K options each, by place; in entry s every option has been moved s places
            down (`permute_options(questions, s)`).
        labels (array-like of shape `(N,)`):
            Place of the right option in the original order, entry 0.
        reference_probabilities (array-like of shape `(K, N, K)`, *optional*):
            The same of another model: the one before alignment.
        n_bins (`int`, *optional*, defaults to `10`):
            Number of equal-width bins of the ECE.
        n_bootstrap (`int`, *optional*, defaults to `1000`):
            Number of draws behind the intervals.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `dict[str, float]`: flat. `n`, `num_options`; `flip_rate`, `agreement`, `accuracy`, `averaged_accuracy` and `position_shift`,
        each with `_low` and `_high`; `averaged_ece`, `position_shift_noise_floor`; and for every place p from 0 `accuracy_at/p`
        (with interval; of the answers where the right option stands there), `predicted_at/p` and `letter_prior/p`. With a
        reference the same as `reference/<key>`, and `change/<key>` of `flip_rate`, `agreement`, `accuracy` and `position_shift`.

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
                f"`reference_probabilities` has shape {stacks['reference/'].shape}, `probabilities` {stacks[''].shape}: both "
                "must hold the same questions, options and orders."
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
            f"`{name}` holds {len(stack)} orders of questions with {stack.shape[2]} options: give all {stack.shape[2]} cyclic "
            "orders."
        )
    return stack


def _quantities(stack: np.ndarray, labels: np.ndarray, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """What every question contributes: `(N,)`, or `(K, N)` with one line per place."""
    count, n, _ = stack.shape
    shifts, rows = np.arange(count)[:, None], np.arange(n)
    place = stack.argmax(axis=2)  # (K, N): where the answer stands in each order
    option = (place - shifts) % count
    right = option == labels
    averaged = np.mean([np.roll(entry, -shift, axis=1) for shift, entry in enumerate(stack)], axis=0)
    prior = np.exp(np.log(np.maximum(stack, _SMALLEST_PROBABILITY)).mean(axis=0, dtype=np.float64))
    yield f"{prefix}flip_rate", (option != option[0]).any(axis=0).astype(np.float64)
    same = (option[:, None] == option).sum(axis=(0, 1)) - count
    yield f"{prefix}agreement", same / (count * (count - 1))
    yield f"{prefix}accuracy", right.mean(axis=0)
    yield f"{prefix}averaged_accuracy", (averaged.argmax(axis=1) == labels).astype(np.float64)
    for here in range(count):
        yield f"{prefix}accuracy_at/{here}", right[(here - labels) % count, rows].astype(np.float64)
    yield f"{prefix}predicted_at", np.stack([(place == here).mean(axis=0) for here in range(count)])
    yield f"{prefix}letter_prior", (prior / prior.sum(axis=1, keepdims=True)).T
