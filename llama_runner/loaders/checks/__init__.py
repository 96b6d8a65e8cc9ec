"""Checks of model files, before llama.cpp sees them."""
