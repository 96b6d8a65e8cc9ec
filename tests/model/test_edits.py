"""Messages that are changed in the middle of a conversation that is given whole."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_runner import LlamaRunner, Session
from llama_runner._core import Request
from llama_runner.conversation.turns import Turns
from llama_runner.errors import InvalidParameterError, PromptTooLongError
from llama_runner.results import Receipt
from tests import inside
from tests.model.talk import assistant, greedy, question, user

N_CTX = 768
SYSTEM = {"role": "system", "content": "You are helpful. It is 10:15."}
TOOL = {"role": "tool", "content": "A very long table: " + "1 2 3 4 5 6 7 8 9 " * 4}

Message = dict[str, Any]


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(
        model_path, n_ctx=N_CTX, n_seq_max=3, n_threads=1, flash_attention=False
    ) as runner:
        yield runner


@pytest.fixture(scope="module")
def history(runner: LlamaRunner) -> list[Message]:
    """What was said before something of it is changed."""
    with runner.session() as session:
        session.append([SYSTEM, user("Look it up."), assistant("I call the table."), TOOL])
        for i in range(3):
            asked = () if i == 0 else question(f"Tell me about {i}.")
            session.generate(asked, 24, **greedy(ignore_eos=True))
        return session.messages


def talked(runner: LlamaRunner, history: list[Message], reuse: Any = "chunks") -> Session:
    """A session that has it in memory."""
    session = runner.session(reuse=reuse)
    session.append(history)
    session.generate(max_tokens=1, **greedy())
    session.generate([*history, user("And?")], 1, **greedy())
    return session


def changed(history: list[Message], *indices: int) -> list[Message]:
    """The history, some of it in other words, and a question."""
    given = copy.deepcopy(history)
    for i in indices:
        given[i]["content"] = given[i]["content"][:12] + " [more was here]"
    return [*given, user("Go on.")]


@pytest.mark.parametrize(
    "indices", [[0], [1], [2], [3], [4], [2, 3], [0, 5], [0, 1, 2, 3, 4, 5, 6]]
)
def test_what_follows_a_changed_message_is_moved(
    runner: LlamaRunner, history: list[Message], indices: list[int]
) -> None:
    given = changed(history, *indices)
    receipts = {}
    for reuse in ("prefix", "chunks"):
        with talked(runner, history, reuse) as session:
            completion = session.generate(given, 4, **greedy())
            assert session.messages == [*given, assistant(completion.text)]
            assert completion.receipt.reused + completion.receipt.recomputed == (
                completion.usage.prompt_tokens
            )
            receipts[reuse] = completion.receipt
    prefix, chunks = receipts["prefix"], receipts["chunks"]
    assert (chunks.first_message, chunks.first_difference) == (indices[0], prefix.first_difference)
    assert prefix.shifted == 0
    # Computed again: the changed messages from where they differ, and the question.
    assert chunks.recomputed < 24 * (1 + len(indices))
    assert 0 < chunks.shifted <= chunks.reused - chunks.first_difference
    assert chunks.recomputed < prefix.recomputed


def test_the_changed_message_is_computed_as_if_it_had_always_been(
    runner: LlamaRunner, history: list[Message]
) -> None:
    """What is behind it is not, but for where it stands."""
    given = changed(history, 3)
    with talked(runner, history) as session, runner.session() as fresh:
        session.generate(given, 1, **greedy())
        fresh.append(given)
        sequence, expected = inside.sequence(session), inside.sequence(fresh)
        assert (sequence.tokens[: len(expected)] == expected.tokens).all()
        n_exact = sequence.n_exact
        assert session.info().spans[4].start == n_exact
        moved, afresh = sequence.next_logits(), expected.next_logits()
        sequence.truncate(n_exact)
        expected.truncate(n_exact)
        np.testing.assert_allclose(
            sequence.next_logits(), expected.next_logits(), rtol=0, atol=2e-3 * np.ptp(afresh)
        )
        assert not np.allclose(moved, afresh, rtol=0, atol=2e-3 * np.ptp(afresh))


def test_shortening_a_message_to_its_beginning_computes_nothing_of_it(
    runner: LlamaRunner, history: list[Message]
) -> None:
    given = copy.deepcopy(history)
    given[3]["content"] = given[3]["content"][:-36]
    with talked(runner, history) as session:
        receipt = session.generate([*given, user("Go on.")], 1, **greedy()).receipt
        assert receipt.shifted > 60
        assert receipt.recomputed < 16  # the question and what closes the message


@pytest.mark.parametrize(("index", "gone", "first"), [(3, slice(5, 7), 3), (5, slice(1, 4), 1)])
def test_removed_and_changed_at_once(
    runner: LlamaRunner, history: list[Message], index: int, gone: slice, first: int
) -> None:
    given = changed(history, index)
    del given[gone]
    with talked(runner, history) as session:
        completion = session.generate(given, 1, **greedy())
        assert session.messages == [*given, assistant(completion.text)]
        receipt = completion.receipt
        assert receipt.recomputed < 40
        assert receipt.first_message == first
        assert receipt.first_difference is not None
        assert 0 < receipt.shifted <= receipt.reused - receipt.first_difference


@pytest.mark.parametrize("reuse", ["prefix", "chunks"])
def test_pins_and_turns_stay_where_they_were(
    runner: LlamaRunner, history: list[Message], reuse: str
) -> None:
    with talked(runner, history, reuse) as session:
        session.pin(3)
        session.pin(6)
        before = session.info().spans
        session.generate(changed(history, 3, 4), 1, **greedy())
        after = session.info().spans
        for old, new in zip(before[:8], after[:8], strict=True):
            assert (new.role, new.pinned, new.turn) == (old.role, old.pinned, old.turn)
        assert after[3].tokens < before[3].tokens


def test_a_conversation_that_lost_its_beginning_is_known_by_the_rest(
    runner: LlamaRunner, history: list[Message]
) -> None:
    """A front end sends also what had no room, and another system message each time."""
    recomputed = {}
    for reuse in ("prefix", "chunks"):
        with talked(runner, history, reuse) as session:
            whole = session.messages
            session.gc(0.2)
            left = session.messages
            assert 3 < len(left) < len(whole)
            given = changed(whole, 0)
            receipt = session.generate(given, 1, **greedy()).receipt
            assert session.messages[:-1] == [given[0], *left[1:], given[-1]]
            assert receipt.first_message == 0
            recomputed[reuse] = receipt.recomputed
            # And again, with and without another change.
            for words in (given[0]["content"], "You are helpful. It is 11:59."):
                answer = session.messages[-1]
                given = [{**given[0], "content": words}, *given[1:], answer, user("Well?")]
                n_left = len(session.messages) + 1
                session.generate(given, 1, **greedy())
                assert session.messages[:-1] == [given[0], *given[len(given) - n_left + 1 :]]
    assert recomputed["chunks"] < 30 < recomputed["prefix"]


def receipt_of_an_edit(path: Path, **options: Any) -> Receipt:
    options = {"n_ctx": 512, "n_threads": 1, "chat_template": TEMPLATE} | options
    said = [{"role": "system", "content": "abc"}]
    for i in range(6):
        said += [user(f"the {i} and {i}"), assistant(f"a {i} or {i}")]
    edited = [*said[:3], user("another"), *said[4:], user("more")]
    with LlamaRunner(path, **options) as runner:
        session = runner.session(reuse="chunks")
        session.append(said)
        session.generate([*said, user("?")], 1, **greedy())
        completion = session.generate(edited, 4, **greedy())
        assert session.messages == [*edited, assistant(completion.text)]
        fresh = runner.session()
        fresh.generate(edited, 1, **greedy())
        sequence, expected = inside.sequence(session), inside.sequence(fresh)
        n = completion.usage.prompt_tokens
        assert sequence.tokens[:n].tolist() == expected.tokens[:n].tolist()
        if completion.receipt.shifted == 0:
            fresh.clear()
            fresh.append([int(token) for token in sequence.tokens])
            logits = expected.next_logits()
            np.testing.assert_allclose(
                sequence.next_logits(), logits, rtol=0, atol=2e-3 * np.ptp(logits)
            )
        return completion.receipt


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_where_the_memory_cannot_move_it_is_computed_again(tiny_paths: dict[str, Path]) -> None:
    assert receipt_of_an_edit(tiny_paths["plain"]).shifted > 100
    for kind, options in [
        ("plain", {"n_seq_max": 1}),
        ("plain", {"kv_layout": "streams", "n_ctx": 2048}),
        ("swa", {}),
        ("recurrent", {}),
        ("hybrid", {}),
        ("mrope", {}),
    ]:
        assert receipt_of_an_edit(tiny_paths[kind], **options).shifted == 0


def test_shared_cells_stay_where_they_are(runner: LlamaRunner, history: list[Message]) -> None:
    """A fork has them, too, and goes on as before."""
    with talked(runner, history) as session, session.fork() as fork, session.fork() as other:
        other.append(question("Why?"))
        expected = inside.sequence(other).next_logits()
        assert session.generate(changed(history, 3), 4, **greedy()).receipt.shifted == 0
        fork.append(question("Why?"))
        assert inside.sequence(fork).n_cached > 0
        logits = inside.sequence(fork).next_logits()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3 * np.ptp(expected))


def test_a_call_that_raises_changes_nothing(runner: LlamaRunner, history: list[Message]) -> None:
    with talked(runner, history) as session, session.fork() as other:
        other.append(question("Why?"))
        expected = inside.sequence(other).next_logits()
        other.close()
        before = session.messages, session.info().spans
        with pytest.raises(PromptTooLongError):
            session.generate([*changed(history, 3), user("word " * N_CTX)], 1, **greedy())
        assert (session.messages, session.info().spans) == before
        assert inside.sequence(session).n_exact == len(inside.sequence(session))
        session.append(question("Why?"))
        logits = inside.sequence(session).next_logits()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3 * np.ptp(expected))


def shallow_runner(tiny_paths: dict[str, Path], **options: Any) -> LlamaRunner:
    """Of one layer: its cells depend on their own tokens and places alone, so a move is exact."""
    given: dict[str, Any] = {"kv_type": "f32", "flash_attention": False, "n_ctx": 1024}
    given |= {"n_threads": 1, "chat_template": TEMPLATE} | options
    return LlamaRunner(tiny_paths["shallow"], **given)


def said(n: int) -> list[Message]:
    """A system message and n turns."""
    turns = [[user(f"the {i} and {i}"), assistant(f"a {i} or {i}")] for i in range(n)]
    return [{"role": "system", "content": "abc"}, *(m for turn in turns for m in turn)]


@pytest.mark.parametrize("moved", [0, 1])
def test_what_the_fork_took_over_from_others_stays_where_it_is(
    tiny_paths: dict[str, Path], moved: int
) -> None:
    """Another session may have the changed conversation already."""
    old = said(6)
    new = [old[0], user("Now a much longer text than before: " + "abc the a " * 8), *old[2:]]
    with shallow_runner(tiny_paths) as runner, shallow_runner(tiny_paths) as afresh:
        sessions = [runner.session(reuse="chunks") for _ in range(2)]
        for session, history in zip(sessions, (old, new), strict=True):
            session.append(history)
            session.generate([*history, user("?")], 2, **greedy(ignore_eos=True))
        sessions[0].generate([*new, user("more")], 1, **greedy())
        system = {"role": "system", "content": "abc abc abc the the 1 2 3"}
        given = [system, *sessions[moved].messages[1:], user("x")]
        sessions[moved].generate(given, 1, **greedy())
        for session in sessions:
            fresh = afresh.session()
            fresh.append(inside.ledger(session))
            expected = inside.sequence(fresh).next_logits()
            np.testing.assert_allclose(
                inside.sequence(session).next_logits(),
                expected,
                rtol=0,
                atol=2e-3 * np.ptp(expected),
            )


def test_sessions_that_begin_alike(tiny_paths: dict[str, Path]) -> None:
    """They share cells past the end of the system message, which both go on having."""
    system = {"role": "system", "content": "the abc " * 8}
    with shallow_runner(tiny_paths) as runner:
        first, second = (runner.session(reuse="chunks") for _ in range(2))
        for session in (first, second):
            session.append([system, *said(6)[1:]])
            session.generate([*session.messages, user("?")], 1, **greedy())
        changed = {"role": "system", "content": "the abc " * 7 + "a"}
        receipts = [
            session.generate([changed, *session.messages[1:], user("x")], 1, **greedy()).receipt
            for session in (first, second)
        ]
        assert [receipt.shifted > 0 for receipt in receipts] == [False, True]
    with shallow_runner(tiny_paths) as runner:
        session, other = runner.session(reuse="chunks"), runner.session()
        session.append([system, *said(6)[1:]])
        session.generate([*session.messages, user("?")], 1, **greedy())
        other.generate([system, user("b")], 1, **greedy())
        assert inside.sequence(session).n_shared > session.info().spans[0].tokens
        receipt = session.generate([changed, *session.messages[1:], user("x")], 1, **greedy())
        assert receipt.receipt.shifted > 100


def test_a_text_that_comes_again_is_not_taken_for_another(tiny_paths: dict[str, Path]) -> None:
    history = said(5)
    history[2] = {"role": "tool", "content": "the result is abc"}
    history[6] = {"role": "tool", "content": "OK"}
    for reuse in ("prefix", "chunks"):
        with shallow_runner(tiny_paths) as runner:
            session = runner.session(reuse=reuse)
            session.append(history)
            session.generate([*history, user("?")], 1, **greedy())
            session.pin(2)
            session.pin(6)
            session.pin(8)
            given = [*history[:2], {"role": "tool", "content": "OK"}, *history[3:], user("x")]
            receipt = session.generate(given, 1, **greedy()).receipt
            spans = session.info().spans
            assert [i for i, span in enumerate(spans) if span.pinned] == [0, 2, 6, 8]
            assert (receipt.shifted > 0) == (reuse == "chunks")


@pytest.mark.parametrize("opening", ["abc", "abd"])
def test_messages_like_those_that_went_are_kept(tiny_paths: dict[str, Path], opening: str) -> None:
    """What the session shows can be given back, also where an agent polls."""
    history = [{"role": "system", "content": "abc"}, user("Look.")]
    for _ in range(8):
        history += [assistant("check"), {"role": "tool", "content": "pending"}]
    with shallow_runner(tiny_paths, n_ctx=512) as runner:
        session = runner.session()
        session.append(history)
        session.generate(max_tokens=1, **greedy())
        session.gc(0.25, policy="tool_results")
        left = session.messages
        assert len(left) < len(history)
        given = [{"role": "system", "content": opening}, *left[1:], user("more")]
        session.generate(given, 1, **greedy())
        assert session.messages[:-1] == given


def test_a_message_that_becomes_too_long_makes_room_as_always(
    tiny_paths: dict[str, Path],
) -> None:
    results = []
    for reuse in ("prefix", "chunks"):
        with shallow_runner(tiny_paths, n_ctx=512) as runner:
            session = runner.session(reuse=reuse)
            session.append(said(8))
            session.generate([*session.messages, user("?")], 1, **greedy())
            given = session.messages
            given[3] = user("the a " * 60)
            completion = session.generate([*given, user("x")], 1, **greedy())
            receipt = completion.receipt
            assert receipt.reused + receipt.shared + receipt.recomputed == (
                completion.usage.prompt_tokens
            )
            results.append((session.messages, session.info().state))
    assert results[0] == results[1]
    assert results[0][1] == "cleaned"


@pytest.fixture
def computed_apart(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were computed by themselves, each time."""
    counts: list[int] = []
    decode = Turns.decode

    def counted(self: Turns, request: Request) -> None:
        decode(self, request)
        counts.append(request.counts[-1])

    monkeypatch.setattr(Turns, "decode", counted)
    return counts


@pytest.mark.parametrize("room", [False, True])
def test_a_message_is_computed_apart_where_there_is_room_for_it_beside_the_old_one(
    tiny_paths: dict[str, Path], computed_apart: list[int], room: bool
) -> None:
    with shallow_runner(tiny_paths, n_ctx=1536 if room else 1024) as runner:
        session = runner.session(reuse="chunks")
        session.append([{"role": "system", "content": "abc"}, user("a b " * 100), *said(5)[1:]])
        session.generate([*session.messages, user("?")], 1, **greedy())
        given = session.messages
        given[1] = user("b a " * 190)
        receipt = session.generate([*given, user("x")], 1, **greedy()).receipt
        assert session.messages[:-1] == [*given, user("x")]
        assert (len(computed_apart), receipt.shifted > 0) == ((1, True) if room else (0, False))


def test_nothing_is_computed_apart_where_what_follows_is_shown_differently(
    tiny_paths: dict[str, Path], computed_apart: list[int]
) -> None:
    """Though the markers between the messages are the same."""
    counting = (
        "{% for m in messages %}<{{ m.role }}>{{ messages[0].content | length }}{{ m.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with shallow_runner(tiny_paths, chat_template=counting) as runner:
        session = runner.session(reuse="chunks")
        session.append(said(6))
        session.generate([*said(6), user("?")], 1, **greedy())
        given = session.messages
        given[0] = {"role": "system", "content": "abcd"}
        receipt = session.generate([*given, user("x")], 1, **greedy()).receipt
        assert session.messages[:-1] == [*given, user("x")]
        assert (computed_apart, receipt.shifted) == ([], 0)


def test_a_difference_that_the_template_does_not_show_changes_nothing(
    tiny_paths: dict[str, Path],
) -> None:
    trimmed = TEMPLATE.replace("m.content", "m.content | trim")
    receipts = []
    for reuse in ("prefix", "chunks"):
        with shallow_runner(tiny_paths, chat_template=trimmed) as runner:
            session = runner.session(reuse=reuse)
            session.append(said(6))
            session.generate([*said(6), user("?")], 1, **greedy())
            given = session.messages
            given[3] = user(given[3]["content"] + "  ")
            receipts.append(session.generate([*given, user("x")], 1, **greedy()).receipt)
            assert session.messages[:-1] == [*given, user("x")]
    assert receipts[0] == receipts[1]
    assert receipts[0].shifted == 0


def test_a_parked_conversation_is_moved_as_one_in_memory(
    runner: LlamaRunner, history: list[Message]
) -> None:
    receipts = []
    for parked in (False, True):
        with talked(runner, history) as session:
            if parked:
                inside.sequence(session).evict()
            given = changed(history, 5)
            del given[1:3]
            receipts.append(session.generate(given, 1, **greedy()).receipt)
    assert receipts[0] == receipts[1]
    assert receipts[0].shifted > 0


def lengthened(history: list[Message]) -> list[Message]:
    """The history with a message that takes long to compute, and a question."""
    given = changed(history, 3)
    given[3]["content"] = "one two three " * 120
    return given


def wait_until_computing(session: Session, ended: Callable[[], bool]) -> None:
    """Until a call of another thread computes on the session, or has ended."""
    while not inside.is_computing(session) and not ended():
        time.sleep(1e-4)


def test_computing_a_changed_message_is_cancelled(
    runner: LlamaRunner, history: list[Message]
) -> None:
    with talked(runner, history) as session:
        before = session.messages
        given = lengthened(history)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(session.generate, given, 100, **greedy(ignore_eos=True))
            wait_until_computing(session, answer.done)
            session.cancel()
            completion = answer.result()
        assert (completion.finish_reason, completion.tokens) == ("cancelled", ())
        assert session.messages == before
        assert session.generate(given, 3, **greedy(ignore_eos=True)).finish_reason == "length"


def test_computing_a_changed_message_is_interrupted(
    runner: LlamaRunner, history: list[Message]
) -> None:
    with talked(runner, history) as session:
        before = session.messages
        given = lengthened(history)
        main = threading.main_thread().ident
        assert main is not None
        ended = threading.Event()

        def interrupt() -> None:
            wait_until_computing(session, ended.is_set)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            thread.start()
            session.generate(given, 100, **greedy(ignore_eos=True))
            ended.set()
            thread.join()
        assert session.messages == before
        assert session.generate(given, 3, **greedy(ignore_eos=True)).finish_reason == "length"


def test_an_error_before_the_changed_message_is_computed_is_the_one_that_comes(
    runner: LlamaRunner, history: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Turns, request: object) -> None:
        raise KeyError("mine")

    with talked(runner, history) as session:
        before = session.messages
        with monkeypatch.context() as patched:
            patched.setattr(Turns, "decode", fail)
            with pytest.raises(KeyError, match="mine"):
                session.generate(changed(history, 3), 1, **greedy())
        assert session.messages == before
        assert session.generate(changed(history, 3), 1, **greedy()).receipt.shifted > 0


def test_only_a_branch_can_be_grafted(runner: LlamaRunner, history: list[Message]) -> None:
    with talked(runner, history) as session, runner.session("Another.") as other:
        for branch in (inside.sequence(session), inside.sequence(other)):
            with pytest.raises(InvalidParameterError):
                inside.sequence(session).graft(branch, 20, 40)
        assert session.generate(changed(history, 3), 1, **greedy()).receipt.shifted > 0
