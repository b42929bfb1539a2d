"""EM-ECE (calibration map and loss), and the cross-entropy over options."""
