"""EM-ECE (E-step calibrator, M-step loss) and losses over option logits."""
