"""The calibration regime and its tests."""
