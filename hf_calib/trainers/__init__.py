"""Subclasses of TRL's trainers: CFT, RCFT and calibrated DPO."""

from ..extras import warn_untried_trl


warn_untried_trl()
