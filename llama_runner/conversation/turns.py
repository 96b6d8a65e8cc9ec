"""Whose turn it is to change a conversation, and what a call that raises goes back to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llama_runner._core import Request, Sequence, Turnstile
from llama_runner.conversation.transcript import Transcript, TranscriptMark
from llama_runner.generation.generation import Generation
from llama_runner.generation.prompt_work import PromptWork

__all__ = ["Before", "DecodeCancelledError", "OpenTurn", "Turns"]


class DecodeCancelledError(Exception):
    """A call was cancelled while it computed something that is not an answer."""


@dataclass(frozen=True, slots=True)
class Before:
    """The state of a conversation before a call."""

    transcript: TranscriptMark
    adapters: tuple[tuple[str, float], ...]
    work: PromptWork
    cleaned: bool


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A turn that a stream computes, and the state before it."""

    generation: Generation
    before: Before


class Turns(Turnstile):
    """The calls on one transcript, one after the other.

    A call that raises is undone. If a signal interrupts even that, the next call undoes it. The
    turn of a stream is booked by the next call, or when the stream ends.

    Args:
        transcript: What the calls change.

    Attributes:
        work: What was done for the next answer so far.
        cleaned: Whether something was evicted since the last answer.
    """

    sequence: Sequence
    before: Before | None
    open: OpenTurn | None

    def __init__(self, transcript: Transcript) -> None:
        super().__init__(transcript.sequence.context)
        self.use(transcript)

    def use(self, transcript: Transcript) -> None:
        """Begin anew with another transcript."""
        work = PromptWork()
        # No call from here on: a signal handler cannot raise in between.
        self.transcript, self.sequence = transcript, transcript.sequence
        self.work, self.cleaned = work, False

    def forget_work(self) -> None:
        """Count anew, because the spans that the work was done for are gone."""
        self.work, self.cleaned = PromptWork(), False

    def begin_answer(self) -> None:
        """Note that a call begins that is to have an answer."""
        self.work.begin_call()
        self.cleaned = False

    def start(self, request: Request) -> None:
        """Wait for the request of an answer; the work for it is done, the next begins with none."""
        self.work = PromptWork()
        self.wait_for(request)

    # ---- undoing -------------------------------------------------------------------------------

    def mark(self) -> Before:
        """Return what to go back to."""
        return Before(
            self.transcript.mark(), self.sequence.adapters, replace(self.work), self.cleaned
        )

    def go_back(self) -> None:
        """Undo a call that raised."""
        before = self.before
        if before is None or self.sequence.busy or self.context.closed:
            return
        self.open = None  # the turn that the call opened
        self.sequence.use_adapters(before.adapters)
        self.restore(before)
        self.before = None

    def restore(self, before: Before) -> None:
        """Be as before, apart from the adapters."""
        self.transcript.go_back(before.transcript)
        self.work, self.cleaned = replace(before.work), before.cleaned

    # ---- booking -------------------------------------------------------------------------------

    def leave_open(self, generation: Generation) -> None:
        """Let a turn go on after its call; :meth:`repair` books it when it has ended."""
        assert self.before is not None
        self.open = OpenTurn(generation, self.before)

    def repair(self) -> None:
        """Undo a call that raised and could not be undone, and book a stream that has ended."""
        if self.context.closed:
            return
        self.go_back()
        turn = self.open
        if turn is not None and turn.generation.request.done:
            if not _has_answered(turn.generation.request):
                self.before = turn.before
            self.book(turn.generation.request)

    def book(self, request: Request) -> None:
        """Keep the turn of a request that is done; undo it if it has no answer.

        If this is interrupted, it may be done again.
        """
        if not _has_answered(request):
            self.go_back()
            return
        self.transcript.end_answer(request)
        self.open = None
        if self.transcript.checkpoints.wanted:
            self.transcript.checkpoints.take()

    # ---- waiting -------------------------------------------------------------------------------

    def wait_for(self, request: Request) -> None:
        """Let a request be cancelled from now on; close it if the call was cancelled already."""
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

    def cancel(self) -> None:
        """Stop what a call waits for, or the stream that is open; do not wait for the end of it."""
        # In this order: a call looks for the flag once its request can be seen, and a request can
        # be seen until its stream can.
        self.cancelled = True
        request, turn = self.request, self.open
        if request is None and turn is not None:
            request = turn.generation.request
        if request is not None:
            request.close()


def _has_answered(request: Request) -> bool:
    """Return whether there is a turn to keep: not if it failed, or was cancelled before a token."""
    reason = request.finish_reason
    return reason is not None and not (reason == "cancelled" and not request.tokens)
