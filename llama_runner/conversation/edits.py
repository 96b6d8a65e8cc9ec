"""Changing messages in the middle of a conversation without computing what follows again.

See :mod:`llama_runner.conversation.splice` for what that costs in exactness.
"""

from __future__ import annotations

from typing import Any

from llama_runner.conversation.alignment import Alignment, Replacement, n_same_tokens
from llama_runner.conversation.history import n_before_messages
from llama_runner.conversation.splice import Splicer
from llama_runner.conversation.transcript import Transcript
from llama_runner.prompts.chat_format import BREAK, Rendered
from llama_runner.prompts.message_ends import MessageEnds

__all__ = ["Edits"]


class Edits:
    """Change messages of one conversation.

    Args:
        transcript: Of the conversation.
        splicer: Replaces tokens in it.

    Attributes:
        first_token: The place of the first change that was made; None if there is none.
    """

    def __init__(self, transcript: Transcript, splicer: Splicer) -> None:
        self.first_token: int | None = None
        self.splicer = splicer
        self._transcript = transcript

    def apply(
        self, edited: dict[int, list[dict[str, Any]]], conversation: list[dict[str, Any]]
    ) -> None:
        """Give parts other messages, as far as what follows need not be computed again.

        The rest stays as it was; :meth:`Transcript.add_messages` changes it.

        Args:
            edited: The new messages, by the indices of the parts.
            conversation: All messages, with the changes.

        Raises:
            ChatTemplateError: There is no template, or it refuses these messages.
            Others: Whatever computing the new tokens raises.
        """
        transcript = self._transcript
        if not self.splicer.possible:
            return
        n_fixed = n_before_messages(transcript.parts, whole=True)
        rendered = transcript.chat.render(conversation, opens=n_fixed == 0)
        for i in sorted(edited):
            found = self._replacement(i, edited, rendered)
            if found is None or not self.splicer.replace(found):
                return
            if self.first_token is None and (found.start < found.stop or len(found.tokens)):
                self.first_token = found.start
            part = transcript.parts[i]
            part.n_tokens += len(found.tokens) - (found.stop - found.start)
            part.messages = edited[i]

    def _replacement(
        self,
        index: int,
        edited: dict[int, list[dict[str, Any]]],
        rendered: Rendered,
    ) -> Replacement | None:
        """Return which tokens of a part to replace by which.

        None if the template shows what is before it, or what follows, differently now.
        """
        transcript, data = self._transcript, rendered.data
        sequence, chat = transcript.sequence, transcript.chat
        n_fixed = n_before_messages(transcript.parts, whole=True)
        n_before = sum(len(part.messages) for part in transcript.parts[n_fixed:index])
        last = n_before + len(edited[index]) - 1
        start, stop = transcript.start_of(index), transcript.start_of(index + 1)
        later = [i for i in edited if i > index]
        next_start = transcript.start_of(min(later)) if later else len(sequence)
        old = Alignment(sequence, chat, transcript.start_of(n_fixed), data)
        n_bytes = old.byte_at(start)
        begins = n_bytes if len(edited[index]) == 1 else None
        ends = MessageEnds(chat, rendered)
        end_byte = ends.find(last, start=begins)
        if old.n_tokens < start or end_byte is None or end_byte <= n_bytes:
            return None
        # The marker of a turn is the same after any message, so all that follows must be the same.
        n_after = len(sequence.match_text(stop, data[end_byte:], skip=BREAK))
        end = min(transcript.start_of(index + 2), next_start)
        if stop < next_start and n_after < max(1, end - stop):
            return None
        tokens, _ = chat.tokenize(data[n_bytes:end_byte], transcript.last_of(start))
        n_same = n_same_tokens(sequence.tokens[start:stop], tokens)
        return Replacement(start + n_same, stop, tokens[n_same:])
