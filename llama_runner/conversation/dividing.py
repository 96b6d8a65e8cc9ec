"""Which message each token of a rendered conversation belongs to.

A conversation is rendered and tokenised as a whole. Then its text is divided where the messages
end, and the tokens of each become a span.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_runner.conversation.alignment import Alignment
from llama_runner.conversation.history import Origin, Part, n_before_messages, origins
from llama_runner.prompts.chat_format import Rendered
from llama_runner.prompts.message_ends import MessageEnds
from llama_runner.prompts.messages import begins_turn

if TYPE_CHECKING:
    from llama_runner.conversation.transcript import Transcript

__all__ = ["Divider", "divide_again"]


class Divider:
    """Make spans of the tokens that follow a transcript's spans.

    Args:
        transcript: Its ledger holds the whole text, its spans the beginning of it.
        rendered: The conversation.
        n_bytes: How much of the text the spans hold; by default what their tokens spell.
    """

    def __init__(
        self, transcript: Transcript, rendered: Rendered, n_bytes: int | None = None
    ) -> None:
        n_fixed = n_before_messages(transcript.parts, whole=False)
        start = transcript.start_of(n_fixed)
        self._transcript = transcript
        self._rendered = rendered
        self._position = transcript.start_of(len(transcript.parts))
        self._aligned = Alignment(transcript.sequence, transcript.chat, start, rendered.data)
        self._n_bytes = self._aligned.byte_at(self._position) if n_bytes is None else n_bytes
        self._ends = MessageEnds(transcript.chat, rendered)

    def divide(self, n_kept: int, before: list[Part]) -> None:
        """Add a span for each message that has none yet.

        Messages that were there before, but had to be tokenised anew, keep their turn and pin; so
        do those that were changed, and those after them.

        Args:
            n_kept: How many messages the spans hold.
            before: The spans that there were before.
        """
        if self._n_bytes == 0 and self._rendered.messages[0]["role"] != "system":
            self._add_header(before)
        end = self._close_answer(n_kept) if n_kept else 0
        self._add_messages(n_kept, origins(before, self._rendered.messages), end)

    def _add_header(self, before: list[Part]) -> None:
        """Add a span for what the template writes before the first message, if it does."""
        transcript, header = self._transcript, self._transcript.chat.implied_header
        self._n_bytes = len(header) if self._rendered.data.startswith(header) else 0
        n_tokens = self._aligned.token_at(self._n_bytes) - self._position
        if n_tokens > 0:
            turn = before[0].turn if before else transcript.turn
            transcript.parts.append(Part("system", n_tokens, turn))
            self._position += n_tokens

    def _close_answer(self, n_kept: int) -> int | None:
        """Give the last span what the template writes after its answer.

        Then any turn can be evicted, and what stays is what the template makes of the rest.

        Returns:
            The byte at which its last message ends; None if that cannot be told.
        """
        end = self._ends.find(n_kept - 1, inside=self._n_bytes)
        if end is not None and end > self._n_bytes:
            n_closing = self._aligned.token_at(end) - self._position
            self._transcript.parts[-1].n_tokens += n_closing
            self._position += n_closing
            self._n_bytes = end
        return end

    def _add_messages(self, n_kept: int, known: list[Origin], end: int | None) -> None:
        messages, parts = self._rendered.messages, self._transcript.parts
        span: Part | None = None
        for i in range(n_kept, len(messages)):
            old = known[i] if i < len(known) else None
            if span is None:
                turn = self._turn_of(i) if old is None else old.part.turn
                span = Part(messages[i]["role"], 0, turn)
            if old is not None:
                _inherit(span, old, messages[i])
            span.messages.append(messages[i])
            end = self._ends.find(i, start=end)
            goes_on = old is not None and i + 1 < len(known) and known[i + 1].part is old.part
            if end is None or goes_on:
                continue  # shown only together with the next message, or one span with it
            self._n_bytes = max(self._n_bytes, end)
            span.n_tokens = max(0, self._aligned.token_at(self._n_bytes) - self._position)
            parts.append(span)
            self._position += span.n_tokens
            span = None
        if span is not None:
            span.n_tokens = len(self._transcript.sequence) - self._position
            parts.append(span)

    def _turn_of(self, i: int) -> int:
        """Return the turn of a message that was not there before."""
        transcript = self._transcript
        if begins_turn(self._rendered.messages, i):
            return transcript.next_turn()
        return transcript.parts[-1].turn if transcript.parts else transcript.turn


def _inherit(span: Part, old: Origin, message: dict[str, Any]) -> None:
    """Give a span what is known of a message in it from before."""
    if old.part.role == "summary" and message in old.part.messages:
        span.role = "summary"
    span.turn, span.pinned = old.part.turn, old.part.pinned
    span.collected += old.collected


def divide_again(transcript: Transcript) -> None:
    """Divide all tokens after the raw text anew."""
    n_fixed = n_before_messages(transcript.parts, whole=False)
    fixed, chat = transcript.parts[:n_fixed], transcript.parts[n_fixed:]
    answer = chat.pop() if chat and chat[-1].n_opening is not None else None
    messages = [message for part in chat for message in part.messages]
    if messages:
        for_answer = answer is not None
        rendered = transcript.chat.render(messages, for_answer=for_answer, opens=not fixed)
        # The template's own header stays as it is.
        n_header = int(chat[0].role == "system" and not chat[0].messages)
        transcript.parts, turn = fixed + chat[:n_header], transcript.turn
        Divider(transcript, rendered).divide(0, chat)
        transcript.turn = turn
    rest = len(transcript.sequence) - transcript.start_of(len(transcript.parts))
    if answer is not None and answer.n_opening is not None:
        answer.n_opening += rest - answer.n_tokens
        answer.n_tokens = rest
        transcript.parts.append(answer)
    elif rest:
        transcript.parts[-1].n_tokens += rest
