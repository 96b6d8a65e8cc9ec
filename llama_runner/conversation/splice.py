"""Replacing tokens in the middle of a conversation: new ones computed alone, what follows moved.

What follows was computed with the old tokens before it. So this is for callers who accept that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_runner.conversation.alignment import Replacement
from llama_runner.conversation.turns import Turns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Splicer"]


@dataclass(frozen=True, slots=True)
class Splicer:
    """Replace tokens of one conversation, and count what is computed for that.

    Args:
        turns: Of the conversation.
        limit: Most tokens that it may have afterwards.
    """

    turns: Turns
    limit: int

    @property
    def possible(self) -> bool:
        """Whether the memory can take over single cells: the unified layout of plain attention."""
        context = self.turns.sequence.context
        return context.can_shift and context.unified and context.n_seq_max > 1

    def replace(self, new: Replacement) -> bool:
        """Replace tokens and move what follows.

        Returns:
            False where the memory cannot do that, or computing what follows would be as quick;
            nothing has changed then.
        """
        sequence, start, stop, tokens = self.turns.sequence, new.start, new.stop, new.tokens
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
            self.turns.transcript.start_epoch()
            sequence.remove(start, end)
            return True
        return self._graft(start, end, computed)

    def _with_tail(self, tokens: NDArray[np.int32], stop: int, end: int) -> NDArray[np.int32]:
        """Return the new tokens and those after them up to ``end``."""
        import numpy as np

        if stop == end:
            return tokens
        return np.concatenate([tokens, self.turns.sequence.tokens[stop:end]])

    def _graft(self, start: int, stop: int, tokens: NDArray[np.int32]) -> bool:
        """Compute tokens in a fork that ends before them, and take them over from there."""
        sequence, started = self.turns.sequence, time.perf_counter()
        branch, request = sequence.fork(), None
        try:
            branch.truncate(start)
            branch.append(tokens)
            request = branch.decoding()
            self.turns.decode(request)
            self.turns.transcript.start_epoch()
            grafted = sequence.graft(branch, start, stop)
        finally:
            if request is not None:
                request.close()  # an error may be kept for long, and the request with it
            branch.close()
        if grafted:
            self.turns.work.add_computed(len(tokens), started)
        return grafted
