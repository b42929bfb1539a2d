"""Evaluate, diagnose and compare models; the `evaluate` module `ece_regime`."""
