"""Target distributions of a question, given the target of its top option."""

from __future__ import annotations

import torch


# Above this inverse temperature nothing but ties at the top changes.
_LARGEST_INVERSE = 1e6
_NEWTON_STEPS = 20


def paper_tail(top: torch.Tensor, ranked: torch.Tensor, num_options: torch.Tensor) -> torch.Tensor:
    r"""
    Compute the targets of the paper.

    With the sorted probabilities :math:`q_{(1)} \ge q_{(2)} \ge \dots` and the top target a

    .. math::

        t_{(1)} &= a, \qquad t_{(j)} = \alpha \tanh(\gamma q_{(j)}) + \beta \quad (j \ge 2), \\
        \alpha &= \beta = \frac{1 - a}{\sum_{j \ge 2} \tanh(\gamma q_{(j)}) + K - 1}, \qquad
        \gamma = \frac{\ln \max(K - 1, 2)}{q_{(2)} (1 - a)}.

    The top target is raised where the second one would exceed it, so that the ranking of the options never changes.
    a = 1 gives a one-hot target.

    Args:
        top (`torch.Tensor` of shape `(batch,)`):
            Target of the first option, in [1/K, 1].
        ranked (`torch.Tensor` of shape `(batch, num_options)`):
            Option probabilities in descending order.
        num_options (`torch.Tensor` of shape `(batch,)`):
            Number of options of each question; the columns after them are padding.

    Returns:
        `torch.Tensor` of shape `(batch, num_options)`: the targets in the same order, 0 in the padding.

    References:
        Xiao et al., ICML 2025, https://huggingface.co/papers/2505.01997, section 5.
    """
    rest = _is_option(ranked, num_options)
    rest[:, 0] = False
    top = _order_preserving(top, ranked, rest, num_options)
    targets = _share(top, ranked, rest, num_options)
    targets[:, 0] = top
    return targets


def temperature_tail(top: torch.Tensor, ranked: torch.Tensor, num_options: torch.Tensor) -> torch.Tensor:
    r"""
    Compute the option probabilities at the temperature that gives the first option its target.

    .. math::

        t = \mathrm{softmax}(\log q / T) \quad \text{with } T > 0 \text{ such that } t_{(1)} = a

    The target a is raised to slightly above 1/K, where T is infinite. If m options are tied at the top, t is at most
    1/m there.

    Args:
        top (`torch.Tensor` of shape `(batch,)`):
            Target of the first option, in [1/K, 1].
        ranked (`torch.Tensor` of shape `(batch, num_options)`):
            Option probabilities in descending order.
        num_options (`torch.Tensor` of shape `(batch,)`):
            Number of options of each question; the columns after them are padding.

    Returns:
        `torch.Tensor` of shape `(batch, num_options)`: the targets in the same order, 0 in the padding.
    """
    precision = torch.finfo(ranked.dtype)
    there = _is_option(ranked, num_options)
    log_q = ranked.clamp(min=precision.tiny).log()
    distance = log_q[:, :1] - log_q
    rest = there.clone()
    rest[:, 0] = False
    top = torch.maximum(top, 1.001 / num_options).clamp(max=1 - precision.eps)
    # Newton's method for the inverse temperature b: log(sum of the others / first) is convex and decreasing in b.
    # It begins below the root, where its steps never overshoot, and with two options at the root.
    wanted = torch.log1p(-top) - top.log()
    nearest = distance.masked_fill(~rest, torch.inf).amin(-1)
    inverse = (-wanted / nearest.clamp(min=precision.tiny)).clamp(0, _LARGEST_INVERSE)
    for _ in range(_NEWTON_STEPS):
        others = (-inverse[:, None] * distance).masked_fill(~rest, -torch.inf)
        slope = (others.softmax(-1) * distance).sum(-1).clamp(min=precision.tiny)
        inverse = (inverse + (others.logsumexp(-1) - wanted) / slope).clamp(0, _LARGEST_INVERSE)
    # A question of one option has no other, and so no temperature.
    inverse = torch.where(num_options > 1, inverse, 0.0)
    return (-inverse[:, None] * distance).masked_fill(~there, -torch.inf).softmax(-1)


TAILS = {"paper": paper_tail, "temperature": temperature_tail}


def _is_option(ranked: torch.Tensor, num_options: torch.Tensor) -> torch.Tensor:
    return torch.arange(ranked.size(-1), device=ranked.device) < num_options[:, None]


def _share(top, ranked, rest, num_options):
    """Targets of the options after the first, given the top targets, by the formula of the paper."""
    if ranked.size(-1) < 2:
        return torch.zeros_like(ranked)
    second = ranked[:, 1:2]
    # gamma * q_(j) as a ratio times a scale: q_(2) = 0 (all others equal it) and a = 1 (gamma infinite) have limits.
    ratio = torch.where(second > 0, ranked / second.clamp(min=torch.finfo(ranked.dtype).tiny), torch.ones_like(ranked))
    scale = torch.log((num_options - 1).clamp(min=2).to(ranked.dtype)) / (1 - top)
    saturation = torch.where(rest, torch.tanh(scale[:, None] * ratio.clamp(min=0)).nan_to_num(1.0), 0.0)
    alpha = (1 - top) / (saturation.sum(-1) + (num_options - 1)).clamp(min=1)
    return torch.where(rest, alpha[:, None] * (saturation + 1), 0.0)


def _order_preserving(top, ranked, rest, num_options):
    """Find by bisection the smallest a' >= a with which the top target is not below the second."""
    low, high = top, torch.ones_like(top)
    fits = top >= _share(top, ranked, rest, num_options).amax(-1)
    if fits.all():
        return top
    for _ in range(30):
        middle = (low + high) / 2
        enough = middle >= _share(middle, ranked, rest, num_options).amax(-1)
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(fits, top, high)
