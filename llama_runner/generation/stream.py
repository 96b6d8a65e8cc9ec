"""A generation as a stream of chunks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn, Self

from llama_runner.errors import ContextFullError, LlamaError
from llama_runner.generation.generation import Generation, MakeRoom
from llama_runner.results import Chunk, Completion

__all__ = ["Stream"]


class Stream(Iterator[Chunk]):
    """The chunks of one generation, computed as they are read.

    Closing the stream, leaving its ``with`` block or dropping it stops the generation. After the
    last chunk, or when a signal handler raises while a chunk is computed, :attr:`completion` is
    set, with all that was generated; text that was not in a chunk yet comes with the next one.
    Threads that read one stream share its chunks, and any thread may call :meth:`cancel`.

    Args:
        generation: Not begun yet.
        on_end: Called once, when the generation is done or has failed; not when the stream is
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
        # See Request.read; None if no chunk is to follow.
        self._shown: tuple[int, int] | None = (0, 0)
        self._ended = False
        self._reading = threading.RLock()
        self.completion: Completion | None = None
        """The whole answer, once the stream has ended."""

    def __next__(self) -> Chunk:
        self._generation.request.check()  # in a forked child the lock may never be released
        with self._reading:
            return self._read()

    def _read(self) -> Chunk:
        if self._shown is None:
            raise StopIteration
        request = self._generation.request
        try:
            while True:
                if request.paused and self._make_room is not None:
                    self._make_room(self._generation)
                text, tokens, shown = request.read(self._shown)
                if text or not request.paused:
                    break  # if it paused with text to show, the next read makes room
            if self._ended and not text and not tokens:
                raise StopIteration  # all was shown when a signal handler raised
            if request.done:
                self._end()
            chunk = Chunk(text, tuple(tokens), request.finish_reason, self.completion)
        except BaseException as error:
            # If room could not be made, or a signal handler raised, the answer is what was
            # generated so far.
            if request.paused or not isinstance(error, LlamaError):
                request.close(full=isinstance(error, ContextFullError))
            if request.done:
                self._end()
                if request.finish_reason is None:  # it failed, and is not to fail at each read
                    self._shown = None
            raise
        # No call from here on: a signal handler cannot raise in between.
        self._shown = None if self._ended else shown
        return chunk

    def cancel(self) -> None:
        """Stop as soon as possible; the next chunk is the last, with reason "cancelled"."""
        self._generation.request.cancel()

    def close(self) -> None:
        """Stop now. What was generated so far stays in the memory of a conversation."""
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
