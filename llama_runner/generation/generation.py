"""One generation, from a prepared sequence to a Completion."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeAlias

from llama_runner._core import Request, Sequence
from llama_runner.errors import InvalidParameterError
from llama_runner.params import SEED_MAX, GenerationParams
from llama_runner.results import Completion, Receipt, Timings, Usage

__all__ = ["Generation", "MakeRoom"]


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
        # Last: a signal handler that raises after it would leave it to the exception's traceback.
        self.request = Request(
            sequence,
            sampler=params,
            max_tokens=params.max_tokens,
            stops=self._stops,
            temporary=temporary,
        )
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
