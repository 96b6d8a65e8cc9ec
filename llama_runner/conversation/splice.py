"""Replacing tokens in the middle of a conversation without computing what follows again.

The new tokens are computed alone, and what follows is moved. It was computed with the old tokens
before it, so this is for callers who accept approximate results.
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
        """Whether the memory can copy single cells: in the unified layout of plain attention."""
        context = self.turns.sequence.context
        return context.can_shift and context.unified and context.n_seq_max > 1

    def can_move(self, replacements: list[Replacement]) -> bool:
        """Return whether what follows replaced tokens can be moved to its new place.

        A cell is moved for all sequences that use it, so these must not be others.

        Args:
            replacements: The last place first.
        """
        sequence = self.turns.sequence
        is_there = sequence.n_cached > replacements[0].stop
        is_free = sequence.n_shared <= replacements[-1].stop
        has_new = any(len(new.tokens) for new in replacements)
        return (
            sequence.context.can_shift and is_there and is_free and (self.possible or not has_new)
        )

    def replace(self, new: Replacement) -> bool:
        """Replace tokens and move what follows.

        Returns:
            False if the memory cannot do that, or if computing what follows would be as fast. Then
            nothing has changed.
        """
        sequence, start, stop, tokens = self.turns.sequence, new.start, new.stop, new.tokens
        if start == stop and not len(tokens):
            return True
        if not self.possible:
            return False
        # Cells that other sequences also use cannot be moved: they are computed with the rest.
        end = max(stop, sequence.n_shared)
        computed = self._with_tail(tokens, stop, end)
        n_after = sequence.n_cached - end
        if n_after <= len(computed) - len(tokens):
            return False
        if len(sequence) + len(tokens) - (stop - start) > self.limit:
            return False
        if sequence.n_cached + len(computed) > sequence.context.n_ctx:
            return False  # the fork would evict it from the memory
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
        """Compute tokens in a fork that ends before them, and take over its cells."""
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
                request.close()  # a traceback may keep it for long
            branch.close()
        if grafted:
            self.turns.work.add_computed(len(tokens), started)
        return grafted
