"""Garbage collection of a conversation: which spans go when room is needed.

A policy proposes spans, in the order in which they should go; :func:`plan` takes them until the
goal is met and keeps the rules that no policy may break: never a system message or a pinned span,
never half a message, never the turn that is going on, never a tool's result without its call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

from llama_runner.errors import InvalidParameterError
from llama_runner.results import Span

__all__ = [
    "GcPolicy",
    "GcPolicyLike",
    "Summarize",
    "attention_sinks",
    "oldest_turns",
    "plan",
    "resolve_policy",
    "sliding_window",
    "summarize",
    "tool_results",
]


class GcPolicy(Protocol):
    """Proposes groups of span indices, the first to go first; a group goes whole."""

    def __call__(self, spans: Sequence[Span], /) -> Iterable[Sequence[int]]: ...


GcPolicyLike: TypeAlias = "str | GcPolicy"


def oldest_turns(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
    """Whole turns, the oldest first."""
    return list(_turns(spans).values())


def tool_results(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
    """The oldest tool results first, then whole turns."""
    results = [[i] for i, span in enumerate(spans) if span.role == "tool"]
    return results + list(_turns(spans).values())


def sliding_window(n: int) -> GcPolicy:
    """Whole turns, the oldest first, but never one of the last n turns."""
    _check_count("sliding_window", n)

    def policy(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
        return list(_turns(spans).values())[: -n or None]

    return policy


def attention_sinks(n: int) -> GcPolicy:
    """Whole turns, the oldest first, but the turns with the first n tokens stay.

    The first positions gather much of the attention, whatever they say (Xiao et al. 2023,
    "Efficient Streaming Language Models with Attention Sinks").
    """
    _check_count("attention_sinks", n)

    def policy(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
        return [turn for turn in _turns(spans).values() if spans[turn[0]].start >= n]

    return policy


@dataclass(frozen=True, slots=True)
class Summarize:
    """The policy of :func:`summarize`."""

    write: Callable[[str], str]

    def __call__(self, spans: Sequence[Span], /) -> Iterable[Sequence[int]]:
        """Whole turns, the oldest first."""
        return oldest_turns(spans)


def summarize(fn: Callable[[str], str]) -> GcPolicy:
    """Whole turns, the oldest first; what a function makes of their text takes their place.

    The summary is a pinned span with the role "summary". A later collection by this policy gives
    the function the earlier summary together with the turns, and puts one in the place of both.

    Args:
        fn: Called with the text of what goes, messages as "role: content"; returns the summary,
            or "" for none. It may use the runner, but not this conversation. What it raises ends
            the collection before anything has changed.
    """
    if not callable(fn):
        raise InvalidParameterError(f"summarize({fn!r}): must be a function", field="fn")
    return Summarize(fn)


_BY_NAME: dict[str, Callable[[Sequence[Span]], Iterable[Sequence[int]]]] = {
    "oldest_turns": oldest_turns,
    "tool_results": tool_results,
}


def resolve_policy(policy: GcPolicyLike) -> GcPolicy:
    """The policy of a name, or the policy itself.

    Raises:
        InvalidParameterError: No such name, and not callable.
    """
    if isinstance(policy, str) and policy in _BY_NAME:
        return _BY_NAME[policy]
    if callable(policy):
        return policy
    raise InvalidParameterError(
        f"policy={policy!r}: must be one of {', '.join(map(repr, _BY_NAME))} or a callable that "
        "takes the spans and returns groups of their indices",
        field="policy",
    )


def plan(spans: Sequence[Span], n_to_free: int, policy: GcPolicy) -> list[int]:
    """Indices of the spans to remove, so that ``n_to_free`` tokens go if the rules allow it.

    Raises:
        InvalidParameterError: The policy proposes something else than groups of indices.
    """
    if n_to_free <= 0 or not spans:
        return []
    last_turn = spans[-1].turn
    chosen: set[int] = set()
    freed = 0
    for group in _checked(policy(spans), len(spans)):
        if freed >= n_to_free:
            break
        whole = _with_results(spans, group)
        if any(_stays(spans[i], last_turn) for i in whole):
            whole = {i for i in whole if not _stays(spans[i], last_turn)}
            whole = {i for i in whole if _with_results(spans, [i]) <= whole}
        freed += sum(spans[i].tokens for i in whole - chosen)
        chosen |= whole
    return sorted(chosen)


def _checked(groups: object, n_spans: int) -> Iterator[list[int]]:
    """What a policy proposes, if it is what a policy may propose."""
    try:
        for group in cast("Iterable[Iterable[int]]", groups):
            indices = [operator.index(i) for i in group]
            if not all(0 <= i < n_spans for i in indices):
                raise InvalidParameterError(
                    f"policy: proposed {indices}; there are spans 0 to {n_spans - 1}",
                    field="policy",
                )
            yield indices
    except TypeError:
        raise InvalidParameterError(
            "policy: must return groups of span indices, as in [[1, 2], [3]]", field="policy"
        ) from None


def _stays(span: Span, last_turn: int) -> bool:
    return span.pinned or span.turn >= last_turn


def _with_results(spans: Sequence[Span], group: Iterable[int]) -> set[int]:
    """The group and the tool results behind an assistant's message in it."""
    whole = set(group)
    for i in list(whole):
        if spans[i].role == "assistant":
            j = i + 1
            while j < len(spans) and spans[j].role == "tool":
                whole.add(j)
                j += 1
    return whole


def _turns(spans: Sequence[Span]) -> dict[int, list[int]]:
    turns: dict[int, list[int]] = {}
    for i, span in enumerate(spans):
        if not span.pinned:
            turns.setdefault(span.turn, []).append(i)
    return turns


def _check_count(name: str, n: int) -> None:
    if n < 0:
        raise InvalidParameterError(f"{name}({n}): must not be negative", field="n")
