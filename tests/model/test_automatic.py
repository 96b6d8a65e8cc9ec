"""What is dropped by itself: by the policy of the session, and never so that it runs out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.errors import InvalidParameterError
from llama_runner.memory import summarize, tool_results
from llama_runner.results import Span
from tests.model.talk import user

ANSWER: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
WORDS = "the sea and the sky " * 8


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, n_ctx=512, n_threads=1) as runner:
        yield runner


def ask(session: Session, i: int) -> None:
    session.generate([user(f"Question {i}: {WORDS}")], 20, **ANSWER)


def roles(session: Session) -> list[str]:
    return [span.role for span in session.info().spans]


def test_tool_results_go_first(runner: LlamaRunner) -> None:
    with runner.session("Be brief.", gc_policy=tool_results) as session:
        session.append([user("Look it up."), {"role": "assistant", "content": "look_up(1)"}])
        session.append([{"role": "tool", "content": WORDS * 4}])
        session.append([{"role": "assistant", "content": "Done."}])
        while "tool" in roles(session):
            ask(session, 1)
        assert session.messages[1] == user("Look it up.")


def test_turns_may_leave_a_summary(runner: LlamaRunner) -> None:
    told: list[str] = []

    def notes(text: str) -> str:
        told.append(text)
        return runner.generate_stateless("They spoke of", 4, temperature=0).text

    with runner.session("Be brief.", gc_policy=summarize(notes)) as session:
        for i in range(12):
            ask(session, i)
        assert roles(session)[:2] == ["system", "summary"]
        assert told[0].startswith("user: Question 0")
        assert any("They spoke" not in text and "Question" in text for text in told)


def test_a_policy_that_drops_too_little_does_not_end_a_conversation(runner: LlamaRunner) -> None:
    asked: list[int] = []

    def nothing(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
        asked.append(len(spans))
        return []

    with runner.session("Be brief.", gc_policy=nothing) as session:
        for i in range(8):
            ask(session, i)
        assert asked
        assert session.info().used < 512


@pytest.mark.parametrize("streamed", [False, True])
def test_nor_does_it_cut_an_answer_short(runner: LlamaRunner, streamed: bool) -> None:
    with runner.session("Be brief.", gc_policy=lambda spans: []) as session:
        ask(session, 1)
        ask(session, 2)
        long = [user("Tell me more.")]
        if streamed:
            assert (
                len([c for chunk in session.stream(long, 380, **ANSWER) for c in chunk.tokens])
                == 380
            )
        else:
            assert len(session.generate(long, 380, **ANSWER).tokens) == 380


def test_what_a_policy_raises_undoes_the_call(runner: LlamaRunner) -> None:
    def fails(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
        raise LookupError("no policy today")

    with runner.session("Be brief.", gc_policy=fails) as session:
        before = session.info()
        with pytest.raises(LookupError, match="no policy today"):  # noqa: PT012
            for i in range(8):
                before = session.info()
                ask(session, i)
        assert session.info().spans == before.spans
        assert session.gc(0).tokens_removed > 0
        ask(session, 9)


def test_sessions_have_the_policy_of_their_runner(model_path: Path) -> None:
    seen: list[int] = []

    def all_of_them(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
        seen.append(len(spans))
        return [[i] for i in range(len(spans))]

    options: dict[str, Any] = {"n_ctx": 256, "n_threads": 1}
    with LlamaRunner(model_path, gc_policy=all_of_them, **options) as runner:
        for i in range(4):
            runner.generate_stateful([user(f"Question {i}: {WORDS}")], 8, **ANSWER)
        n_seen = len(seen)
        assert n_seen > 0
        with runner.session() as session, session.fork() as fork:
            for i in range(4):
                ask(fork, i)
        assert len(seen) > n_seen
    with pytest.raises(InvalidParameterError, match="'newest': must be one of"):
        LlamaRunner(model_path, gc_policy="newest", **options)
