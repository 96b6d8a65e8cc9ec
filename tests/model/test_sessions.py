"""Conversations: room is made, marks and forks are exact, what is pinned stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.errors import (
    ContextBusyError,
    ContextFullError,
    InvalidParameterError,
    PromptTooLongError,
)
from llama_runner.memory import sliding_window
from llama_runner.params import GenerationOptions

N_CTX = 512


def greedy(*, ignore_eos: bool = False) -> GenerationOptions:
    return {"temperature": 0, "ignore_eos": ignore_eos}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(model_path, n_ctx=N_CTX, n_seq_max=3, flash_attention=False) as runner:
        yield runner


@pytest.fixture
def session(runner: LlamaRunner) -> Iterator[Session]:
    with runner.session("You are a helpful assistant.") as session:
        yield session


def test_a_conversation_outlives_its_context_many_times(session: Session) -> None:
    cleaned = 0
    for i in range(40):
        completion = session.generate(user(f"Tell me about {i}."), 24, **greedy(ignore_eos=True))
        assert len(completion.tokens) == 24
        info = session.info()
        assert 0 < info.used <= N_CTX
        assert sum(span.tokens for span in info.spans) == info.used
        assert info.spans[0].role == "system"
        assert session.messages[0]["content"] == "You are a helpful assistant."
        assert [m["role"] for m in session.messages[1:3]] == ["user", "assistant"]
        cleaned += info.state == "cleaned"
    assert cleaned >= 2


def test_room_is_made_in_the_middle_of_an_answer(session: Session) -> None:
    for i in range(4):
        session.generate(user(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
    completion = session.generate(user("Go on."), 300, **greedy(ignore_eos=True))
    assert completion.finish_reason == "length"
    assert len(completion.tokens) == 300
    assert session.info().state == "cleaned"
    assert session.messages[-1]["content"] == completion.text


def test_room_is_made_in_the_middle_of_a_stream(session: Session) -> None:
    for i in range(4):
        session.generate(user(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
    with session.stream(user("Go on."), 300, **greedy(ignore_eos=True)) as stream:
        text = "".join(chunk.text for chunk in stream)
    assert stream.completion is not None
    assert stream.completion.text == text
    assert len(stream.completion.tokens) == 300


def test_a_turn_that_alone_fills_the_context_ends_there(session: Session) -> None:
    completion = session.generate(user("Go on."), 2 * N_CTX, **greedy(ignore_eos=True))
    assert completion.finish_reason == "length"
    assert session.info().used == N_CTX


def test_what_is_pinned_stays_and_a_full_context_says_so(session: Session) -> None:
    session.generate(user("My name is Ann. " * 30), 8, **greedy())
    index = next(i for i, span in enumerate(session.info().spans) if span.role == "user")
    session.pin(index)
    for i in range(6):
        session.generate(user(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
    assert any("Ann" in message["content"] for message in session.messages)
    before = session.info()
    with pytest.raises(ContextFullError, match="pinned: user"):
        session.generate(user("Go on."), 2 * N_CTX, **greedy(ignore_eos=True))
    assert session.info().spans == before.spans
    session.unpin(index)
    assert session.generate(user("Go on."), 200, **greedy(ignore_eos=True)).usage
    with pytest.raises(InvalidParameterError, match="spans"):
        session.pin(99)


def test_gc_reports_what_it_does(session: Session) -> None:
    for i in range(4):
        session.generate(user(f"Tell me about {i}."), 30, **greedy(ignore_eos=True))
    before = session.info()
    planned = session.gc(0.1, dry_run=True)
    assert session.info() == before
    report = session.gc(0.1)
    after = session.info()
    assert (report.spans_removed, report.tokens_removed) == (
        planned.spans_removed,
        planned.tokens_removed,
    )
    assert report.method == planned.method == "shift"
    assert before.used - after.used == report.tokens_removed
    assert len(before.spans) - len(after.spans) == report.spans_removed
    assert session.gc(0.9).method == "none"
    kept = session.gc(0.0, policy=sliding_window(99))
    assert kept.method == "none"
    with pytest.raises(InvalidParameterError, match="target"):
        session.gc(1.5)


def test_an_exact_collection_is_as_if_the_turns_had_never_been(
    runner: LlamaRunner, session: Session
) -> None:
    for i in range(3):
        session.generate(user(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
    report = session.gc(0.0, exact=True)
    assert report.method == "rebuild"
    assert report.tokens_recomputed > 0
    with runner.session() as fresh:
        whole = [*session.messages, *user("And now?")]
        expected = fresh.generate(whole, 16, **greedy())
    assert session.generate(user("And now?"), 16, **greedy()).tokens == expected.tokens


def test_rewinding_is_as_if_the_later_turns_had_never_been(session: Session) -> None:
    session.generate(user("Name a colour."), 8, **greedy())
    mark = session.mark()
    before = (session.info(), session.messages)
    first = session.generate(user("Another one."), 12, **greedy())
    session.rewind(mark)
    assert (session.info(), session.messages) == before
    session.generate(user("Something else entirely."), 12, **greedy())
    session.gc(0.0)
    session.rewind(mark)
    assert session.messages == before[1]
    assert session.generate(user("Another one."), 12, **greedy()).tokens == first.tokens


def test_forks_go_on_independently_and_share_what_they_have_in_common(
    runner: LlamaRunner, session: Session
) -> None:
    session.generate(user("Name a colour. " * 10), 8, **greedy())
    used = runner.session().info().used
    assert used == 0
    with session.fork() as child:
        assert child.messages == session.messages
        ours = session.generate(user("Why that one?"), 12, **greedy())
        theirs = child.generate(user("Why that one?"), 12, **greedy())
        assert ours.tokens == theirs.tokens
        assert theirs.receipt.reused == ours.receipt.reused > 40
        child.generate(user("Another."), 4, **greedy())
        assert len(child.messages) == len(session.messages) + 2


def test_a_common_beginning_is_computed_once(runner: LlamaRunner) -> None:
    system = "You are a careful librarian who knows every book. " * 8
    with runner.session(system) as first, runner.session(system) as second:
        a = first.generate(user("Who are you?"), 8, **greedy())
        b = second.generate(user("Who are you?"), 8, **greedy())
        assert b.receipt.shared >= 64
        assert a.tokens == b.tokens


def test_more_sessions_than_fit_come_back_without_being_computed_again(
    model_path: Path, tmp_path: Path
) -> None:
    options = {"n_ctx": N_CTX, "n_seq_max": 2, "flash_attention": False}
    for parking in (
        {"parking_ram": 2**30},
        {"parking_ram": 0, "parking_disk": 2**30, "parking_dir": str(tmp_path)},
        {"parking_ram": 0},
    ):
        with LlamaRunner(model_path, **options, **parking) as runner:  # type: ignore[arg-type]
            sessions = [
                runner.session(f"Agent {i} speaks only of number {i}. " * 8) for i in range(4)
            ]
            for session in sessions:
                session.generate(user("Hello."), 4, **greedy())
            again = sessions[0].generate(user("And?"), 4, **greedy())
            kept = any(parking.values())
            assert (again.receipt.reused > 60) == kept
            assert (again.receipt.recomputed < 40) == kept
    assert list(tmp_path.iterdir()) == []


def test_bad_prompts_change_nothing(session: Session) -> None:
    session.generate(user("Hello."), 4, **greedy())
    before = session.info()
    with pytest.raises(PromptTooLongError, match="fit"):
        session.generate("word " * N_CTX, 4, **greedy())
    with pytest.raises(InvalidParameterError, match="empty"):
        session.append("")
    assert session.info() == before
    with session.stream("Hello", 8, **greedy()) as stream:
        next(stream)
        for forbidden in (session.mark, session.fork, session.gc, session.clear, session.close):
            with pytest.raises(ContextBusyError):
                forbidden()
    session.clear()
    assert session.info().state == "empty"


def test_a_stop_string_of_several_tokens_leaves_none_of_its_cells(
    runner: LlamaRunner, session: Session
) -> None:
    prompt, more = "One, two, three,", " and then a colour, and then a name,"
    whole = session.generate(prompt, 24, **greedy(ignore_eos=True))
    stop = whole.text[4:16]
    session.clear()
    cut = session.generate(prompt, 24, stop=stop, **greedy(ignore_eos=True))
    assert cut.finish_reason == "stop"
    assert session._sequence.n_cached <= len(session._sequence)
    answer = session.generate(more, 8, **greedy())
    with runner.session() as fresh:
        fresh.append([int(token) for token in session._sequence.tokens[: cut.usage.total]])
        expected = fresh.generate(more, 8, **greedy())
    assert answer.tokens == expected.tokens


def test_what_was_cleared_does_not_come_back_from_parking(model_path: Path) -> None:
    with (
        LlamaRunner(model_path, n_ctx=N_CTX, n_seq_max=1, flash_attention=False) as runner,
        runner.session() as session,
    ):
        session.generate("The quick brown fox jumps over the lazy dog. " * 8, 4, **greedy())
        prompt = "The capital of France is the city of Paris, and " * 4
        expected = runner.generate_stateless(prompt, 4, **greedy())  # moves the session out
        session.clear()
        answer = session.generate(prompt, 4, **greedy())
        assert answer.receipt.reused == 0
        assert answer.tokens == expected.tokens
