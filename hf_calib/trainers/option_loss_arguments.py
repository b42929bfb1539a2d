"""Arguments of the loss over the options."""

from __future__ import annotations

from dataclasses import dataclass, field

from .e_step import check_weights


@dataclass(kw_only=True)
class OptionLossArguments:
    """
    The loss over the options that teaches the answer, as arguments of a trainer.

    Args:
        option_loss_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the cross-entropy over the options, -log q_y, or of what the next two make of it; at least 0. With
            single-token options it asks for the same as the likelihood of the answer. With texts it does not: the
            likelihood rewards writing the answer, the cross-entropy rewards preferring it to the other options.
        option_label_smoothing (`float`, *optional*, defaults to `0.0`):
            Share of every label that is spread evenly over the question's options, in [0, 1).
        option_focal_gamma (`float`, *optional*, defaults to `0.0`):
            Exponent of the focal loss, (1 - q_y)^gamma times -log q_y; at least 0. See [`option_cross_entropy`].
    """

    option_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of the cross-entropy over the options, at least 0; for scoring='text'."}
    )
    option_label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "In the loss over the options: share of every label that is spread over the options, in [0, 1)."
        },
    )
    option_focal_gamma: float = field(
        default=0.0, metadata={"help": "In the loss over the options: exponent of the focal loss, at least 0."}
    )

    def _check_option_loss(self) -> None:
        check_weights(self, "option_loss_weight", "option_label_smoothing", "option_focal_gamma")
        if self.option_label_smoothing >= 1:
            raise ValueError(f"option_label_smoothing must be below 1, got {self.option_label_smoothing}.")
        for name in ("option_label_smoothing", "option_focal_gamma"):
            if getattr(self, name) and not self.option_loss_weight:
                raise ValueError(f"{name} shapes the loss over the options: give option_loss_weight > 0 with it.")
