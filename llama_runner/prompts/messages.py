"""What may be given as a prompt, and which of the three kinds it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from llama_runner.errors import InvalidParameterError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer, TypeIs

__all__ = [
    "Message",
    "Prompt",
    "Text",
    "TokenIds",
    "begins_turn",
    "is_messages",
    "is_whole_conversation",
    "read_messages",
]

Message: TypeAlias = Mapping[str, Any]
"""``{"role": ..., "content": ...}`` as in OpenAI's API."""

Text: TypeAlias = "str | Buffer"
"""What can be tokenised: text, or bytes of UTF-8."""

TokenIds: TypeAlias = "Sequence[int] | NDArray[np.integer[Any]]"

Prompt: TypeAlias = "str | TokenIds | Sequence[Message]"
"""Raw text, token ids, or chat messages."""


def is_messages(prompt: Prompt) -> TypeIs[Sequence[Message]]:
    """Whether a prompt is a list of messages."""
    if isinstance(prompt, Mapping):
        raise InvalidParameterError(
            "prompt: a single message must be in a list: [message]", field="prompt"
        )
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and isinstance(prompt[0], Mapping)
    )


def read_messages(prompt: Sequence[Message]) -> list[dict[str, Any]]:
    """Check messages and copy them.

    Raises:
        InvalidParameterError: One is no mapping, or has no role or no content.
    """
    messages = []
    for i, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            raise InvalidParameterError(
                f"prompt[{i}]: messages cannot be mixed with {type(message).__name__}",
                field="prompt",
            )
        if not isinstance(message.get("role"), str):
            raise InvalidParameterError(f"prompt[{i}]: has no 'role'", field="prompt")
        if message.get("content") is None and not message.get("tool_calls"):
            raise InvalidParameterError(f"prompt[{i}]: has no 'content'", field="prompt")
        messages.append(dict(message))
    return messages


def is_whole_conversation(messages: list[dict[str, Any]]) -> bool:
    """Whether messages are all that was said, or only what is new."""
    return messages[0]["role"] == "system" or any(m["role"] == "assistant" for m in messages)


def begins_turn(messages: list[dict[str, Any]], i: int) -> bool:
    """Whether a message asks something new, behind an answer."""
    return messages[i]["role"] == "user" and i > 0 and messages[i - 1]["role"] == "assistant"
