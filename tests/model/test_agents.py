"""Conversations of agents: calls of tools without end, and templates that are strict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.memory import summarize, tool_results
from llama_runner.prompts.chat_format import ChatFormat
from tests import inside

Message = dict[str, Any]
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
# As those of Gemma, Llama 2 and Mistral: questions and answers must take turns.
STRICT = """
{%- set shown = messages[1:] if messages[0].role == 'system' else messages -%}
{%- if messages[0].role == 'system' %}[{{ messages[0].content }}]{% endif -%}
{%- for m in shown -%}
{%- if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
<{{ m.role }}>{{ m.content }}
{% endfor -%}
{%- if add_generation_prompt %}<assistant>{% endif -%}
"""


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def call(i: int) -> Message:
    function = {"name": "look_up", "arguments": f'{{"number": {i}}}'}
    tool_call = {"type": "function", "id": f"call{i:05}", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [tool_call]}


def result(i: int) -> Message:
    return {"role": "tool", "tool_call_id": f"call{i:05}", "content": f"The number {i} is fine."}


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, n_ctx=512, n_threads=1) as runner:
        yield runner


@pytest.fixture(scope="module")
def strict(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, n_ctx=512, n_threads=1, chat_template=STRICT) as runner:
        yield runner


def roles(session: Session) -> list[str]:
    return [message["role"] for message in session.messages]


# ---- tools -------------------------------------------------------------------------------------


def test_an_agent_may_call_tools_without_end(runner: LlamaRunner) -> None:
    """One question, a hundred steps: given one by one, the question and the last result stay."""
    with runner.session("You look numbers up.") as session:
        session.generate([user("Are all numbers fine?")], 4, **GREEDY)
        for i in range(100):
            session.append([call(i)])
            session.generate([result(i)], 4, **GREEDY)
            assert session.messages[:2] == [
                {"role": "system", "content": "You look numbers up."},
                user("Are all numbers fine?"),
            ]
            assert session.messages[-3:-1] == [call(i), result(i)]
        assert session.info().used < 512


def test_steps_that_are_given_at_once_go_as_those_that_are_given_one_by_one(
    runner: LlamaRunner,
) -> None:
    history = [user("Are all numbers fine?")]
    for i in range(30):
        history += [call(i), result(i)]
    with runner.session() as session:
        session.generate(history, 4, **GREEDY)
        assert session.messages[0] == history[0]
        assert session.messages[-3:-1] == history[-2:]
        # An edit of what is long gone is one of the conversation; it finds room, too.
        edited = [user("Is every number fine?"), *history[1:]]
        session.generate(edited, 4, **GREEDY)
        assert session.messages[0] == edited[0]


def test_each_step_is_rendered_with_the_question_and_one_step(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with all that came since the question, which takes quadratic time."""
    n_rendered = 0
    text_of = ChatFormat.text_of

    def counted(self: ChatFormat, messages: list[Message], **options: Any) -> str:
        nonlocal n_rendered
        n_rendered += len(messages)
        return text_of(self, messages, **options)

    history = [user("Hello."), {"role": "assistant", "content": "Hi."}, user("Are all fine?")]
    for i in range(12):
        history += [call(i), result(i)]
    with runner.session() as session:
        assert inside.chat(runner).implied_header
        monkeypatch.setattr(ChatFormat, "text_of", counted)
        session.append(history)
        assert n_rendered < 10 * len(history)
        assert len(session.info().spans) == 1 + len(history)


def test_results_go_by_themselves(runner: LlamaRunner) -> None:
    with runner.session() as session:
        session.generate([user("Fine?"), call(0), result(0), call(1), result(1)], 4, **GREEDY)
        report = session.gc(0, policy=tool_results)
        assert report.spans_removed == 2  # a call that nothing is left of goes with its result
        assert session.messages[:3] == [user("Fine?"), call(1), result(1)]


# ---- strict templates --------------------------------------------------------------------------


def test_what_is_left_is_what_a_strict_template_accepts(strict: LlamaRunner) -> None:
    """Also with a pinned answer: its question stays with it."""
    with strict.session("Be brief.") as session:
        for i in range(12):
            session.generate([user(f"What is the number {i}?")], 24, **GREEDY)
            if i == 1:
                session.pin(-1)
        left = roles(session)
        assert left == ["system", *["user", "assistant"] * (len(left) // 2)]
        assert user("What is the number 1?") in session.messages
        assert user("What is the number 0?") not in session.messages


def test_a_summary_takes_turns_where_the_template_wants_that(strict: LlamaRunner) -> None:
    with strict.session("Be brief.") as session:
        for i in range(4):
            session.generate([user(f"What is the number {i}?")], 24, **GREEDY)
        session.gc(0, policy=summarize(lambda text: "We spoke of numbers."))
        assert session.messages[1] == user("We spoke of numbers.")
        assert roles(session) == ["system", "user", "assistant", "user", "assistant"]
        session.generate([user("And now?")], 4, **GREEDY)
        session.generate([*session.messages, user("And then?")], 4, **GREEDY)
        assert session.messages[1] == user("We spoke of numbers.")
        assert roles(session) == ["system", *["user", "assistant"] * 4]
