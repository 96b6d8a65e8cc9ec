"""Requests of the core, from the parameters of a call."""

from __future__ import annotations

from llama_runner._core import Request, Sequence
from llama_runner.params import GenerationParams


def request_for(
    sequence: Sequence, params: GenerationParams, *, temporary: bool = False
) -> Request:
    return Request(
        sequence,
        sampler=params,
        max_tokens=params.max_tokens,
        stops=params.stop,
        temporary=temporary,
    )
