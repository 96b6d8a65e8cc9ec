"""What the runner gives back: immutable records, times in milliseconds, sizes in bytes."""

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
    """How many tokens went in and came out.

    Attributes:
        prompt_tokens: Tokens of the prompt, the reused ones included.
        completion_tokens: Tokens that were generated.
    """

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        """Tokens of prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one generation went; what the reader of a stream does meanwhile is none.

    Attributes:
        prefill_ms: Computing the part of the prompt that was not in the KV cache yet.
        first_token_ms: From the call to the first generated token, prefill included.
        decode_ms: From the first generated token to the last.
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
        """From the call to the last generated token."""
        return self.first_token_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a prompt got into the KV cache; all counts are tokens.

    Attributes:
        reused: Were there already.
        recomputed: Had to be computed.
        shared: Taken over from another sequence.
        shifted: Of the reused ones, at most: moved to another position since the last generation.
        first_difference: Position of the first token in which the prompt differed from what was
            there, if it did.
        first_message: Index of the message that this token belongs to: of those given, if they were
            the whole conversation, else of those in memory.
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
        finish_reason: ``"stop"``: the model or a stop string ended it; ``"length"``: max_tokens, or
            the context is full; ``"cancelled"``: the caller.
        stop_string: The stop string that ended it, if one did.
        seed: The seed that was used: given again, it gives the same tokens.
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
        text: Whole characters, never half a one; may be empty in the last chunk.
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
    """A run of tokens in a context that stays or goes as one.

    Attributes:
        role: Who said it: ``"system"``, ``"user"``, ``"assistant"``, ``"tool"``, ``"raw"``,
            ``"generated"`` (after raw text) or ``"summary"``.
        start: Position of its first token.
        tokens: How many tokens it has.
        pinned: Whether it is kept whatever happens.
        turn: Number of the turn that it belongs to, from 0.
    """

    role: str
    start: int
    tokens: int
    pinned: bool
    turn: int


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """What a context holds; ``str()`` of it is one line for people.

    Attributes:
        n_ctx: Tokens that the sequence may hold.
        used: Tokens that it holds.
        bytes: Memory of the KV cache that they take now; 0 where they are not there at the moment.
        spans: What the tokens are, in order.
        gc_would_free: Tokens that ``gc_context()`` would drop now.
        state: ``"cleaned"``: something was dropped since the last answer.
    """

    n_ctx: int
    used: int
    bytes: int
    spans: tuple[Span, ...]
    gc_would_free: int
    state: ContextState

    @property
    def free(self) -> int:
        """Tokens that still fit."""
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
    """What a garbage collection of the context did; ``str()`` of it is one line for people.

    Attributes:
        method: ``"shift"``: the rest moved up; ``"rebuild"``: the rest was computed again;
            ``"checkpoint"``: the same, from a saved state on; ``"none"``: there was nothing to
            drop.
        ms: Time that it took, without what the next generation computes again. Of a dry run: what
            collecting and computing again would take, at the speeds last seen; None if none was
            seen.
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
