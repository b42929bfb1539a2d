"""
The metric `ece_regime`, see README.md.

The code is in the package, so copies of this file stay valid when the package is upgraded.
"""

from hf_calib.evaluation.ece_regime import ECERegime


__all__ = ["ECERegime"]
