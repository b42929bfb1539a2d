"""Trainers: TRL's, with calibration in the loss and in the evaluation."""
