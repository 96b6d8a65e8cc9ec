"""A conversation that threads may share: generating on it, and everything else that changes it."""

from __future__ import annotations

import copy
import operator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_runner._core import Sequence
from llama_runner.conversation.checkpoints import Checkpoint
from llama_runner.conversation.collector import Collector
from llama_runner.conversation.intake import Intake, Reuse
from llama_runner.conversation.policies import GcPolicy, oldest_turns
from llama_runner.conversation.snapshot import open_snapshot, take_snapshot
from llama_runner.conversation.transcript import Transcript, TranscriptMark
from llama_runner.conversation.turns import DecodeCancelledError, Turns
from llama_runner.errors import (
    ClosedError,
    ForkedProcessError,
    InvalidParameterError,
)
from llama_runner.generation.generation import Generation
from llama_runner.generation.stream import Stream
from llama_runner.params import GenerationParams
from llama_runner.prompts.prompt import ReadPrompt
from llama_runner.results import Completion, ContextInfo, GcReport

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Conversation", "ConversationSettings", "Reuse", "SessionMark"]


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """How a conversation makes room, and what it reuses of the memory.

    Attributes:
        gc_threshold: Share of the context above which old turns are evicted automatically.
        reuse: See :class:`Intake`.
        policy: What to evict automatically.

    Raises:
        InvalidParameterError: ``reuse`` is unknown.
    """

    gc_threshold: float
    reuse: Reuse = "prefix"
    policy: GcPolicy = oldest_turns

    def __post_init__(self) -> None:
        if self.reuse not in ("prefix", "chunks"):
            raise InvalidParameterError(
                f"reuse={self.reuse!r}: must be 'prefix' or 'chunks'", field="reuse"
            )


@dataclass(frozen=True, slots=True, eq=False)
class SessionMark:
    """A place in a conversation to come back to; see :meth:`Session.mark`."""

    transcript: TranscriptMark
    checkpoint: Checkpoint | None
    lineage: object


class Conversation:
    """A transcript, and all that calls from several threads do with it.

    Each call takes its turn, and is undone if it raises; see :class:`Turns`.

    Args:
        transcript: What was said so far.
        settings: How to make room, and what to reuse.
        lineage: What it has in common with the conversation that it was forked from.
    """

    def __init__(
        self, transcript: Transcript, settings: ConversationSettings, lineage: object = None
    ) -> None:
        self.turns = Turns(transcript)
        self.chat = transcript.chat
        self._settings = settings
        self._lineage = lineage or object()
        self._collector = Collector(self.turns, settings.gc_threshold, settings.policy)
        self._intake = Intake(self.turns, self._collector, settings.reuse)

    @property
    def sequence(self) -> Sequence:
        """The ledger."""
        return self.turns.sequence

    @property
    def transcript(self) -> Transcript:
        """The spans of the ledger."""
        return self.turns.transcript

    @property
    def n_spans(self) -> int:
        """How many spans there are."""
        return len(self.transcript.parts)

    def copy_messages(self) -> list[dict[str, Any]]:
        """Return a copy of the messages in memory, oldest first."""
        with self.turns.look():
            return copy.deepcopy(self.transcript.messages)

    def info(self) -> ContextInfo:
        """Return what is in memory. Computes nothing on the model."""
        with self.turns.look():
            return self._collector.info()

    # ---- generating ----------------------------------------------------------------------------

    def generate(self, prompt: ReadPrompt, params: GenerationParams) -> Completion:
        """Add a prompt and its answer; see :meth:`Session.generate`."""
        turns = self.turns
        with turns.change(), turns.attempt():
            generation = self._begin(prompt, params)
            completion = generation.run(self._make_room)
            turns.book(generation.request)
            return completion

    def stream(self, prompt: ReadPrompt, params: GenerationParams) -> Stream:
        """Add a prompt, and open the stream of its answer; see :meth:`Session.stream`."""
        turns = self.turns
        with turns.change(), turns.attempt():
            generation = self._begin(prompt, params)
            stream = Stream(generation, turns.settle, self._make_room_for_stream)
            turns.leave_open(generation)
            return stream

    def _begin(self, prompt: ReadPrompt, params: GenerationParams) -> Generation:
        """Add a prompt, and prepare the generation of its answer."""
        turns = self.turns
        stops: tuple[str, ...] = ()
        turns.begin_answer()
        turns.sequence.use_adapters(params.lora)
        with suppress(DecodeCancelledError):  # then the generation is cancelled, too, as it begins
            stops = self._intake.add(
                prompt,
                for_answer=True,
                add_special=params.add_special,
                parse_special=params.parse_special,
            )
            self._collector.take_opening()
        generation = Generation(turns.sequence, params, turns.work, stops=stops)
        turns.request = generation.request  # at once: if the attempt fails, this is closed
        generation.check_adapters()
        turns.start(generation.request)
        generation.request.resume(self._collector.first_pause())
        return generation

    def _make_room(self, generation: Generation) -> None:
        """Let a paused generation continue, after its prompt was computed or because of its length.

        Raises:
            ContextFullError: All that could be evicted is pinned.
        """
        request = generation.request
        if request.done:
            return  # cancelled while this waited for its turn
        request.lend()
        self._collector.go_on(generation)
        if self.turns.request is not None:  # something else was computed to make room
            self.turns.wait_for(request)

    def _make_room_for_stream(self, generation: Generation) -> None:
        """Do the same for a stream, which is read outside of any call on the conversation."""
        with self.turns.change():
            self._make_room(generation)

    def cancel(self) -> None:
        """Stop what is generated, from any thread."""
        self.turns.cancel()

    # ---- changing ------------------------------------------------------------------------------

    def append(self, prompt: ReadPrompt, *, add_special: bool, parse_special: bool) -> None:
        """Add a prompt without an answer."""
        with self.turns.change(), self.turns.attempt():
            self._intake.add(
                prompt, for_answer=False, add_special=add_special, parse_special=parse_special
            )

    def collect(self, target: float, policy: GcPolicy, *, dry_run: bool, exact: bool) -> GcReport:
        """Evict spans until at most ``target`` of the context is used; see :meth:`Session.gc`."""
        with self.turns.change(), self.turns.attempt():
            return self._collector.collect(target, policy, dry_run=dry_run, exact=exact)

    def clear(self) -> None:
        """Forget everything."""
        with self.turns.change(), self.turns.attempt():
            self.transcript.clear()
            self.turns.forget_work()

    def set_pinned(self, index: int, pinned: bool) -> None:
        """Pin a span, or unpin it.

        Raises:
            InvalidParameterError: There is no such span.
        """
        with self.turns.change():
            self.sequence.check_idle()
            spans = self.transcript.parts
            try:
                spans[operator.index(index)].pinned = pinned
            except (IndexError, TypeError):
                raise InvalidParameterError(
                    f"index={index!r}: must be one of the {len(spans)} spans' indices",
                    field="index",
                ) from None

    def keep_warm(self) -> None:
        """Stay in the KV memory until the next use; others are evicted first."""
        with self.turns.change():
            self.sequence.keep_warm()

    # ---- time travel ---------------------------------------------------------------------------

    def mark(self) -> SessionMark:
        """Return this place in the conversation, to rewind to."""
        with self.turns.change():
            self.sequence.check_idle()
            self.sequence.bring_in()
            checkpoint = Checkpoint.take(self.sequence)
            return SessionMark(self.transcript.mark(), checkpoint, self._lineage)

    def rewind(self, mark: SessionMark) -> None:
        """Go back to a mark of this conversation or of a fork.

        Raises:
            InvalidParameterError: It is not such a mark.
        """
        with self.turns.change(), self.turns.attempt():
            if not isinstance(mark, SessionMark) or mark.lineage is not self._lineage:
                raise InvalidParameterError(
                    "mark: must be what mark() of this session, or of a fork, returned",
                    field="mark",
                )
            self.sequence.bring_in()
            self.transcript.go_back(mark.transcript, mark.checkpoint)
            self.turns.forget_work()

    def fork(self) -> Conversation:
        """Return a second conversation that begins as this one."""
        with self.turns.change():
            return Conversation(self.transcript.fork(), self._settings, self._lineage)

    # ---- saving --------------------------------------------------------------------------------

    def snapshot(self, name: str | None) -> bytes:
        """Return the whole conversation as bytes."""
        with self.turns.change():
            return take_snapshot(self.transcript, name)

    def restore(self, snapshot: Buffer) -> str | None:
        """Become the conversation of a snapshot.

        Returns:
            The name that was saved with it.
        """
        with self.turns.change():
            old = self.sequence
            old.check_idle()
            new = Transcript(old.context.new_sequence(), self.chat)
            name = open_snapshot(snapshot, new)
            self.turns.use(new)
            old.close()
            return name

    def close(self) -> None:
        """Give the memory back.

        Raises:
            ContextBusyError: It is generating, or this comes from inside a call.
        """
        # A closed one has no memory to give back, and in a forked child it is the parent's.
        with suppress(ClosedError, ForkedProcessError), self.turns.change():
            self.sequence.close()
