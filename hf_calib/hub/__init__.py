"""Model cards, publishing and verification on the Hub."""
