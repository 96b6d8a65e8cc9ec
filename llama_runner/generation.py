"""One generation, from a prepared sequence to a Completion or a stream of Chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn, Self, TypeAlias

from llama_runner._core import Request, Sequence
from llama_runner.errors import ContextFullError, InvalidParameterError, LlamaError
from llama_runner.params import SEED_MAX, GenerationParams
from llama_runner.results import Chunk, Completion, Receipt, Timings, Usage

__all__ = ["Generation", "MakeRoom", "Stream"]

MakeRoom: TypeAlias = "Callable[[Generation], None]"
"""Frees room in the context of a paused request and resumes it."""


class Generation:
    """A request and what it takes to describe its outcome.

    Args:
        sequence: Holds the whole prompt, and computes with the adapters of ``params``.
        params: Without a seed, one is chosen here.
        stops: Strings that end the answer beside those of ``params``, which are the caller's.
        temporary: Leave nothing behind in the KV memory.
        shifted: Tokens of the prompt that were moved.
        computed: Tokens of the prompt that were computed before it.
        computed_ms: How long that took.
        started: When the call began, by ``time.perf_counter()``.
        first_difference: Token and message in which the prompt first differed from what was in
            memory.

    Raises:
        InvalidParameterError: An adapter of ``params`` was unloaded meanwhile.
    """

    def __init__(
        self,
        sequence: Sequence,
        params: GenerationParams,
        *,
        started: float,
        stops: tuple[str, ...] = (),
        temporary: bool = False,
        shifted: int = 0,
        computed: int = 0,
        computed_ms: float = 0.0,
        first_difference: tuple[int, int] | None = None,
    ) -> None:
        if params.seed is None:
            params = params.merged(seed=secrets.randbelow(SEED_MAX + 1))
        self.params = params
        self._stops = (*params.stop, *stops)
        # Templates, tokens, room.
        self._before_ms = (time.perf_counter() - started) * 1e3 - computed_ms
        self._shifted = shifted
        self._computed, self._computed_ms = computed, computed_ms
        self._first_difference = first_difference or (None, None)
        # Unchecked: with the template's there may be more than a caller may give.
        recipe = GenerationParams.model_construct(**{**dict(params), "stop": self._stops})
        # Last: a signal handler that raises after it would leave it to the exception's traceback.
        self.request = Request(sequence, recipe, temporary=temporary)
        if len(sequence.adapters) != len(params.lora):  # from here on none of them can be unloaded
            self.request.close()
            names = ", ".join(repr(name) for name, _ in params.lora)
            raise InvalidParameterError(
                f"lora: no adapter {names} is loaded; another thread has just unloaded it",
                field="lora",
            )

    def run(self, make_room: MakeRoom | None = None) -> Completion:
        """Generate to the end; no Python runs between two tokens.

        Args:
            make_room: Called when the request pauses because its context fills up; resumes it.
        """
        try:
            self.request.run()
            while self.request.paused and make_room is not None:
                make_room(self)
                self.request.run()
        except BaseException:
            self.request.close()  # the error may be kept for long, and the request with it
            raise
        return self.completion()

    def completion(self) -> Completion:
        """The outcome, once the request is done."""
        request = self.request
        assert request.finish_reason is not None
        stop = request.stop_index
        n_prompt, n_reused, n_shared, n_prefilled = request.counts
        tokens = request.tokens
        # What was computed before may have had to leave again, and is then counted already.
        n_computed = min(self._computed, n_reused)
        n_reused -= n_computed
        assert self.params.seed is not None
        return Completion(
            text=request.text,
            tokens=tokens,
            finish_reason=request.finish_reason,
            stop_string=None if stop is None else self._stops[stop],
            usage=Usage(prompt_tokens=n_prompt, completion_tokens=len(tokens)),
            timings=self._timings(len(tokens), n_prefilled + n_computed),
            receipt=Receipt(
                reused=n_reused,
                shared=n_shared,
                shifted=min(self._shifted, n_reused),
                recomputed=n_prefilled + n_computed,
                first_difference=self._first_difference[0],
                first_message=self._first_difference[1],
            ),
            seed=self.params.seed,
        )

    def _timings(self, n_generated: int, n_prefilled: int) -> Timings:
        prefill, decode = (us / 1e6 for us in self.request.times_us)
        prefill += self._computed_ms / 1e3
        return Timings(
            prefill_ms=prefill * 1e3,
            first_token_ms=self._before_ms + prefill * 1e3,
            decode_ms=decode * 1e3,
            # The first token falls out of the prefill.
            tokens_per_second=(n_generated - 1) / decode if decode > 0 and n_generated > 1 else 0.0,
            prefill_tokens_per_second=n_prefilled / prefill if prefill > 0 else 0.0,
        )


class Stream(Iterator[Chunk]):
    """The chunks of one generation; computed as they are pulled.

    Closing it, leaving its ``with`` block or dropping it stops the generation. After the last
    chunk, or when a signal handler raises while one is computed, :attr:`completion` is set, with
    all that was generated; what of it was in no chunk yet comes with the next pull. Not for several
    threads at once, but :meth:`cancel` may be called from any.

    Args:
        generation: Not begun yet.
        on_end: Called once, when the generation is done or has failed; not where the stream is
            dropped, which may happen in any thread at any time.
        make_room: As for :meth:`Generation.run`.
    """

    def __init__(
        self,
        generation: Generation,
        on_end: Callable[[], None],
        make_room: MakeRoom | None = None,
    ) -> None:
        self._generation = generation
        self._on_end = on_end
        self._make_room = make_room
        # See Request.read; None where no chunk is to follow.
        self._shown: tuple[int, int] | None = (0, 0)
        self._ended = False
        self.completion: Completion | None = None
        """The whole answer, once the stream has ended."""

    def __next__(self) -> Chunk:
        if self._shown is None:
            raise StopIteration
        request = self._generation.request
        try:
            while True:
                if request.paused and self._make_room is not None:
                    self._make_room(self._generation)
                text, tokens, shown = request.read(self._shown)
                if text or not request.paused:
                    break  # when it paused with text to show, room is made at the next pull
            if self._ended and not text and not tokens:
                raise StopIteration  # all was shown when a signal handler raised
            if request.done:
                self._end()
            chunk = Chunk(text, tuple(tokens), request.finish_reason, self.completion)
        except BaseException as error:
            # Where no room could be made, or a signal handler raised, even in between: what was
            # generated so far is the answer.
            if request.paused or not isinstance(error, LlamaError):
                request.close(full=isinstance(error, ContextFullError))
            if request.done:
                self._end()
                if request.finish_reason is None:  # it failed, and is not to fail at each pull
                    self._shown = None
            raise
        # With no call from here on: nothing can come in between.
        self._shown = None if self._ended else shown
        return chunk

    def cancel(self) -> None:
        """Stop as soon as possible; the next chunk is the last, with reason "cancelled"."""
        self._generation.request.cancel()

    def close(self) -> None:
        """Stop now; what was generated so far stays in a conversation's memory."""
        self._shown = None
        if not self._ended:
            self._generation.request.close()
            if self._generation.request.done:
                self._end()

    def _end(self) -> None:
        if self._ended:
            return
        if self._generation.request.finish_reason is not None:
            self.completion = self._generation.completion()
        self._ended = True
        self._on_end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be copied or pickled: read it, and keep its chunks")

    def __del__(self) -> None:
        if hasattr(self, "_ended") and not self._ended:
            self._generation.request.close()
