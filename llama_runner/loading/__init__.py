"""From a model file to a loaded model and its context."""
