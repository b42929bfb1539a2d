"""Figures: reliability diagrams, risk-coverage curves, the regime plane, and the shift of confidence by alignment."""

from .confidence_shift import confidence_shift, order_diagram
from .corp import corp_diagram
from .regime_plane import regime_plane
from .reliability import classwise_diagram, group_diagram, reliability_diagram, reliability_grid
from .risk_coverage import risk_coverage_diagram
from .style import save_figure, wilson_interval


__all__ = [
    "classwise_diagram",
    "confidence_shift",
    "corp_diagram",
    "group_diagram",
    "order_diagram",
    "regime_plane",
    "reliability_diagram",
    "reliability_grid",
    "risk_coverage_diagram",
    "save_figure",
    "wilson_interval",
]
