"""Prompts: chat messages, templates, and what agents build from them."""
