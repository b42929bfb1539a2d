"""Calibratable or non-calibratable: the regime and its tests."""
