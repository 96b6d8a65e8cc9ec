"""What the tests say to a model."""

from __future__ import annotations

from typing import Any

from llama_runner.params import GenerationOptions


def user(text: str) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """A message of the model."""
    return {"role": "assistant", "content": text}


def question(text: str) -> list[dict[str, Any]]:
    """One message of the user, as a conversation takes it."""
    return [user(text)]


def greedy(*, ignore_eos: bool = False) -> GenerationOptions:
    """The likeliest token each time."""
    return {"temperature": 0, "ignore_eos": ignore_eos}
