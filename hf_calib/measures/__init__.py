"""Calibration measures: arrays in, numbers out."""
