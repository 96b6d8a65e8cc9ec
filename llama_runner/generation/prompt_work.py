"""What it took to bring a prompt into the KV memory, for the receipt of its answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from llama_runner.results import Receipt

__all__ = ["Difference", "PromptWork"]


class Difference(NamedTuple):
    """The first place in which a prompt differs from what was in the memory."""

    token: int
    message: int


@dataclass(slots=True)
class PromptWork:
    """The work since the last generation began, up to where the next one computes its prompt.

    Each step that moves or computes tokens adds to it. A collection between two calls counts for
    the later one.

    Attributes:
        moved: Tokens that were moved to other positions.
        computed: Tokens that were computed.
        computed_earlier: Those of them that were computed before the call began.
        computed_ms: Time that computing took, without those.
        started: When the call began, by ``time.perf_counter()``.
        difference: Where the prompt first differs from what was in the memory, if it does.
    """

    moved: int = 0
    computed: int = 0
    computed_earlier: int = 0
    computed_ms: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    difference: Difference | None = None

    def begin_call(self) -> None:
        """Note that a call begins whose prompt the work is done for."""
        self.started = time.perf_counter()
        self.computed_earlier, self.computed_ms = self.computed, 0.0

    def add_computed(self, n: int, started: float) -> None:
        """Count tokens that were computed, and the time since it was started."""
        self.computed += n
        self.computed_ms += (time.perf_counter() - started) * 1e3

    def receipt(self, *, reused: int, shared: int, prefilled: int) -> Receipt:
        """Return the receipt of a prompt.

        Args:
            reused: Tokens that the request found in the memory.
            shared: Tokens that it took over from another sequence.
            prefilled: Tokens that it computed.
        """
        # What was computed before the request may have been evicted again; then the request has
        # computed it once more, and counts it.
        computed = min(self.computed, reused)
        reused -= computed
        token, message = self.difference or (None, None)
        return Receipt(
            reused=reused,
            shared=shared,
            shifted=min(self.moved, reused),
            recomputed=prefilled + computed,
            first_difference=token,
            first_message=message,
        )
