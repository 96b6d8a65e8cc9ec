"""The parts of a transcript, and reading a whole conversation against them."""

from __future__ import annotations

import difflib
import hashlib
import json
import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import Any, NamedTuple

__all__ = [
    "UNTEMPLATED",
    "Changes",
    "Origin",
    "Part",
    "changes",
    "copies",
    "index_in",
    "left",
    "n_before_messages",
    "origins",
    "without_collected",
]

# Roles of parts that a template did not make.
UNTEMPLATED = ("raw", "generated")
_sorted = json.JSONEncoder(sort_keys=True, default=repr).encode


@dataclass(slots=True)
class Part:
    """A span while the transcript works on it."""

    role: str
    n_tokens: int
    turn: int
    pinned: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    collected: tuple[bytes, ...] = ()
    """Digests of messages that were evicted before it."""
    n_opening: int | None = None
    """Of a generated answer: how many of its tokens the template wrote to open it."""

    @property
    def templated(self) -> bool:
        """Return whether the chat template made its tokens from its messages."""
        return self.role not in UNTEMPLATED and (self.role != "summary" or bool(self.messages))

    def collect(self) -> tuple[bytes, ...]:
        """Return what to remember when it is evicted; the caller never gave a summary."""
        if self.role == "summary":
            return self.collected
        return (*self.collected, *map(_digest, self.messages))


def copies(parts: Iterable[Part]) -> list[Part]:
    """Return parts that can change without these."""
    return [replace(part, messages=list(part.messages)) for part in parts]


def n_before_messages(parts: list[Part], *, whole: bool) -> int:
    """Return how many parts precede the messages that are rendered together.

    These follow the last raw text. But a conversation that is given whole replaces raw text that
    came after messages.
    """
    raw = [i for i, part in enumerate(parts) if not part.templated]
    if whole:
        raw = [i for n, i in enumerate(raw) if i == n]
    return raw[-1] + 1 if raw else 0


def left(
    parts: list[Part], gone: set[int], *, note: Part | None = None, remember: bool = True
) -> list[Part]:
    """Return the parts that remain, each with the digests of what was removed before it.

    Args:
        parts: All parts.
        gone: Indices of the parts to remove.
        note: A part to replace the first run of them; it stands for that run alone.
        remember: Recognise the messages of the removed parts later, not only what these remembered.
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
    """Return a conversation without what was evicted of it, and with the summaries instead.

    The caller may send messages that were already evicted, or only those still in the session.
    Choose the reading that matches more of the stored parts. A conversation that continues
    differently from before what was evicted, and has nothing of what came later, is new: return all
    of it.
    """
    if not any(part.collected or part.role == "summary" for part in parts):
        return given
    digests = tuple(map(_digest, given))
    last_said = _last_said(parts, given, digests)
    read: list[dict[str, Any]] = []
    k = 0  # of those given, how many were read
    for i, part in enumerate(parts):
        end = k + len(part.collected)
        known = part.collected == digests[k:end]
        if known and part.collected:
            # Users and tools repeat themselves: that proves nothing, unless it is what came next.
            came_next = end < len(given) and digests[end] == _next(parts[i:])
            known = came_next or last_said[i] >= end
        if known:
            k = end
        if part.role == "summary":
            if not known:
                break
            read += part.messages
            continue
        end = k + len(part.messages)
        if _roles(given[k:end]) != _roles(part.messages):
            break
        read += given[k:end]
        k = end
    read += given[k:]
    n_same = _n_same(parts, read)
    is_all = n_same == sum(len(part.messages) for part in parts)
    return read if is_all or n_same >= max(1, _n_same(parts, given)) else given


def _last_said(
    parts: list[Part], given: list[dict[str, Any]], digests: tuple[bytes, ...]
) -> list[int]:
    """Find, for each part, the last given message that the assistant said in it or later; or -1."""
    places = {
        digest: k
        for k, (message, digest) in enumerate(zip(given, digests, strict=True))
        if message["role"] == "assistant"
    }
    found = [max((places.get(_digest(m), -1) for m in p.messages), default=-1) for p in parts]
    return list(accumulate(reversed(found), max))[::-1]


def _next(parts: list[Part]) -> bytes | None:
    """Return the digest of the next message; a summary stands for what came before it."""
    for i, part in enumerate(parts):
        come = part.collected if i else ()
        if part.role != "summary":
            come += tuple(map(_digest, part.messages[:1]))
        if come:
            return come[0]
    return None


def _n_same(parts: list[Part], messages: list[dict[str, Any]]) -> int:
    """Return how many messages of the parts a conversation has."""
    aligned = _align(parts, messages)
    return sum(len(said) for i, said in aligned.items() if said == parts[i].messages)


class Changes(NamedTuple):
    """How a whole conversation differs from the parts, its end excepted."""

    gone: list[int]
    """Indices of parts whose messages it no longer has, though it has later ones."""
    edited: dict[int, list[dict[str, Any]]]
    """By index, what replaces a part's messages, before other messages that are the same."""
    first_message: int
    """Index of the first given message that is not where the parts have it."""
    conversation: list[dict[str, Any]]
    """The given messages, without those that were evicted."""


def changes(parts: list[Part], given: list[dict[str, Any]]) -> Changes:
    """Find out what was changed in the middle of a conversation.

    Front ends that shorten a history take messages out of it, or change some of them (what a tool
    returned, the date in a system message), and send the rest as it was.
    """
    read = without_collected(parts, given)
    aligned = _align(parts, read)
    gone = [i for i in range(max(aligned, default=0)) if i not in aligned]
    edited = {i: said for i, said in aligned.items() if said != parts[i].messages}
    first = min([*gone, *edited], default=len(parts))
    n_before = sum(len(said) for i, said in aligned.items() if i < first)
    return Changes(gone, edited, index_in(given, read, n_before), read)


class Origin(NamedTuple):
    """Where a message comes from."""

    part: Part
    collected: tuple[bytes, ...]
    """Digests of messages that were evicted before it."""


def origins(parts: list[Part], messages: list[dict[str, Any]]) -> list[Origin]:
    """Find where each message of a conversation comes from, up to the last that was there."""
    found: list[Origin] = []
    n_seen = 0
    for i, said in _align(parts, messages).items():
        passed = parts[n_seen : i + 1] if said else []
        collected = tuple(digest for part in passed for digest in part.collected)
        found += [Origin(parts[i], () if k else collected) for k in range(len(said))]
        n_seen = i + 1 if said else n_seen
    return found


def _align(parts: list[Part], messages: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Map each stored part to the messages that now stand for it, up to the first divergence.

    Some of the parts may be missing. Others may have other contents, if as many messages with the
    same roles stand between two that are the same.
    """
    aligned: dict[int, list[dict[str, Any]]] = {}
    j = 0
    for i, part in enumerate(parts):
        end = j + len(part.messages)
        if messages[j:end] != part.messages:
            break
        aligned[i] = part.messages
        j = end
    if len(aligned) == len(parts) or j == len(messages):
        return aligned
    rest = [(i, m) for i in range(len(aligned), len(parts)) for m in parts[i].messages]
    places = _paired([message for _, message in rest], messages[j:])
    places_of: dict[int, list[int]] = {i: [] for i in range(len(aligned), len(parts))}
    for k, place in places.items():
        places_of[rest[k][0]].append(j + place)
    last = max((i for i, found in places_of.items() if found), default=-1)
    for i, found in places_of.items():
        if i > last:
            break
        n = len(parts[i].messages)
        if n == 0:
            aligned[i] = []
        elif len(found) == n and found[-1] - found[0] == n - 1:
            aligned[i] = messages[found[0] : found[-1] + 1]
        elif found:
            break  # only some of the messages of this part are there
    return aligned


def _paired(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[int, int]:
    """Map the indices of old messages to those of the new ones in their places."""
    changed = _opcodes(list(map(_digest, old)), list(map(_digest, new)))
    while changed and changed[-1][0] != "equal":  # the end is new, whatever it was
        changed.pop()
    pairs: dict[int, int] = {}
    for tag, i, i_end, j, j_end in changed:
        same_roles = _roles(old[i:i_end]) == _roles(new[j:j_end])
        if tag == "insert" or (tag == "replace" and not same_roles):
            break
        if tag != "delete":
            pairs |= zip(range(i, i_end), range(j, j_end), strict=True)
    return pairs


def _opcodes(old: list[bytes], new: list[bytes]) -> list[tuple[str, int, int, int, int]]:
    """Compare two lists as difflib does, at least up to the end of the shorter one."""
    n_in_place = sum(map(operator.eq, old, new))
    if n_in_place < (Counter(old) & Counter(new)).total():
        return [*difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()]
    # No other alignment pairs more of them, and difflib takes quadratic time if messages repeat.
    places = groupby(range(min(len(old), len(new))), lambda i: old[i] == new[i])
    runs = [(same, list(run)) for same, run in places]
    return [
        ("equal" if same else "replace", run[0], run[-1] + 1, run[0], run[-1] + 1)
        for same, run in runs
    ]


def _roles(messages: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in messages]


def index_in(given: list[dict[str, Any]], read: list[dict[str, Any]], i: int) -> int:
    """Return the index among the given messages of the i-th that was read, or of the next one."""
    places = {id(message): k for k, message in enumerate(given)}
    found = (places[id(message)] for message in read[i:] if id(message) in places)
    return next(found, len(given))


def _digest(message: dict[str, Any]) -> bytes:
    """Return what to remember of a message in order to recognise it later."""
    text = _sorted(message)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
