"""How much memory a model and its context will take, and which context fits the machine.

llama.cpp works it out itself: it can build a model and a context without allocating them. So the
figures are those of the real thing, for every architecture, at the price of reading the
vocabulary once more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Final, Self

from .._core import Context, Model
from ..errors import OutOfMemoryError
from ..params import ContextParams, KvType, ModelParams
from ..system import memory_limit
from .catalogue import find_model
from .gguf import GgufInfo
from .header import ModelPath, quoted
from .reading import read_gguf

__all__ = ["MemoryEstimate", "estimate_memory", "fitting_n_ctx"]

# llama.cpp rounds n_ctx up to a multiple of this.
_STEP: Final = 256
# Beyond this many tokens llama.cpp's own list of them takes time and memory; memory grows evenly.
_LONGEST_TRIED: Final = 1 << 20
# What an n_ctx that we choose leaves of the limit to Python and to everything else.
_COMFORTABLE: Final = 0.9


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a model and one context on it take, in bytes.

    Attributes:
        weights: The tensors.
        kv: What the context remembers of its tokens.
        compute: Room for intermediate results.
        host: How much of the three is in the machine's own memory, not an accelerator's.
    """

    weights: int
    kv: int
    compute: int
    host: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.weights + self.kv + self.compute


def estimate_memory(
    model: ModelPath,
    *,
    n_ctx: int = 4096,
    n_seq_max: int = 4,
    kv_type: KvType = "f16",
    n_gpu_layers: int = -1,
) -> MemoryEstimate:
    """Work out the memory that a runner with these parameters will take, without loading it.

    Args:
        model: A GGUF file, or the name of a pulled model. It is not validated.
        n_ctx: Tokens of context; 0 is the length that the model was trained with.
        n_seq_max: Sequences that live in the context at once.
        kv_type: Type of the numbers in the KV cache.
        n_gpu_layers: Layers on the accelerator; -1 is all.

    Raises:
        InvalidParameterError: A parameter is out of range.
        ModelNotFoundError: No such file or name.
        ModelLoadError: llama.cpp refused the file.
        UnsupportedModelError: It is no model that generates text.
    """
    for_model = ModelParams(n_gpu_layers=n_gpu_layers)
    for_context = ContextParams(n_ctx=n_ctx, n_seq_max=n_seq_max, kv_type=kv_type)
    path = read_gguf(find_model(model)).path
    with _Blueprint(path, for_model, for_context) as blueprint:
        return blueprint.estimate(n_ctx)


def fitting_n_ctx(
    path: ModelPath,
    info: GgufInfo | None,
    for_model: ModelParams,
    for_context: ContextParams,
    file: IO[bytes] | None = None,
) -> int:
    """The number of tokens of context to make: what was asked for, if it fits.

    Args:
        path: The model.
        info: Its header, where it was read already; a look at it often tells that all is well.
        for_model: How its weights will be loaded.
        for_context: ``n_ctx`` may be "auto": the most that fits, up to the trained length.
        file: The model's only file, if it is open already.

    Raises:
        OutOfMemoryError: It takes more than the memory of the machine or of its cgroup; the
            message says which n_ctx would fit.
        ModelLoadError: llama.cpp refused the file.
    """
    limit = memory_limit()
    asked = _asked(info, for_context)
    if asked is not None and _far_below(limit, asked, info):
        return asked
    with _Blueprint(path, for_model, for_context, file) as blueprint:
        if for_context.n_ctx != "auto":
            asked = blueprint.asked()
            needed = blueprint.estimate(asked).host
            if needed <= limit:
                return asked
        largest = blueprint.largest_n_ctx(int(limit * _COMFORTABLE))
        if largest and for_context.n_ctx == "auto":
            return largest
        if not largest:
            asked, needed = _STEP, blueprint.estimate(_STEP).host
    advice = (
        f"n_ctx={largest} would fit"
        if largest
        else "no n_ctx would fit; take a smaller model or a stronger quantization"
    )
    raise OutOfMemoryError(
        f"{quoted(os.fspath(path), 200)} with n_ctx={asked} takes {_gib(needed)} of memory, and "
        f"this process can have {_gib(limit)}: {advice}",
        field="n_ctx",
    )


class _Blueprint:
    """A model of which nothing was allocated, to try contexts on."""

    def __init__(
        self,
        path: ModelPath,
        for_model: ModelParams,
        for_context: ContextParams,
        file: IO[bytes] | None = None,
    ) -> None:
        self._params = for_context
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
            whole.host + int(steps * (whole.host - half.host)),
        )

    def _try(self, n_ctx: int) -> MemoryEstimate:
        context = Context(self._model, n_ctx=n_ctx, **self._params.core_options())
        return MemoryEstimate(
            context.weights_bytes, context.kv_bytes, context.compute_bytes, context.host_bytes
        )

    def largest_n_ctx(self, limit: int) -> int:
        """The most tokens, up to the trained length, that stay within a limit; 0 if none do."""
        low, high = 0, max(1, self._model.n_ctx_train // _STEP)
        while low < high:
            middle = (low + high + 1) // 2
            if self.estimate(middle * _STEP).host <= limit:
                low = middle
            else:
                high = middle - 1
        return low * _STEP

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._model.close()


def _asked(info: GgufInfo | None, params: ContextParams) -> int | None:
    """The n_ctx that the parameters stand for, as far as the header tells."""
    trained = info.context_length if info else None
    return None if trained is None else params.tokens(trained)


def _far_below(limit: int, n_ctx: int, info: GgufInfo | None) -> bool:
    """Whether a generous guess says that there is room enough, so that nobody need work it out.

    The guess gives every layer keys and values as wide as the embeddings, in float32. Models that
    have wider ones have fewer heads to remember; the other half of the limit is for exceptions.
    """
    layers = info and info.number("block_count")
    width = info and info.number("embedding_length")
    if info is None or not layers or not width:
        return False
    return info.size + n_ctx * layers * 2 * width * 4 <= limit / 2


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
