"""Which spans a garbage collection takes: the rules that no policy may break."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_runner.conversation import policies as memory
from llama_runner.conversation.policies import (
    attention_sinks,
    oldest_turns,
    plan,
    resolve_policy,
    sliding_window,
    tool_results,
)
from llama_runner.errors import InvalidParameterError
from llama_runner.results import Span

POLICIES = [oldest_turns, tool_results, sliding_window(2), attention_sinks(20)]


@st.composite
def conversations(draw: st.DrawFn) -> list[Span]:
    """System message or not, then turns: a user's message, calls with results, an answer."""
    roles: list[tuple[str, int]] = [("system", 0)] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 6))):
        roles.append(("user", turn))
        for _ in range(draw(st.integers(0, 2))):
            roles.append(("assistant", turn))
            roles += [("tool", turn)] * draw(st.integers(1, 2))
        roles.append(("assistant", turn))
    spans, start = [], 0
    for role, turn in roles:
        n = draw(st.integers(1, 30))
        pinned = role == "system" or draw(st.integers(0, 9)) == 0
        spans.append(Span(role, start, n, pinned, turn))
        start += n
    return spans


@given(conversations(), st.integers(-5, 300), st.sampled_from(POLICIES))
def test_the_rules_hold_for_every_policy(spans: list[Span], goal: int, policy: object) -> None:
    chosen = plan(spans, goal, policy)  # type: ignore[arg-type]
    assert chosen == sorted(set(chosen))
    for i in chosen:
        assert not spans[i].pinned
        if spans[i].role == "assistant":
            j = i + 1
            while j < len(spans) and spans[j].role == "tool":
                assert j in chosen, "a result stays without its call"
                j += 1
    # What is left is what a strict template accepts: a question, what was done, an answer.
    left = [span.role for i, span in enumerate(spans) if i not in chosen and span.role != "system"]
    assert re.fullmatch(r"(user (assistant (tool )*)*assistant )+", "".join(f"{r} " for r in left))
    newest = [i for i, span in enumerate(spans) if span.turn == spans[-1].turn]
    last_call = max((i for i in newest if spans[i].role == "tool"), default=newest[-1])
    while spans[last_call].role == "tool":
        last_call -= 1
    assert not {i for i in newest if spans[i].role == "user" or i >= last_call} & set(chosen)


def test_single_spans_of_a_turn_go_when_all_of_it_was_proposed() -> None:
    spans = [
        Span("user", 0, 5, False, 0),
        Span("assistant", 5, 5, False, 0),
        Span("user", 10, 5, False, 1),
        Span("assistant", 15, 5, True, 1),
        Span("user", 20, 5, False, 2),
    ]

    def newest_first(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
        return [[i] for i in reversed(range(len(spans)))]

    assert plan(spans, 1, newest_first) == [0, 1]
    assert plan(spans, 100, newest_first) == [0, 1]  # a pinned answer keeps its question


def test_steps_of_a_long_turn_go_but_not_the_question_nor_the_last_results() -> None:
    """An agent that calls tools over and over, for one question."""
    roles = ["user", *["assistant", "tool", "tool"] * 3]
    spans = [Span(role, 10 * i, 10, False, 0) for i, role in enumerate(roles)]
    assert plan(spans, 20, oldest_turns) == [1, 2, 3]
    assert plan(spans, 1000, oldest_turns) == [1, 2, 3, 4, 5, 6]
    assert plan(spans, 15, tool_results) == [2, 3]
    assert plan(spans, 1000, sliding_window(1)) == []
    answering = [*spans, Span("assistant", 100, 10, False, 0)]
    assert plan(answering, 1000, oldest_turns) == [1, 2, 3, 4, 5, 6]


def test_a_turn_is_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each of the steps that a policy proposes, which takes quadratic time."""
    n_seen = 0
    steps_of = memory._steps

    def counted(spans: Sequence[Span], turn: list[int]) -> list[list[int]]:
        nonlocal n_seen
        n_seen += len(turn)
        return steps_of(spans, turn)

    monkeypatch.setattr(memory, "_steps", counted)
    spans = [Span("user", 0, 10, False, 0)]
    for _ in range(50):
        spans += [Span("assistant", 0, 10, False, 0), Span("tool", 0, 10, False, 0)]
    assert len(plan(spans, 10_000, tool_results)) == 98
    assert n_seen == 2 * len(spans)  # by the policy, and by the rules


@given(conversations(), st.integers(1, 300))
def test_oldest_turns_frees_enough_and_not_more_turns_than_needed(
    spans: list[Span], goal: int
) -> None:
    chosen = plan(spans, goal, oldest_turns)
    freed = sum(spans[i].tokens for i in chosen)
    if freed < goal:
        # Only what the rules keep is left: turns with a pinned span, and the newest.
        pinned = {s.turn for s in spans if s.pinned and s.role != "system"}
        older = [i for i, s in enumerate(spans) if s.turn < spans[-1].turn and s.role != "system"]
        assert {i for i in older if spans[i].turn not in pinned} <= set(chosen)
    elif chosen:
        newest = max(spans[i].turn for i in chosen)
        without = sum(spans[i].tokens for i in chosen if spans[i].turn < newest)
        assert without < goal


def test_tool_results_go_before_turns_oldest_first() -> None:
    spans = [
        Span("user", 0, 5, False, 0),
        Span("assistant", 5, 5, False, 0),
        Span("tool", 10, 50, False, 0),
        Span("assistant", 60, 5, False, 0),
        Span("user", 65, 5, False, 1),
        Span("assistant", 70, 5, False, 1),
        Span("tool", 75, 50, False, 1),
        Span("assistant", 125, 5, False, 1),
        Span("user", 130, 5, False, 2),
    ]
    assert plan(spans, 40, tool_results) == [2]
    assert plan(spans, 60, tool_results) == [2, 6]
    assert plan(spans, 110, tool_results) == [0, 1, 2, 3, 6]


def test_a_sliding_window_and_attention_sinks_keep_their_turns() -> None:
    spans = [Span("user", 10 * turn, 10, False, turn) for turn in range(6)]
    assert plan(spans, 1000, sliding_window(3)) == [0, 1, 2]
    assert plan(spans, 1000, attention_sinks(20)) == [2, 3, 4]
    assert plan(spans, 15, attention_sinks(1)) == [1, 2]


def test_names_of_policies() -> None:
    assert resolve_policy("oldest_turns") is oldest_turns
    assert resolve_policy(tool_results) is tool_results
    for wrong in ("newest", 3):
        with pytest.raises(InvalidParameterError, match="oldest_turns"):
            resolve_policy(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="an integer, 0 or more"):
        sliding_window(-1)
