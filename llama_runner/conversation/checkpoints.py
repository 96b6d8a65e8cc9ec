"""Copies of states that cannot be rewound, so that going back need not begin at the beginning.

A recurrent state contains all tokens at once: none of them can be removed. If a model has such a
state (recurrent and hybrid memory), a copy of it is kept from the end of the opening, and from the
ends of the last prompts and answers. Removing tokens then computes again from the nearest copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_runner._core import Request, Sequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Checkpoint", "Checkpoints"]

# Besides the copy of the opening, to which every collection goes back: the ends of the last two
# prompts and of their answers.
MAX_RECENT = 4


def has_state(sequence: Sequence) -> bool:
    """Return whether its memory has a part that cannot be rewound."""
    return sequence.context.memory_kind in ("recurrent", "hybrid")


def _adapter_fingerprints(sequence: Sequence) -> tuple[str, ...]:
    known = sequence.context.adapter_fingerprints
    return tuple(known[name] for name, _ in sequence.adapters)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The state after the first n tokens."""

    tokens: NDArray[np.int32]
    adapters: tuple[tuple[str, float], ...]
    fingerprints: tuple[str, ...]
    """Of the adapters: another one may have the same name by now."""
    state: bytes

    @classmethod
    def take(cls, sequence: Sequence) -> Checkpoint | None:
        """Copy the state after the tokens in memory; None if the model does not need that."""
        if not has_state(sequence) or not sequence.n_cached:
            return None
        state, n = sequence.save_state(partial=True)
        prints = _adapter_fingerprints(sequence)
        return cls(sequence.tokens[:n], sequence.adapters, prints, state) if n else None

    def fits(self, sequence: Sequence, n: int) -> bool:
        """Return whether it could bring the sequence back to at most n tokens in memory."""
        return (
            len(self.tokens) <= min(n, sequence.n_cached)
            and self.adapters == sequence.adapters
            and self.fingerprints == _adapter_fingerprints(sequence)
            and sequence.common_prefix(self.tokens) == len(self.tokens)
        )

    def restore(self, sequence: Sequence) -> None:
        """Go back to it. If the sequence was evicted meanwhile, nothing happens."""
        sequence.rewind_state(self.state, len(self.tokens))


class Checkpoints:
    """The copies of one sequence's states.

    Args:
        sequence: Whose memory they are of.

    Attributes:
        wanted: Whether the memory has a part that cannot be rewound; otherwise none are taken.
    """

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        self.wanted = has_state(sequence)
        self._opening: Checkpoint | None = None
        self._recent: list[Checkpoint] = []

    def adopt(self, other: Checkpoints) -> None:
        """Also use those of a conversation that has begun in the same way."""
        self._opening, self._recent = other._opening, list(other._recent)

    def take_opening(self, n: int, compute: Callable[[Request], None]) -> int:
        """Decode the first n tokens separately, and keep a copy of the state after them.

        Args:
            n: How many tokens.
            compute: Runs the request that decodes them.

        Returns:
            How many had to be decoded.
        """
        sequence = self._sequence
        sequence.bring_in()
        if not sequence.n_cached < n < len(sequence):
            return 0
        rest, request = sequence.tokens[n:], None
        sequence.truncate(n)
        try:
            request = sequence.decoding()
            compute(request)
            self._opening = Checkpoint.take(sequence)
            return request.counts[-1]
        finally:
            if request is not None:
                request.close()  # if it was cancelled, it still has the sequence
            sequence.append(rest)

    def take(self) -> None:
        """Keep a copy of the state as it is, at the end of a prompt or of a turn."""
        taken = Checkpoint.take(self._sequence)
        if taken is not None:
            self._recent = [*self._recent, taken][-MAX_RECENT:]

    def go_back(self, n: int, marked: Checkpoint | None = None) -> None:
        """Restore the latest state of at most n tokens, before tokens from n on are changed.

        Args:
            n: How many tokens stay.
            marked: Another copy that was kept.
        """
        found = self.latest(n, marked)
        if found is not None:
            found.restore(self._sequence)

    def latest(self, n: int, marked: Checkpoint | None = None) -> Checkpoint | None:
        """Return the copy that :meth:`go_back` would restore; None also if none is needed."""
        kept = [c for c in (marked, self._opening, *self._recent) if c is not None]
        if not kept:
            return None
        self._sequence.bring_in()  # the copies belong to what is in the memory
        if self._sequence.n_cached <= n:
            return None
        found = [checkpoint for checkpoint in kept if checkpoint.fits(self._sequence, n)]
        return max(found, key=lambda checkpoint: len(checkpoint.tokens), default=None)
