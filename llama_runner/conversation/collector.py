"""Making room in a conversation: when, how much, and what it costs."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Literal

from llama_runner.conversation.alignment import Replacement
from llama_runner.conversation.policies import GcPolicy, Summarize, oldest_turns, plan, whole_turns
from llama_runner.conversation.removal import Removal, plan_removal, plan_summary
from llama_runner.conversation.splice import Splicer
from llama_runner.conversation.turns import DecodeCancelledError, Turns
from llama_runner.errors import (
    ChatTemplateError,
    ContextFullError,
    InvalidParameterError,
    LlamaError,
    PromptTooLongError,
)
from llama_runner.generation.generation import Generation
from llama_runner.results import ContextInfo, ContextState, GcMethod, GcReport, Span

__all__ = ["Collector"]

# The goal of an automatic collection, as a share of the context and of the threshold: low enough
# that the next one is not needed at once.
AUTOMATIC_TARGET = 0.5
SHARE_OF_THRESHOLD = 0.625


class Collector:
    """Make room in one conversation: evict spans, and say how far it may grow until then.

    Args:
        turns: Of the conversation; what a collection does is counted there.
        threshold: Share of the context above which to evict automatically.
        policy: What to evict then. If that is not enough, the oldest turns are evicted as well.
    """

    def __init__(self, turns: Turns, threshold: float, policy: GcPolicy) -> None:
        self._turns = turns
        self._context = turns.context
        self._threshold = threshold
        self._policy = policy
        self._target = min(AUTOMATIC_TARGET, SHARE_OF_THRESHOLD * threshold)

    def info(self) -> ContextInfo:
        """Return what is in memory. Computes nothing on the model."""
        used, n_ctx = len(self._turns.transcript.sequence), self._context.n_ctx_seq
        spans = self._turns.transcript.spans()
        doomed = plan(spans, used - n_ctx // 2, oldest_turns)
        state: ContextState = "growing"
        if used == 0:
            state = "empty"
        elif self._turns.cleaned:
            state = "cleaned"
        elif used > self._threshold * n_ctx:
            state = "full"
        return ContextInfo(
            n_ctx=n_ctx,
            used=used,
            bytes=self._turns.transcript.sequence.kv_bytes,
            spans=spans,
            gc_would_free=sum(spans[i].tokens for i in doomed),
            state=state,
        )

    def collect(
        self, target: float, policy: GcPolicy, *, dry_run: bool = False, exact: bool = False
    ) -> GcReport:
        """Evict spans until at most ``target`` of the context is used; see :meth:`Session.gc`."""
        started = time.perf_counter()
        transcript, sequence = self._turns.transcript, self._turns.transcript.sequence
        spans = transcript.spans()
        doomed = plan(spans, len(sequence) - int(target * self._context.n_ctx_seq), policy)
        if doomed and isinstance(policy, Summarize):  # the new summary includes the older ones
            doomed = sorted({*doomed, *(i for i, s in enumerate(spans) if s.role == "summary")})
        summary = "" if dry_run else self._summary(doomed, policy)
        # Only tokens in the memory can be moved there; what the caller's functions did may have
        # evicted them.
        sequence.bring_in()
        doomed, removal = self._planned(doomed, summary)
        n_same = removal.first_token if doomed else len(sequence)
        checkpoint = transcript.checkpoints.latest(n_same) if doomed else None
        if checkpoint is not None:
            n_same = len(checkpoint.tokens)
        elif exact:
            n_same = min(n_same, sequence.n_exact)
        method: GcMethod = "rebuild"
        if checkpoint is not None:
            method = "checkpoint"
        elif not doomed and n_same == len(sequence):
            method = "none"
        elif doomed and not exact and not isinstance(policy, Summarize):
            method = "shift" if self._splicer().can_move(removal.replacements) else "rebuild"
        n_again = removal.n_new
        if method in ("rebuild", "checkpoint"):
            n_left = n_same if checkpoint is not None else sequence.n_left_of(n_same)
            n_again = len(sequence) - removal.n_removed - n_left
        if dry_run or method == "none":
            ms = self._estimate(method, n_again)
            return GcReport(len(doomed), removal.n_removed, method, n_again, ms)
        if checkpoint is not None:
            checkpoint.restore(sequence)
        elif method == "rebuild":
            sequence.forget_from(n_same)
        moved = self._apply(removal, move=method == "shift") if doomed else method
        if method == "shift" and moved == "rebuild":
            method = "rebuild"  # another thread needed the room meanwhile
        if method != "shift":
            n_again = len(sequence) - sequence.n_cached
        self._turns.cleaned |= bool(doomed)
        ms = (time.perf_counter() - started) * 1e3
        return GcReport(len(doomed), removal.n_removed, method, n_again, ms)

    def _planned(self, doomed: list[int], summary: str) -> tuple[list[int], Removal]:
        """Plan the removal of spans, or of as many of them as the template allows."""
        transcript = self._turns.transcript
        if summary:
            return doomed, plan_summary(transcript, doomed, summary)
        whole = whole_turns(transcript.spans(), doomed)
        for chosen in (doomed, whole):
            try:
                return chosen, plan_removal(transcript, chosen)
            except ChatTemplateError:
                pass  # this template may not accept a conversation without a step or result
        return [], plan_removal(transcript, [])

    def _summary(self, doomed: list[int], policy: GcPolicy) -> str:
        """Return the text that is to replace spans, "" for none."""
        if not doomed or not isinstance(policy, Summarize):
            return ""
        summary = policy.write(self._turns.transcript.text_of(doomed))
        if not isinstance(summary, str):
            raise InvalidParameterError(
                f"summarize: the function returned {type(summary).__name__}, not str"
            )
        return summary if summary.strip() else ""

    def _splicer(self) -> Splicer:
        return Splicer(self._turns, self._context.n_ctx_seq - 1)

    def _apply(self, removal: Removal, *, move: bool) -> Literal["shift", "rebuild"]:
        """Take parts out of the transcript, and count what was moved."""
        transcript, sequence = self._turns.transcript, self._turns.transcript.sequence
        n_cached, n_same = sequence.n_cached, removal.first_token
        splicer = self._splicer()

        def splice(new: Replacement) -> bool:
            try:
                return splicer.replace(new)
            except DecodeCancelledError:
                return False  # the generation ends; the conversation is complete without it

        method = transcript.apply(removal, splice if move else None)
        if method == "shift":
            n_moved = n_cached - n_same - removal.n_removed - removal.n_new
            self._turns.work.moved += max(0, n_moved)
        return method

    def drop(self, indices: list[int]) -> None:
        """Remove parts whose messages the caller took out of the conversation."""
        removal = plan_removal(self._turns.transcript, indices, remember=False)
        self._apply(removal, move=True)

    def take_opening(self) -> None:
        """Keep a copy of the state after what opens the conversation, if it has one to keep."""
        transcript, started = self._turns.transcript, time.perf_counter()
        first = transcript.parts[0]
        if transcript.checkpoints.wanted and first.role == "system":
            n = transcript.checkpoints.take_opening(first.n_tokens, self._turns.decode)
            if n:
                self._turns.work.add_computed(n, started)

    def _estimate(self, method: GcMethod, n_again: int) -> float | None:
        """Estimate the milliseconds, at the speeds that were last measured."""
        tokens_per_second, shift_ms = self._context.speeds
        if method == "shift":
            return shift_ms or None
        return n_again * 1e3 / tokens_per_second if tokens_per_second else None

    def make_room_for_prompt(self) -> None:
        """Collect if the threshold is exceeded.

        Raises:
            PromptTooLongError: The newest turn has no room beside what is pinned.
        """
        n_ctx, used = self._context.n_ctx_seq, len(self._turns.transcript.sequence)
        if used <= self._threshold * n_ctx:
            return
        spans = self._turns.transcript.spans()
        doomed = set(plan(spans, used, oldest_turns))
        left = [span for i, span in enumerate(spans) if i not in doomed]
        if sum(span.tokens for span in left) >= n_ctx:
            n_new = sum(span.tokens for span in left if span.turn == spans[-1].turn)
            older = [span for span in left if span.turn < spans[-1].turn]
            n_older = sum(span.tokens for span in older)
            beside = f" beside what is to stay: {_listed(older)}" if older else ""
            unpin = ", unpin some" if self._pinned() else ""
            raise PromptTooLongError(
                f"the prompt has {n_new:,} tokens; {max(0, n_ctx - n_older - 1):,} fit (a context "
                f"of {n_ctx:,}, one token for the answer){beside}; shorten it{unpin} or raise n_ctx"
            )
        self._collect_by_itself()
        n_left = len(self._turns.transcript.sequence)
        if n_left >= n_ctx:
            raise PromptTooLongError(
                f"the prompt and what has to stay have {n_left:,} tokens, the context {n_ctx:,}: "
                "shorten the prompt or raise n_ctx"
            )

    def _collect_by_itself(self) -> bool:
        """Evict what the policy says and, if that is not enough, the oldest turns.

        Returns:
            True if anything was done.
        """
        done = False
        with suppress(ChatTemplateError):  # it does not take a summary
            done = self.collect(self._target, self._policy).method != "none"
        if len(self._turns.transcript.sequence) >= self.limit and self._policy is not oldest_turns:
            done |= self.collect(self._target, oldest_turns).method != "none"
        return done

    @property
    def limit(self) -> int:
        """The number of tokens from which a collection is needed."""
        n_ctx = self._context.n_ctx_seq
        return min(int(self._threshold * n_ctx), n_ctx - 1)

    def first_pause(self) -> int:
        """Return the ledger length at which a generation pauses first."""
        if self._turns.transcript.checkpoints.wanted:
            return len(self._turns.sequence) + 1  # after its prompt was computed
        return self._next_pause()

    def _next_pause(self) -> int:
        return max(self.limit, len(self._turns.sequence) + 1)

    def go_on(self, generation: Generation) -> None:
        """Let a paused generation continue: keep a copy of its state, or make room for it.

        Raises:
            ContextFullError: All that could be evicted is pinned.
        """
        request, checkpoints = generation.request, self._turns.transcript.checkpoints
        if len(request.tokens) == 1 and checkpoints.wanted:
            checkpoints.take()
        if len(self._turns.sequence) < self.limit:
            request.resume(self._next_pause())
            return
        before = self._turns.mark()
        try:
            self.make_room_while_generating(generation)
        except BaseException:  # evict all that was to be evicted, or nothing
            with suppress(LlamaError):  # the context may be broken, or closed
                self._turns.restore(before)
            raise

    def make_room_while_generating(self, generation: Generation) -> None:
        """Collect in the middle of an answer, and let it continue.

        Raises:
            ContextFullError: All that could be evicted is pinned.
        """
        self._turns.transcript.book_answer(None)
        if self._collect_by_itself():
            generation.request.resume(self._next_pause())
            return
        n_ctx, pinned = self._context.n_ctx_seq, self._pinned()
        if pinned and len(self._turns.transcript.sequence) >= n_ctx - 1:
            raise ContextFullError(
                f"the context of {n_ctx:,} tokens is full and what could be evicted is pinned: "
                f"{_listed(pinned)}; unpin some of it, or raise n_ctx"
            )
        # Nothing can be evicted. With pinned spans, try again at the very end; a turn that fills
        # the whole context ends there anyway, because of its length.
        generation.request.resume(n_ctx - 1 if pinned else 0)

    def _pinned(self) -> list[Span]:
        """Return the spans that the caller could unpin, without those that always stay."""
        pairs = zip(self._turns.transcript.spans(), self._turns.transcript.parts, strict=True)
        return [span for span, part in pairs if part.pinned and part.role != "system"]


def _listed(spans: list[Span]) -> str:
    return ", ".join(f"{span.role} ({span.tokens:,} tokens)" for span in spans)
