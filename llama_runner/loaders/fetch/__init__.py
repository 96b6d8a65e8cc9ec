"""Fetching model files."""
