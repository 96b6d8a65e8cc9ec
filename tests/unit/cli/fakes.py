"""A runner that needs no model, and what stands around it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from llama_runner.results import (
    Chunk,
    Completion,
    ContextInfo,
    GcReport,
    Receipt,
    Span,
    Timings,
    Usage,
)

Run = Callable[..., tuple[int, str, str]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class FakeStream(Iterator[Chunk]):
    """Chunks, or whatever is to be raised in their place."""

    def __init__(self, items: list[Chunk | BaseException]) -> None:
        self.items = items
        self.closed = False

    def __next__(self) -> Chunk:
        if not self.items:
            raise StopIteration
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self.closed = True


class FakeRunner:
    """Answers every prompt with the same words, and remembers what it was asked."""

    made: ClassVar[list[FakeRunner]] = []
    load_error: ClassVar[BaseException | None] = None
    has_template: ClassVar[bool] = True
    words: ClassVar[list[str | BaseException]] = ["Hel", "lo"]
    finish_reason: ClassVar[Any] = "stop"

    def __init__(self, model: Path, *, progress: Any = None, **settings: Any) -> None:
        if self.load_error is not None:
            raise self.load_error
        if progress is not None:
            progress(1.0)
        self.model, self.settings = model, settings
        self.chat_template = "{{ messages }}" if self.has_template else None
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.streams: list[FakeStream] = []
        self.used = 0
        self.closed = False
        self.made.append(self)

    def completion(self) -> Completion:
        text = "".join(word for word in self.words if isinstance(word, str))
        return Completion(
            text,
            (1, 2),
            self.finish_reason,
            None,
            Usage(7, 2),
            Timings(10, 12, 20, 50, 700),
            Receipt(0, 7),
            1,
        )

    def generate_stateless(self, prompt: Any, **overrides: Any) -> Completion:
        self.asked.append((prompt, overrides))
        return self.completion()

    def stream_stateless(self, prompt: Any, **overrides: Any) -> FakeStream:
        self.asked.append((prompt, overrides))
        chunks = [word if isinstance(word, BaseException) else Chunk(word) for word in self.words]
        stream = FakeStream([*chunks, Chunk("", (), "stop", self.completion())])
        self.streams.append(stream)
        return stream

    def stream_stateful(self, prompt: Any, **overrides: Any) -> FakeStream:
        self.used += 10
        return self.stream_stateless(prompt, **overrides)

    def get_context_info(self) -> ContextInfo:
        spans = (Span("system", 0, 4, True, 0), Span("user", 4, 6, False, 0)) if self.used else ()
        return ContextInfo(100, self.used, 1024, spans, 0, "growing")

    def gc_context(self) -> GcReport:
        return GcReport(1, 5, "shift", 0, 0.5)

    def clear_context(self) -> None:
        self.used = 0

    def close(self) -> None:
        self.closed = True
