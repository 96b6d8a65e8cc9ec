"""Making room in a conversation: what goes, what stays, and what is left in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.conversation.transcript import Transcript
from llama_runner.errors import InvalidParameterError, PromptTooLongError
from llama_runner.memory import oldest_turns, sliding_window, summarize
from llama_runner.results import Span
from tests import inside
from tests.model.talk import greedy, question

N_CTX = 512


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    with LlamaRunner(
        model_path, n_ctx=N_CTX, n_seq_max=3, n_threads=1, flash_attention=False
    ) as runner:
        yield runner


def test_gc_reports_what_it_does(session: Session) -> None:
    for i in range(4):
        session.generate(question(f"Tell me about {i}."), 30, **greedy(ignore_eos=True))
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
        session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
    report = session.gc(0.0, exact=True)
    assert report.method == "rebuild"
    assert report.tokens_recomputed > 0
    session.append(question("And now?"))
    with runner.session() as fresh:
        fresh.append(session.messages)
        assert inside.ledger(fresh) == inside.ledger(session)
        expected = inside.sequence(fresh).next_logits()
    np.testing.assert_allclose(
        inside.sequence(session).next_logits(), expected, rtol=0, atol=0.05 * np.ptp(expected)
    )


@pytest.mark.parametrize(
    "proposed", [[[-5]], [[99]], [5], None, [["a"]], [[1.5]], "text", [[None]]]
)
def test_a_policy_that_proposes_nonsense_changes_nothing(session: Session, proposed: Any) -> None:
    for i in range(3):
        session.generate(question(f"Tell me about {i}."), 10, **greedy(ignore_eos=True))
    before, info = session.messages, session.info()
    with pytest.raises(InvalidParameterError, match="policy"):
        session.gc(0.0, policy=lambda spans: proposed)
    assert (session.messages, session.info()) == (before, info)


def test_what_a_collection_leaves_need_not_be_computed_again(session: Session) -> None:
    """What is left reads as if the turns that went had never been said."""
    for i in range(6):
        session.generate(question(f"Say hello {i}."), 10 + 10 * (i % 2), **greedy())
    report = session.gc(0.1)
    assert report.method == "shift"
    n_left = session.info().used
    completion = session.generate(question("Go on."), 4, **greedy())
    assert completion.receipt.reused >= n_left - 1
    assert completion.receipt.shifted > 0
    assert completion.receipt.first_difference is None


def test_turns_of_a_conversation_sent_whole_are_evicted_one_by_one(session: Session) -> None:
    given = [{"role": "system", "content": "Be brief."}]
    for i in range(30):
        given += [*question(f"What is {i}?"), {"role": "assistant", "content": f"It is {i}."}]
    completion = session.generate([*given, *question("Go on.")], 4, **greedy())
    assert len(completion.tokens) == 4
    assert session.messages[0] == given[0]
    n_left = len(session.messages)
    assert 5 < n_left < len(given)
    assert session.messages[1:-2] == given[-(n_left - 3) :]


def test_a_summary_replaces_the_evicted_turns(session: Session) -> None:
    given: list[str] = []

    def write(text: str) -> str:
        given.append(text)
        return f"Summary {len(given)}."

    for i in range(4):
        session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
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
    answer = session.generate(question("Go on."), 8, **greedy())
    # The same as saying it all at once.
    whole = inside.ledger(session)[: answer.usage.total]
    runner_prompt = whole[: answer.usage.prompt_tokens]
    assert session.messages[-1]["content"] == answer.text
    with_summary = session.gc(0.0, policy=summarize(write))
    assert "Summary 1." in given[1]  # the next summary is of the last one, too
    assert [m["content"] for m in session.messages[:2]] == [before[0]["content"], "Summary 2."]
    assert with_summary.spans_removed == 3
    assert runner_prompt


def test_a_summary_is_made_of_what_was_said_and_called(session: Session) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "find", "arguments": '{"x": 1}'}}
    session.append(
        [
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("Find ", "it.")]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": "It is 42."},
            *question("Thanks."),
        ]
    )
    given: list[str] = []
    session.gc(0.0, policy=summarize(lambda text: given.append(text) or "It is 42."))
    asked, called, *rest = given[0].split("\n\n")
    assert asked == "user: Find it."
    assert called.startswith("assistant: [")
    assert json.loads(called.removeprefix("assistant: ")) == [call]
    assert rest == ["tool: 42", "assistant: It is 42."]


def test_a_summary_stands_behind_what_the_template_writes_by_itself(runner: LlamaRunner) -> None:
    """Where nobody gave a system message, the model's template writes one of its own."""
    with runner.session() as session:
        for i in range(3):
            session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
        opening = session.info().spans[0]
        header = inside.ledger(session)[: opening.tokens]
        session.gc(0.0, policy=summarize(lambda text: "We spoke of numbers."))
        n_left = session.info().used
        receipt = session.generate(question("Go on."), 4, **greedy(ignore_eos=True)).receipt
        assert receipt.first_difference is None
        roles = [span.role for span in session.info().spans]
        assert roles == ["system", "summary", "user", "assistant", "user", "assistant"]
        assert inside.ledger(session)[: opening.tokens] == header
        answer = session.generate([*session.messages, *question("And?")], 4, **greedy())
        assert answer.receipt.first_difference is None
        assert answer.receipt.reused >= n_left


def test_a_summary_that_fails_or_is_too_long_changes_nothing(session: Session) -> None:
    for i in range(3):
        session.generate(question(f"Tell me about {i}."), 10, **greedy(ignore_eos=True))
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
        session.generate(question(f"Tell me about {i}."), 30, **greedy(ignore_eos=True))
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
    session.generate(question("Go on."), 2, **greedy())
    assert session.gc(0.1, dry_run=True).ms is not None


def test_messages_taken_out_leave_the_rest_in_memory(runner: LlamaRunner) -> None:
    """A front end that shortens a history: what comes behind moves up."""
    receipts = {}
    for reuse in ("prefix", "chunks"):
        with runner.session("You are helpful.", reuse=reuse) as session:
            for i in range(4):
                session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
            given = session.messages
            shortened = [given[0], *given[3:], *question("Go on.")]
            completion = session.generate(shortened, 4, **greedy())
            assert session.messages == [
                *shortened,
                {"role": "assistant", "content": completion.text},
            ]
            receipts[reuse] = completion.receipt
    # With "prefix", what opens a user's message is the same in the first and in the second.
    assert receipts["prefix"].first_difference > receipts["chunks"].first_difference
    assert receipts["prefix"].first_message == receipts["chunks"].first_message == 1
    assert receipts["prefix"].reused < 25
    assert receipts["chunks"].shifted > 80
    assert receipts["chunks"].reused > receipts["prefix"].reused + 80
    with pytest.raises(InvalidParameterError, match="reuse"):
        runner.session(reuse="all")  # type: ignore[arg-type]


def test_a_parked_session_is_shifted_as_planned(model_path: Path) -> None:
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=1) as runner:
        session = runner.session("Be brief.")
        for i in range(4):
            session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
        runner.generate_stateless("The sky is", 1)
        assert inside.sequence(session).n_cached == 0
        plan = session.gc(0.1, dry_run=True)
        done = session.gc(0.1)
        assert (plan.method, plan.tokens_recomputed) == (done.method, done.tokens_recomputed)
        assert done.method == "shift"
        assert session.generate(question("Go on."), 2, **greedy()).receipt.recomputed < 25


def test_what_a_collection_computes_is_in_the_next_receipt(model_path: Path) -> None:
    """But its time is not in the timings of a call that began later."""
    template = (
        "{% for m in messages %}{% if loop.first %}"
        "{{ 'A long talk. ' if messages|length > 12 else 'This one is short. ' }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with LlamaRunner(model_path, n_ctx=1024, n_seq_max=2, chat_template=template) as runner:
        session = runner.session()
        for i in range(8):
            session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
        report = session.gc(0.2)
        assert (report.method, report.tokens_recomputed > 0) == ("shift", True)
        completion = session.generate(question("Go on."), 2, **greedy())
        receipt, timings = completion.receipt, completion.timings
        n_prompt = completion.usage.prompt_tokens
        assert receipt.reused + receipt.recomputed == n_prompt
        n_new = round(timings.prefill_tokens_per_second * timings.prefill_ms / 1e3)
        assert receipt.recomputed == n_new + report.tokens_recomputed
        again = session.generate(question("More."), 2, **greedy()).receipt
        assert again.recomputed < receipt.recomputed


def test_functions_of_the_caller_may_use_the_memory(model_path: Path) -> None:
    """A policy, too: the conversation comes back before it is decided how it is shortened."""
    with LlamaRunner(model_path, n_ctx=512, n_seq_max=1) as runner:
        session = runner.session("Be brief.")
        for i in range(4):
            session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))

        def policy(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
            runner.generate_stateless("The sky is", 1)
            return oldest_turns(spans)

        report = session.gc(0.1, policy=policy)
        assert (report.method, report.tokens_recomputed) == ("shift", 0)
        assert session.generate(question("Go on."), 2, **greedy()).receipt.recomputed < 25


def test_a_collection_that_lost_the_memory_says_so(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may need the room after it was decided to move the rest up."""
    for i in range(4):
        session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
    apply = Transcript.apply

    def apply_after_all(self: Transcript, *args: Any) -> Any:
        self.sequence.evict()
        return apply(self, *args)

    monkeypatch.setattr(Transcript, "apply", apply_after_all)
    report = session.gc(0.1)
    assert (report.method, report.tokens_recomputed) == ("rebuild", session.info().used)


def test_nothing_counts_as_moved_by_a_call_that_raised(runner: LlamaRunner) -> None:
    with runner.session("You are helpful.", reuse="chunks") as session:
        for i in range(4):
            session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
        given = session.messages
        with pytest.raises(PromptTooLongError):
            session.generate([given[0], *given[3:], *question("word " * N_CTX)], 4, **greedy())
        assert session.generate([*given, *question("Go on.")], 4, **greedy()).receipt.shifted == 0


def test_turns_that_had_no_room_may_be_sent_again(runner: LlamaRunner) -> None:
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
                *question("On."),
            ],
            4,
            **greedy(),
        ).receipt
        assert receipt.recomputed < 40


def test_a_dry_run_knows_that_shared_cells_are_not_moved(session: Session) -> None:
    for i in range(4):
        session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
    with session.fork():
        plan = session.gc(0.1, dry_run=True)
        done = session.gc(0.1)
        assert plan.method == done.method == "rebuild"
        assert plan.tokens_recomputed == done.tokens_recomputed > 0


def test_an_exact_collection_mends_what_earlier_ones_moved(session: Session) -> None:
    for i in range(4):
        session.generate(question(f"Tell me about {i}."), 20, **greedy(ignore_eos=True))
    assert session.gc(0.1).method == "shift"
    n_moved = len(inside.sequence(session)) - inside.sequence(session).n_exact
    assert n_moved > 0
    planned = session.gc(0.9, exact=True, dry_run=True)
    report = session.gc(0.9, exact=True)
    assert report.method == planned.method == "rebuild"
    assert (report.spans_removed, report.tokens_recomputed) == (0, n_moved)
    assert inside.sequence(session).n_exact == len(inside.sequence(session))
    assert session.gc(0.9, exact=True).method == "none"


def test_bytes_are_those_in_the_memory_now(session: Session) -> None:
    session.append(question("Hello. " * 20))
    assert session.info().bytes == 0
    session.generate(question("Go on."), 8, **greedy(ignore_eos=True))
    assert session.info().bytes > 0
    inside.sequence(session).evict()
    assert session.info().bytes == 0


@pytest.mark.parametrize("kind", ["swa", "hybrid", "plain"])
@pytest.mark.parametrize("swa_full", [True, False])
def test_a_dry_run_knows_what_the_memory_can_keep(
    tiny_paths: dict[str, Path], kind: str, swa_full: bool
) -> None:
    options: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "swa_full": swa_full}
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    with LlamaRunner(tiny_paths[kind], chat_template=template, **options) as runner:
        session = runner.session("abc")
        for i in range(8):
            session.generate(question(f"the a {i} " * 6), 12, **greedy(ignore_eos=True))
        for target in (0.4, 0.2, 0.0):
            planned = session.gc(target, dry_run=True)
            done = session.gc(target)
            assert planned.tokens_recomputed == done.tokens_recomputed
            assert planned.method == done.method


def test_a_summary_is_one_also_where_something_before_it_changes(session: Session) -> None:
    """So that a later collection makes one summary of it and of what came since."""
    told: list[str] = []

    def notes(text: str) -> str:
        told.append(text)
        return "They talked."

    for text in ("One, please. " * 3, "Two, please. " * 3, "Three."):
        session.generate(question(text), 8, **greedy())
    session.pin(1)
    session.gc(0, policy=summarize(notes))
    given = session.messages
    given[1]["content"] = "One, please."
    session.generate([*given, *question("Four, please. " * 6)], 8, **greedy())
    assert [span.role for span in session.info().spans].count("summary") == 1
    session.gc(0, policy=summarize(notes))
    assert "They talked." in told[-1]
