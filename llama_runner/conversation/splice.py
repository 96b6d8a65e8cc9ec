"""Replacing tokens in the middle of a conversation: new ones computed alone, what follows moved.

What follows was computed with the old tokens before it. So this is for callers who accept that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_runner._core import Request
from llama_runner.conversation.alignment import Replacement
from llama_runner.conversation.transcript import Transcript

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DecodeCancelledError", "Splicer"]


class DecodeCancelledError(Exception):
    """Somebody called cancel() while something else than an answer was computed."""


@dataclass
class Splicer:
    """Replaces tokens of one conversation, and counts what it computed for that.

    Args:
        transcript: Of the conversation.
        limit: Most tokens that it may have afterwards.
        compute: Called with what decodes new tokens, which it runs.

    Attributes:
        n_computed: Tokens that were computed.
        ms: How long that took.
    """

    transcript: Transcript
    limit: int
    compute: Callable[[Request], None]
    n_computed: int = 0
    ms: float = 0.0

    @property
    def possible(self) -> bool:
        """Whether the memory can take over single cells: the unified layout of plain attention."""
        context = self.transcript.sequence.context
        return context.can_shift and context.unified and context.n_seq_max > 1

    def replace(self, new: Replacement) -> bool:
        """Replace tokens and move what follows.

        Returns:
            False where the memory cannot do that, or computing what follows would be as quick;
            nothing has changed then.
        """
        sequence, start, stop, tokens = self.transcript.sequence, new.start, new.stop, new.tokens
        if start == stop and not len(tokens):
            return True
        if not self.possible:
            return False
        # Cells that other sequences have, too, cannot be moved: they are computed with the rest.
        end = max(stop, sequence.n_shared)
        computed = self._with_tail(tokens, stop, end)
        n_after = sequence.n_cached - end
        if n_after <= len(computed) - len(tokens):
            return False
        if len(sequence) + len(tokens) - (stop - start) > self.limit:
            return False
        if sequence.n_cached + len(computed) > sequence.context.n_ctx:
            return False  # the fork would move it out of the memory
        if not len(computed):
            self.transcript.start_epoch()
            sequence.remove(start, end)
        elif not self._graft(start, end, computed):
            return False
        self.n_computed += len(computed)
        return True

    def _with_tail(self, tokens: NDArray[np.int32], stop: int, end: int) -> NDArray[np.int32]:
        """Return the new tokens and those after them up to ``end``."""
        import numpy as np

        if stop == end:
            return tokens
        return np.concatenate([tokens, self.transcript.sequence.tokens[stop:end]])

    def _graft(self, start: int, stop: int, tokens: NDArray[np.int32]) -> bool:
        """Compute tokens in a fork that ends before them, and take them over from there."""
        sequence, started = self.transcript.sequence, time.perf_counter()
        branch, request = sequence.fork(), None
        try:
            branch.truncate(start)
            branch.append(tokens)
            request = branch.decoding()
            self.compute(request)
            self.transcript.start_epoch()
            grafted = sequence.graft(branch, start, stop)
        finally:
            if request is not None:
                request.close()  # an error may be kept for long, and the request with it
            branch.close()
        if grafted:
            self.ms += (time.perf_counter() - started) * 1e3
        return grafted
