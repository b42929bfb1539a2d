"""Subclasses of TRL's trainers: CFT, RCFT and calibrated DPO."""
