"""Changed messages in the middle of a conversation: computed alone, and what follows moved.

What follows was computed with the old message before it. So this is for callers who say that this
is exact enough for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_runner._core import Request
from llama_runner.transcript import Transcript, n_same_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Edits"]


@dataclass(frozen=True, slots=True)
class _Replacement:
    """Tokens to be put in the place of tokens[start:stop]."""

    start: int
    stop: int
    tokens: NDArray[np.int32]


class Edits:
    """What became of changed messages.

    Args:
        transcript: Of the conversation.
        limit: Most tokens that it may have afterwards.
        compute: Called with what decodes a changed message, which it runs.
    """

    def __init__(
        self, transcript: Transcript, limit: int, compute: Callable[[Request], None]
    ) -> None:
        self.first_token: int | None = None
        """Where the first change is that was made here; None if there is none."""
        self.n_computed = 0
        """Tokens that were computed."""
        self.ms = 0.0
        """How long that took."""
        self._transcript = transcript
        self._limit = limit
        self._compute = compute

    def apply(
        self, edited: dict[int, list[dict[str, Any]]], conversation: list[dict[str, Any]]
    ) -> None:
        """Give parts other messages, as far as what follows need not be computed for it.

        What cannot be done is left as it was, for :meth:`Transcript.add_messages`.

        Args:
            edited: By the parts' indices, what they are to say.
            conversation: All messages that there are to be.

        Raises:
            ChatTemplateError: There is no template, or it refuses these messages.
            Others: What ``compute`` raises.
        """
        transcript, sequence = self._transcript, self._transcript.sequence
        context = sequence.context
        if not context.can_shift or not context.unified or context.n_seq_max == 1:
            return
        n_fixed = transcript.n_fixed(whole=True)
        text, _ = transcript.chat.render(conversation, opens=n_fixed == 0)
        data = text.encode()
        for i in sorted(edited):
            found = self._replacement(i, edited, conversation, data)
            if found is None or not self._replace(found):
                return
            part = transcript.parts[i]
            part.n_tokens += len(found.tokens) - (found.stop - found.start)
            part.messages = edited[i]

    def _replacement(
        self,
        index: int,
        edited: dict[int, list[dict[str, Any]]],
        conversation: list[dict[str, Any]],
        data: bytes,
    ) -> _Replacement | None:
        """Which tokens of a part are to be replaced by which.

        None where the template shows what is before it, or what follows, differently now.
        """
        transcript, chat = self._transcript, self._transcript.chat
        n_fixed = transcript.n_fixed(whole=True)
        n_before = sum(len(part.messages) for part in transcript.parts[n_fixed:index])
        last = n_before + len(edited[index]) - 1
        start, stop = transcript.start_of(index), transcript.start_of(index + 1)
        later = [i for i in edited if i > index]
        next_start = transcript.start_of(min(later)) if later else len(transcript.sequence)
        n_same, n_bytes = transcript.match(transcript.start_of(n_fixed), data, start)
        begins = n_bytes if len(edited[index]) == 1 else None
        end_byte = chat.end_of(conversation, last, data, start=begins)
        if n_same < start or end_byte is None or end_byte <= n_bytes:
            return None
        # A turn's marker is the same behind any message: what follows must be it to its end.
        n_behind, _ = transcript.spelled(stop, data[end_byte:], next_start)
        end = min(transcript.start_of(index + 2), next_start)
        if stop < next_start and n_behind < max(1, end - stop):
            return None
        tokens, _ = chat.tokenize(data[n_bytes:end_byte], transcript.behind(start))
        n_same = n_same_tokens(transcript.sequence.tokens[start:stop], tokens)
        return _Replacement(start + n_same, stop, tokens[n_same:])

    def _replace(self, new: _Replacement) -> bool:
        """Replace tokens and move what follows; False where that cannot be, or is not worth it."""
        sequence = self._transcript.sequence
        if new.start == new.stop and not len(new.tokens):
            return True  # the template does not show what is different
        # Cells that others have, too, cannot be moved: those are computed with the message.
        stop = max(new.stop, sequence.n_shared)
        computed = self._with_tail(new, stop)
        n_behind = sequence.n_cached - stop
        if n_behind <= len(computed) - len(new.tokens):
            return False
        if len(sequence) + len(new.tokens) - (new.stop - new.start) > self._limit:
            return False
        if sequence.n_cached + len(computed) > sequence.context.n_ctx:
            return False  # the fork would move it out of the memory
        if not len(computed):
            self._transcript.moving()
            sequence.remove(new.start, stop)
        elif not self._graft(new.start, stop, computed):
            return False
        if self.first_token is None:
            self.first_token = new.start
        self.n_computed += len(computed)
        return True

    def _with_tail(self, new: _Replacement, stop: int) -> NDArray[np.int32]:
        """The new tokens and those behind them up to ``stop``."""
        import numpy as np

        if stop == new.stop:
            return new.tokens
        return np.concatenate([new.tokens, self._transcript.sequence.tokens[new.stop : stop]])

    def _graft(self, start: int, stop: int, tokens: NDArray[np.int32]) -> bool:
        """Compute tokens in a fork that ends before them, and take them over from there."""
        sequence, started = self._transcript.sequence, time.perf_counter()
        branch, request = sequence.fork(), None
        try:
            branch.truncate(start)
            branch.append(tokens)
            request = branch.decoding()
            self._compute(request)
            self._transcript.moving()
            grafted = sequence.graft(branch, start, stop)
        finally:
            if request is not None:
                request.close()  # an error may be kept for long, and the request with it
            branch.close()
        if grafted:
            self.ms += (time.perf_counter() - started) * 1e3
        return grafted
