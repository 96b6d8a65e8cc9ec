"""Garbage collection of a conversation: which spans to evict when room is needed.

A policy proposes spans in the order in which to evict them. :func:`plan` takes them until the goal
is met, and enforces rules that hold for every policy. The rest must be a conversation that
templates accept. So a turn, which is a question with all that answers it, is evicted whole or not
at all, and not at all if a span of it is pinned. There are two exceptions: a step, which is a tool
call with its results, may be evicted if a later step of the turn stays; and so may a single result.
Of the newest turn the question, the last results and what follows them stay.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llama_runner.conversation.history import UNTEMPLATED
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
    "whole_turns",
]


class GcPolicy(Protocol):
    """A function that proposes groups of span indices, in the order in which to evict them."""

    def __call__(self, spans: Sequence[Span], /) -> Iterable[Sequence[int]]: ...


GcPolicyLike: TypeAlias = "str | GcPolicy"


def oldest_turns(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
    """Propose whole turns, the oldest first; then the steps of the newest turn."""
    *older, newest = list(_turns(spans).values()) or [[]]
    return older + _steps(spans, newest)


def tool_results(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
    """Propose tool results, the oldest first; then what :func:`oldest_turns` proposes."""
    results = [[i] for i, span in enumerate(spans) if span.role == "tool"]
    return [*results, *oldest_turns(spans)]


def sliding_window(n: int) -> GcPolicy:
    """Return a policy that proposes whole turns, the oldest first, but not the last n turns."""
    _check_count("sliding_window", n)

    def policy(spans: Sequence[Span], /) -> Iterable[Sequence[int]]:
        return list(_turns(spans).values())[: -n or None]

    return policy


def attention_sinks(n: int) -> GcPolicy:
    """Return a policy that proposes whole turns, but not those with the first n tokens.

    The first positions gather much of the attention, whatever they say (Xiao et al. 2023,
    "Efficient Streaming Language Models with Attention Sinks").
    """
    _check_count("attention_sinks", n)

    def policy(spans: Sequence[Span], /) -> Iterable[Sequence[int]]:
        return [turn for turn in _turns(spans).values() if spans[turn[0]].start >= n]

    return policy


@dataclass(frozen=True, slots=True)
class Summarize:
    """The policy of :func:`summarize`."""

    write: Callable[[str], str]

    def __call__(self, spans: Sequence[Span], /) -> Iterable[Sequence[int]]:
        """Propose whole turns, the oldest first."""
        return oldest_turns(spans)


def summarize(fn: Callable[[str], str]) -> GcPolicy:
    """Return a policy that replaces whole turns, the oldest first, by a summary of their text.

    The summary is a pinned span with the role "summary". A later collection by this policy gives
    the function the earlier summary together with the turns, and replaces both by a new one.

    Args:
        fn: Called with the text of what is evicted, messages as "role: content"; returns the
            summary, or "" for none. It may use the runner, but not this conversation. If it raises,
            the collection ends before anything has changed.
    """
    if not callable(fn):
        raise InvalidParameterError(f"summarize({fn!r}): must be a function", field="fn")
    return Summarize(fn)


_BY_NAME: dict[str, Callable[[Sequence[Span]], Iterable[Sequence[int]]]] = {
    "oldest_turns": oldest_turns,
    "tool_results": tool_results,
}


def resolve_policy(policy: GcPolicyLike) -> GcPolicy:
    """Return the policy of a name, or the policy itself.

    Raises:
        InvalidParameterError: It is neither a known name nor callable.
    """
    if isinstance(policy, str) and policy in _BY_NAME:
        return _BY_NAME[policy]
    given: object = policy
    for maker in (sliding_window, attention_sinks, summarize):
        if given is maker:
            raise InvalidParameterError(
                f"policy={maker.__name__}: this makes a policy: give {maker.__name__}(...)",
                field="policy",
            )
    if callable(policy):
        return policy
    raise InvalidParameterError(
        f"policy={policy!r}: must be one of {', '.join(map(repr, _BY_NAME))} or a callable that "
        "takes the spans and returns groups of their indices",
        field="policy",
    )


def plan(spans: Sequence[Span], n_to_free: int, policy: GcPolicy) -> list[int]:
    """Choose the spans to evict, so that ``n_to_free`` tokens are freed if the rules allow it.

    Returns:
        Their indices, ascending.

    Raises:
        InvalidParameterError: The policy proposes anything but groups of indices.
    """
    if n_to_free <= 0 or not spans:
        return []
    turns = [_Turn(spans, turn) for turn in _turns(spans).values()]
    turn_of = {i: turn for turn in turns for i in turn.indices}
    chosen: set[int] = set()
    freed = 0
    for group in _checked(policy, spans):
        if freed >= n_to_free:
            break
        for i in turn_of.keys() & group:
            gone = turn_of[i].propose(i) - chosen
            freed += sum(spans[k].tokens for k in gone)
            chosen |= gone
    return sorted(chosen)


def whole_turns(spans: Sequence[Span], doomed: Iterable[int]) -> list[int]:
    """Return those of the spans whose whole turn is doomed."""
    chosen = set(doomed)
    turns = _turns(spans).values()
    return sorted(i for turn in turns if chosen.issuperset(turn) for i in turn)


class _Turn:
    """The proposals for one turn, and what may be evicted so that templates accept the rest.

    Args:
        spans: Of the conversation.
        indices: Of the turn's spans.
    """

    def __init__(self, spans: Sequence[Span], indices: list[int]) -> None:
        self.indices = indices
        self._spans = spans
        self._wanted: set[int] = set()
        self._is_newest = spans[indices[-1]].turn == spans[-1].turn
        steps = _steps(spans, indices)
        if self._is_newest:  # the model is about to answer the last results
            steps = steps[: max((k for k, step in enumerate(steps) if len(step) > 1), default=0)]
        self._step_of = {i: step for step in steps for i in step}
        # The last step of an older turn is the answer.
        self._answer = None if self._is_newest or not steps else steps[-1]

    def propose(self, i: int) -> set[int]:
        """Propose one more of its spans, and return what may be evicted now."""
        if self._spans[i].pinned:
            return set()
        self._wanted.add(i)
        if len(self._wanted) == len(self.indices) and not self._is_newest:
            return self._wanted
        step = self._step_of.get(i, [])
        if step and step is not self._answer and self._wanted.issuperset(step):
            return set(step)
        # A template did not make these spans, so it cannot refuse the rest.
        untemplated = self._spans[i].role in UNTEMPLATED and not self._is_newest
        return {i} if untemplated or i in step[1:] else set()


def _checked(policy: GcPolicy, spans: Sequence[Span]) -> Iterator[list[int]]:
    """Yield the valid groups that a policy proposes; its own exceptions pass through."""
    groups = policy(spans)
    if not isinstance(groups, Iterable):
        raise _no_groups(groups)
    for group in groups:
        try:
            indices = [operator.index(i) for i in group]
        except TypeError:
            raise _no_groups(group) from None
        if not all(0 <= i < len(spans) for i in indices):
            raise InvalidParameterError(
                f"policy: proposed {indices}; there are spans 0 to {len(spans) - 1}",
                field="policy",
            )
        yield indices


def _no_groups(found: object) -> InvalidParameterError:
    return InvalidParameterError(
        "policy: must return groups of span indices, as in [[1, 2], [3]], not "
        f"{type(found).__name__}",
        field="policy",
    )


def _turns(spans: Sequence[Span]) -> dict[int, list[int]]:
    """Group the spans by turn, without those that always stay: system messages, summaries."""
    turns: dict[int, list[int]] = {}
    for i, span in enumerate(spans):
        if span.role not in ("system", "summary"):
            turns.setdefault(span.turn, []).append(i)
    return turns


def _steps(spans: Sequence[Span], turn: list[int]) -> list[list[int]]:
    """Divide a turn into steps: each message of the assistant, with the tool results after it."""
    steps: list[list[int]] = []
    for i in turn:
        if spans[i].role == "assistant":
            steps.append([i])
        elif spans[i].role == "tool" and steps:
            steps[-1].append(i)
    return steps


def _check_count(name: str, n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise InvalidParameterError(f"{name}({n!r}): must be an integer, 0 or more", field="n")
