"""Opening a model file: the loaded model and its context."""
