"""Helpers for every layer: files, strict values, the machine."""
