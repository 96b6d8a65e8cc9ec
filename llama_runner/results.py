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
    """How many tokens went in and came out."""

    prompt_tokens: int
    """Tokens of the prompt, the reused ones included."""
    completion_tokens: int
    """Tokens that were generated."""

    @property
    def total(self) -> int:
        """Tokens of prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one generation went; what the reader of a stream does meanwhile is none."""

    prefill_ms: float
    """Computing the part of the prompt that was not in the KV cache yet."""
    first_token_ms: float
    """From the call to the first generated token, prefill included."""
    decode_ms: float
    """From the first generated token to the last."""
    tokens_per_second: float
    """Tokens generated per second of decoding."""
    prefill_tokens_per_second: float
    """Prompt tokens computed per second of prefill."""

    @property
    def total_ms(self) -> float:
        """From the call to the last generated token."""
        return self.first_token_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a prompt got into the KV cache; all counts are tokens."""

    reused: int
    """Were there already."""
    recomputed: int
    """Had to be computed."""
    shared: int = 0
    """Taken over from another sequence."""
    shifted: int = 0
    """Of the reused ones, at most: moved to another position since the last generation."""
    first_difference: int | None = None
    """Position of the first token in which the prompt differed from what was there, if it did."""
    first_message: int | None = None
    """Index of the message that this token belongs to: of those given, if they were the whole
    conversation, else of those in memory."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation. ``str()`` of it is its text."""

    text: str
    """The answer, without the stop string."""
    tokens: tuple[int, ...] = field(repr=False)
    """Ids of the generated tokens."""
    finish_reason: FinishReason
    """``"stop"``: the model or a stop string ended it; ``"length"``: max_tokens, or the context is
    full; ``"cancelled"``: the caller."""
    stop_string: str | None
    """The stop string that ended it, if one did."""
    usage: Usage
    timings: Timings
    receipt: Receipt
    seed: int
    """The seed that was used: given again, it gives the same tokens."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer while it is generated. ``str()`` of it is its text."""

    text: str
    """Whole characters, never half a one; may be empty in the last chunk."""
    tokens: tuple[int, ...] = ()
    """Ids of the tokens that this chunk adds."""
    finish_reason: FinishReason | None = None
    """Set in the last chunk."""
    completion: Completion | None = field(default=None, repr=False)
    """The whole answer; set in the last chunk."""

    def __str__(self) -> str:
        return self.text


class Span(NamedTuple):
    """A run of tokens in a context that stays or goes as one."""

    role: str
    """Who said it: ``"system"``, ``"user"``, ``"assistant"``, ``"tool"``, ``"raw"``,
    ``"generated"`` (after raw text) or ``"summary"``."""
    start: int
    """Position of its first token."""
    tokens: int
    """How many tokens it has."""
    pinned: bool
    """Whether it is kept whatever happens."""
    turn: int
    """Number of the turn that it belongs to, from 0."""


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """What a context holds; ``str()`` of it is one line for people."""

    n_ctx: int
    """Tokens that the sequence may hold."""
    used: int
    """Tokens that it holds."""
    bytes: int
    """Memory of the KV cache that they take now; 0 where they are not there at the moment."""
    spans: tuple[Span, ...]
    """What the tokens are, in order."""
    gc_would_free: int
    """Tokens that ``gc_context()`` would drop now."""
    state: ContextState
    """``"cleaned"``: something was dropped since the last answer."""

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
    """What a garbage collection of the context did; ``str()`` of it is one line for people."""

    spans_removed: int
    tokens_removed: int
    method: GcMethod
    """``"shift"``: the rest moved up; ``"rebuild"``: the rest was computed again;
    ``"checkpoint"``: the same, from a saved state on; ``"none"``: there was nothing to drop."""
    tokens_recomputed: int
    ms: float | None
    """Time that it took, without what the next generation computes again. Of a dry run: what
    collecting and computing again would take, at the speeds last seen; None if none was seen."""

    def __str__(self) -> str:
        time = "" if self.ms is None else f", {self.ms:.1f} ms"
        return (
            f"dropped {self.tokens_removed:,} tokens in {self.spans_removed} spans, recomputed "
            f"{self.tokens_recomputed:,} ({self.method}{time})"
        )
