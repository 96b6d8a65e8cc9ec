"""A conversation that lives in the KV memory, and what can be done with it."""

from __future__ import annotations

import copy
import operator
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from llama_runner._core import Context, Sequence
from llama_runner.checkpoints import Checkpoint, Checkpoints
from llama_runner.collection import Collector
from llama_runner.errors import (
    ClosedError,
    ContextBusyError,
    ForkedProcessError,
    InvalidParameterError,
)
from llama_runner.generation import Generation, Stream
from llama_runner.memory import GcPolicyLike, resolve_policy
from llama_runner.params import GenerationOptions, GenerationParams, generation_params
from llama_runner.parts import UNTEMPLATED
from llama_runner.prompts.chat_format import ChatFormat
from llama_runner.prompts.messages import (
    Prompt,
    is_messages,
    is_whole_conversation,
    read_messages,
)
from llama_runner.results import Completion, ContextInfo, GcReport
from llama_runner.transcript import Transcript, TranscriptMark

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Reuse", "Session", "SessionMark"]

Reuse = Literal["prefix", "chunks"]


@dataclass(frozen=True, slots=True)
class SessionMark:
    """A place in a conversation to come back to; see :meth:`Session.mark`."""

    transcript: TranscriptMark
    checkpoint: Checkpoint | None
    lineage: object


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


class Session:
    """One conversation on a context. Made by :meth:`LlamaRunner.session`.

    Calls from several threads take turns. While a stream is open, others are refused. All but
    ``close`` raise ClosedError once the session or its runner is closed, and ForkedProcessError in
    a child process.

    Args:
        context: Where it lives.
        chat: How messages become tokens.
        gc_threshold: Share of the context above which old turns are dropped by themselves.
        name: For people.
        reuse: What of the memory serves a conversation that is given whole: the common beginning,
            or ("chunks") also what comes behind messages that were taken out.
        defaults: How to sample where a call does not say.
        transcript: What is in it; nothing, if not given.

    Raises:
        InvalidParameterError: ``name`` is no printable text, or ``reuse`` is unknown.
    """

    def __init__(
        self,
        context: Context,
        chat: ChatFormat,
        gc_threshold: float,
        *,
        name: str | None = None,
        reuse: Reuse = "prefix",
        defaults: GenerationParams | None = None,
        transcript: Transcript | None = None,
    ) -> None:
        if reuse not in ("prefix", "chunks"):
            raise InvalidParameterError(
                f"reuse={reuse!r}: must be 'prefix' or 'chunks'", field="reuse"
            )
        if name is not None and (not isinstance(name, str) or not name.isprintable()):
            raise InvalidParameterError(f"name={name!r}: must be printable text", field="name")
        self.name = name
        self._context = context
        self._chat = chat
        self._gc_threshold = gc_threshold
        self._reuse = reuse
        self._defaults = defaults or GenerationParams()
        self._lock = threading.RLock()
        self._inside = False  # a call is going on; the lock alone would let its callbacks in
        self._open: _OpenTurn | None = None
        self._undo: _Before | None = None  # not None until a call has ended well or is undone
        self._lineage = object()  # what a session and its forks have in common
        self._become(transcript or Transcript(context.new_sequence(), chat))

    def _become(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._collector = Collector(
            self._context, transcript, self._gc_threshold, Checkpoints(transcript.sequence)
        )

    @property
    def _sequence(self) -> Sequence:
        return self._transcript.sequence

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages as they stand in memory, oldest first; a copy.

        Raises:
            ClosedError, ForkedProcessError: The session cannot be used any more, or not here.
        """
        with self._looked_at():
            return copy.deepcopy(self._transcript.messages)

    # ---- generating ----------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt = (),
        max_tokens: int | None = None,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Completion:
        """Add a prompt, generate, and keep both. A call that raises leaves all as it was.

        Args:
            prompt: Text or token ids to go on with, or messages; () to answer what is there.
            max_tokens: Most tokens to generate; what ``params`` say, or 200, if not given.
            params: How to sample and when to stop, where it says so: for what it does not set, the
                runner's defaults hold. ``overrides`` are changes to it.

        Raises:
            ContextBusyError: A stream on this conversation is open.
            ContextFullError: All that could make room is pinned.
            Others: As for :meth:`LlamaRunner.generate_stateless`.
        """
        chosen = generation_params(max_tokens, params, overrides, self._defaults)
        with self._entered(), self._undone_on_error():
            generation = self._begin(prompt, chosen)
            completion = generation.run(self._make_room)
            self._book_answer(completion.text)
            return completion

    def stream(
        self,
        prompt: Prompt = (),
        max_tokens: int | None = None,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Stream:
        """Like :meth:`generate`, in chunks. What was generated when it is closed is kept.

        Raises:
            As :meth:`generate`; what goes wrong while it is computed, where the stream is read. A
            stream that could not make room ends with what it has, one that failed is undone.
        """
        chosen = generation_params(max_tokens, params, overrides, self._defaults)
        with self._entered():
            with self._undone_on_error() as before:
                generation = self._begin(prompt, chosen)
            self._open = _OpenTurn(generation, before)
            return Stream(generation, self._book_stream, self._make_room_for_stream)

    def _make_room(self, generation: Generation) -> None:
        generation.request.lend()
        self._collector.make_room_while_generating(generation)

    def _make_room_for_stream(self, generation: Generation) -> None:
        with self._entered():
            self._make_room(generation)

    def append(self, prompt: Prompt, *, parse_special: bool = True) -> None:
        """Add text, token ids or messages without generating; decoded with the next generation.

        Unlike :meth:`generate` it never takes messages for the whole conversation: an assistant's
        message, as of an example or a call of a tool, comes behind what is there.

        Raises:
            InvalidParameterError: It is empty, or its messages are none.
            TokenizationError: It is no text, or has token ids that do not exist.
            ChatTemplateError: There is no template, or it refuses these messages.
            PromptTooLongError: It does not fit beside what is pinned.
            ContextBusyError: A stream on this conversation is open.
        """
        with self._entered(), self._undone_on_error():
            if is_messages(prompt):
                self._add_messages(read_messages(prompt), for_answer=False)
            else:
                self._transcript.add_raw(prompt, parse_special=parse_special)
            self._collector.make_room_for_prompt()

    def _begin(self, prompt: Prompt, params: GenerationParams) -> Generation:
        started = time.perf_counter()
        self._collector.cleaned = False
        difference: tuple[int, int] | None = None
        nothing_new = isinstance(prompt, tuple) and not prompt
        if nothing_new and not self._transcript.parts:
            raise InvalidParameterError(
                "prompt: there is nothing to answer in an empty conversation", field="prompt"
            )
        if nothing_new and self._transcript.parts[-1].role in UNTEMPLATED:
            pass  # raw text goes on by itself
        elif nothing_new or is_messages(prompt):
            given = read_messages(prompt)  # type: ignore[arg-type]
            stops, difference = self._add_messages(given, for_answer=True)
            params = params.merged(stop=(*params.stop, *stops)) if stops else params
        else:
            self._transcript.add_raw(prompt, parse_special=params.parse_special)
        self._sequence.use_adapters(params.lora)
        self._collector.make_room_for_prompt()
        self._collector.take_opening()
        generation = Generation(
            self._sequence,
            params,
            started=started,
            shifted=self._collector.n_shifted,
            first_difference=difference,
        )
        self._collector.n_shifted = 0
        generation.request.resume(self._collector.pause_at())
        return generation

    def _add_messages(
        self, given: list[dict[str, Any]], *, for_answer: bool
    ) -> tuple[tuple[str, ...], tuple[int, int] | None]:
        """Returns the strings that end an answer, and the first token and message that differ."""
        transcript = self._transcript
        difference = None
        whole = for_answer and is_whole_conversation(given)
        if self._reuse == "chunks" and whole:
            gone = transcript.taken_out(given)
            if gone:
                before = transcript.parts[: gone[0]]
                difference = transcript.start_of(gone[0]), sum(len(p.messages) for p in before)
                self._collector.drop(gone, remember=False)
        stops, cut = transcript.add_messages(
            given,
            whole=whole,
            for_answer=for_answer,
            before_cut=self._collector.checkpoints.go_back,
        )
        return stops, difference or cut

    def _book_answer(self, text: str) -> None:
        self._transcript.book_answer(text)
        self._collector.checkpoints.take_turn()

    # ---- memory --------------------------------------------------------------------------------

    def info(self) -> ContextInfo:
        """What is in the conversation's memory. Computes nothing on the model.

        Raises:
            ClosedError, ForkedProcessError: The session cannot be used any more, or not here.
        """
        with self._looked_at():
            return self._collector.info()

    def gc(
        self,
        target: float = 0.5,
        *,
        policy: GcPolicyLike = "oldest_turns",
        dry_run: bool = False,
        exact: bool = False,
    ) -> GcReport:
        """Drop spans until at most ``target`` of the context is used.

        A system message, turns with a pinned span and the newest turn stay; of the newest, older
        calls of tools and their results may go. On a model that remembers with
        plain attention the rest moves up; otherwise, or with ``exact``, it is decoded again with
        the next generation.

        Args:
            target: Share of the context, 0 to 1. Nothing is dropped where less is used.
            policy: "oldest_turns", "tool_results", or a policy of :mod:`llama_runner.memory`.
            dry_run: Drop nothing, report what would be done and what it would cost. A parked
                conversation comes back into the KV memory for that, and others may have to leave.
            exact: Decode what stays again, as if what goes had never been there; also what earlier
                collections moved up.

        Raises:
            InvalidParameterError: ``target`` is out of range, there is no such policy, it proposes
                what is no span, or a summary is no text or too long.
            ChatTemplateError: The template takes no summary there.
            ContextBusyError: A stream on this conversation is open.
            Others: Whatever the policy raises. In each case nothing was dropped.
        """
        if not isinstance(target, int | float) or not 0 <= target < 1:
            raise InvalidParameterError(
                f"target={target!r}: must be a number from 0 on and less than 1", field="target"
            )
        chosen = resolve_policy(policy)
        with self._entered(), self._undone_on_error():
            return self._collector.collect(target, chosen, dry_run=dry_run, exact=exact)

    def clear(self) -> None:
        """Forget everything.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        with self._entered():
            self._transcript.clear()
            self._collector.reset()

    def pin(self, index: int = -1) -> None:
        """Keep a span whatever happens.

        Args:
            index: Of :attr:`ContextInfo.spans`; by default the newest.

        Raises:
            InvalidParameterError: There is no such span.
            ContextBusyError: A stream on this conversation is open.
        """
        self._set_pinned(index, True)

    def unpin(self, index: int = -1) -> None:
        """Let a span go again when room is needed.

        Args:
            index: As for :meth:`pin`.

        Raises:
            As :meth:`pin`.
        """
        self._set_pinned(index, False)

    def _set_pinned(self, index: int, pinned: bool) -> None:
        with self._entered():
            self._sequence.check_idle()
            parts = self._transcript.parts
            try:
                parts[operator.index(index)].pinned = pinned
            except (IndexError, TypeError):
                raise InvalidParameterError(
                    f"index={index!r}: must be one of the {len(parts)} spans' indices",
                    field="index",
                ) from None

    def pause(self) -> None:
        """Stay in the KV memory while a tool runs: until the next use, others leave it first.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        with self._entered():
            self._sequence.keep_warm()

    # ---- time travel ---------------------------------------------------------------------------

    def mark(self) -> SessionMark:
        """This place in the conversation, to :meth:`rewind` to.

        On a model with a recurrent state it holds a copy of that state; otherwise next to nothing.

        Raises:
            ContextBusyError: A stream on this conversation is open.
            DecodeError: llama.cpp cannot save the recurrent state.
        """
        with self._entered():
            self._sequence.check_idle()
            self._sequence.bring_in()
            checkpoint = Checkpoint.take(self._sequence)
            return SessionMark(self._transcript.mark(), checkpoint, self._lineage)

    def rewind(self, mark: SessionMark) -> None:
        """Go back to a mark of this session: as if what came later had never been.

        A mark of a session that this one was forked from, or that was forked from it, makes this
        one what that was.

        Raises:
            InvalidParameterError: It is no mark of this session or its forks.
            ContextBusyError: A stream on this conversation is open.
        """
        with self._entered():
            self._sequence.check_idle()
            if not isinstance(mark, SessionMark) or mark.lineage is not self._lineage:
                raise InvalidParameterError(
                    "mark: must be what mark() of this session, or of a fork, returned",
                    field="mark",
                )
            self._sequence.bring_in()
            self._return_to(mark.transcript, mark.checkpoint)
            self._collector.reset()

    def fork(self, name: str | None = None) -> Session:
        """A second conversation that begins as this one; they go on independently.

        On plain attention in the unified layout both have the same cells; no token is copied.

        Args:
            name: The new one's, for people.

        Raises:
            InvalidParameterError: ``name`` is no printable text.
            ContextBusyError: A stream on this conversation is open.
        """
        with self._entered():
            child = Session(
                self._context,
                self._chat,
                self._gc_threshold,
                name=name,
                reuse=self._reuse,
                defaults=self._defaults,
                transcript=self._transcript.fork(),
            )
            child._collector.checkpoints.adopt(self._collector.checkpoints)
            child._lineage = self._lineage
            return child

    # ---- saving --------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """The whole conversation as bytes, its cells in the KV memory included.

        They grow with the conversation; on SmolLM2 a token takes 23 kB. For :meth:`restore`, also
        in another process, with the same model.

        Raises:
            SnapshotError: The file of the model or of an adapter is no longer there.
            DecodeError: llama.cpp cannot save the state.
            ContextBusyError: A stream on this conversation is open.
        """
        from llama_runner.snapshot import take_snapshot

        with self._entered():
            return take_snapshot(self._transcript, self.name)

    def restore(self, snapshot: Buffer) -> None:
        """Become the conversation of a snapshot, in the place of what was here.

        With other context settings than it was made with (kv_type, kv_layout, flash_attention,
        swa_full, RoPE), or another version of llama.cpp, its tokens are computed again with the
        next generation.

        Raises:
            SnapshotError: It is damaged, of a newer version, of another model or adapter, or no
                snapshot; the conversation is as it was.
            PromptTooLongError: It has more tokens than this context holds; likewise.
            ContextBusyError: A stream on this conversation is open.
        """
        from llama_runner.snapshot import open_snapshot

        with self._entered():
            self._sequence.check_idle()
            old, new = self._sequence, Transcript(self._context.new_sequence(), self._chat)
            new.parts, new.turn, name = open_snapshot(snapshot, new.sequence)
            self._become(new)
            self.name = self.name if name is None else name
            old.close()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a :meth:`snapshot` to a file, whole or not at all.

        A new file is for the user alone (mode 0600); one that is replaced keeps its mode.

        Raises:
            FileWriteError: It cannot be written there.
            NoDiskSpaceError: The disk has no room.
            ContextBusyError: A stream on this conversation is open.
        """
        from llama_runner.loaders.files import write_file
        from llama_runner.snapshot import snapshot_path

        write_file(snapshot_path(path), self.snapshot(), private=True)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Become the conversation of a file that :meth:`save` wrote; see :meth:`restore`.

        Raises:
            SnapshotNotFoundError: There is no such file; the conversation is as it was.
            SnapshotError: It cannot be read; likewise.
            Others: As for :meth:`restore`.
        """
        from llama_runner.snapshot import read_file

        self.restore(read_file(path))

    # ---- lifetime ------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the memory back.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        try:
            self._context.check()
        except (ClosedError, ForkedProcessError):
            return  # there is nothing to give back, or it is the parent's
        with self._lock:
            self._check_outside()
            self._book_stream()
            self._sequence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.generation.request.close()  # a loop over a stream may have been left early
        self.close()

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Session{name} {len(self._transcript.parts)} spans, {len(self._sequence)} tokens>"

    # ---- keeping it whole ----------------------------------------------------------------------

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Alone with the conversation, to change it."""
        with self._looked_at():
            self._check_outside()
            self._inside = True
            try:
                yield
            finally:
                self._inside = False

    @contextmanager
    def _looked_at(self) -> Iterator[None]:
        """While no other thread changes the conversation; what earlier calls left undone is done.

        A callback or signal handler may look at it in the middle of a call.
        """
        self._context.check()  # in a forked child the lock may never be let go of
        with self._lock:
            self._sequence.check()
            if not self._inside:
                self._go_back()
                self._book_stream()
            yield

    def _check_outside(self) -> None:
        if self._inside:
            raise ContextBusyError(
                "a callback or signal handler inside a call on a conversation cannot change it"
            )

    def _book_stream(self) -> None:
        """Count the turn of a stream that has ended to the conversation."""
        with self._lock:
            turn = self._open
            if turn is None or self._inside or self._context.closed:
                return
            request = turn.generation.request
            if not request.done:
                return
            if request.finish_reason is None:
                self._undo, self._open = turn.before, None
                self._go_back()
                return
            self._transcript.book_answer(request.text)
            self._open = None
            self._collector.checkpoints.take_turn()

    @contextmanager
    def _undone_on_error(self) -> Iterator[_Before]:
        """Change the conversation if nobody generates on it; what was before is given."""
        self._sequence.check_idle()
        before = _Before(
            self._transcript.mark(),
            self._sequence.adapters,
            self._collector.cleaned,
            self._collector.n_shifted,
        )
        self._undo = before
        try:
            yield before
        except BaseException:
            self._go_back()
            raise
        self._undo = None

    def _go_back(self) -> None:
        """Undo a call that raised. A signal may interrupt this, too; then the next call does it."""
        before = self._undo
        if before is None or self._sequence.busy or self._context.closed:
            return
        self._sequence.use_adapters(before.adapters)
        self._return_to(before.transcript)
        self._collector.cleaned, self._collector.n_shifted = before.cleaned, before.n_shifted
        self._undo = None

    def _return_to(self, mark: TranscriptMark, checkpoint: Checkpoint | None = None) -> None:
        self._collector.checkpoints.go_back(self._transcript.n_as_at(mark), checkpoint)
        self._transcript.go_back(mark)
