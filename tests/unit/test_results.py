"""Results are immutable records that read well."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

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

COMPLETION = Completion(
    text="Hi there",
    tokens=(5, 6),
    finish_reason="stop",
    stop_string=None,
    usage=Usage(prompt_tokens=7, completion_tokens=2),
    timings=Timings(10.0, 12.0, 20.0, 50.0, 700.0),
    receipt=Receipt(reused=3, recomputed=4),
    seed=1,
)
INFO = ContextInfo(
    n_ctx=2048,
    used=512,
    bytes=3 * 2**20,
    spans=(Span("system", 0, 12, True, 0), Span("user", 12, 500, False, 1)),
    gc_would_free=250,
    state="growing",
)
REPORT = GcReport(2, 1000, "shift", 0, 1.25)


def test_completion_and_chunk_are_their_text() -> None:
    assert str(COMPLETION) == f"{COMPLETION}" == "Hi there"
    assert str(Chunk("Hi")) == "Hi"
    assert "'Hi there'" in repr(COMPLETION)
    assert "tokens=(5, 6)" not in repr(COMPLETION)


def test_sums() -> None:
    assert COMPLETION.usage.total == 9
    assert COMPLETION.timings.total_ms == 32.0
    assert (INFO.free, INFO.usage) == (1536, 0.25)


def test_lines_for_people() -> None:
    assert str(INFO) == "512 of 2,048 tokens (25%), 3.0 MiB, 2 spans, growing"
    assert str(REPORT) == "dropped 1,000 tokens in 2 spans, recomputed 0 (shift, 1.2 ms)"


@pytest.mark.parametrize("record", [COMPLETION, INFO, REPORT, Chunk("a", completion=COMPLETION)])
def test_records_are_immutable_hashable_and_pickle(record: Completion) -> None:
    assert pickle.loads(pickle.dumps(record)) == record
    assert len({record, dataclasses.replace(record)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, "other")
