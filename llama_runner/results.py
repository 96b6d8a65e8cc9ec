"""Results that the runner returns: immutable records, times in milliseconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = [
    "Chunk",
    "Completion",
    "ContextInfo",
    "ContextState",
    "FinishReason",
    "GcMethod",
    "GcReport",
    "Receipt",
    "Span",
    "Timings",
    "Usage",
]

FinishReason = Literal["stop", "length", "cancelled"]
ContextState = Literal["empty", "growing", "full", "cleaned"]
GcMethod = Literal["shift", "rebuild", "checkpoint", "none"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a generation.

    Attributes:
        prompt_tokens: Tokens of the prompt, including reused ones.
        completion_tokens: Generated tokens.
    """

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        """Tokens of the prompt and the completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one generation went.

    Time spent by the consumer of a stream between chunks is not counted.

    Attributes:
        prefill_ms: Time to compute the part of the prompt that was not yet in the KV cache.
        first_token_ms: Time from the call to the first generated token, including prefill.
        decode_ms: Time from the first generated token to the last.
        tokens_per_second: Tokens generated per second of decoding.
        prefill_tokens_per_second: Prompt tokens computed per second of prefill.
    """

    prefill_ms: float
    first_token_ms: float
    decode_ms: float
    tokens_per_second: float
    prefill_tokens_per_second: float

    @property
    def total_ms(self) -> float:
        """Time from the call to the last generated token."""
        return self.first_token_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a prompt got into the KV cache; all counts are tokens.

    Attributes:
        reused: Tokens that were already there.
        recomputed: Tokens that had to be computed.
        shared: Tokens taken over from another sequence.
        shifted: Tokens that moved to another position since the last generation, but at most as
            many as were reused.
        first_difference: Position of the first token at which the prompt differed from what was
            there; None if it did not differ.
        first_message: Index of the message that this token belongs to: an index into the messages
            given, if they were the whole conversation, otherwise into those in memory.
    """

    reused: int
    recomputed: int
    shared: int = 0
    shifted: int = 0
    first_difference: int | None = None
    first_message: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation. ``str()`` of it is its text.

    Attributes:
        text: The answer, without the stop string.
        tokens: Ids of the generated tokens.
        finish_reason: Why the answer ended. ``"stop"``: the model or a stop string ended it;
            ``"length"``: it reached max_tokens, or the context is full; ``"cancelled"``: the caller
            cancelled it.
        stop_string: The stop string that ended the answer, if one did.
        seed: The seed that was used. Generating with it again gives the same tokens.
    """

    text: str
    tokens: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    stop_string: str | None
    usage: Usage
    timings: Timings
    receipt: Receipt
    seed: int

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer while it is generated. ``str()`` of it is its text.

    Attributes:
        text: Complete characters, never part of one; may be empty in the last chunk.
        tokens: Ids of the tokens that this chunk adds.
        finish_reason: Set in the last chunk.
        completion: The whole answer; set in the last chunk.
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    completion: Completion | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text


class Span(NamedTuple):
    """A run of tokens in a context that is kept or evicted as a whole.

    Attributes:
        role: Where the tokens come from: ``"system"``, ``"user"``, ``"assistant"``, ``"tool"``,
            ``"raw"``, ``"generated"`` (after raw text) or ``"summary"``.
        start: Position of its first token.
        tokens: Number of its tokens.
        pinned: Whether it is protected from eviction.
        turn: Number of the turn that it belongs to, counted from 0.
    """

    role: str
    start: int
    tokens: int
    pinned: bool
    turn: int


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """Content of a context; ``str()`` of it is a readable line.

    Attributes:
        n_ctx: Maximum number of tokens in the sequence.
        used: Number of tokens in it.
        bytes: Memory of the KV cache that they take now; 0 while they are not in the cache.
        spans: The spans that the tokens form, in order.
        gc_would_free: Number of tokens that ``gc_context()`` would evict now.
        state: How full the context is; ``"cleaned"`` if tokens were evicted since the last answer.
    """

    n_ctx: int
    used: int
    bytes: int
    spans: tuple[Span, ...]
    gc_would_free: int
    state: ContextState

    @property
    def free(self) -> int:
        """Number of tokens that still fit."""
        return self.n_ctx - self.used

    @property
    def usage(self) -> float:
        """Share of the context that is used, 0 to 1."""
        return self.used / self.n_ctx

    def __str__(self) -> str:
        return (
            f"{self.used:,} of {self.n_ctx:,} tokens ({self.usage:.0%}), "
            f"{self.bytes / 2**20:.1f} MiB, {len(self.spans)} spans, {self.state}"
        )


@dataclass(frozen=True, slots=True)
class GcReport:
    """Result of a garbage collection of the context; ``str()`` of it is a readable line.

    Attributes:
        method: ``"shift"``: the remaining tokens moved up; ``"rebuild"``: they were computed again;
            ``"checkpoint"``: they were computed again from a saved state on; ``"none"``: there was
            nothing to evict.
        ms: Time taken, not counting what the next generation computes again. For a dry run, an
            estimate for collecting and computing again at the speeds last measured; None if none
            was measured.
    """

    spans_removed: int
    tokens_removed: int
    method: GcMethod
    tokens_recomputed: int
    ms: float | None

    def __str__(self) -> str:
        time = "" if self.ms is None else f", {self.ms:.1f} ms"
        return (
            f"dropped {self.tokens_removed:,} tokens in {self.spans_removed} spans, recomputed "
            f"{self.tokens_recomputed:,} ({self.method}{time})"
        )
