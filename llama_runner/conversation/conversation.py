"""A conversation that calls may share: whose turn it is, and what is done in a turn.

Calls change it one after the other. One that raises is undone, and one that goes on between calls,
as a stream does, is booked when it has ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from llama_runner._core import Context, Request, Sequence
from llama_runner.conversation.checkpoints import Checkpoint, Checkpoints
from llama_runner.conversation.collector import Collector
from llama_runner.conversation.edits import Edits
from llama_runner.conversation.policies import GcPolicy, oldest_turns
from llama_runner.conversation.splice import DecodeCancelledError, Splicer
from llama_runner.conversation.transcript import Transcript, TranscriptMark
from llama_runner.errors import (
    ChatTemplateError,
    ClosedError,
    ContextBusyError,
    ForkedProcessError,
    InvalidParameterError,
    LlamaError,
)
from llama_runner.generation.generation import Generation
from llama_runner.generation.stream import Stream
from llama_runner.params import GenerationParams
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.prompts.messages import (
    Prompt,
    is_messages,
    is_whole_conversation,
    read_messages,
)
from llama_runner.results import Completion

__all__ = ["Conversation", "CurrentCall", "Reuse"]

Reuse = Literal["prefix", "chunks"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Before:
    """What a call that raises goes back to."""

    transcript: TranscriptMark
    adapters: tuple[tuple[str, float], ...]
    cleaned: bool
    n_shifted: int


@dataclass(frozen=True, slots=True)
class _OpenTurn:
    """A turn that a stream computes, and what was before it."""

    generation: Generation
    before: _Before


@dataclass(frozen=True, slots=True)
class _Added:
    """What became of messages that were added."""

    stops: tuple[str, ...] = ()
    """Strings that end an answer."""
    difference: tuple[int, int] | None = None
    """The first token and message that differ from what was there."""
    n_computed: int = 0
    """Tokens that were computed on the way."""
    ms: float = 0.0
    """How long that took."""


class CurrentCall:
    """What a call waits for: apart from the conversation, or its collector would keep it alive."""

    def __init__(self) -> None:
        self.request: Request | None = None
        self.cancelled = False  # since the call began, which may have no request yet

    def wait_for(self, request: Request) -> None:
        """Let a request be cancelled from now on; it is already if the call was."""
        self.request = request
        if self.cancelled:
            request.close()

    def decode(self, request: Request) -> None:
        """Run a request that has no answer.

        Raises:
            DecodeCancelledError: It was cancelled.
        """
        self.wait_for(request)
        request.run()
        if request.finish_reason == "cancelled":
            raise DecodeCancelledError


class Conversation:
    """A transcript, what makes room in it, and the order of those who change it.

    Args:
        context: Where it lives.
        chat: How messages become tokens.
        gc_threshold: Share of the context above which old turns are dropped by themselves.
        reuse: What of the memory serves a conversation that is given whole: the common beginning,
            or ("chunks") also what comes behind messages that were taken out or changed.
        policy: What is dropped by itself.

    Raises:
        InvalidParameterError: ``reuse`` is unknown.
    """

    transcript: Transcript
    collector: Collector

    def __init__(
        self,
        context: Context,
        chat: ChatFormat,
        gc_threshold: float,
        reuse: Reuse = "prefix",
        policy: GcPolicy = oldest_turns,
    ) -> None:
        if reuse not in ("prefix", "chunks"):
            raise InvalidParameterError(
                f"reuse={reuse!r}: must be 'prefix' or 'chunks'", field="reuse"
            )
        self.lineage = object()
        """What a conversation and its forks have in common."""
        self._context = context
        self._chat = chat
        self._gc_threshold = gc_threshold
        self._reuse = reuse
        self._policy = policy
        self._lock = threading.RLock()
        self._inside = False  # a call is going on; the lock alone would let its callbacks in
        self._call = CurrentCall()
        self._open: _OpenTurn | None = None
        self._undo: _Before | None = None  # not None until a call has ended well or is undone
        self.become(self.empty_transcript())

    @property
    def sequence(self) -> Sequence:
        """Its ledger."""
        return self.transcript.sequence

    def empty_transcript(self) -> Transcript:
        """A new one in the same context and format."""
        return Transcript(self._context.new_sequence(), self._chat)

    def become(self, transcript: Transcript) -> None:
        """Be what another transcript says."""
        checkpoints = Checkpoints(transcript.sequence)
        collector = Collector(
            self._context,
            transcript,
            self._gc_threshold,
            self._policy,
            checkpoints,
            self._call.decode,
        )
        self.transcript, self.collector = transcript, collector

    def fork(self) -> Conversation:
        """A second one that begins as this one."""
        child = Conversation(
            self._context, self._chat, self._gc_threshold, self._reuse, self._policy
        )
        child.become(self.transcript.fork())
        child.collector.checkpoints.adopt(self.collector.checkpoints)
        child.lineage = self.lineage
        return child

    def close(self) -> None:
        """Give the memory back.

        Raises:
            ContextBusyError: Somebody generates on it, or this comes from inside a call.
        """
        try:
            self._context.check()
        except (ClosedError, ForkedProcessError):
            return  # there is nothing to give back, or it is the parent's
        with self._lock:
            self._check_outside()
            self._settle()
            self.sequence.close()

    def cancel(self) -> None:
        """Stop what a call waits for, or the stream that is open; does not wait for it."""
        # In this order: a call looks for the flag once its request can be seen, and a request can
        # be seen until its stream can.
        self._call.cancelled = True
        request, turn = self._call.request, self._open
        if request is None and turn is not None:
            request = turn.generation.request
        if request is not None:
            request.close()

    # ---- whose turn it is ----------------------------------------------------------------------

    def look(self, do: Callable[[], _T]) -> _T:
        """Call something while no other thread changes the conversation.

        A callback or signal handler may look at it in the middle of a call.
        """
        self._context.check()  # in a forked child the lock may never be let go of
        with self._lock:
            self.sequence.check()
            self._settle()
            return do()

    def change(self, do: Callable[[], _T]) -> _T:
        """Call what changes the conversation, alone with it.

        Raises:
            ContextBusyError: This comes from inside such a call.
        """
        self._context.check()
        with self._lock:
            self.sequence.check()
            self._check_outside()
            self._settle()
            self._inside, self._call.cancelled = True, False
            try:
                return do()
            finally:
                self._inside, self._call.request = False, None

    def attempt(self, do: Callable[[], _T]) -> _T:
        """Inside of :meth:`change`: call something, and undo it where it raises.

        Raises:
            ContextBusyError: Somebody generates on it.
        """
        self.sequence.check_idle()
        self._undo = self._before()
        try:
            result = do()
        except BaseException:
            self._go_back()
            raise
        self._undo = None
        return result

    def book_stream(self) -> None:
        """Count the turn of a stream that has ended to the conversation."""
        with self._lock:
            self._settle()

    def _check_outside(self) -> None:
        if self._inside:
            raise ContextBusyError(
                "a callback or signal handler inside a call on a conversation cannot change it"
            )

    def _settle(self) -> None:
        """Do what earlier calls could not: undo one that raised, book a stream that has ended."""
        if self._inside or self._context.closed:
            return
        self._inside = True
        try:
            self._go_back()
            turn = self._open
            if turn is None or not turn.generation.request.done:
                return
            if not _has_answered(turn.generation.request):
                self._undo = turn.before
                self._go_back()
                return
            self._book_answer(turn.generation.request)
            self._open = None
            self.collector.checkpoints.take()
        finally:
            self._inside = False

    def _before(self) -> _Before:
        collector = self.collector
        return _Before(
            self.transcript.mark(), self.sequence.adapters, collector.cleaned, collector.n_shifted
        )

    def _go_back(self) -> None:
        """Undo a call that raised. A signal may interrupt this, too; then the next call does it."""
        before = self._undo
        if before is None or self.sequence.busy or self._context.closed:
            return
        self._open = None  # the turn that it opened
        self.sequence.use_adapters(before.adapters)
        self._restore(before)
        self._undo = None

    def return_to(self, mark: TranscriptMark, checkpoint: Checkpoint | None = None) -> None:
        """Be as at a mark.

        Args:
            mark: Of this transcript.
            checkpoint: A state that was kept with it.
        """
        self.collector.checkpoints.go_back(self.transcript.n_as_at(mark), checkpoint)
        self.transcript.go_back(mark)

    # ---- a turn --------------------------------------------------------------------------------

    def generate(self, prompt: Prompt, params: GenerationParams) -> Completion:
        """Add a prompt and what answers it; see :meth:`Session.generate`."""

        def run(generation: Generation) -> Completion:
            completion = generation.run(self._make_room)
            if not _has_answered(generation.request):
                self._go_back()
                return completion
            self._book_answer(generation.request)
            self.collector.checkpoints.take()
            return completion

        return self._answer(prompt, params, run)

    def stream(self, prompt: Prompt, params: GenerationParams) -> Stream:
        """Add a prompt, and open what answers it; :meth:`book_stream` counts it."""

        def leave_open(generation: Generation) -> Stream:
            assert self._undo is not None
            stream = Stream(generation, self.book_stream, self._make_room_for_stream)
            self._open = _OpenTurn(generation, self._undo)
            return stream

        return self._answer(prompt, params, leave_open)

    def _answer(
        self, prompt: Prompt, params: GenerationParams, use: Callable[[Generation], _T]
    ) -> _T:
        """Call something with what answers a prompt, which has the sequence until it is done."""

        def turn() -> _T:
            try:
                generation = self._begin(prompt, params)
            except DecodeCancelledError:
                generation = Generation(self.sequence, params, started=time.perf_counter())
                generation.request.close()
            try:
                generation.request.resume(self._first_pause())
                self._call.wait_for(generation.request)
                return use(generation)
            except BaseException:
                generation.request.close()  # not when the exception is forgotten
                raise

        return self.attempt(turn)

    def _begin(self, prompt: Prompt, params: GenerationParams) -> Generation:
        started = time.perf_counter()
        collector = self.collector
        collector.cleaned = False
        collector.n_computed, collector.computed_ms = 0, 0.0
        self.sequence.use_adapters(params.lora)
        added = _Added()
        nothing_new = isinstance(prompt, tuple) and not prompt
        if nothing_new and not self.transcript.parts:
            raise InvalidParameterError(
                "prompt: there is nothing to answer in an empty conversation", field="prompt"
            )
        if nothing_new and not self.transcript.parts[-1].templated:
            pass  # raw text goes on by itself
        elif nothing_new or is_messages(prompt):
            given = read_messages(prompt)  # type: ignore[arg-type]
            added = self.add_messages(given, for_answer=True)
        else:
            self.transcript.add_raw(
                prompt, add_special=params.add_special, parse_special=params.parse_special
            )
        collector.make_room_for_prompt()
        n_opening, opening_ms = collector.take_opening()
        generation = Generation(
            self.sequence,
            params,
            started=started,
            stops=added.stops,
            shifted=collector.n_shifted,
            computed=added.n_computed + collector.n_computed + n_opening,
            computed_ms=added.ms + collector.computed_ms + opening_ms,
            first_difference=added.difference,
        )
        collector.n_shifted = 0
        return generation

    def add_messages(self, given: list[dict[str, Any]], *, for_answer: bool) -> _Added:
        """Bring the transcript to what these messages say."""
        transcript = self.transcript
        whole = for_answer and (is_whole_conversation(given) or transcript.is_asked(given))
        kept = transcript.pinned_system if whole and given[0]["role"] != "system" else []
        given = kept + given
        n_shifted, moved = self.collector.n_shifted, _Added()
        if self._reuse == "chunks" and whole:
            moved = self._move_what_follows(given)
        stops, cut = transcript.add_messages(
            given,
            whole=whole,
            for_answer=for_answer,
            before_cut=self.collector.checkpoints.go_back,
        )
        if moved.difference is not None:  # what was cut off again was moved for nothing
            n_behind = self.sequence.n_cached - moved.difference[0]
            self.collector.n_shifted = n_shifted + max(0, n_behind - moved.n_computed)
        places = [place for place in (moved.difference, cut) if place is not None]
        difference = None
        if places:
            token, message = min(places)
            difference = token, max(0, message - len(kept))
        return _Added(stops, difference, moved.n_computed, moved.ms)

    def _move_what_follows(self, given: list[dict[str, Any]]) -> _Added:
        """Take out and change what a conversation, given whole, says otherwise than before.

        As far as what follows need not be computed again for it.
        """
        transcript, places = self.transcript, []
        changed = transcript.changes(given)
        if not changed.gone and not changed.edited:
            return _Added()
        self.sequence.bring_in()  # what is not in the memory cannot be moved there
        if changed.gone:
            place = transcript.start_of(changed.gone[0])
            try:
                self.collector.drop(changed.gone)
            except ChatTemplateError:
                return _Added()  # it refuses the conversation before the other changes are made
            places.append(place)
        splicer = Splicer(transcript, self.collector.limit, self._call.decode)
        edits = Edits(transcript, splicer)
        if changed.edited:
            left = transcript.changes(given) if changed.gone else changed
            edits.apply(left.edited, left.conversation)
        places += [edits.first_token] if edits.first_token is not None else []
        difference = (min(places), changed.first_message) if places else None
        return _Added((), difference, splicer.n_computed, splicer.ms)

    def _book_answer(self, request: Request) -> None:
        """Count an answer to the conversation. Where that is interrupted, it may be done again."""
        end = request.stop_at
        if end is not None:
            self.collector.checkpoints.go_back(end)
            self.sequence.truncate(end)
            # A stop string that began inside a token: of that one, memory keeps what was shown.
            kept, last = request.kept_text, self.transcript.last_of(end)
            self.sequence.append(self._chat.continue_text(kept, last, parse_special=False))
        self.transcript.book_answer(request.text)

    def _first_pause(self) -> int:
        """Ledger length at which a generation rests first."""
        if self.collector.checkpoints.wanted:
            return len(self.sequence) + 1  # the prompt was decoded, its answer was not
        return self.collector.pause_at()

    def _make_room(self, generation: Generation) -> None:
        """Let a generation go on that rests: at the end of its prompt, or for want of room.

        Raises:
            ContextFullError: All that could go is pinned.
        """
        if generation.request.done:
            return  # cancelled, while this waited for its turn
        generation.request.lend()
        if len(generation.request.tokens) == 1 and self.collector.checkpoints.wanted:
            self.collector.checkpoints.take()
        if len(self.sequence) < self.collector.limit:
            generation.request.resume(self.collector.pause_at())
        else:
            self._collect_while_generating(generation)
        if self._call.request is not None:  # something else was computed for the room
            self._call.wait_for(generation.request)

    def _collect_while_generating(self, generation: Generation) -> None:
        """Drop spans in the middle of an answer, all of them or none."""
        before = self._before()
        try:
            self.collector.make_room_while_generating(generation)
        except BaseException:
            with suppress(LlamaError):  # the context may be broken, or closed
                self._restore(before)
            raise

    def _restore(self, before: _Before) -> None:
        self.return_to(before.transcript)
        self.collector.cleaned, self.collector.n_shifted = before.cleaned, before.n_shifted

    def _make_room_for_stream(self, generation: Generation) -> None:
        """The same as a call of its own, which pulling from a stream is."""
        self.change(partial(self._make_room, generation))


def _has_answered(request: Request) -> bool:
    """Whether there is a turn to keep: not if it failed, or was cancelled before there was any."""
    reason = request.finish_reason
    return reason is not None and not (reason == "cancelled" and not request.tokens)
