"""The Hub: cards that prove a calibration, checkpoints published with them, and both checked again after the download."""
