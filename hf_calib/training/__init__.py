"""From a recipe to a trained, published model."""
