"""Read predictions that other tools saved: one module for each format."""
