"""Whatever is done to conversations, in whatever order: they are what a plain list says.

The model of a conversation is its list of turns. After every step the session must show those
messages, its spans must cover its ledger, its ledger must agree with llama.cpp's positions, and
what the model would say next must be what it says to the same tokens computed afresh.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from llama_runner import Session
from llama_runner._core import ChatTemplate, Context, Model
from llama_runner.conversation.conversation import Conversation, ConversationSettings
from llama_runner.conversation.session import SessionMark
from llama_runner.conversation.transcript import Transcript
from llama_runner.errors import ContextFullError, InvalidParameterError
from llama_runner.memory import GcPolicy, attention_sinks, sliding_window, summarize
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.results import Span
from llama_runner.tokens import Tokenizer
from tests import inside
from tests.model.tiny_models import WINDOW

N_CTX, N_SEQ_MAX, MAX_SESSIONS = 256, 3, 4
# By hand: LLAMA_RUNNER_EXAMPLES=1000.
EXAMPLES = int(os.environ.get("LLAMA_RUNNER_EXAMPLES", "80"))
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As far as two computations of the same differ that add in another order.
TOLERANCE = 2e-3
SUMMARY = "ab"

Message = dict[str, Any]
texts = st.text("ab c\n<é漢😀", min_size=1, max_size=40)


def newest_first(spans: Sequence[Span]) -> Iterable[Sequence[int]]:
    """A policy that proposes single spans, and in a strange order."""
    return [[i] for i in reversed(range(len(spans)))]


policies: st.SearchStrategy[str | GcPolicy] = st.sampled_from(
    [
        "oldest_turns",
        "tool_results",
        sliding_window(1),
        attention_sinks(5),
        newest_first,
        summarize(lambda text: SUMMARY if text else "?"),
    ]
)


@dataclass
class Turn:
    """Messages that stay or go together, and which of them are pinned."""

    messages: list[Message]
    pinned: bool = False

    def copy(self) -> Turn:
        return Turn(list(self.messages), self.pinned)

    def drop_step(self) -> None:
        """The oldest call with its results, which is not the last with results."""
        start = next(i for i, m in enumerate(self.messages) if m["role"] == "assistant")
        end = start + 1
        while self.messages[end]["role"] == "tool":
            end += 1
        assert any(message["role"] == "tool" for message in self.messages[end:])
        del self.messages[start:end]


@dataclass
class Expected:
    """What a conversation should be."""

    system: list[Message]
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> list[Message]:
        return self.system + [m for turn in self.turns for m in turn.messages]

    def say(self, message: Message) -> None:
        """A question behind an answer begins a turn."""
        behind = self.turns[-1].messages[-1]["role"] if self.turns else None
        if behind is None or (message["role"] == "user" and behind != "user"):
            self.turns.append(Turn([]))
        self.turns[-1].messages.append(message)

    def copy(self) -> Expected:
        return Expected(list(self.system), [turn.copy() for turn in self.turns])


@dataclass
class Pair:
    """A session and its model."""

    session: Session
    model: Expected
    mark: tuple[SessionMark, Expected, bool] | None = None
    """With whether its cells depend on nothing that had gone."""
    pinned_before: list[Message] = field(default_factory=list)

    def pinned(self) -> list[Message]:
        """Messages that may not go."""
        parts = inside.parts(self.session)
        return [m for part in parts if part.pinned for m in part.messages]

    def pinned_opening(self) -> list[Message]:
        """The system message that a conversation without one, given whole, keeps."""
        first = inside.parts(self.session)[:1]
        return [m for part in first if part.role == "system" and part.pinned for m in part.messages]


class Machine(RuleBasedStateMachine):
    """Sessions on one context, more of them than fit."""

    weights: Model
    options: Mapping[str, Any]

    @initialize()
    def start(self) -> None:
        options = {"n_batch": 64, "n_ubatch": 32, "kv_type": "f32", "flash_attention": False}
        n_ctx = N_CTX if self.options["unified"] else N_CTX * N_SEQ_MAX
        self.context = Context(
            self.weights, n_ctx=n_ctx, n_seq_max=N_SEQ_MAX, **options, **self.options
        )
        self.reference = Context(self.weights, n_ctx=N_CTX, **options)
        self.chat = ChatFormat(Tokenizer(self.weights.vocab), ChatTemplate(self.weights, TEMPLATE))
        self.pairs: list[Pair] = []
        self.begin("abc", "chunks")

    def teardown(self) -> None:
        if hasattr(self, "context"):
            for pair in self.pairs:
                self.says_the_same(pair)
            self.context.close()
            self.reference.close()

    def chosen(self, data: st.DataObject) -> Pair:
        return data.draw(st.sampled_from(self.pairs), label="conversation")

    # ---- growing -------------------------------------------------------------------------------

    @precondition(lambda self: len(self.pairs) < MAX_SESSIONS)
    @rule(system=st.none() | texts, reuse=st.sampled_from(["prefix", "chunks"]))
    def begin(self, system: str | None, reuse: Any) -> None:
        transcript = Transcript(self.context.new_sequence(), self.chat)
        session = Session(Conversation(transcript, ConversationSettings(0.8, reuse)))
        model = Expected([])
        if system is not None:
            model.system.append({"role": "system", "content": system})
            session.append(model.system)
        self.pairs.append(Pair(session, model))

    def grow(self, pair: Pair, added: list[Message], n: int, *, streamed: int | None) -> None:
        """Say something; old turns may have gone for it."""
        before, pair.pinned_before = pair.session.messages, pair.pinned()
        opening = pair.pinned_opening()
        known = before[len(opening) :]
        is_answered = known[-1:] and known[-1]["role"] == "assistant"
        parts = inside.parts(pair.session)
        is_all = not any(part.collected for part in parts)  # nothing was evicted
        again = is_all and added in (known, known[:-1] if is_answered else known)
        said = Expected(opening) if again else pair.model.copy()
        for message in added:
            said.say(message)
        try:
            if streamed is None:
                answer = pair.session.generate(added, n, temperature=0).text
            else:
                stream = pair.session.stream(added, n, temperature=0)
                for _ in islice(stream, streamed):
                    pass
                request = inside.request(stream)
                if streamed % 2:
                    stream.close()
                del stream
                if not request.tokens:
                    assert pair.session.messages == before  # it leaves nothing behind
                    return
                answer = request.text
        except ContextFullError:
            assert pair.session.messages == before  # nothing has changed
            return
        said.say({"role": "assistant", "content": answer})
        if again:  # the whole conversation, with its last answer new: nothing of it may go
            assert pair.session.messages == said.messages()
            self.relearn(pair)
        else:
            self.adopt(pair, said)

    def adopt(self, pair: Pair, said: Expected) -> None:
        """Old turns may have gone: the oldest, nothing that is pinned, not the last."""
        if any(turn.pinned for turn in said.turns):
            left = pair.session.messages
            kept = iter(said.messages())
            assert all(message in kept for message in left)
            assert left == said.messages() or pair.session.info().state == "cleaned"
            assert left[-1] == said.turns[-1].messages[-1]
            assert pair.pinned() == pair.pinned_before
            self.relearn(pair)
            return
        while said.messages() != pair.session.messages:
            assert pair.session.info().state == "cleaned"
            if len(said.turns) > 1:
                del said.turns[0]
            else:
                said.turns[0].drop_step()
        pair.model = said

    @rule(data=st.data(), text=texts, n=st.integers(1, 12))
    def say(self, data: st.DataObject, text: str, n: int) -> None:
        self.grow(self.chosen(data), [{"role": "user", "content": text}], n, streamed=None)

    @rule(data=st.data(), text=texts, n=st.integers(1, 12), streamed=st.integers(0, 4))
    def stream(self, data: st.DataObject, text: str, n: int, streamed: int) -> None:
        self.grow(self.chosen(data), [{"role": "user", "content": text}], n, streamed=streamed)

    @rule(data=st.data(), n=st.integers(1, 12), streamed=st.none() | st.integers(0, 4))
    def ask_the_first_question_again(
        self, data: st.DataObject, n: int, streamed: int | None
    ) -> None:
        pair = self.chosen(data)
        # A list that begins with a system message is always a whole conversation: see `resend`.
        asked = [m for m in pair.session.messages if m["role"] != "system"]
        if asked:
            self.grow(pair, asked[:1], n, streamed=streamed)

    @rule(data=st.data(), text=texts)
    def call_a_tool(self, data: st.DataObject, text: str) -> None:
        """An assistant's message among the given ones: they are the whole conversation."""
        pair = self.chosen(data)
        given = [
            *pair.model.system,
            {"role": "user", "content": text},
            {"role": "assistant", "content": "call"},
            {"role": "tool", "content": "result"},
        ]
        answer = pair.session.generate(given, 3, temperature=0).text  # there is room for that
        assert pair.session.messages == [*given, {"role": "assistant", "content": answer}]
        self.relearn(pair)

    @rule(data=st.data(), role=st.sampled_from(["user", "tool", "assistant"]), text=texts)
    def append(self, data: st.DataObject, role: str, text: str) -> None:
        pair = self.chosen(data)
        said = pair.model.copy()
        message = {"role": role, "content": text}
        said.say(message)
        pair.pinned_before = pair.pinned()
        before = pair.session.messages
        try:
            pair.session.append([message])
        except ContextFullError:
            assert pair.session.messages == before
            return
        self.adopt(pair, said)

    @rule(data=st.data(), text=texts, edit=st.sampled_from(["change", "drop", "none"]))
    def resend(self, data: st.DataObject, text: str, edit: str) -> None:
        """As chat front ends do: the whole conversation, perhaps not as it was."""
        pair = self.chosen(data)
        given = pair.session.messages
        if edit != "none" and len(given) > 2:
            i = data.draw(st.integers(0, len(given) - 2))
            given[i : i + 1] = [] if edit == "drop" else [{**given[i], "content": text}]
        roles = [message["role"] for message in given]
        if roles[:1] != ["system"] and not (roles[:1] == ["user"] and "assistant" in roles):
            return  # that would be added
        given.append({"role": "user", "content": text})
        before = pair.session.messages
        opening = pair.pinned_opening() if roles[:1] == ["user"] else []
        try:
            completion = pair.session.generate(given, 3, temperature=0)
        except ContextFullError:
            assert pair.session.messages == before
            return
        given = opening + given
        given.append({"role": "assistant", "content": completion.text})
        if pair.session.info().state != "cleaned":
            assert pair.session.messages == given
        else:
            kept = iter(given)
            assert all(message in kept for message in pair.session.messages)
        self.relearn(pair)

    # ---- shrinking -----------------------------------------------------------------------------

    @rule(
        data=st.data(),
        policy=policies,
        goal=st.sampled_from([0.0, 0.1, 0.3]),
        exact=st.booleans(),
        dry_run=st.booleans(),
    )
    def collect(
        self, data: st.DataObject, policy: Any, goal: float, exact: bool, dry_run: bool
    ) -> None:
        pair = self.chosen(data)
        before, info = pair.session.messages, pair.session.info()
        try:
            report = pair.session.gc(goal, policy=policy, exact=exact, dry_run=dry_run)
        except InvalidParameterError:  # the summary has more tokens than what it stands for
            assert policy not in ("oldest_turns", "tool_results")
            assert (pair.session.messages, pair.session.info()) == (before, info)
            return
        after = pair.session.info()
        if dry_run or report.method == "none":
            assert (pair.session.messages, after.spans) == (before, info.spans)
            return
        assert info.used - after.used == report.tokens_removed
        # Where nothing has to go, cells that were moved earlier are computed again.
        assert report.tokens_removed > 0 or (exact and report.spans_removed == 0)
        notes = [{"role": role, "content": SUMMARY} for role in ("system", "user")]
        kept = iter(before)
        for message in pair.session.messages:
            assert message in notes or message in kept
        summarized = [span for span in info.spans if span.role == "summary"]
        newest = [span for span in info.spans if span.turn == info.spans[-1].turn]
        calls = [i for i, span in enumerate(newest) if span.role == "tool"]
        for span in info.spans:  # what is pinned stays, and so does what is to be answered
            same = (span.role, span.tokens, span.pinned, span.turn)
            old_step = span in newest[: calls[-1]] if calls else False
            stays = span in newest and (span.role == "user" or not old_step)
            if span not in summarized and (span.pinned or stays):
                assert same in [(s.role, s.tokens, s.pinned, s.turn) for s in after.spans]
        self.relearn(pair)

    def relearn(self, pair: Pair) -> None:
        """Take over the turns that are left."""
        turns: dict[int, Turn] = {}
        system: list[Message] = []
        for part in inside.parts(pair.session):
            if part.role == "system":
                system += part.messages
            else:
                turn = turns.setdefault(part.turn, Turn([]))
                turn.messages += part.messages
                turn.pinned |= part.pinned
        pair.model = Expected(system, list(turns.values()))

    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        pair = self.chosen(data)
        spans = pair.session.info().spans
        if spans:
            i = data.draw(st.integers(-len(spans), len(spans) - 1))
            pair.session.pin(i) if pinned else pair.session.unpin(i)
            assert pair.session.info().spans[i].pinned or not pinned
            self.relearn(pair)

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        pair = self.chosen(data)
        pair.session.clear()
        assert pair.session.info().state == "empty"
        pair.model = Expected([])

    @rule(data=st.data())
    def leave_the_memory(self, data: st.DataObject) -> None:
        inside.sequence(self.chosen(data).session).evict()

    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        self.chosen(data).session.pause()

    # ---- time travel ---------------------------------------------------------------------------

    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        pair = self.chosen(data)
        sequence = inside.sequence(pair.session)
        is_exact = sequence.n_exact == len(sequence)
        pair.mark = pair.session.mark(), pair.model.copy(), is_exact

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        pair = self.chosen(data)
        if pair.mark is not None:
            mark, model, is_exact = pair.mark
            pair.session.rewind(mark)
            pair.model = model.copy()
            sequence = inside.sequence(pair.session)
            assert sequence.n_exact == len(sequence) or not is_exact

    @precondition(lambda self: len(self.pairs) < MAX_SESSIONS)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        pair = self.chosen(data)
        self.pairs.append(Pair(pair.session.fork(), pair.model.copy(), pair.mark))

    @rule(data=st.data())
    def restore_a_snapshot(self, data: st.DataObject) -> None:
        """Into another conversation, or the same."""
        source, target = self.chosen(data), self.chosen(data)
        target.session.restore(source.session.snapshot())
        target.model = source.model.copy()
        assert target.session.info().spans == source.session.info().spans

    @precondition(lambda self: len(self.pairs) > 1)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        pair = self.chosen(data)
        self.pairs.remove(pair)
        pair.session.close()

    @rule(data=st.data())
    def look_ahead(self, data: st.DataObject) -> None:
        self.says_the_same(self.chosen(data))

    def says_the_same(self, pair: Pair) -> None:
        """The logits of the next token are those after the same tokens computed afresh."""
        sequence = inside.sequence(pair.session)
        exact = sequence.n_exact == len(sequence) or "shallow" in self.weights.path
        if not 0 < len(sequence) < N_CTX or not exact:
            return
        fresh = self.reference.new_sequence()
        fresh.append(sequence.tokens)
        expected = fresh.next_logits()
        fresh.close()
        np.testing.assert_allclose(
            sequence.next_logits(), expected, rtol=0, atol=TOLERANCE * np.ptp(expected)
        )

    # ---- what always holds ---------------------------------------------------------------------

    @invariant()
    def messages_are_those_of_the_model(self) -> None:
        for pair in getattr(self, "pairs", []):
            assert pair.session.messages == pair.model.messages()

    @invariant()
    def spans_cover_the_ledger(self) -> None:
        for pair in getattr(self, "pairs", []):
            info = pair.session.info()
            assert sum(span.tokens for span in info.spans) == info.used <= N_CTX
            starts = [0, *np.cumsum([span.tokens for span in info.spans])]
            assert [span.start for span in info.spans] == starts[:-1]

    @invariant()
    def ledgers_agree_with_llama_cpp(self) -> None:
        for pair in getattr(self, "pairs", []):
            sequence = inside.sequence(pair.session)
            first, last = sequence.positions
            assert last == sequence.n_cached - 1
            if sequence.n_cached == 0:
                assert first == -1
            elif self.context.memory_kind in ("recurrent", "hybrid"):
                assert first == last
            elif self.context.memory_kind == "swa":
                assert 0 <= first <= max(0, sequence.n_cached - WINDOW + 1)
            else:
                assert first == 0


UNIFIED, STREAMS = {"unified": True}, {"unified": False}
PARKING = {"parking_ram": 2**24}
MEMORIES = [
    ("shallow", UNIFIED | PARKING),
    ("plain", STREAMS),
    ("swa", UNIFIED | PARKING | {"swa_full": True}),
    ("swa", STREAMS | PARKING | {"swa_full": True}),
    ("swa", UNIFIED | {"swa_full": False}),
    ("recurrent", UNIFIED | PARKING),
    ("hybrid", STREAMS | PARKING),
    ("mrope", UNIFIED),
]


@pytest.mark.parametrize(("kind", "options"), MEMORIES)
def test_conversations_are_what_a_list_says(
    tiny_models: dict[str, Model], kind: str, options: Mapping[str, Any]
) -> None:
    class OfThisKind(Machine):
        weights = tiny_models[kind]

    OfThisKind.options = options
    run_machine(
        OfThisKind,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=50, deadline=None, derandomize=True
        ),
    )
