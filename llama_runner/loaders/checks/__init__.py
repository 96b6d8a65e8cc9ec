"""Checks of model files before llama.cpp reads them."""
