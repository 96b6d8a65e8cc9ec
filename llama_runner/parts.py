"""A transcript's parts, and what they know of a conversation that is given whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["UNTEMPLATED", "Part", "left", "n_in_common", "taken_out", "without_collected"]

# Roles of parts that no template made.
UNTEMPLATED = ("raw", "generated")


@dataclass(slots=True)
class Part:
    """A span while the transcript works on it."""

    role: str
    n_tokens: int
    turn: int
    pinned: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    collected: tuple[bytes, ...] = ()
    """Digests of messages that were dropped from before it."""

    def copy(self) -> Part:
        """A part that can change without this one."""
        messages = list(self.messages)
        return Part(self.role, self.n_tokens, self.turn, self.pinned, messages, self.collected)

    def collect(self) -> tuple[bytes, ...]:
        """What is to be remembered when it is dropped; a summary was never given."""
        if self.role == "summary":
            return self.collected
        return (*self.collected, *map(_digest, self.messages))


def left(
    parts: list[Part], gone: set[int], *, note: Part | None = None, remember: bool = True
) -> list[Part]:
    """The parts that are left, each with the digests of what went from before it.

    Args:
        parts: Those that there were.
        gone: Indices of those that go.
        note: To be put in the place of the first run of them; it stands for that run alone.
        remember: Know the messages of those that go again, beside what they remembered.
    """
    kept: list[Part] = []
    collected: tuple[bytes, ...] = ()
    for i, part in enumerate(parts):
        stays = part
        if i in gone:
            collected += part.collect() if remember else part.collected
            if note is None or i + 1 in gone:
                continue
            stays, note = note, None
        stays.collected = collected + stays.collected
        collected = ()
        kept.append(stays)
    return kept


def without_collected(parts: list[Part], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation without what was dropped of it, and with the summaries in its place.

    Who gives it whole may not know what had no room, or may give what is left, as the session
    shows it. It is read in the way in which more of it is the conversation that the parts show.
    """
    messages: list[dict[str, Any]] = []
    k = 0  # of those given, how many were read
    n_known = 0  # parts that they are
    for part in parts:
        end = k + len(part.collected)
        known = part.collected == tuple(map(_digest, given[k:end]))
        if known:
            k = end
        if part.role == "summary":
            if not known:
                break
            messages += part.messages
            n_known += 1
            continue
        end = k + len(part.messages)
        if given[k:end] != part.messages:
            break
        messages += part.messages
        n_known += 1
        k = end
    left = [message for part in parts for message in part.messages]
    if n_known < len(parts) and len(messages) < n_in_common(left, given):
        return given
    return messages + given[k:]


def taken_out(parts: list[Part], given: list[dict[str, Any]]) -> list[int]:
    """Indices of parts whose messages a conversation has no longer, though it has later ones.

    Front ends that shorten a history take messages out of it and send the rest.
    """
    given = without_collected(parts, given)
    gone: list[int] = []
    i, j = 0, 0
    while i < len(parts) and j < len(given):
        for k in range(i, len(parts)):
            messages = parts[k].messages
            if given[j : j + len(messages)] == messages and (messages or k == i):
                gone += range(i, k)
                i, j = k + 1, j + len(messages)
                break
        else:
            break
    return gone


def n_in_common(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> int:
    """With how many equal messages two conversations begin."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _digest(message: dict[str, Any]) -> bytes:
    """What is remembered of a message that was dropped, to know it again."""
    text = json.dumps(message, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
