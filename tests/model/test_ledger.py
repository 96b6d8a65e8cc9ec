"""The ledger is the truth: after every operation it agrees with what llama.cpp holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from llama_runner._core import Context, Model, Request, Sequence
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    InvalidParameterError,
    PromptTooLongError,
)
from llama_runner.params import GenerationParams
from tests.model.requesting import request_for
from tests.model.tiny_models import BOS, EOS, KINDS, N_VOCAB, WINDOW

N_CTX, N_SEQ_MAX = 256, 3
WORTH_SHARING = 32  # tokens more than a sequence has in the memory already

# Not the end of generation, so that conversations grow.
tokens_of_text = st.lists(
    st.integers(0, N_VOCAB - 1).filter(lambda token: token != EOS), min_size=1, max_size=90
)


def new_context(model: Model, **options: Any) -> Context:
    """Small batches; keys and values in full precision, so that reuse cannot be told from not."""
    options = {"n_ctx": N_CTX, "n_seq_max": N_SEQ_MAX, "kv_type": "f32"} | options
    return Context(model, n_batch=32, n_ubatch=16, flash_attention=False, **options)


def params(max_tokens: int, **options: Any) -> GenerationParams:
    return GenerationParams(max_tokens=max_tokens, temperature=0, seed=0, **options)


class Conversation:
    """A sequence, and what must be in it."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.tokens: list[int] = []
        self.request: Request | None = None
        self.before: list[int] = []
        """The tokens from which the open request goes on."""
        self.shifted_from: int | None = None
        """From here on the cells remember tokens that were removed: only the positions count."""

    def append(self, tokens: list[int]) -> None:
        self.sequence.append(tokens)
        self.tokens += tokens

    def open(self, max_tokens: int) -> None:
        self.before = list(self.tokens)
        self.request = request_for(self.sequence, params(max_tokens))

    def forget(self, n_kept: int) -> None:
        del self.tokens[n_kept:]
        if self.shifted_from is not None and self.shifted_from >= n_kept:
            self.shifted_from = None


class Machine(RuleBasedStateMachine):
    """Conversations on one context, in any order of operations."""

    model: Model
    options: Mapping[str, Any]

    @initialize()
    def start(self) -> None:
        self.context = new_context(self.model, **self.options)
        self.parks = "parking_ram" in self.options
        self.may_share = False
        # Computes every answer from the beginning, in a memory of its own.
        self.reference = new_context(self.model, n_seq_max=1)
        self.conversations: list[Conversation] = []
        self.begin([BOS, 40])
        self.begin([BOS])

    def teardown(self) -> None:
        if hasattr(self, "context"):
            self.context.close()
            self.reference.close()

    def chosen(self, data: st.DataObject, *, busy: bool | None = None) -> Conversation:
        these = [c for c in self.conversations if busy is None or (c.request is not None) == busy]
        return data.draw(st.sampled_from(these), label="conversation")

    def some_idle(self) -> bool:
        return any(c.request is None for c in self.conversations)

    def some_busy(self) -> bool:
        return any(c.request is not None for c in self.conversations)

    def continuation(self, tokens: list[int], n: int) -> list[int]:
        """What the model says to these tokens, computed afresh."""
        sequence = self.reference.new_sequence()
        sequence.append(tokens)
        request = request_for(sequence, params(n), temporary=True)
        request.run()
        return sequence.tokens.tolist()[len(tokens) :]

    def book(self, conversation: Conversation) -> None:
        """Check what the open request has added so far, and add it to the model."""
        request = conversation.request
        assert request is not None
        ledger = conversation.sequence.tokens.tolist()
        n_before = len(conversation.before)
        assert ledger[:n_before] == conversation.before
        added = ledger[n_before:]
        assert added == [*request.tokens, *added[len(request.tokens) :]]
        assert added[len(request.tokens) :] == ([EOS] if request.finish_reason == "stop" else [])
        if added and conversation.shifted_from is None:
            assert added == self.continuation(conversation.before, len(added))
        conversation.tokens = ledger
        if request.done:
            assert not conversation.sequence.busy
            conversation.request = None

    # ---- operations ----------------------------------------------------------------------------

    @precondition(lambda self: len(self.conversations) < N_SEQ_MAX + 2)
    @rule(tokens=st.just([]) | tokens_of_text)
    def begin(self, tokens: list[int]) -> None:
        self.conversations.append(Conversation(self.context.new_sequence()))
        self.conversations[-1].append(tokens)

    @precondition(some_idle)
    @rule(data=st.data(), tokens=tokens_of_text, max_tokens=st.integers(1, 4))
    def take_a_turn(self, data: st.DataObject, tokens: list[int], max_tokens: int) -> None:
        conversation = self.chosen(data, busy=False)
        if len(conversation.tokens) + len(tokens) < self.context.n_ctx_seq:
            conversation.append(tokens)
        self.generate(conversation, max_tokens)

    @precondition(some_idle)
    @rule(data=st.data(), max_tokens=st.integers(1, 4))
    def go_on(self, data: st.DataObject, max_tokens: int) -> None:
        self.generate(self.chosen(data, busy=False), max_tokens)

    def generate(self, conversation: Conversation, max_tokens: int) -> None:
        n_cached = conversation.sequence.n_cached
        if not conversation.tokens:
            with pytest.raises(InvalidParameterError):
                conversation.open(max_tokens)
        elif len(conversation.tokens) >= self.context.n_ctx_seq:
            with pytest.raises(PromptTooLongError):
                conversation.open(max_tokens)
        else:
            conversation.open(max_tokens)
            assert conversation.request is not None
            conversation.request.run()
            n_prompt, n_reused, n_shared, n_prefilled = conversation.request.counts
            assert n_prompt == len(conversation.before)
            assert n_reused + n_shared + n_prefilled == n_prompt
            assert n_shared == 0 or n_shared >= n_cached + WORTH_SHARING - 1
            if not self.parks or (n_cached > 0 and n_shared == 0):
                assert n_reused in (0, min(n_cached, n_prompt - 1))
            assert conversation.request.finish_reason in ("stop", "length")
            self.book(conversation)

    @precondition(some_idle)
    @rule(data=st.data(), tokens=tokens_of_text)
    def append(self, data: st.DataObject, tokens: list[int]) -> None:
        self.chosen(data, busy=False).append(tokens)

    @precondition(some_idle)
    @rule(data=st.data(), n_reads=st.integers(0, 3))
    def open_stream(self, data: st.DataObject, n_reads: int) -> None:
        conversation = self.chosen(data, busy=False)
        if 0 < len(conversation.tokens) < self.context.n_ctx_seq:
            conversation.open(8)
            for _ in range(n_reads):
                self.read_on(conversation)

    def read_on(self, conversation: Conversation) -> None:
        if conversation.request is not None:
            conversation.request.read()
            self.book(conversation)

    @precondition(some_busy)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        self.read_on(self.chosen(data, busy=True))

    @precondition(some_busy)
    @rule(data=st.data())
    def meddle(self, data: st.DataObject) -> None:
        """Nothing can be done to a conversation while a stream of it is open."""
        sequence = self.chosen(data, busy=True).sequence
        for operation in (
            lambda: sequence.append([1]),
            lambda: sequence.truncate(0),
            lambda: sequence.remove(0, 1),
            lambda: sequence.evict(),
            lambda: sequence.close(),
            lambda: request_for(sequence, params(1)),
        ):
            with pytest.raises(ContextBusyError):
                operation()

    @precondition(some_busy)
    @rule(data=st.data(), read_on=st.booleans())
    def cancel(self, data: st.DataObject, read_on: bool) -> None:
        conversation = self.chosen(data, busy=True)
        assert conversation.request is not None
        if read_on:
            conversation.request.cancel()
            conversation.request.read()
        else:
            conversation.request.close()
        assert conversation.request.finish_reason == "cancelled"
        self.book(conversation)

    @precondition(some_busy)
    @rule(data=st.data())
    def drop_stream(self, data: st.DataObject) -> None:
        conversation = self.chosen(data, busy=True)
        conversation.request = None

    @precondition(some_idle)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        conversation = self.chosen(data, busy=False)
        n = data.draw(st.integers(0, len(conversation.tokens)), label="n")
        conversation.sequence.truncate(n)
        conversation.forget(n)

    @precondition(some_idle)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        conversation = self.chosen(data, busy=False)
        n = len(conversation.tokens)
        start = data.draw(st.integers(0, n), label="start")
        stop = data.draw(st.integers(0, n), label="stop")
        if not start < stop:
            with pytest.raises(InvalidParameterError):
                conversation.sequence.remove(start, stop)
            return
        n_cached = conversation.sequence.n_cached
        method = conversation.sequence.remove(start, stop)
        if method == "shift":
            assert self.context.can_shift
            assert conversation.sequence.n_cached == n_cached - (stop - start)
            if conversation.shifted_from is None or conversation.shifted_from > start:
                conversation.shifted_from = start
        else:
            assert conversation.sequence.n_cached in (0, min(n_cached, start))
            if conversation.shifted_from is not None and conversation.shifted_from >= start:
                conversation.shifted_from = None
        del conversation.tokens[start:stop]

    @precondition(some_idle)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        conversation = self.chosen(data, busy=False)
        conversation.sequence.evict()
        assert conversation.sequence.n_cached == 0

    @precondition(lambda self: len(self.conversations) < N_SEQ_MAX + 2 and self.some_idle())
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = self.chosen(data, busy=False)
        if len(parent.tokens) >= self.context.n_ctx_seq:
            return
        child = Conversation(parent.sequence.fork())
        child.tokens = list(parent.tokens)
        child.shifted_from = parent.shifted_from
        assert child.sequence.n_cached in (0, parent.sequence.n_cached, len(child.tokens))
        self.conversations.append(child)
        self.may_share = True

    @precondition(some_idle)
    @rule(data=st.data())
    def look_ahead(self, data: st.DataObject) -> None:
        conversation = self.chosen(data, busy=False)
        if not 0 < len(conversation.tokens) < self.context.n_ctx_seq:
            return
        logits = conversation.sequence.next_logits()
        assert logits.shape == (N_VOCAB,)
        assert conversation.sequence.n_cached == len(conversation.tokens)
        if conversation.shifted_from is None:
            assert [int(logits.argmax())] == self.continuation(conversation.tokens, 1)

    @precondition(some_idle)
    @rule(data=st.data())
    def save_and_restore(self, data: st.DataObject) -> None:
        conversation = self.chosen(data, busy=False)
        sequence = conversation.sequence
        state, n = sequence.save_state()
        if n == 0:
            assert state == b""
            return
        n_exact = sequence.n_exact
        if self.context.can_shift:
            sequence.forget_from(0)
            sequence.adopt_state(state[: len(state) // 2], n, n_exact)
            sequence.bring_in()
            # Half a state is none; only what others have in common with it is there.
            assert sequence.n_cached == sequence.n_shared
        sequence.forget_from(0)
        sequence.adopt_state(state, n, n_exact)
        sequence.bring_in()
        assert sequence.n_cached >= n

    @precondition(lambda self: len(self.conversations) > 1 and self.some_idle())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        conversation = self.chosen(data, busy=False)
        conversation.sequence.close()
        with pytest.raises(ClosedError):
            conversation.sequence.append([1])
        self.conversations.remove(conversation)

    @rule(prompt=tokens_of_text, max_tokens=st.integers(1, 4), n_reads=st.integers(0, 3))
    def answer_statelessly(self, prompt: list[int], max_tokens: int, n_reads: int) -> None:
        expected = self.continuation(prompt, max_tokens)
        sequence = self.context.new_sequence()
        sequence.append(prompt)
        request = request_for(sequence, params(max_tokens), temporary=True)
        for _ in range(n_reads):
            request.read()
        if n_reads == 3:
            request.close()
        else:
            request.run()
        added = sequence.tokens.tolist()[len(prompt) :]
        assert added == expected[: len(added)]
        assert request.finish_reason == "cancelled" or added == expected
        assert sequence.n_cached == 0
        assert sequence.positions == (-1, -1)

    # ---- what always holds ---------------------------------------------------------------------

    @invariant()
    def ledgers_are_what_they_should_be(self) -> None:
        for conversation in getattr(self, "conversations", []):
            sequence = conversation.sequence
            assert sequence.tokens.tolist() == conversation.tokens
            assert sequence.busy == (conversation.request is not None)
            assert 0 <= sequence.n_cached <= len(sequence)
            if sequence.n_cached == 0 and not self.parks:
                conversation.shifted_from = None

    @invariant()
    def llama_cpp_holds_the_cached_tokens(self) -> None:
        for conversation in getattr(self, "conversations", []):
            n_cached = conversation.sequence.n_cached
            first, last = conversation.sequence.positions
            assert last == n_cached - 1
            if n_cached == 0:
                assert first == -1
            elif self.context.memory_kind in ("recurrent", "hybrid"):
                assert first == last  # the state is that of one position alone
            elif self.context.memory_kind == "swa":  # cells behind the window are used again
                assert 0 <= first <= max(0, n_cached - WINDOW + 1)
            else:
                assert first == 0

    @invariant()
    def the_memory_holds_nothing_else(self) -> None:
        if hasattr(self, "context"):
            cached = [c.sequence.n_cached for c in self.conversations]
            if not self.may_share:
                assert self.context.n_resident == sum(cached)
            assert max(cached, default=0) <= self.context.n_resident <= sum(cached)
            assert sum(n > 0 for n in cached) <= N_SEQ_MAX
            assert self.context.n_resident <= self.context.n_ctx


UNIFIED, STREAMS = {"unified": True}, {"unified": False}
MEMORIES = [
    *((kind, options) for kind in KINDS for options in (UNIFIED, STREAMS)),
    ("plain", UNIFIED | {"parking_ram": 2**24}),
    ("hybrid", UNIFIED | {"parking_ram": 2**24}),
    ("swa", UNIFIED | {"parking_ram": 2**24}),
    ("swa", STREAMS | {"parking_ram": 2**24}),
    ("swa", UNIFIED | {"swa_full": False}),
    ("swa", STREAMS | {"swa_full": False}),
]


@pytest.mark.parametrize(("kind", "options"), MEMORIES)
def test_the_ledger_is_true(
    tiny_models: dict[str, Model], kind: str, options: Mapping[str, Any]
) -> None:
    class OfThisKind(Machine):
        model = tiny_models[kind]

    OfThisKind.options = options

    # The same examples each time: two logits that are as good as equal, once in some hundred
    # thousand tokens, must not make the test a lottery.
    run_machine(
        OfThisKind,
        settings=settings(max_examples=50, stateful_step_count=30, deadline=None, derandomize=True),
    )


def paused_and_lent(context: Context) -> tuple[Sequence, Request]:
    sequence = context.new_sequence()
    sequence.append([BOS, 40, 41])
    request = request_for(sequence, params(50, ignore_eos=True))
    request.resume(10)
    request.run()
    assert request.paused
    request.lend()
    return sequence, request


def test_a_lent_sequence_belongs_to_the_request_that_took_it(tiny_models: dict[str, Model]) -> None:
    with new_context(tiny_models["plain"]) as context:
        sequence, paused = paused_and_lent(context)
        other = request_for(sequence, params(8, ignore_eos=True))
        other.read()
        with pytest.raises(ContextBusyError):
            paused.resume()
        paused.close()
        with pytest.raises(ContextBusyError):
            sequence.truncate(0)
        other.run()
        assert not sequence.busy


def test_a_lent_sequence_is_taken_back_unless_it_was_closed(tiny_models: dict[str, Model]) -> None:
    with new_context(tiny_models["plain"]) as context:
        sequence, paused = paused_and_lent(context)
        sequence.remove(1, 4)
        paused.resume()
        assert sequence.busy
        paused.run()
        assert len(paused.tokens) == 50
        sequence, paused = paused_and_lent(context)
        sequence.close()
        with pytest.raises(ClosedError):
            paused.resume()
