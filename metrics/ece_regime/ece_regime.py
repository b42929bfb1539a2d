"""
The metric `ece_regime`. Its code is in the package, so that a registered or downloaded copy of this file never goes
stale: https://arxiv.org/abs/2505.01997 is the method, README.md the metric card, app.py the Space.
"""

from hf_calib.evaluation.ece_regime import ECERegime


__all__ = ["ECERegime"]
