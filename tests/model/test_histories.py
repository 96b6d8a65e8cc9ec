"""Messages that are given: whole, in parts, again, as others write them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.errors import ContextBusyError, InvalidParameterError, LlamaError
from llama_runner.memory import summarize
from tests.model.talk import assistant, user

Message = dict[str, Any]
GREEDY: dict[str, Any] = {"temperature": 0}
TEMPLATE = "{% for m in messages %}<{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, n_ctx=1024, n_threads=1) as runner:
        yield runner


def test_appending_never_replaces_what_is_there(session: Session) -> None:
    """Examples and calls of tools are put behind it, whoever is to have said them."""
    said = session.messages
    for message in (
        user("Hi."),
        assistant("Hello."),
        {"role": "system", "content": "Be brief."},
        user("2 + 2?"),
        assistant("4"),
    ):
        session.append([message])
        said.append(message)
        assert session.messages == said
    session.append([user("3 + 3?"), assistant("6")])
    answer = session.generate([user("4 + 4?")], 4, **GREEDY)
    assert session.messages == [
        *said,
        user("3 + 3?"),
        assistant("6"),
        user("4 + 4?"),
        assistant(answer.text),
    ]


def test_what_was_appended_is_answered(runner: LlamaRunner, session: Session) -> None:
    with pytest.raises(InvalidParameterError, match="empty conversation"):
        runner.session().generate()
    session.append([user("What is the capital of Japan?")])
    answer = session.generate(max_tokens=12, **GREEDY)
    assert answer.text == "The capital of Japan is Tokyo."
    assert session.messages[1:] == [user("What is the capital of Japan?"), assistant(answer.text)]
    with runner.session() as raw:
        raw.append("A, B, C,")
        assert raw.generate(max_tokens=4, **GREEDY).text == " D, E,"
        assert "".join(chunk.text for chunk in raw.stream(max_tokens=4, **GREEDY)) == " F, G,"
    session.append("A, B, C,")  # raw text goes on by itself, also behind messages
    assert session.generate(max_tokens=4, **GREEDY).text == " D, E,"


def test_what_the_session_shows_may_be_given_back(session: Session) -> None:
    """Also where turns that went are like those that are left."""
    for _ in range(2):
        session.generate([user("Hi.")], 1, **GREEDY)
    session.gc(0)
    left = session.messages
    assert [message["role"] for message in left] == ["system", "user", "assistant"]
    answer = session.generate([*left, user("What is new?")], 4, **GREEDY)
    assert session.messages == [*left, user("What is new?"), assistant(answer.text)]
    assert answer.receipt.first_difference is None


def test_evicted_turns_may_be_sent_again_where_turns_are_alike(session: Session) -> None:
    for _ in range(3):
        session.generate([user("Hi.")], 1, **GREEDY)
    whole = session.messages
    session.gc(0)
    left = session.messages
    session.generate([*whole, user("What is new?")], 4, **GREEDY)
    assert session.messages[:-1] == [*left, user("What is new?")]


@pytest.fixture
def talk(tiny_paths: dict[str, Path]) -> Iterator[Session]:
    """Four turns that no model had to think of."""
    options: dict[str, Any] = {"n_ctx": 512, "n_seq_max": 1, "chat_template": TEMPLATE}
    with LlamaRunner(tiny_paths["plain"], n_threads=1, **options) as runner:
        session = runner.session("abc", reuse="chunks")
        for i in range(4):
            session.append([user(f"the {i}"), assistant(f"a {i}")])
        yield session


def test_a_summary_stands_for_the_turns_before_the_one_that_stayed(talk: Session) -> None:
    whole = talk.messages
    talk.pin(3)
    talk.gc(0.0, policy=summarize(lambda text: "ab"))
    left = talk.messages
    pinned = [span.pinned for span in talk.info().spans]
    assert [message["content"] for message in left] == ["abc", "ab", "the 1", "a 1", "the 3", "a 3"]
    for given in ([*whole, user("more")], [*left, user("more")]):
        mark = talk.mark()
        receipt = talk.generate(given, 1, **GREEDY).receipt
        assert receipt.first_difference is None
        assert talk.messages[:-1] == [*left, user("more")]
        assert [span.pinned for span in talk.info().spans] == [*pinned, False, False]
        talk.rewind(mark)


def test_what_was_taken_out_may_be_put_back(talk: Session) -> None:
    whole = talk.messages
    for given in ([whole[0], *whole[3:]], whole, whole[:3], whole):
        talk.generate([*given, user("more")], 1, **GREEDY)
        assert talk.messages[:-1] == [*given, user("more")]


def test_what_had_no_room_is_known_when_other_messages_were_taken_out(talk: Session) -> None:
    system, *turns = talk.messages
    talk.gc(0.0, policy=lambda spans: [[1, 2]])
    assert talk.messages == [system, *turns[2:]]
    for given in ([*turns[:2], *turns[4:]], turns):
        talk.generate([system, *given, user("more")], 1, **GREEDY)
        assert talk.messages[:-1] == [system, *given[2:], user("more")]


@pytest.mark.parametrize("opening", ["abc", "ab"])
def test_evicted_turns_come_back_where_a_conversation_branches_off_before_them(
    talk: Session, opening: str
) -> None:
    system, *turns = talk.messages
    system = {**system, "content": opening}
    talk.gc(0.0, policy=lambda spans: [[1, 2], [3, 4]])
    given = [system, *turns[:2], user("more")]
    talk.generate(given, 1, **GREEDY)
    assert talk.messages[:-1] == given


def test_evicted_turns_come_back_though_a_message_is_repeated(talk: Session) -> None:
    """A user's "Go on." behind an early turn shows nothing of the turns that came later."""
    talk.append([user("Go on."), assistant("a 4"), user("the 5"), assistant("a 5")])
    system, *turns = talk.messages
    talk.gc(0.0, policy=lambda spans: [[1, 2], [3, 4]])
    given = [system, *turns[:4], user("Go on.")]
    talk.generate(given, 1, **GREEDY)
    assert talk.messages[:-1] == given


def test_evicted_turns_are_recognised_by_the_turns_after_them(talk: Session) -> None:
    """Also where the answer to that is asked for again."""
    system, *turns = talk.messages
    talk.gc(0.0, policy=lambda spans: [[1, 2], [3, 4]])
    talk.generate([system, *turns[:5]], 1, **GREEDY)
    assert talk.messages[:-1] == [system, turns[4]]


def test_keys_that_no_template_sees_make_no_other_message(session: Session) -> None:
    given = [*session.messages, user("What is the capital of Japan?")]
    answer = session.generate(given, 12, **GREEDY)
    returned = {
        **assistant(answer.text),
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
        "id": "msg_1",
    }
    again = session.generate([*given, returned, user("And of Italy?")], 12, **GREEDY)
    assert again.receipt.first_difference is None
    assert again.receipt.reused >= answer.usage.prompt_tokens
    assert session.messages[2] == assistant(answer.text)


def test_messages_are_copies(session: Session) -> None:
    tool_call = {"type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}
    given: list[dict[str, Any]] = [
        user("Go."),
        {"role": "assistant", "content": "", "tool_calls": [tool_call]},
    ]
    session.append(given)
    before = copy.deepcopy(session.messages)
    tool_call["function"]["arguments"]["a"].append(2)  # type: ignore[index]
    session.messages[1]["content"] = "Stop."
    session.messages[2]["tool_calls"].clear()
    assert session.messages == before


def test_raw_text_after_messages_is_not_part_of_a_conversation_sent_whole(
    session: Session,
) -> None:
    session.generate([user("Hi.")], 4, **GREEDY)
    whole = session.messages
    session.append("\nNotes: none.")
    session.generate([*whole, user("What is new?")], 4, **GREEDY)
    assert session.messages[:-1] == [*whole, user("What is new?")]
    assert session.info().spans[-1].role == "assistant"
    assert len(session.info().spans) == len(session.messages)


@pytest.mark.parametrize("raw", [" raw", [28, 905]])
def test_raw_text_in_between_brings_no_second_system_message(
    session: Session, raw: str | list[int]
) -> None:
    """The model's template writes one of its own before a user's message."""
    for prompt in ([user("Hi.")], raw, [user("Again.")]):
        session.append(prompt)
    roles = [span.role for span in session.info().spans]
    assert roles == ["system", "user", "raw", "user"]
    session.generate(max_tokens=3, **GREEDY)
    session.generate([user("And again.")], 3, **GREEDY)
    roles = [span.role for span in session.info().spans]
    assert roles == ["system", "user", "raw", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("reuse", ["prefix", "chunks"])
def test_an_empty_answer_is_asked_for_again(runner: LlamaRunner, reuse: Any) -> None:
    given = [
        {"role": "system", "content": "Be brief."},
        user("Hi."),
        assistant("Hello."),
        user("What is the capital of Japan?"),
    ]
    with runner.session(reuse=reuse) as session:
        answer = session.generate(given, 4, **GREEDY)
        assert session.generate(given, 4, stop=answer.text[0], **GREEDY).text == ""
        assert session.generate(given, 4, **GREEDY).text == answer.text
        assert session.messages == [*given, assistant(answer.text)]


def test_an_index_of_a_message_counts_those_that_were_given(session: Session) -> None:
    given = session.messages
    for i in range(6):
        given.append(user(f"Tell me about {i}."))
        given.append(assistant(session.generate(given, 8, **GREEDY).text))
    session.gc(0.05)
    assert len(session.messages) < len(given)
    given[-1] = assistant("I do not know.")
    receipt = session.generate([*given, user("Go on.")], 4, **GREEDY).receipt
    assert receipt.first_message == len(given) - 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": 3}, "'name' must be text"),
        ({"tool_call_id": [1]}, "'tool_call_id' must be text"),
        ({"reasoning_content": {"a": 1}}, "'reasoning_content' must be text"),
        ({"tool_calls": "find"}, "'tool_calls' must be a list of objects"),
        ({"tool_calls": ["find"]}, "'tool_calls' must be a list of objects"),
        ({"content": None, "tool_calls": ()}, "has no 'content'"),
    ],
)
def test_messages_with_something_else_in_them_are_refused(
    session: Session, wrong: Message, said: str
) -> None:
    before = session.messages
    with pytest.raises(InvalidParameterError, match=rf"prompt\[0\]: {said}"):
        session.append([{"role": "assistant", "content": "Yes.", **wrong}])
    assert session.messages == before


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "", "name": {1, 2}},
        {"role": "user", "content": "", "name": b"bytes"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": object()}]},
        {"role": "assistant", "content": None, "tool_calls": np.zeros(2)},
        {"role": "assistant", "content": "", "tool_calls": [{"function": float("nan")}]},
    ],
)
def test_messages_that_are_no_json_are_refused(session: Session, message: Any) -> None:
    before = session.messages
    for give in (session.append, session.generate):
        with pytest.raises(InvalidParameterError, match=r"prompt\[0\]: cannot be written as JSON"):
            give([message])
    for depth in (200, 900, 100_000):
        nested: Any = []
        for _ in range(depth):
            nested = [nested]
        with pytest.raises(InvalidParameterError, match=r"prompt\[0\]"):
            session.append([{"role": "assistant", "content": "", "tool_calls": nested}])
    assert session.messages == before


def test_wrong_arguments_are_refused_and_change_nothing(session: Session, tmp_path: Path) -> None:
    session.generate([user("Hi.")], 4, **GREEDY)
    before = (session.messages, session.info())
    long_name, pipe = tmp_path / ("x" * 300), tmp_path / "pipe"
    os.mkfifo(pipe)
    wrong: list[Any] = [
        lambda: session.gc("half"),  # type: ignore[arg-type]
        lambda: session.gc(None),  # type: ignore[arg-type]
        lambda: session.pin("first"),  # type: ignore[arg-type]
        lambda: session.pin(1.5),  # type: ignore[arg-type]
        lambda: session.pin(99),
        lambda: session.rewind(None),  # type: ignore[arg-type]
        lambda: session.save(None),  # type: ignore[arg-type]
        lambda: session.save(5),  # type: ignore[arg-type]
        lambda: session.save("a\0b"),
        lambda: session.save(long_name),
        lambda: session.load(None),  # type: ignore[arg-type]
        lambda: session.load("a\0b"),
        lambda: session.load(long_name),
        lambda: session.load(pipe),  # which nobody writes to
        lambda: session.save(pipe),
    ]
    for call in wrong:
        with pytest.raises(LlamaError):
            call()
    assert (session.messages, session.info()) == before
    session.save(tmp_path / ("x" * 250))  # a legal name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "x" * 250]


def test_an_open_stream_ends_with_its_with_block(runner: LlamaRunner) -> None:
    with runner.session() as session:
        stream = session.stream([user("Tell me a story.")], 50, **GREEDY)
        next(stream)
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    with pytest.raises(KeyError, match="mine"), runner.session() as session:  # noqa: PT012
        stream = session.stream([user("Tell me a story.")], 50, **GREEDY)
        next(stream)
        with pytest.raises(ContextBusyError):
            session.close()
        raise KeyError("mine")
    assert [chunk.finish_reason for chunk in stream] == ["cancelled"]


# ---- what an agent adds, and what a session keeps ----------------------------------------------


def test_a_call_takes_the_place_of_the_answer_that_it_was_read_from(runner: LlamaRunner) -> None:
    with runner.session("You use tools.") as session:
        session.generate([user("Remember 4711. The weather in Paris?")], 8, **GREEDY)
        session.pin(1)
        opening = session.messages[:2]
        step = [assistant("weather(Paris)"), {"role": "tool", "content": "Sunny."}]
        answer = session.generate(step, 8, **GREEDY)
        assert session.messages == [*opening, *step, assistant(answer.text)]
        assert session.info().spans[1].pinned
        assert answer.receipt.first_message == 2
        more = [{"role": "tool", "content": "Warm, too."}]
        session.generate(more, 8, **GREEDY)
        assert session.messages[:6] == [*opening, *step, assistant(answer.text), *more]


def test_the_system_message_of_a_session_is_its_own(runner: LlamaRunner) -> None:
    """A front end may not know of it; one that has its own replaces it."""
    with runner.session("Be kind.") as session:
        given = [user("Hi.")]
        for question in ("Why?", "And then?"):
            answer = session.generate(given, 4, **GREEDY)
            given += [assistant(answer.text), user(question)]
        assert answer.receipt.first_difference is None
        assert session.messages == [{"role": "system", "content": "Be kind."}, *given[:-1]]
        changed = [user("Hello."), *given[1:]]
        receipt = session.generate(changed, 4, **GREEDY).receipt
        assert receipt.first_message == 0
        own = {"role": "system", "content": "Be brief."}
        session.generate([own, *given], 4, **GREEDY)
        assert session.messages[: len(given) + 1] == [own, *given]


def test_a_greeting_opens_a_whole_conversation(runner: LlamaRunner) -> None:
    given = [assistant("How may I help?"), user("2 + 2?")]
    with runner.session("You are kind.") as session:
        for question in ("And 3 + 3?", "And 4 + 4?"):
            answer = session.generate(given, 4, **GREEDY)
            assert session.messages[1:] == [*given, assistant(answer.text)]
            given += [assistant(answer.text), user(question)]
        assert answer.receipt.first_difference is None
