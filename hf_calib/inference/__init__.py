"""Option probabilities of a model: encoding, scoring, saved predictions."""
