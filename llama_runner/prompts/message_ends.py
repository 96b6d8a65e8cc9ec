"""Finding where each message ends in the text that a chat template makes of a conversation.

A template is a program: it may show the last answer differently than earlier ones, write the
system's text into the first question, or close an answer only when the next question comes. So the
text of the first messages need not begin the text of all of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from llama_runner.prompts.chat_format import ChatFormat, Rendered, n_common

__all__ = ["MessageEnds"]


class MessageEnds:
    """The ends of the messages of one rendered conversation.

    Args:
        chat: The format.
        rendered: The conversation.
    """

    def __init__(self, chat: ChatFormat, rendered: Rendered) -> None:
        self._chat = chat
        self._rendered = rendered
        self._messages = rendered.harmless
        self._data = rendered.data
        self._texts: dict[tuple[int, ...], str] = {}

    def find(self, i: int, *, start: int | None = None, inside: int | None = None) -> int | None:
        """Return the byte at which a message ends, None if it cannot be told from the next one.

        Most templates write the same block for a message whatever precedes it, so the block that
        it adds to the last question and step is looked for first. Rendering all messages up to
        each one would take quadratic time.

        Args:
            i: Index of the message.
            start: Where the message before it ends, if that is known.
            inside: A place in the message or at its end, if one is known.
        """
        at = self._end_of_block(i, start, inside)
        if at is None and self._anchors:
            at = max(self._end_after_anchor(i, start or 0), inside or 0)
        if at is None and not self._anchors:
            at = self._end_of_beginning(i)
        return at

    def _end_of_block(self, i: int, start: int | None, inside: int | None) -> int | None:
        step = last_step(self._messages[:i])
        if len(step) == i:
            return self._end_of_beginning(i)
        if start is None and inside is None:
            return None
        before = self._text_of(step)
        after = self._text_of([*step, self._messages[i]])
        block = after.removeprefix(before).encode() if after.startswith(before) else b""
        first, last = (start, start) if inside is None else (inside - len(block), inside)
        at = self._data.find(block, max(0, first or 0), (last or 0) + len(block))
        return at + len(block) if before and block and at >= 0 else None

    def _text_of(self, messages: list[dict[str, Any]]) -> str:
        """Render some of the messages; the same ones are asked for several times."""
        key = tuple(map(id, messages))
        if key not in self._texts:
            self._texts[key] = self._chat.text_of(messages)
        return self._texts[key]

    def _end_of_beginning(self, i: int) -> int | None:
        for opens in (True, False):
            text = self._chat.text_of(self._messages[: i + 1], opens=opens).encode()
            if text and self._data.startswith(text):
                return len(text)
        return None

    @cached_property
    def _anchors(self) -> list[int | None]:
        """A byte inside each message's content; None if the text does not show the message.

        Empty if the template makes another text of messages that are marked.
        """
        rendered = self._rendered
        return self._chat.anchors(
            self._messages, self._data, for_answer=rendered.for_answer, opens=rendered.opens
        )

    def _end_after_anchor(self, i: int, start: int) -> int:
        """Find the end between a message's content and the next message's.

        A message that the text does not show, or only inside a later one, ends where it starts.
        """
        anchor, later = self._anchors[i], self._next_shown[i]
        if anchor is None or anchor < start:
            return start
        limit = len(self._data)
        if later is not None:
            if self._anchor(later) < anchor:
                return start
            limit = max(anchor, self._start_of_content(later))
        closing = self._closing(i)
        return limit if closing is None else anchor + n_common(closing, self._data[anchor:limit])

    @cached_property
    def _next_shown(self) -> list[int | None]:
        """For each message, the later one that the text shows first."""
        found: list[int | None] = []
        first = None
        for i in reversed(range(len(self._messages))):
            found.append(first)
            anchor = self._anchors[i]
            if anchor is not None and (first is None or anchor < self._anchor(first)):
                first = i
        return found[::-1]

    def _anchor(self, i: int) -> int:
        """Return the anchor of a message that the text shows."""
        anchor = self._anchors[i]
        assert anchor is not None
        return anchor

    def _start_of_content(self, j: int) -> int:
        """Return where the text begins to show a message's content."""
        anchor = self._anchor(j)
        before = self._chat.before_anchor(self._messages[j])
        for head in (before, before.lstrip()):
            if self._data.endswith(head.encode(), 0, anchor):
                return anchor - len(head.encode())
        return anchor

    def _closing(self, i: int) -> bytes | None:
        """Return what the template writes after a message's anchor if the message is the last."""
        messages = [*last_step(self._messages[:i]), self._messages[i]]
        data = self._text_of(messages).encode()
        anchors = self._chat.anchors(messages, data, for_answer=False, opens=True)
        if not anchors or anchors[-1] is None:
            return None
        return data[anchors[-1] :]


def last_step(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last question, and the last message of the assistant with what followed it."""
    places = range(len(messages))
    j = next((k for k in reversed(places) if messages[k]["role"] == "user"), 0)
    steps = (k for k in reversed(places[j + 1 :]) if messages[k]["role"] == "assistant")
    return messages[j : j + 1] + messages[next(steps, j + 1) :]
