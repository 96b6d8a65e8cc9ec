"""Estimating the memory of a model and its context, and the largest context that fits.

llama.cpp computes the figures itself, because it can build a model and a context without allocating
them. So they hold for every architecture, at the price of reading the vocabulary once more.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Final, Unpack

from llama_runner._core import Context, Model
from llama_runner._support.hardware import free_memory
from llama_runner.errors import InvalidParameterError, OutOfMemoryError
from llama_runner.loaders.catalogue.resolve import checked_model
from llama_runner.loaders.gguf.header import GgufArray, ModelPath, quoted
from llama_runner.loaders.gguf.info import GgufInfo
from llama_runner.params import ContextParams, ModelParams, RunnerOptions, runner_params

__all__ = ["MemoryEstimate", "estimate_memory", "fitting_n_ctx"]

# llama.cpp rounds n_ctx up to a multiple of this.
_STEP: Final = 256
# Above this many tokens, llama.cpp's own table of them takes time and memory, even in a trial;
# memory grows linearly, so larger contexts are extrapolated.
_LONGEST_TRIED: Final = 1 << 20
# The share of the free memory that a model may take, so that some is left for Python and all else;
# and the share of that for an n_ctx that we choose.
_MOST: Final = 0.95
_COMFORTABLE: Final = 0.9
# The intermediate results of this many tokens are small compared with the rest.
_USUAL_UBATCH: Final = 512
# Bytes of llama.cpp's tables for each token and each merge, measured with SentencePiece and BPE
# vocabularies of 50,000 and 200,000 short tokens; and of our own table (_shim/piece_table.hpp).
_TOKEN_BYTES: Final = 150
_MERGE_BYTES: Final = 130
_PIECE_TABLE_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a model and one context on it take, in bytes.

    What does not depend on the model is not counted: the Python interpreter and its modules,
    llama.cpp's code, and some MiB of the allocator.

    Attributes:
        weights: The tensors.
        kv: The state that the context keeps of its tokens, such as the KV cache.
        compute: Buffers for intermediate results.
        vocabulary: Tables of tokens and of pieces of text, estimated by a rule of thumb.
        host: The part of the total that is in the machine's own memory, not an accelerator's.
    """

    weights: int
    kv: int
    compute: int
    vocabulary: int
    host: int

    @property
    def total(self) -> int:
        """Weights, kv, compute and vocabulary together."""
        return self.weights + self.kv + self.compute + self.vocabulary


def estimate_memory(model: ModelPath, **options: Unpack[RunnerOptions]) -> MemoryEstimate:
    """Estimate the memory that a runner with these parameters will take, without loading the model.

    The model is checked first, as by the runner.

    Args:
        model: A path, a description or a name, as for :class:`LlamaRunner`.
        **options: Fields of :class:`ModelParams` and :class:`ContextParams`, with the same defaults
            as for :class:`LlamaRunner`.

    Raises:
        InvalidParameterError: A parameter is unknown or out of range, or ``vocab_only`` is set.
        ModelNotFoundError: There is no such file or name.
        FileReadError: The system does not allow reading it.
        ModelMetadataError: The description is not valid, or contradicts the file.
        ModelValidationError: The file is not a sound GGUF model.
        ModelLoadError: It holds no weights, or llama.cpp refused it.
        OutOfMemoryError: ``n_ctx`` is "auto" and no n_ctx fits.
        UnsupportedModelError: It is not a model that generates text.
    """
    for_model, for_context = runner_params(options)
    if for_model.vocab_only:
        raise InvalidParameterError(
            "vocab_only=True: a vocabulary alone has no context to estimate", field="vocab_only"
        )
    with checked_model(model, "full") as found:
        for_model = found.load_params(for_model)
        arguments = found.path, found.info, for_model, for_context, found.file
        n_ctx = fitting_n_ctx(*arguments) if for_context.n_ctx == "auto" else None
        with closing(_Blueprint(*arguments)) as blueprint:
            return blueprint.estimate(blueprint.asked() if n_ctx is None else n_ctx)


def fitting_n_ctx(
    path: ModelPath,
    info: GgufInfo | None,
    for_model: ModelParams,
    for_context: ContextParams,
    file: IO[bytes] | None = None,
    n_resident: int = 0,
) -> int:
    """Return the n_ctx of the context to make: the one asked for, if it fits.

    Args:
        path: The model.
        info: Its header, if it was already read; it often suffices to see that there is room.
        for_model: How its weights will be loaded.
        for_context: The context asked for. If its ``n_ctx`` is "auto", the result is the largest
            that fits, up to the trained length.
        file: The model's only file, if it is already open.
        n_resident: Bytes of the model that are already in memory.

    Raises:
        InvalidParameterError: This model cannot use the ``kv_type``.
        OutOfMemoryError: It takes more than the free memory of the machine or of its cgroup, less a
            margin; the message says which n_ctx would fit.
        ModelLoadError: llama.cpp refused the file.
    """
    limit = room() + n_resident
    asked = _asked(info, for_context)
    if asked is not None and _far_below(limit, asked, info, for_context):
        return asked
    with closing(_Blueprint(path, info, for_model, for_context, file)) as blueprint:
        if for_context.n_ctx != "auto":
            asked = blueprint.asked()
            needed = blueprint.estimate(asked).host
            if needed <= limit:
                return asked
        largest = blueprint.largest_n_ctx(int(limit * _COMFORTABLE))
        if not largest:
            smallest = blueprint.of_steps(1)
            least = blueprint.estimate(smallest).host
            if least <= limit:  # within the limit, although not comfortably
                largest = smallest
            else:
                asked, needed = smallest, least
        if largest and for_context.n_ctx == "auto":
            return largest
    advice = (
        f"n_ctx={largest} would fit"
        if largest
        else "no n_ctx would fit; take a smaller model or a stronger quantization"
    )
    raise OutOfMemoryError(
        f"{quoted(os.fspath(path), 200)} with n_ctx={asked} takes {_gib(needed)} of memory, and "
        f"this process can have {_gib(limit)} now: {advice}",
        field="n_ctx",
    )


def room() -> int:
    """Return the bytes of the memory free now that a model may take."""
    return int(free_memory() * _MOST)


class _Blueprint:
    """A model without allocated weights, for trying contexts."""

    def __init__(
        self,
        path: ModelPath,
        info: GgufInfo | None,
        for_model: ModelParams,
        for_context: ContextParams,
        file: IO[bytes] | None = None,
    ) -> None:
        self._params = for_context
        self._vocabulary = 0 if info is None else _vocabulary_bytes(info)
        self._model = Model(path, file=file, no_alloc=True, **for_model.model_dump())

    def asked(self) -> int:
        """Return the n_ctx that the parameters mean for this model."""
        n_ctx = self._params.tokens(self._model.n_ctx_train)
        assert n_ctx is not None
        return n_ctx

    def estimate(self, n_ctx: int) -> MemoryEstimate:
        if n_ctx <= _LONGEST_TRIED:
            return self._try(n_ctx)
        half, whole = self._try(_LONGEST_TRIED // 2), self._try(_LONGEST_TRIED)
        steps = (n_ctx - _LONGEST_TRIED) / (_LONGEST_TRIED // 2)
        return MemoryEstimate(
            whole.weights,
            whole.kv + int(steps * (whole.kv - half.kv)),
            whole.compute + int(steps * (whole.compute - half.compute)),
            whole.vocabulary,
            whole.host + int(steps * (whole.host - half.host)),
        )

    def _try(self, n_ctx: int) -> MemoryEstimate:
        context = Context(self._model, n_ctx=n_ctx, **self._params.core_options())
        return MemoryEstimate(
            context.weights_bytes,
            context.kv_bytes,
            context.compute_bytes,
            self._vocabulary,
            context.host_bytes + self._vocabulary,
        )

    def largest_n_ctx(self, limit: int) -> int:
        """Return the largest n_ctx within a limit, up to the trained length; 0 if none fits."""
        low, high = 0, max(1, self._model.n_ctx_train // _STEP)
        while low < high:
            middle = (low + high + 1) // 2
            if self.estimate(self.of_steps(middle)).host <= limit:
                low = middle
            else:
                high = middle - 1
        return self.of_steps(low)

    def of_steps(self, n_steps: int) -> int:
        """Return this many steps in tokens, or the trained length if that is less."""
        return min(n_steps * _STEP, self._model.n_ctx_train)

    def close(self) -> None:
        """Free the model."""
        self._model.close()


def _vocabulary_bytes(info: GgufInfo) -> int:
    arrays = (info.keys.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    tokens, merges = (len(array) if isinstance(array, GgufArray) else 0 for array in arrays)
    return tokens * _TOKEN_BYTES + merges * _MERGE_BYTES + _PIECE_TABLE_BYTES


def _asked(info: GgufInfo | None, params: ContextParams) -> int | None:
    """Return the n_ctx that the parameters mean; None if the header is not enough to tell."""
    trained = info.context_length if info else None
    return None if trained is None else params.tokens(trained)


def _far_below(limit: int, n_ctx: int, info: GgufInfo | None, params: ContextParams) -> bool:
    """Return True if a generous upper bound fits, so that the exact estimate can be skipped.

    The bound assumes keys and values as wide as the embeddings in every layer, in float32. Models
    with wider ones have fewer heads to store; half of the limit is a reserve for exceptions.
    If many tokens are computed at once, or if the scores of every head for the whole context are
    stored, intermediate results are not small: then the exact estimate is needed.
    """
    if params.n_ubatch > _USUAL_UBATCH or params.flash_attention is False:
        return False
    layers = info and info.number("block_count")
    width = info and info.number("embedding_length")
    if info is None or not layers or not width:
        return False
    guess = info.size + _vocabulary_bytes(info) + n_ctx * layers * 2 * width * 4
    return guess <= limit / 2


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
