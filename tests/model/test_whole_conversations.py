"""Whether messages are the whole conversation or what is new in it; the README has the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from tests.model.talk import assistant, greedy, user

HELLO, BYE = user("Hello."), user("Goodbye.")
BE_BRIEF = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def runner(tiny_paths: dict[str, Path]) -> Iterator[LlamaRunner]:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with LlamaRunner(
        tiny_paths["plain"], n_ctx=1024, n_threads=1, chat_template=template
    ) as runner:
        yield runner


def ask(session: Session, *messages: dict[str, Any]) -> dict[str, Any]:
    return assistant(session.generate(messages, 2, **greedy(ignore_eos=True)).text)


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("n_turns", [1, 2])
def test_all_but_the_last_answer_answers_again(
    runner: LlamaRunner, system: str | None, n_turns: int
) -> None:
    with runner.session(system) as session:
        for question in (HELLO, BYE)[:n_turns]:
            ask(session, question)
        before = session.messages
        assert ask(session, *before[:-1]) == before[-1]
        assert session.messages == before


def test_the_only_question_alone_is_answered_again(runner: LlamaRunner) -> None:
    with runner.session() as session:
        first = ask(session, HELLO)
        assert ask(session, HELLO) == first
        assert session.messages == [HELLO, first]


def test_the_first_question_does_not_end_a_longer_conversation(runner: LlamaRunner) -> None:
    with runner.session() as session:
        said = [HELLO, ask(session, HELLO), BYE, ask(session, BYE)]
        said += [HELLO, ask(session, HELLO)]
        assert session.messages == said


def test_a_question_can_be_asked_twice(runner: LlamaRunner) -> None:
    with runner.session() as session:
        said = [HELLO, ask(session, HELLO), HELLO]
        session.append([HELLO])
        assert session.messages == said
        said.append(ask(session))
        assert session.messages == said


def test_what_was_appended_is_not_asked_twice(runner: LlamaRunner) -> None:
    with runner.session() as session:
        session.append([HELLO])
        answer = ask(session, HELLO)
        assert session.messages == [HELLO, answer]


def test_another_question_is_new(runner: LlamaRunner) -> None:
    with runner.session("Be brief.") as session:
        first = ask(session, HELLO)
        second = ask(session, BYE)
        assert session.messages == [BE_BRIEF, HELLO, first, BYE, second]
        third = ask(session, BYE)  # not the first question
        assert session.messages[-2:] == [BYE, third]
        assert len(session.messages) == 7


def test_append_always_adds(runner: LlamaRunner) -> None:
    with runner.session() as session:
        first = ask(session, HELLO)
        session.append([HELLO])
        assert session.messages == [HELLO, first, HELLO]
