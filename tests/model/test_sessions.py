"""Conversations: room is made, marks and forks are exact, what is pinned stays."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.conversation.collector import Collector
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    ContextFullError,
    InvalidParameterError,
    PromptTooLongError,
)
from llama_runner.generation.generation import Generation
from llama_runner.memory import summarize
from tests import inside
from tests.model.talk import greedy, question

N_CTX = 512


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(
        model_path, n_ctx=N_CTX, n_seq_max=3, n_threads=1, flash_attention=False
    ) as runner:
        yield runner


def test_a_conversation_outlives_its_context_many_times(session: Session) -> None:
    cleaned = 0
    for i in range(40):
        completion = session.generate(
            question(f"Tell me about {i}."), 24, **greedy(ignore_eos=True)
        )
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
        session.generate(question(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
    completion = session.generate(question("Go on."), 300, **greedy(ignore_eos=True))
    assert completion.finish_reason == "length"
    assert len(completion.tokens) == 300
    assert session.info().state == "cleaned"
    assert session.messages[-1]["content"] == completion.text


def test_room_is_made_in_the_middle_of_a_stream(session: Session) -> None:
    for i in range(4):
        session.generate(question(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
    with session.stream(question("Go on."), 300, **greedy(ignore_eos=True)) as stream:
        text = "".join(chunk.text for chunk in stream)
    assert stream.completion is not None
    assert stream.completion.text == text
    assert len(stream.completion.tokens) == 300


def test_a_turn_that_alone_fills_the_context_ends_there(session: Session) -> None:
    completion = session.generate(question("Go on."), 2 * N_CTX, **greedy(ignore_eos=True))
    assert completion.finish_reason == "length"
    assert session.info().used == N_CTX


def test_what_is_pinned_stays_and_a_full_context_says_so(session: Session) -> None:
    session.generate(question("My name is Ann. " * 30), 8, **greedy())
    index = next(i for i, span in enumerate(session.info().spans) if span.role == "user")
    session.pin(index)
    for i in range(6):
        session.generate(question(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
    assert any("Ann" in message["content"] for message in session.messages)
    before = session.info()
    with pytest.raises(ContextFullError, match="pinned: user"):
        session.generate(question("Go on."), 2 * N_CTX, **greedy(ignore_eos=True))
    assert session.info().spans == before.spans
    stream = session.stream(question("Go on."), 2 * N_CTX, **greedy(ignore_eos=True))
    with pytest.raises(ContextFullError, match="pinned: user"):
        list(stream)
    assert stream.completion is not None
    assert stream.completion.finish_reason == "length"
    session.unpin(index)
    answer = session.generate(question("Go on."), 200, **greedy(ignore_eos=True))
    assert len(answer.tokens) == 200
    with pytest.raises(InvalidParameterError, match="spans"):
        session.pin(99)


def test_rewinding_is_as_if_the_later_turns_had_never_been(session: Session) -> None:
    session.generate(question("What is the capital of Japan?"), 12, **greedy())
    mark = session.mark()
    before = (session.info().spans, session.messages)
    first = session.generate(question("And of Italy?"), 12, **greedy())
    session.rewind(mark)
    assert (session.info().spans, session.messages) == before
    session.generate(question("Something else entirely."), 12, **greedy())
    session.gc(0.0)
    session.rewind(mark)
    assert session.messages == before[1]
    assert inside.sequence(session).n_exact == len(inside.sequence(session))
    assert session.generate(question("And of Italy?"), 12, **greedy()).tokens == first.tokens


def test_a_mark_of_another_conversation_is_refused(runner: LlamaRunner, session: Session) -> None:
    session.generate(question("What is the capital of Japan?"), 12, **greedy())
    before = (session.messages, session.info().spans)
    with runner.session() as other:
        other.append(question("Hello."))
        foreign = other.mark()
        for wrong in (foreign, None, "mark"):
            with pytest.raises(InvalidParameterError, match="mark"):
                session.rewind(wrong)  # type: ignore[arg-type]
    assert (session.messages, session.info().spans) == before
    with session.fork() as fork:  # the better of several attempts may be taken over
        said = fork.generate(question("And of Italy?"), 12, **greedy())
        session.rewind(fork.mark())
    assert session.messages[-1]["content"] == said.text


def test_a_mark_knows_cells_that_moved_in_another_life(session: Session) -> None:
    """What moved up after the mark is computed again, though a snapshot or fork came between."""
    for i in range(3):
        session.generate(question(f"Tell me about {i}."), 12, **greedy(ignore_eos=True))
    mark, before = session.mark(), session.messages
    assert session.gc(0.0).method == "shift"
    session.restore(session.snapshot())
    assert inside.sequence(session).n_exact < len(inside.sequence(session))
    with session.fork() as fork:
        for each in (session, fork):
            each.rewind(mark)
            assert each.messages == before
            assert inside.sequence(each).n_exact == len(inside.sequence(each))


def test_a_mark_is_equal_to_itself_alone(session: Session) -> None:
    session.append(question("Hello."))
    first, second = session.mark(), session.mark()
    assert first != second
    assert len({first, second, first}) == 2


@pytest.mark.parametrize("twice", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_session_and_a_stream_have_one_owner(
    session: Session, twice: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match=r"use fork\(\) for a second one, or save\(\)"):
        twice(session)
    with (
        session.stream(question("Hello."), 4, **greedy()) as stream,
        pytest.raises(TypeError, match="keep its chunks"),
    ):
        twice(stream)


def test_forks_go_on_independently_and_share_what_they_have_in_common(
    runner: LlamaRunner, session: Session
) -> None:
    session.generate(question("Name a colour. " * 10), 8, **greedy())
    used = runner.session().info().used
    assert used == 0
    with session.fork() as child:
        assert child.messages == session.messages
        ask = question("What is the capital of Japan?")
        ours = session.generate(ask, 6, **greedy())
        theirs = child.generate(ask, 6, **greedy())
        assert ours.tokens == theirs.tokens
        assert theirs.receipt.reused == ours.receipt.reused > 40
        child.generate(question("Another."), 4, **greedy())
        assert len(child.messages) == len(session.messages) + 2


def test_a_common_beginning_is_computed_once(runner: LlamaRunner) -> None:
    system = "You are a careful librarian who knows every book. " * 8
    with runner.session(system) as first, runner.session(system) as second:
        a = first.generate(question("What is the capital of Japan?"), 8, **greedy())
        b = second.generate(question("What is the capital of Japan?"), 8, **greedy())
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
                session.generate(question("Hello."), 4, **greedy())
            again = sessions[0].generate(question("And?"), 4, **greedy())
            kept = any(parking.values())
            assert (again.receipt.reused > 60) == kept
            assert (again.receipt.recomputed < 40) == kept
    assert list(tmp_path.iterdir()) == []


def test_bad_prompts_change_nothing(session: Session) -> None:
    session.generate(question("Hello."), 4, **greedy())
    before = session.info()
    with pytest.raises(PromptTooLongError, match="fit"):
        session.generate("word " * N_CTX, 4, **greedy())
    with pytest.raises(InvalidParameterError, match="empty"):
        session.append("")
    assert session.info() == before
    with session.stream("Hello", 8, **greedy()) as stream:
        next(stream)
        for forbidden in (session.mark, session.fork, session.gc, session.clear, session.close,
                          session.pin, session.unpin, session.pause):  # fmt: skip
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
    assert inside.sequence(session).n_cached <= len(inside.sequence(session))
    session.append(more)
    with runner.session() as fresh:
        fresh.append(inside.ledger(session))
        expected = inside.sequence(fresh).next_logits()
    logits = inside.sequence(session).next_logits()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3 * np.ptp(expected))


def test_what_was_cleared_does_not_come_back_from_parking(model_path: Path) -> None:
    with (
        LlamaRunner(model_path, n_ctx=N_CTX, n_seq_max=1, flash_attention=False) as runner,
        runner.session() as session,
    ):
        session.generate("The quick brown fox jumps over the lazy dog. " * 8, 4, **greedy())
        prompt = "The capital of Japan is the city of Tokyo, and " * 4
        expected = runner.generate_stateless(prompt, 4, **greedy())  # moves the session out
        session.clear()
        answer = session.generate(prompt, 4, **greedy())
        assert answer.receipt.reused == 0
        assert answer.tokens == expected.tokens


def test_a_paused_session_stays_while_others_leave(model_path: Path) -> None:
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=2, parking_ram=0) as runner:
        paused, other, third = runner.session(), runner.session(), runner.session()
        paused.generate("The sky is", 4, **greedy())
        paused.pause()
        other.generate("The sea is", 4, **greedy())
        third.generate("The sun is", 4, **greedy())
        assert inside.sequence(paused).n_cached > 0
        assert inside.sequence(other).n_cached == 0
        paused.generate(" and", 4, **greedy())
        other.generate(" and", 4, **greedy())
        assert inside.sequence(third).n_cached == 0


def test_a_named_session(runner: LlamaRunner) -> None:
    with runner.session(name="planner") as session:
        assert session.name == "planner"
        assert "planner" in repr(session)
        assert session.fork("critic").name == "critic"


def test_a_fork_where_there_is_one_slot(model_path: Path) -> None:
    """Both cannot be in the memory at once: they take turns, and compute nothing again."""
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=1) as runner:
        session = runner.session("You are a helpful assistant.")
        session.generate(question("What is the capital of Japan?"), 8, **greedy())
        with session.fork() as fork:
            ask = question("And of Italy?")
            answers = [s.generate(ask, 8, **greedy()) for s in (session, fork)]
        assert [answer.text for answer in answers] == ["The capital of Italy is Rome."] * 2
        assert answers[1].receipt.recomputed < 25


def test_a_dropped_stream_leaves_what_it_said(session: Session) -> None:
    """Its turn is booked by the next call, as it may be dropped in any thread at any time."""
    stream = session.stream(question("Tell me a story."), 20, **greedy(ignore_eos=True))
    said = next(stream).text + next(stream).text
    del stream
    assert session.messages[-1]["role"] == "assistant"
    assert session.messages[-1]["content"].startswith(said)
    assert session.generate(question("Go on."), 4, **greedy()).receipt.reused > 10


def test_a_dropped_session_gives_its_memory_back_at_once(runner: LlamaRunner) -> None:
    """It is part of no cycle that Python's garbage collector would have to find."""
    gc.disable()
    try:
        session = runner.session("Be brief.")
        session.generate(question("Hello."), 2, **greedy())
        with session.stream(question("Go on."), 2, **greedy()) as stream:
            list(stream)
        fork = session.fork()
        fork.gc(0.0)
        assert inside.n_resident(runner) > 0
        del session, stream, fork
        assert inside.n_resident(runner) == 0
    finally:
        gc.enable()


# ---- what others do meanwhile ------------------------------------------------------------------


def test_a_stream_that_makes_room_keeps_others_out(runner: LlamaRunner) -> None:
    """Also while it rests because its context is full."""
    with runner.session("Be brief.") as session:
        for i in range(6):
            session.generate(question(f"Tell me about {i}."), 50, **greedy(ignore_eos=True))
        refused = 0
        with session.stream(question("Go on."), 200, **greedy(ignore_eos=True)) as stream:
            for chunk in stream:
                if chunk.finish_reason:
                    break
                for change in (session.clear, lambda: session.append("x"), session.close):
                    with pytest.raises(ContextBusyError):
                        change()
                    refused += 1
        assert refused > 300
        assert stream.completion is not None
        assert session.messages[-1]["content"] == stream.completion.text


def test_a_callback_cannot_change_the_conversation_that_calls_it(session: Session) -> None:
    for i in range(3):
        session.generate(question(f"Tell me about {i}."), 10, **greedy(ignore_eos=True))
    before = session.messages

    def meddle(text: str) -> str:
        assert session.messages == before  # but it may look
        session.clear()
        return "done"

    with pytest.raises(ContextBusyError, match="callback"):
        session.gc(0.0, policy=summarize(meddle))
    assert session.messages == before


def test_a_callback_cannot_close_the_conversation_that_calls_it(session: Session) -> None:
    for i in range(3):
        session.generate(question(f"Tell me about {i}."), 10, **greedy(ignore_eos=True))
    before = session.messages

    def meddle(text: str) -> str:
        session.close()
        return "done"

    with pytest.raises(ContextBusyError, match="callback"):
        session.gc(0.0, policy=summarize(meddle))
    assert session.messages == before


@pytest.mark.parametrize("streamed", [False, True])
def test_a_signal_handler_cannot_change_a_conversation_in_which_room_is_made(
    session: Session, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    for i in range(4):
        session.generate(question(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
    refused = 0
    make_room = Collector.make_room_while_generating

    def interrupted(self: Collector, generation: Generation) -> None:
        nonlocal refused
        for change in (session.clear, lambda: session.append("x"), session.close):
            with pytest.raises(ContextBusyError):
                change()
            refused += 1
        assert session.info().used > 0  # but it may look
        make_room(self, generation)

    monkeypatch.setattr(Collector, "make_room_while_generating", interrupted)
    if streamed:
        stream = session.stream(question("Go on."), 300, **greedy(ignore_eos=True))
        text = "".join(chunk.text for chunk in stream)
    else:
        text = session.generate(question("Go on."), 300, **greedy(ignore_eos=True)).text
    assert refused > 0
    assert session.messages[-1]["content"] == text


@pytest.mark.parametrize("gc_threshold", [0.2, 0.5, 1.0])
def test_answers_have_their_length_at_any_threshold(model_path: Path, gc_threshold: float) -> None:
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=1, gc_threshold=gc_threshold) as runner:
        session = runner.session("Be brief.")
        for i in range(6):
            session.generate(question(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
        completion = session.generate(question("Go on."), 180, **greedy(ignore_eos=True))
        assert len(completion.tokens) == 180 or gc_threshold * 512 < 180


def test_a_closed_session_says_so(runner: LlamaRunner) -> None:
    session = runner.session("Be brief.")
    session.close()
    for use in (session.info, session.clear, session.mark, lambda: session.generate("a"),
                lambda: session.messages, session.snapshot, session.fork, session.pin):  # fmt: skip
        with pytest.raises(ClosedError):
            use()
    session.close()
    with pytest.raises(InvalidParameterError, match="name"):
        runner.session(name="\ud800")


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_a_state_that_cannot_be_rewound_comes_back_whole(
    tiny_paths: dict[str, Path], kind: str
) -> None:
    """From parking and from a snapshot, also when it began with a system message."""
    template = "{% for m in messages %}<{{ m.content }}\n{% endfor %}"
    with LlamaRunner(tiny_paths[kind], n_ctx=512, n_seq_max=1, chat_template=template) as runner:
        session, other = runner.session("the a abc " * 8), runner.session()
        for i in range(3):
            session.generate(f"the {i}", 8, **greedy(ignore_eos=True))
        runner.generate_stateless("abc", 1)
        assert session.generate("abc", 4, **greedy()).receipt.recomputed < 20
        other.restore(session.snapshot())
        session.close()
        assert other.generate("abc", 4, **greedy()).receipt.recomputed < 20


@pytest.mark.parametrize("kind", ["plain", "recurrent", "hybrid"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_stop_string_of_many_tokens_costs_the_turn_at_most(
    tiny_paths: dict[str, Path], kind: str, streaming: bool
) -> None:
    """Also where the state knows of the string's first tokens when its last one comes."""
    with LlamaRunner(tiny_paths[kind], n_ctx=512, n_seq_max=2) as runner:
        session = runner.session()
        session.generate("the a abc " * 20, 8, **greedy(ignore_eos=True))
        n_before = session.info().used
        mark = session.mark()
        text = session.generate(" the a", 60, **greedy(ignore_eos=True)).text
        session.rewind(mark)
        stop = max(text.split("\ufffd"), key=len)  # whole characters
        assert len(runner.tokenize(stop, add_special=False)) > 3
        if streaming:
            with session.stream(" the a", 60, stop=[stop], **greedy(ignore_eos=True)) as stream:
                answer = "".join(chunk.text for chunk in stream)
        else:
            answer = session.generate(" the a", 60, stop=[stop], **greedy(ignore_eos=True)).text
        assert answer == text[: text.index(stop)]
        n_answered = session.info().used
        receipt = session.generate(" abc", 4, **greedy(ignore_eos=True)).receipt
        assert receipt.reused >= (n_answered - 1 if kind == "plain" else n_before - 1)


@pytest.mark.parametrize("kind", ["plain", "recurrent", "hybrid"])
def test_what_opens_a_conversation_counts_as_computed(
    tiny_paths: dict[str, Path], kind: str
) -> None:
    """Also where the model reads it by itself, as its memory cannot be rewound."""
    template = "{% for m in messages %}<{{ m.content }}\n{% endfor %}"
    with LlamaRunner(tiny_paths[kind], n_ctx=512, chat_template=template) as runner:
        session = runner.session("the a abc " * 8)
        completion = session.generate(question("abc"), 4, **greedy(ignore_eos=True))
        receipt, timings = completion.receipt, completion.timings
        assert (receipt.reused, receipt.recomputed) == (0, completion.usage.prompt_tokens)
        speed = receipt.recomputed / timings.prefill_ms * 1e3
        assert timings.prefill_tokens_per_second == pytest.approx(speed)
        n_before = session.info().used
        receipt = session.generate("abc", 4, **greedy(ignore_eos=True)).receipt
        assert receipt.reused == n_before - 1


def test_reading_what_opens_a_conversation_is_cancelled(
    tiny_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose memory cannot be rewound reads it by itself."""
    template = "{% for m in messages %}<{{ m.content }}\n{% endfor %}"
    with LlamaRunner(tiny_paths["recurrent"], n_ctx=512, chat_template=template) as runner:
        session = runner.session("the a abc " * 8)
        before = session.info().spans
        take_opening = Collector.take_opening

        def cancelled(self: Collector) -> None:
            session.cancel()
            take_opening(self)

        monkeypatch.setattr(Collector, "take_opening", cancelled)
        completion = session.generate("abc", 20, **greedy(ignore_eos=True))
        assert (completion.finish_reason, completion.tokens) == ("cancelled", ())
        assert session.info().spans == before
        assert inside.sequence(session).n_cached == 0
        monkeypatch.undo()
        assert session.generate("abc", 4, **greedy(ignore_eos=True)).finish_reason == "length"
