"""Chat messages: which are valid, and which role they have in a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from llama_runner._support.strict import nearest
from llama_runner.errors import (
    ChatTemplateError,
    InvalidParameterError,
    of_the_call,
)
from llama_runner.tokens.types import TokenIds

if TYPE_CHECKING:
    from llama_runner._core import ChatTemplate

__all__ = [
    "Message",
    "Prompt",
    "as_text",
    "begins_turn",
    "is_step",
    "is_whole_conversation",
    "read_messages",
    "refuse_unseen_roles",
]

Message: TypeAlias = Mapping[str, Any]
"""``{"role": ..., "content": ...}`` as in OpenAI's API."""

# What templates see of a message (llama.cpp: common_chat_msgs_parse_oaicompat). Other keys, such as
# the ids of a front end, do not make it another message.
KEYS = ("role", "content", "tool_calls", "reasoning_content", "name", "tool_call_id")
TEXTS = ("reasoning_content", "name", "tool_call_id")
# Roles that every template knows, or leaves out on purpose.
ROLES = ("system", "user", "assistant", "tool")
_SEEN = "seen by the model"
# Far more than any tool call needs; parsers and templates recurse.
MAX_DEPTH = 100

Prompt: TypeAlias = str | TokenIds | Sequence[Message]
"""Raw text, token ids, or chat messages."""


def read_messages(prompt: Sequence[Message]) -> list[dict[str, Any]]:
    """Check messages, and copy what templates see of them.

    Raises:
        InvalidParameterError: One is not a mapping, lacks a role or a content, has a value of the
            wrong type, or cannot be written as JSON.
    """
    messages = []
    for i, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            raise InvalidParameterError(
                f"prompt[{i}]: messages cannot be mixed with {type(message).__name__}",
                field="prompt",
            )
        if not isinstance(message.get("role"), str):
            raise InvalidParameterError(f"prompt[{i}]: needs a 'role' that is text", field="prompt")
        content = message.get("content")
        if not isinstance(content, str | list | tuple | None):
            raise InvalidParameterError(
                f"prompt[{i}]: 'content' must be text (got {type(content).__name__})",
                field="prompt",
            )
        if isinstance(content, list | tuple) and not all(map(_is_text_part, content)):
            raise InvalidParameterError(
                f"prompt[{i}]: each part of 'content' must be {{'type': 'text', 'text': ...}}",
                field="prompt",
            )
        given = {key: message[key] for key in KEYS if key in message}
        seen = {key: value for key, value in given.items() if not _is_nothing(value)}
        try:
            copied = json.loads(json.dumps(seen, allow_nan=False))
        except of_the_call(TypeError, ValueError, RecursionError) as error:
            raise InvalidParameterError(
                f"prompt[{i}]: cannot be written as JSON: {error}", field="prompt"
            ) from None
        if copied.get("content") in (None, []) and not copied.get("tool_calls"):
            raise InvalidParameterError(f"prompt[{i}]: has no 'content'", field="prompt")
        for key in TEXTS:
            if not isinstance(copied.get(key, ""), str):
                raise InvalidParameterError(f"prompt[{i}]: {key!r} must be text", field="prompt")
        calls = copied.get("tool_calls", [])
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise InvalidParameterError(
                f"prompt[{i}]: 'tool_calls' must be a list of objects", field="prompt"
            )
        if calls:
            copied["tool_calls"] = [_plain_call(i, call) for call in calls]
        if _depth(copied) > MAX_DEPTH:
            raise InvalidParameterError(
                f"prompt[{i}]: has lists and objects inside each other {_depth(copied)} deep; "
                f"at most {MAX_DEPTH} are accepted",
                field="prompt",
            )
        messages.append(copied)
    return messages


def _plain_call(i: int, call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call as templates expect it, from what OpenAI's API and others send.

    The type may be missing, and so may the function around name and arguments. Arguments are JSON
    text or an object; if they are missing, an empty object.
    """
    kind = call.get("type")
    function = call.get("function", {"name": call.get("name"), "arguments": call.get("arguments")})
    if kind not in (None, "function") or not isinstance(function, dict):
        raise InvalidParameterError(
            f"prompt[{i}]: each of 'tool_calls' must be the call of a function", field="prompt"
        )
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidParameterError(
            f"prompt[{i}]: each of 'tool_calls' needs a function with a 'name'", field="prompt"
        )
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = "{}"
    named = {key: call[key] for key in call if key not in ("name", "arguments")}
    return {**named, "type": "function", "function": {**function, "arguments": arguments}}


def refuse_unseen_roles(messages: Sequence[Message], template: ChatTemplate | None) -> None:
    """Refuse roles of which the chat template shows nothing, such as misspelt ones.

    Raises:
        InvalidParameterError: There is such a role.
    """
    if template is None:
        return
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if isinstance(role, str) and role not in ROLES and not _shows(template, role):
            raise InvalidParameterError(
                f"prompt[{i}]: the chat template shows nothing of a message with the role "
                f"{role!r}{nearest(role, list(ROLES))}",
                field="prompt",
            )


def _shows(template: ChatTemplate, role: str) -> bool:
    """Return whether the template shows a message of this role, after a question or before it."""
    asked, said = {"role": "user", "content": "a"}, {"role": role, "content": _SEEN}
    for messages in ([asked, said], [said, asked]):
        try:
            text, _ = template.render(messages, add_generation_prompt=False)
        except ChatTemplateError:
            return True  # the template itself says what it accepts
        if _SEEN in text:
            return True
    return False


def as_text(message: dict[str, Any]) -> str:
    """Return a message as text for people, with its tool calls."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content)
    calls = message.get("tool_calls")
    said = [content, json.dumps(calls, ensure_ascii=False)] if calls else [content]
    return f"{message['role']}: " + "\n".join(filter(None, said))


def _is_text_part(part: object) -> bool:
    """Return whether this is a text part of a message as in OpenAI's API."""
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_nothing(value: object) -> bool:
    """Return whether this is None or an empty list; arrays of numpy cannot be compared."""
    return value is None or (isinstance(value, list) and not value)


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        boxes = [item for item in level if isinstance(item, dict | list)]
        depth += bool(boxes)
        level = [x for box in boxes for x in (box.values() if isinstance(box, dict) else box)]
    return depth


def is_whole_conversation(messages: list[dict[str, Any]]) -> bool:
    """Return whether messages are all that was said, not only what is new."""
    roles = [message["role"] for message in messages]
    if not roles or roles[0] == "system":
        return bool(roles)
    if roles[0] in ("assistant", "tool"):  # a continuation, or a greeting
        roles = roles[roles.index("user") :] if "user" in roles else []
    return "assistant" in roles


def is_step(messages: list[dict[str, Any]]) -> bool:
    """Return whether messages begin with a tool call, as parsed from an answer."""
    roles = [message["role"] for message in messages[:2]]
    return roles[:1] == ["assistant"] and (
        bool(messages[0].get("tool_calls")) or roles[1:] == ["tool"]
    )


def begins_turn(messages: list[dict[str, Any]], i: int) -> bool:
    """Return whether a message asks something new; its answers belong to the same turn."""
    if messages[i]["role"] != "user":
        return False
    while i > 0 and messages[i - 1]["role"] == "system":
        i -= 1
    return i == 0 or messages[i - 1]["role"] != "user"
