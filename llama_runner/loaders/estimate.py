"""How much memory a model and its context will take, and which context fits the machine.

llama.cpp works it out itself: it can build a model and a context without allocating them. So the
figures are those of the real thing, for every architecture, at the price of reading the
vocabulary once more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Final, Self, Unpack

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
# Beyond this many tokens llama.cpp's own list of them takes time and memory; memory grows evenly.
_LONGEST_TRIED: Final = 1 << 20
# What of the free memory a model may take, so that Python and everything else can go on; and what
# of that is taken by an n_ctx that we choose.
_MOST: Final = 0.95
_COMFORTABLE: Final = 0.9
# The intermediate results of so many tokens are little beside what else there is.
_USUAL_UBATCH: Final = 512
# What llama.cpp's tables take for each token and each merge, measured with SentencePiece and BPE
# vocabularies of 50,000 and 200,000 short tokens; and the size of ours (_shim/piece_table.hpp).
_TOKEN_BYTES: Final = 150
_MERGE_BYTES: Final = 130
_PIECE_TABLE_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a model and one context on it take, in bytes.

    Not counted is what does not depend on the model: the Python interpreter and what it imports,
    llama.cpp's code, and some MiB of the allocator's.

    Attributes:
        weights: The tensors.
        kv: What the context remembers of its tokens.
        compute: Room for intermediate results.
        vocabulary: Tables of its tokens and of pieces of text; by a rule of thumb.
        host: How much of the four is in the machine's own memory, not an accelerator's.
    """

    weights: int
    kv: int
    compute: int
    vocabulary: int
    host: int

    @property
    def total(self) -> int:
        """All four together."""
        return self.weights + self.kv + self.compute + self.vocabulary


def estimate_memory(model: ModelPath, **options: Unpack[RunnerOptions]) -> MemoryEstimate:
    """Work out the memory that a runner with these parameters will take, without loading it.

    The model is checked first, as the runner would.

    Args:
        model: As for :class:`LlamaRunner`: a path, a description or a name.
        **options: Fields of :class:`ModelParams` and :class:`ContextParams`, with the defaults that
            :class:`LlamaRunner` has.

    Raises:
        InvalidParameterError: A parameter is unknown or out of range, or ``vocab_only`` is set.
        ModelNotFoundError: No such file or name.
        FileReadError: The system does not let it be read.
        ModelMetadataError: The description is not valid, or contradicts the file.
        ModelValidationError: The file is not a sound GGUF.
        ModelLoadError: llama.cpp refused the file.
        OutOfMemoryError: No n_ctx fits, and "auto" was asked for.
        UnsupportedModelError: It is no model that generates text.
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
        with _Blueprint(*arguments) as blueprint:
            return blueprint.estimate(blueprint.asked() if n_ctx is None else n_ctx)


def fitting_n_ctx(
    path: ModelPath,
    info: GgufInfo | None,
    for_model: ModelParams,
    for_context: ContextParams,
    file: IO[bytes] | None = None,
    n_resident: int = 0,
) -> int:
    """The number of tokens of context to make: what was asked for, if it fits.

    Args:
        path: The model.
        info: Its header, where it was read already; a look at it often tells that all is well.
        for_model: How its weights will be loaded.
        for_context: ``n_ctx`` may be "auto": the most that fits, up to the trained length.
        file: The model's only file, if it is open already.
        n_resident: Bytes of it that are in memory already.

    Raises:
        InvalidParameterError: ``kv_type`` is not for this model.
        OutOfMemoryError: It takes more than the memory that is free on the machine or in its
            cgroup, less a margin; the message says which n_ctx would fit.
        ModelLoadError: llama.cpp refused the file.
    """
    limit = room() + n_resident
    asked = _asked(info, for_context)
    if asked is not None and _far_below(limit, asked, info, for_context):
        return asked
    with _Blueprint(path, info, for_model, for_context, file) as blueprint:
        if for_context.n_ctx != "auto":
            asked = blueprint.asked()
            needed = blueprint.estimate(asked).host
            if needed <= limit:
                return asked
        largest = blueprint.largest_n_ctx(int(limit * _COMFORTABLE))
        if not largest:
            smallest = blueprint.of_steps(1)
            least = blueprint.estimate(smallest).host
            if least <= limit:  # not comfortably, but it is what there is
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
    """The bytes that a model may take of the memory that is free now."""
    return int(free_memory() * _MOST)


class _Blueprint:
    """A model of which nothing was allocated, to try contexts on."""

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
        """The n_ctx that the parameters stand for on this model."""
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
        """The most tokens, up to the trained length, that stay within a limit; 0 if none do."""
        low, high = 0, max(1, self._model.n_ctx_train // _STEP)
        while low < high:
            middle = (low + high + 1) // 2
            if self.estimate(self.of_steps(middle)).host <= limit:
                low = middle
            else:
                high = middle - 1
        return self.of_steps(low)

    def of_steps(self, n_steps: int) -> int:
        """So many steps of tokens, or the trained length if that is less."""
        return min(n_steps * _STEP, self._model.n_ctx_train)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._model.close()


def _vocabulary_bytes(info: GgufInfo) -> int:
    arrays = (info.keys.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    tokens, merges = (len(array) if isinstance(array, GgufArray) else 0 for array in arrays)
    return tokens * _TOKEN_BYTES + merges * _MERGE_BYTES + _PIECE_TABLE_BYTES


def _asked(info: GgufInfo | None, params: ContextParams) -> int | None:
    """The n_ctx that the parameters stand for, as far as the header tells."""
    trained = info.context_length if info else None
    return None if trained is None else params.tokens(trained)


def _far_below(limit: int, n_ctx: int, info: GgufInfo | None, params: ContextParams) -> bool:
    """Whether a generous guess says that there is room enough, so that nobody need work it out.

    The guess gives every layer keys and values as wide as the embeddings, in float32. Models that
    have wider ones have fewer heads to remember; the other half of the limit is for exceptions.
    Intermediate results are no small thing where many tokens are computed at once, or where every
    head's scores for the whole context are written down.
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
