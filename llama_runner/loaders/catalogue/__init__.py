"""The catalogue: models by name, and their descriptions."""
