"""Questions, prompts and preference pairs."""
