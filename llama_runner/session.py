"""A conversation that lives in the KV memory, and what can be done with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, Unpack

from llama_runner._core import ChatTemplate, Context, Sequence
from llama_runner.errors import ContextFullError, InvalidParameterError, PromptTooLongError
from llama_runner.generation import Generation, Stream
from llama_runner.memory import GcPolicyLike, plan, resolve_policy
from llama_runner.params import GenerationOptions, GenerationParams, generation_params
from llama_runner.prompts.messages import Prompt, is_messages, read_messages
from llama_runner.results import Completion, ContextInfo, ContextState, GcReport
from llama_runner.transcript import Transcript, TranscriptMark

__all__ = ["Session", "SessionMark"]

# Where an automatic collection goes: low enough that it is not needed again at once.
AUTOMATIC_TARGET = 0.5


@dataclass(frozen=True, slots=True)
class SessionMark:
    """A place in a conversation to come back to; see :meth:`Session.mark`."""

    transcript: TranscriptMark
    state: bytes
    n_state: int


class Session:
    """One conversation on a context. Made by :meth:`LlamaRunner.session`.

    Calls from several threads take turns. While a stream is open, others are refused.

    Args:
        context: Where it lives.
        template: For prompts that are messages; None where the model has none.
        gc_threshold: Share of the context above which old turns are dropped by themselves.
    """

    def __init__(
        self, context: Context, template: ChatTemplate | None, gc_threshold: float
    ) -> None:
        self._context = context
        self._template = template
        self._gc_threshold = gc_threshold
        self._transcript = Transcript(context.new_sequence(), context.model.vocab, template)
        self._cleaned = False
        self._n_shifted = 0  # tokens that the last collection moved up
        self._lock = threading.RLock()

    @property
    def _sequence(self) -> Sequence:
        return self._transcript.sequence

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages as they stand in memory, oldest first; a copy."""
        with self._lock:
            return [dict(message) for message in self._transcript.messages]

    # ---- generating ----------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int = 200,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Completion:
        """Add a prompt, generate, and keep both. A call that raises leaves all as it was.

        Args:
            prompt: Text or token ids to go on with, or messages.
            max_tokens: Most tokens to generate.
            params: How to sample and when to stop; ``overrides`` are changes to it.

        Raises:
            ContextBusyError: A stream on this conversation is open.
            ContextFullError: All that could make room is pinned.
            Others: As for :meth:`LlamaRunner.generate_stateless`.
        """
        chosen = generation_params(max_tokens, params, overrides)
        with self._lock, self._undone_on_error():
            generation = self._begin(prompt, chosen)
            completion = generation.run(self._make_room_while_generating)
            self._transcript.book_answer(completion.text)
            return completion

    def stream(
        self,
        prompt: Prompt,
        max_tokens: int = 200,
        params: GenerationParams | None = None,
        **overrides: Unpack[GenerationOptions],
    ) -> Stream:
        """Like :meth:`generate`, in chunks. What was generated when it is closed is kept."""
        chosen = generation_params(max_tokens, params, overrides)
        with self._lock:
            self._sequence.check_idle()
            before, cleaned = self._transcript.mark(), self._cleaned
            with self._undone_on_error():
                generation = self._begin(prompt, chosen)

            def on_end(completion: Completion | None) -> None:
                with self._lock:
                    if completion is None:
                        self._go_back(before, cleaned)
                    else:
                        self._transcript.book_answer(completion.text)

            return Stream(generation, on_end, self._make_room_while_generating)

    def append(self, prompt: Prompt, *, parse_special: bool = True) -> None:
        """Add text, token ids or messages without generating; decoded with the next generation."""
        with self._lock, self._undone_on_error():
            self._sequence.check_idle()
            if is_messages(prompt):
                self._transcript.add_messages(read_messages(prompt), for_answer=False)
            else:
                self._transcript.add_raw(prompt, parse_special=parse_special)
            self._make_room_for_prompt()
            self._transcript.turn += 1

    def _begin(self, prompt: Prompt, params: GenerationParams) -> Generation:
        self._sequence.check_idle()
        before = len(self._sequence)
        if is_messages(prompt):
            stops = self._transcript.add_messages(read_messages(prompt))
            params = params.merged(stop=(*params.stop, *stops)) if stops else params
        else:
            self._transcript.add_raw(prompt, parse_special=params.parse_special)
        kept = self._transcript.n_kept
        self._cleaned = False
        self._n_shifted = 0
        self._make_room_for_prompt()
        generation = Generation(
            self._sequence,
            params,
            shifted=self._n_shifted,
            first_difference=kept if kept < before else None,
        )
        generation.request.resume(self._pause_at())
        return generation

    # ---- memory --------------------------------------------------------------------------------

    def info(self) -> ContextInfo:
        """What is in the conversation's memory. Computes nothing on the model."""
        with self._lock:
            used, n_ctx = len(self._sequence), self._context.n_ctx_seq
            spans = self._transcript.spans()
            doomed = plan(spans, used - n_ctx // 2, resolve_policy("oldest_turns"))
            state: ContextState = "growing"
            if used == 0:
                state = "empty"
            elif self._cleaned:
                state = "cleaned"
            elif used > self._gc_threshold * n_ctx:
                state = "full"
            return ContextInfo(
                n_ctx=n_ctx,
                used=used,
                bytes=used * self._context.kv_bytes // self._context.n_ctx,
                spans=spans,
                gc_would_free=sum(spans[i].tokens for i in doomed),
                state=state,
            )

    def gc(
        self,
        target: float = 0.5,
        *,
        policy: GcPolicyLike = "oldest_turns",
        dry_run: bool = False,
        exact: bool = False,
    ) -> GcReport:
        """Drop spans until at most ``target`` of the context is used.

        A system message, pinned spans and the newest turn stay. On a model that remembers with
        plain attention the rest moves up; otherwise, or with ``exact``, it is decoded again with
        the next generation.

        Args:
            target: Share of the context, 0 to 1.
            policy: "oldest_turns", "tool_results", or a policy of :mod:`llama_runner.memory`.
            dry_run: Change nothing, report what would be done.
            exact: Decode what stays again, as if what goes had never been there.

        Raises:
            InvalidParameterError: ``target`` is out of range, or there is no such policy.
            ContextBusyError: A stream on this conversation is open.
        """
        if not 0 <= target < 1:
            raise InvalidParameterError(
                f"target={target}: must be at least 0 and less than 1", field="target"
            )
        chosen = resolve_policy(policy)
        with self._lock:
            self._sequence.check_idle()
            return self._collect(int(target * self._context.n_ctx_seq), chosen, dry_run, exact)

    def _collect(
        self, n_target: int, policy: Any, dry_run: bool = False, exact: bool = False
    ) -> GcReport:
        started = time.perf_counter()
        spans = self._transcript.spans()
        doomed = plan(spans, len(self._sequence) - n_target, policy)
        if not doomed:
            return GcReport(0, 0, "none", 0, 0.0)
        n_tokens = sum(spans[i].tokens for i in doomed)
        shifts = self._context.can_shift and not exact
        method = "shift" if shifts else "rebuild"
        n_before = spans[doomed[0]].start
        n_rest = len(self._sequence) - n_tokens - n_before
        if not dry_run:
            if exact:
                self._sequence.forget_from(n_before)
            n_cached = self._sequence.n_cached
            method = self._transcript.remove(doomed)
            self._cleaned = True
            self._n_shifted = n_cached - n_tokens - n_before if method == "shift" else 0
        return GcReport(
            spans_removed=len(doomed),
            tokens_removed=n_tokens,
            method="shift" if method == "shift" else "rebuild",
            tokens_recomputed=0 if method == "shift" else n_rest,
            ms=(time.perf_counter() - started) * 1e3,
        )

    def _make_room_for_prompt(self) -> None:
        n_ctx = self._context.n_ctx_seq
        spans = self._transcript.spans()
        turn = self._transcript.turn
        n_new = sum(span.tokens for span in spans if span.turn == turn)
        n_pinned = sum(span.tokens for span in spans if span.pinned and span.turn < turn)
        if n_new + n_pinned >= n_ctx:
            beside = f" beside {n_pinned:,} pinned ones" if n_pinned else ""
            raise PromptTooLongError(
                f"the prompt has {n_new:,} tokens; {n_ctx - n_pinned - 1:,} fit{beside} (a context "
                f"of {n_ctx:,}, one token for the answer): shorten it or raise n_ctx"
            )
        if len(self._sequence) > self._gc_threshold * n_ctx:
            self._collect(int(AUTOMATIC_TARGET * n_ctx), resolve_policy("oldest_turns"))

    def _pause_at(self) -> int:
        """Ledger length at which a generation pauses to have room made."""
        n_ctx = self._context.n_ctx_seq
        return max(int(self._gc_threshold * n_ctx), len(self._sequence) + 1)

    def _make_room_while_generating(self, generation: Generation) -> None:
        with self._lock:
            self._transcript.book_answer(None)
            n_ctx = self._context.n_ctx_seq
            report = self._collect(int(AUTOMATIC_TARGET * n_ctx), resolve_policy("oldest_turns"))
            if report.method != "none":
                generation.request.resume(self._pause_at())
                return
            pinned = [part for part in self._transcript.parts if part.pinned]
            if pinned and len(self._sequence) >= n_ctx - 1:
                what = ", ".join(f"{part.role} ({part.n_tokens:,} tokens)" for part in pinned)
                raise ContextFullError(
                    f"the context of {n_ctx:,} tokens is full and what could go is pinned: {what}; "
                    "unpin some of it, or raise n_ctx"
                )
            # Nothing can go. With pinned spans ask again at the very end; a turn that alone fills
            # the context ends there by itself, for its length.
            generation.request.resume(n_ctx - 1 if pinned else 0)

    def clear(self) -> None:
        """Forget everything.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        with self._lock:
            self._transcript.clear()
            self._cleaned = False

    def pin(self, index: int = -1) -> None:
        """Keep a span whatever happens.

        Args:
            index: Of :attr:`ContextInfo.spans`; by default the newest.
        """
        self._set_pinned(index, True)

    def unpin(self, index: int = -1) -> None:
        """Let a span go again when room is needed."""
        self._set_pinned(index, False)

    def _set_pinned(self, index: int, pinned: bool) -> None:
        with self._lock:
            parts = self._transcript.parts
            if not -len(parts) <= index < len(parts):
                raise InvalidParameterError(
                    f"index={index}: the conversation has {len(parts)} spans", field="index"
                )
            parts[index].pinned = pinned

    # ---- time travel ---------------------------------------------------------------------------

    def mark(self) -> SessionMark:
        """This place in the conversation, to :meth:`rewind` to.

        On a model with a recurrent state it holds a copy of that state; otherwise next to nothing.
        """
        with self._lock:
            self._sequence.check_idle()
            state, n = b"", 0
            if self._context.memory_kind in ("recurrent", "hybrid"):
                state, n = self._sequence.save_state(partial=True)
            return SessionMark(self._transcript.mark(), state, n)

    def rewind(self, mark: SessionMark) -> None:
        """Go back to a mark of this session: as if what came later had never been.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        with self._lock:
            self._sequence.check_idle()
            n_same = self._sequence.common_prefix(mark.transcript.tokens)
            n_cached = self._sequence.n_cached
            if mark.state and mark.n_state <= min(n_same, n_cached):
                self._sequence.restore_state(mark.state, mark.n_state, partial=True)
            self._transcript.go_back(mark.transcript)
            self._cleaned = False

    def fork(self) -> Session:
        """A second conversation that begins as this one; they go on independently.

        On plain attention in the unified layout both have the same cells; no token is copied.
        """
        with self._lock:
            child = Session(self._context, self._template, self._gc_threshold)
            child._transcript = Transcript(
                self._sequence.fork(), self._context.model.vocab, self._template
            )
            child._transcript.parts = [part.copy() for part in self._transcript.parts]
            child._transcript.turn = self._transcript.turn
            return child

    def close(self) -> None:
        """Give the memory back.

        Raises:
            ContextBusyError: A stream on this conversation is open.
        """
        with self._lock:
            self._sequence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session {len(self._transcript.parts)} spans, {len(self._sequence)} tokens>"

    # ---- undoing -------------------------------------------------------------------------------

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        self._sequence.check_idle()
        before, cleaned = self._transcript.mark(), self._cleaned
        try:
            yield
        except BaseException:
            self._go_back(before, cleaned)
            raise

    def _go_back(self, before: TranscriptMark, cleaned: bool) -> None:
        if not self._sequence.busy and not self._context.closed:
            self._transcript.go_back(before)
            self._cleaned = cleaned
