"""One generation, from a prepared sequence to a Completion."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeAlias

from llama_runner._core import Request, Sequence
from llama_runner.errors import InvalidParameterError
from llama_runner.generation.prompt_work import PromptWork
from llama_runner.params import SEED_MAX, GenerationParams
from llama_runner.results import Completion, Timings, Usage

__all__ = ["Generation", "MakeRoom"]


MakeRoom: TypeAlias = "Callable[[Generation], None]"
"""Makes room in the context of a paused request and resumes it."""


class Generation:
    """A request, and what is needed to describe its outcome.

    Args:
        sequence: Holds the whole prompt, and computes with the adapters of ``params``.
        params: Without a seed, one is chosen here.
        work: What was done for the prompt before.
        stops: Strings that end the answer beside those of ``params``, which are the caller's.
        temporary: Leave nothing in the KV memory.
    """

    def __init__(
        self,
        sequence: Sequence,
        params: GenerationParams,
        work: PromptWork,
        *,
        stops: tuple[str, ...] = (),
        temporary: bool = False,
    ) -> None:
        if params.seed is None:
            params = params.merged(seed=secrets.randbelow(SEED_MAX + 1))
        self.params = params
        self._stops = (*params.stop, *stops)
        self._work = work
        # Templates, tokens, room.
        self._before_ms = (time.perf_counter() - work.started) * 1e3 - work.computed_ms
        # Last: a signal handler that raises after it would leave it to the exception's traceback.
        self.request = Request(
            sequence,
            sampler=params,
            max_tokens=params.max_tokens,
            stops=self._stops,
            temporary=temporary,
        )

    def check_adapters(self) -> None:
        """Find out whether the sequence has the adapters that it is to compute with.

        From when the request is made, none of them can be unloaded.

        Raises:
            InvalidParameterError: One was unloaded meanwhile.
        """
        if len(self.request.sequence.adapters) != len(self.params.lora):
            self.request.close()
            names = ", ".join(repr(name) for name, _ in self.params.lora)
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
            self.request.close()  # a traceback may keep it for long
            raise
        return self.completion()

    def completion(self) -> Completion:
        """Return the outcome, once the request is done."""
        request = self.request
        assert request.finish_reason is not None
        assert self.params.seed is not None
        stop = request.stop_index
        n_prompt, n_reused, n_shared, n_prefilled = request.counts
        tokens = request.tokens
        receipt = self._work.receipt(reused=n_reused, shared=n_shared, prefilled=n_prefilled)
        return Completion(
            text=request.text,
            tokens=tokens,
            finish_reason=request.finish_reason,
            stop_string=None if stop is None else self._stops[stop],
            usage=Usage(prompt_tokens=n_prompt, completion_tokens=len(tokens)),
            timings=self._timings(len(tokens), receipt.recomputed),
            receipt=receipt,
            seed=self.params.seed,
        )

    def _timings(self, n_generated: int, n_recomputed: int) -> Timings:
        prefill_us, decode_us = self.request.times_us
        prefill = prefill_us / 1e6 + self._work.computed_ms / 1e3
        decode = decode_us / 1e6
        n_prefilled = max(0, n_recomputed - self._work.computed_earlier)
        return Timings(
            prefill_ms=prefill * 1e3,
            first_token_ms=self._before_ms + prefill * 1e3,
            decode_ms=decode * 1e3,
            # The first token is part of the prefill.
            tokens_per_second=(n_generated - 1) / decode if decode > 0 and n_generated > 1 else 0.0,
            prefill_tokens_per_second=n_prefilled / prefill if prefill > 0 else 0.0,
        )
