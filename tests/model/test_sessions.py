"""Conversations: room is made, marks and forks are exact, what is pinned stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    ContextFullError,
    InvalidParameterError,
    PromptTooLongError,
)
from llama_runner.memory import sliding_window, summarize
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


# ---- what collections leave ----------------------------------------------------------------------


def test_what_a_collection_leaves_need_not_be_computed_again(session: Session) -> None:
    """What is left reads as if the turns that went had never been said."""
    for i in range(6):
        session.generate(user(f"Say hello {i}."), 10 + 10 * (i % 2), **greedy())
    report = session.gc(0.1)
    assert report.method == "shift"
    n_left = session.info().used
    completion = session.generate(user("Go on."), 4, **greedy())
    assert completion.receipt.reused >= n_left - 1
    assert completion.receipt.shifted > 0
    assert completion.receipt.first_difference is None


def test_turns_of_a_conversation_that_is_given_whole_go_one_by_one(session: Session) -> None:
    given = [{"role": "system", "content": "Be brief."}]
    for i in range(30):
        given += [*user(f"What is {i}?"), {"role": "assistant", "content": f"It is {i}."}]
    completion = session.generate([*given, *user("Go on.")], 4, **greedy())
    assert len(completion.tokens) == 4
    assert session.messages[0] == given[0]
    n_left = len(session.messages)
    assert 5 < n_left < len(given)
    assert session.messages[1:-2] == given[-(n_left - 3) :]


def test_a_summary_takes_the_place_of_what_goes(session: Session) -> None:
    given: list[str] = []

    def write(text: str) -> str:
        given.append(text)
        return f"Summary {len(given)}."

    for i in range(4):
        session.generate(user(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
    before = session.messages
    report = session.gc(0.0, policy=summarize(write))
    assert "user: Tell me about 0." in given[0]
    assert "Tell me about 3." not in given[0]
    assert report.method == "rebuild"
    assert session.messages == [
        before[0],
        {"role": "system", "content": "Summary 1."},
        *before[-2:],
    ]
    span = session.info().spans[1]
    assert (span.role, span.pinned) == ("summary", True)
    answer = session.generate(user("Go on."), 8, **greedy())
    # The same as saying it all at once.
    whole = session._sequence.tokens[: answer.usage.total].tolist()
    runner_prompt = whole[: answer.usage.prompt_tokens]
    assert session.messages[-1]["content"] == answer.text
    with_summary = session.gc(0.0, policy=summarize(write))
    assert "Summary 1." in given[1]  # the next summary is of the last one, too
    assert [m["content"] for m in session.messages[:2]] == [before[0]["content"], "Summary 2."]
    assert with_summary.spans_removed == 3
    assert runner_prompt


def test_a_summary_that_fails_or_is_too_long_changes_nothing(session: Session) -> None:
    for i in range(3):
        session.generate(user(f"Tell me about {i}."), 10, **greedy(ignore_eos=True))
    before, info = session.messages, session.info()

    def fail(text: str) -> str:
        raise LookupError(text[:4])

    with pytest.raises(LookupError):
        session.gc(0.0, policy=summarize(fail))
    with pytest.raises(InvalidParameterError, match="shorter"):
        session.gc(0.0, policy=summarize(lambda text: text * 2))
    with pytest.raises(InvalidParameterError, match="NoneType"):
        session.gc(0.0, policy=summarize(lambda text: None))  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidParameterError, match="function"):
        summarize("text")  # type: ignore[arg-type]
    assert session.messages == before
    assert session.info().spans == info.spans


def test_a_dry_run_says_what_it_would_do_and_cost(session: Session) -> None:
    for i in range(4):
        session.generate(user(f"Tell me about {i}."), 30, **greedy(ignore_eos=True))
    before = session.info()
    shift = session.gc(0.1, dry_run=True)
    exact = session.gc(0.1, dry_run=True, exact=True)
    assert session.info() == before
    assert (shift.method, shift.tokens_recomputed) == ("shift", 0)
    assert (exact.method, exact.tokens_recomputed) == (
        "rebuild",
        before.used - exact.tokens_removed - before.spans[0].tokens,
    )
    assert exact.ms is not None
    done = session.gc(0.1)
    assert (done.spans_removed, done.tokens_removed) == (shift.spans_removed, shift.tokens_removed)
    session.generate(user("Go on."), 2, **greedy())
    assert session.gc(0.1, dry_run=True).ms is not None


def test_messages_taken_out_leave_the_rest_in_memory(runner: LlamaRunner) -> None:
    """A front end that shortens a history: what comes behind moves up."""
    receipts = {}
    for reuse in ("prefix", "chunks"):
        with runner.session("You are helpful.", reuse=reuse) as session:
            for i in range(4):
                session.generate(user(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
            given = session.messages
            shortened = [given[0], *given[3:], *user("Go on.")]
            completion = session.generate(shortened, 4, **greedy())
            assert session.messages == [
                *shortened,
                {"role": "assistant", "content": completion.text},
            ]
            receipts[reuse] = completion.receipt
    assert receipts["prefix"].first_difference == receipts["chunks"].first_difference
    assert receipts["prefix"].first_message == receipts["chunks"].first_message == 1
    assert receipts["prefix"].reused < 20
    assert receipts["chunks"].shifted > 80
    assert receipts["chunks"].reused > receipts["prefix"].reused + 80
    with pytest.raises(InvalidParameterError, match="reuse"):
        runner.session(reuse="all")  # type: ignore[arg-type]


def test_a_paused_session_stays_while_others_leave(model_path: Path) -> None:
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=2, parking_ram=0) as runner:
        paused, other, third = runner.session(), runner.session(), runner.session()
        paused.generate("The sky is", 4, **greedy())
        paused.pause()
        other.generate("The sea is", 4, **greedy())
        third.generate("The sun is", 4, **greedy())
        assert paused._sequence.n_cached > 0
        assert other._sequence.n_cached == 0
        paused.generate(" and", 4, **greedy())
        other.generate(" and", 4, **greedy())
        assert third._sequence.n_cached == 0


def test_a_named_session(runner: LlamaRunner) -> None:
    with runner.session(name="planner") as session:
        assert session.name == "planner"
        assert "planner" in repr(session)
        assert session.fork("critic").name == "critic"


def test_a_fork_where_there_is_one_slot(model_path: Path) -> None:
    """Both cannot be in the memory at once: they take turns, and compute nothing again."""
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=1) as runner, runner.session() as session:
        session.generate(user("Name a colour. " * 10), 4, **greedy())
        with session.fork() as fork:
            answers = [s.generate(user("Why?"), 6, **greedy()) for s in (session, fork)]
        assert answers[0].text == answers[1].text
        assert answers[1].receipt.recomputed < 25


def test_a_dropped_stream_leaves_what_it_said(session: Session) -> None:
    """Its turn is booked by the next call, as it may be dropped in any thread at any time."""
    stream = session.stream(user("Tell me a story."), 20, **greedy(ignore_eos=True))
    said = next(stream).text + next(stream).text
    del stream
    assert session.messages[-1]["role"] == "assistant"
    assert session.messages[-1]["content"].startswith(said)
    assert session.generate(user("Go on."), 4, **greedy()).receipt.reused > 10


# ---- what others do meanwhile ------------------------------------------------------------------


def test_a_stream_that_makes_room_keeps_others_out(runner: LlamaRunner) -> None:
    """Also while it rests because its context is full."""
    with runner.session("Be brief.") as session:
        for i in range(6):
            session.generate(user(f"Tell me about {i}."), 50, **greedy(ignore_eos=True))
        refused = 0
        with session.stream(user("Go on."), 200, **greedy(ignore_eos=True)) as stream:
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
        session.generate(user(f"Tell me about {i}."), 10, **greedy(ignore_eos=True))
    before = session.messages

    def meddle(text: str) -> str:
        assert session.messages == before  # but it may look
        session.clear()
        return "done"

    with pytest.raises(ContextBusyError, match="callback"):
        session.gc(0.0, policy=summarize(meddle))
    assert session.messages == before


@pytest.mark.parametrize(
    "proposed", [[[-5]], [[99]], [5], None, [["a"]], [[1.5]], "text", [[None]]]
)
def test_a_policy_that_proposes_nonsense_changes_nothing(session: Session, proposed: Any) -> None:
    for i in range(3):
        session.generate(user(f"Tell me about {i}."), 10, **greedy(ignore_eos=True))
    before, info = session.messages, session.info()
    with pytest.raises(InvalidParameterError, match="policy"):
        session.gc(0.0, policy=lambda spans: proposed)
    assert (session.messages, session.info()) == (before, info)


@pytest.mark.parametrize("gc_threshold", [0.2, 0.5, 1.0])
def test_answers_have_their_length_at_any_threshold(model_path: Path, gc_threshold: float) -> None:
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=1, gc_threshold=gc_threshold) as runner:
        session = runner.session("Be brief.")
        for i in range(6):
            session.generate(user(f"Tell me about {i}."), 40, **greedy(ignore_eos=True))
        completion = session.generate(user("Go on."), 180, **greedy(ignore_eos=True))
        assert len(completion.tokens) == 180 or gc_threshold * 512 < 180


def test_what_had_no_room_may_be_given_again(runner: LlamaRunner) -> None:
    """Front ends send the whole conversation each time, also what was dropped from memory."""
    given = [{"role": "system", "content": "Be brief."}]
    recomputed = []
    with runner.session() as session:
        for i in range(25):
            given.append({"role": "user", "content": f"Tell me about {i}."})
            completion = session.generate(given, 30, **greedy(ignore_eos=True))
            given.append({"role": "assistant", "content": completion.text})
            recomputed.append(completion.receipt.recomputed)
        assert len(session.messages) < len(given)
        assert session.messages[1:] == given[len(given) - len(session.messages) + 1 :]
        # An answer is read again where it was cut in a way that the tokenizer would not.
        assert max(recomputed) < 60
        # A summary stands for what it is of.
        session.gc(0.1, policy=summarize(lambda text: "We spoke of numbers."))
        given.append({"role": "user", "content": "Go on."})
        session.generate(given, 4, **greedy())
        assert session.messages[1]["content"] == "We spoke of numbers."
        receipt = session.generate(
            [
                *given,
                {"role": "assistant", "content": session.messages[-1]["content"]},
                *user("On."),
            ],
            4,
            **greedy(),
        ).receipt
        assert receipt.recomputed < 40


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


def test_a_parked_session_is_shifted_as_planned(model_path: Path) -> None:
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=1) as runner:
        session = runner.session("Be brief.")
        for i in range(4):
            session.generate(user(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
        runner.generate_stateless("The sky is", 1)
        assert session._sequence.n_cached == 0
        plan = session.gc(0.1, dry_run=True)
        done = session.gc(0.1)
        assert (plan.method, plan.tokens_recomputed) == (done.method, done.tokens_recomputed)
        assert done.method == "shift"
        assert session.generate(user("Go on."), 2, **greedy()).receipt.recomputed < 25


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_what_cannot_be_rewound_comes_back_whole(tiny_paths: dict[str, Path], kind: str) -> None:
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
