"""Parameters for loading a model, making a context and generating.

All three classes are immutable pydantic models. An unknown name, a value of the wrong type or a
value out of range is refused with one line that says what is allowed::

    >>> GenerationParams(temperature=float("nan"))
    InvalidParameterError: temperature=nan: must be a number between 0 and 100
    >>> GenerationParams(temprature=1)
    InvalidParameterError: unknown parameter 'temprature' (did you mean 'temperature'?)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypedDict, Unpack

from pydantic import BeforeValidator, Field, model_validator

from llama_runner._support.files import is_directory
from llama_runner._support.strict import Values, as_tuple, nearest
from llama_runner.errors import InvalidParameterError, LlamaError, of_the_call

__all__ = [
    "ContextParams",
    "GenerationOptions",
    "GenerationParams",
    "ModelParams",
    "RunnerOptions",
    "generation_params",
    "refuse_unknown",
    "runner_params",
]

INT32_MAX = 2**31 - 1
# llama.cpp reads the largest uint32 as "choose a seed at random", so it cannot be given as a seed.
SEED_MAX = 2**32 - 2
# GGML_MAX_N_THREADS and LLAMA_MAX_SEQ of the pinned llama.cpp.
THREADS_MAX = 512
SEQUENCES_MAX = 256

LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap_mlock", "direct_io"]
SplitMode = Literal["none", "layer", "row"]
KvLayout = Literal["auto", "unified", "streams"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
StopString = Annotated[str, Field(min_length=1)]
LoraScale = Annotated[float, Field(ge=-100, le=100)]
# Shared with the description of a model, which may recommend values for these parameters.
Layers = Annotated[int, Field(ge=-1, le=INT32_MAX)]
Temperature = Annotated[float, Field(ge=0, le=100)]
TopK = Annotated[int, Field(ge=0, le=INT32_MAX)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]
RepeatPenalty = Annotated[float, Field(ge=0.01, le=100)]
UNQUANTIZED_KV = ("f32", "f16", "bf16")


class Parameters(Values):
    """Base of the parameter classes. Numbers can be numpy scalars.

    Raises:
        InvalidParameterError: A value is out of range or of the wrong type, or a name is unknown.
    """

    refusal: ClassVar[type[LlamaError]] = InvalidParameterError
    kind_of_name: ClassVar[str] = "parameter"

    def merged(self, **overrides: Any) -> Self:
        """Return a copy with these values changed, checked as in the constructor.

        Raises:
            InvalidParameterError: As for the constructor.
        """
        return self._with(overrides) if overrides else self


def refuse_unknown(
    names: Iterable[str], *kinds: type[Parameters], others: Sequence[str] = ()
) -> None:
    """Refuse names that are not fields of any of these classes.

    Args:
        names: The names to check.
        kinds: The parameter classes.
        others: Further names that the caller accepts. They are suggested for misspelled ones too.

    Raises:
        InvalidParameterError: A name is unknown.
    """
    known = [*others, *(field for kind in kinds for field in kind.model_fields)]
    unknown = [name for name in names if name not in known]
    if unknown:
        problems = (f"unknown parameter {name!r}{nearest(name, known)}" for name in unknown)
        raise InvalidParameterError("; ".join(problems), field=unknown[0])


def _as_pairs(value: object) -> object:
    if value is None:
        return ()
    return tuple(sorted(value.items(), key=str)) if isinstance(value, Mapping) else value


def _as_texts(value: object) -> object:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else as_tuple(value)


def _try_directory(path: str) -> None:
    # Not with TemporaryFile(): it tries several ways, and an exception that a signal handler raises
    # in one of them is lost.
    descriptor, name = tempfile.mkstemp(dir=path)
    os.close(descriptor)
    os.unlink(name)  # noqa: PTH108


def _as_directory(value: object) -> object:
    return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value  # noqa: PTH111


class GenerationParams(Parameters):
    """Settings for choosing the next token and for stopping.

    Attributes:
        max_tokens: Maximum number of tokens to generate in one call. -1 generates until the context
            is full.
        temperature: Divisor of the logits: below 1 the distribution gets sharper, above 1 flatter.
            0 is greedy.
        top_k: Keep only the k most likely tokens. 0 keeps all.
        top_p: Keep the most likely tokens that together reach this probability. 1 keeps all.
        min_p: Drop tokens less likely than this fraction of the most likely one. 0 keeps all.
        repeat_penalty: Factor that weakens the logits of recent tokens. 1 is off.
        frequency_penalty: Subtracted from a token's logit once for each recent occurrence.
        presence_penalty: Subtracted once from the logit of each recent token.
        penalty_last_n: Number of most recent tokens that the penalties look at. 0 turns the
            penalties off.
        seed: The same seed gives the same tokens. None chooses one at random; the completion
            reports it.
        stop: Strings that end the answer and are not part of it: one string, or a list or tuple of
            up to 16. None stands for no strings.
        add_special: Add BOS before and EOS after a raw text prompt if the model wants them. A token
            that the text already begins or ends with is not doubled.
        parse_special: Read special tokens written out in a raw text prompt as those tokens.
        lora: Adapters to apply: a mapping from the names given to load_lora() to scales. 1 is as
            trained, 0 has no effect. None applies no adapter.
        ignore_eos: Continue after the model's end-of-generation token, up to max_tokens.
    """

    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | Literal[-1] = 200
    temperature: Temperature = 0.8
    top_k: TopK = 40
    top_p: TopP = 0.95
    min_p: MinP = 0.05
    repeat_penalty: RepeatPenalty = 1.0
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    penalty_last_n: int = Field(default=64, ge=0, le=INT32_MAX)
    seed: int | None = Field(default=None, ge=0, le=SEED_MAX)
    stop: Annotated[tuple[StopString, ...], BeforeValidator(_as_texts)] = Field(
        default=(),
        max_length=16,
        description="a non-empty string, or a list or tuple of at most 16 of them",
    )
    add_special: bool = True
    parse_special: bool = True
    lora: Annotated[tuple[tuple[str, LoraScale], ...], BeforeValidator(_as_pairs)] = Field(
        default=(), max_length=16
    )
    ignore_eos: bool = False

    if TYPE_CHECKING:  # the constructor accepts more types than the fields keep

        def __init__(self, *, max_tokens: int = 200, **values: Unpack[GenerationOptions]) -> None:
            pass


class GenerationOptions(TypedDict, total=False):
    """The keywords of a generation: the fields of GenerationParams except max_tokens."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_last_n: int
    seed: int | None
    stop: str | Sequence[str] | None
    add_special: bool
    parse_special: bool
    lora: Mapping[str, float] | None
    ignore_eos: bool


def generation_params(
    max_tokens: int | None,
    params: GenerationParams | None,
    overrides: GenerationOptions,
    defaults: GenerationParams,
) -> GenerationParams:
    """Return the parameters of one call.

    Its keywords override the fields set in its ``params``, which override the runner's defaults.

    Raises:
        InvalidParameterError: A keyword is unknown or a value is out of range.
    """
    if params is not None and not isinstance(params, GenerationParams):
        raise InvalidParameterError(
            f"params: must be GenerationParams (got {type(params).__name__})", field="params"
        )
    given: dict[str, Any] = {}
    if params is not None:
        given = {name: getattr(params, name) for name in params.model_fields_set}
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    return defaults.merged(**given | dict(overrides))


class ModelParams(Parameters):
    """Settings for loading a model's weights.

    Attributes:
        n_gpu_layers: Number of layers to put on the accelerator. -1 is all of them, 0 none.
        split_mode: How to split the model over several accelerators.
        main_gpu: Index of the accelerator to use when split_mode is 'none'.
        load_mode: How to get the file into memory: read it, map it, map and lock it, or use direct
            I/O.
        repack: Rearrange the weights for this CPU: faster, but needs a copy in memory.
        vocab_only: Load only the vocabulary: enough to tokenize, not to generate.
        check_tensors: Check the weights for invalid values while loading (slower).
    """

    n_gpu_layers: Layers = -1
    split_mode: SplitMode = "layer"
    main_gpu: int = Field(default=0, ge=0, le=INT32_MAX)
    load_mode: LoadMode = "auto"
    repack: bool = True
    vocab_only: bool = False
    check_tensors: bool = False


class ContextParams(Parameters):
    """Settings for making a context: its KV cache, sequences, batches and threads.

    Attributes:
        n_ctx: Number of tokens that the KV cache holds over all sequences; llama.cpp rounds it up
            to a multiple of 256. 0 is the length that the model was trained with; "auto" is the
            largest length up to that for which there is memory. If not given, it is 4096 or the
            trained length, whichever is less. A model with learned positions refuses to go beyond
            them.
        n_seq_max: Maximum number of sequences that live in the context at once.
        n_threads: Threads for decoding one token. None is one per usable physical core.
        n_threads_batch: Threads for the prefill. None is as many as n_threads.
        n_batch: Maximum number of tokens given to llama.cpp in one call.
        n_ubatch: Maximum number of tokens computed at once. Defaults to 512, or to n_batch if that
            is less.
        flash_attention: Whether to compute the attention in one fused step. 'auto' does so where it
            is possible.
        kv_type: Type of the numbers in the KV cache; a quantized type saves memory.
        kv_layout: 'unified' pools the cache over all sequences and shares common prefixes;
            'streams' gives each sequence an equal share of n_ctx and is faster for independent
            ones.
        swa_full: In layers with a sliding window, keep all tokens and not just the window, so that
            a conversation can be rewound.
        offload_kqv: Keep the KV cache on the accelerator, if there is one.
        gc_threshold: Share of the context above which turns are evicted automatically.
        parking_ram: Bytes of RAM for parked conversations: idle ones that were evicted from the KV
            cache to make room for others. If RAM is full, those parked longest ago make room for
            the next. A conversation that is neither in RAM nor on disk is computed again when it is
            next used.
        parking_disk: Bytes on disk for parked conversations that no longer fit in RAM; needs
            parking_dir.
        parking_dir: An existing directory for their files. The files have no names and disappear
            when the process ends.
        rope_freq_base: Base frequency of RoPE. None uses the model's.
        rope_freq_scale: Scale of RoPE's frequencies. None uses the model's.
    """

    n_ctx: Annotated[int, Field(ge=0, le=INT32_MAX)] | Literal["auto"] = 4096
    n_seq_max: int = Field(default=4, ge=1, le=SEQUENCES_MAX)
    n_threads: int | None = Field(default=None, ge=1, le=THREADS_MAX)
    n_threads_batch: int | None = Field(default=None, ge=1, le=THREADS_MAX)
    n_batch: int = Field(default=2048, ge=1, le=INT32_MAX)
    n_ubatch: int = Field(
        default_factory=lambda given: min(512, given["n_batch"]), ge=1, le=INT32_MAX
    )
    flash_attention: Literal["auto"] | bool = "auto"
    kv_type: KvType = "f16"
    kv_layout: KvLayout = "auto"
    swa_full: bool = True
    offload_kqv: bool = True
    gc_threshold: float = Field(default=0.8, gt=0, le=1)
    parking_ram: int = Field(default=2**30, ge=0, le=2**62)
    parking_disk: int = Field(default=0, ge=0, le=2**62)
    parking_dir: Annotated[
        str | None, BeforeValidator(_as_directory), Field(description="a path or None")
    ] = None
    rope_freq_base: float | None = Field(default=None, gt=0, le=1e12)
    rope_freq_scale: float | None = Field(default=None, gt=0, le=1e6)

    if TYPE_CHECKING:  # the constructor accepts more types than the fields keep

        def __init__(self, **values: Unpack[_ContextOptions]) -> None:
            pass

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse combinations that llama.cpp would abort on, or refuse without explanation."""
        if self.n_ubatch > self.n_batch:
            raise InvalidParameterError(
                f"n_ubatch={self.n_ubatch}: must not exceed n_batch ({self.n_batch})",
                field="n_ubatch",
            )
        for name in ("n_batch", "n_ctx"):
            size = getattr(self, name)
            if size != "auto" and 0 < size < self.n_seq_max:
                raise InvalidParameterError(
                    f"{name}={size}: must be at least n_seq_max ({self.n_seq_max})", field=name
                )
        if self.parking_dir is None and self.parking_disk > 0:
            raise InvalidParameterError(
                f"parking_disk={self.parking_disk}: needs parking_dir", field="parking_disk"
            )
        if self.parking_dir is not None and not is_directory(Path(self.parking_dir)):
            raise InvalidParameterError(
                f"parking_dir={self.parking_dir!r}: not a directory", field="parking_dir"
            )
        if self.parking_dir is not None and self.parking_disk > 0:
            try:
                _try_directory(self.parking_dir)
            except of_the_call(OSError) as error:
                raise InvalidParameterError(
                    f"parking_dir={self.parking_dir!r}: cannot create a file there: "
                    f"{error.strerror or error}",
                    field="parking_dir",
                ) from None
        if self.flash_attention is False and self.kv_type not in UNQUANTIZED_KV:
            raise InvalidParameterError(
                f"kv_type={self.kv_type!r}: a quantized KV cache needs flash attention; "
                f"leave flash_attention at 'auto' or use one of {', '.join(UNQUANTIZED_KV)}",
                field="kv_type",
            )
        return self

    def tokens(self, n_ctx_train: int) -> int | None:
        """Return the n_ctx for a model of this trained length, or None if memory decides."""
        if self.n_ctx == "auto":
            return None
        given = "n_ctx" in self.model_fields_set
        return (self.n_ctx or n_ctx_train) if given else min(self.n_ctx, n_ctx_train)

    def core_options(self) -> dict[str, Any]:
        """Return the keywords of the core's Context, except n_ctx and the threads."""
        parking_dir = self.parking_dir
        return {
            "n_seq_max": self.n_seq_max,
            "n_batch": self.n_batch,
            "n_ubatch": self.n_ubatch,
            "flash_attention": self.flash_attention,
            "kv_type": self.kv_type,
            "unified": self.kv_layout != "streams",
            "swa_full": self.swa_full,
            "offload_kqv": self.offload_kqv,
            "rope_freq_base": self.rope_freq_base or 0.0,
            "rope_freq_scale": self.rope_freq_scale or 0.0,
            "parking_ram": self.parking_ram,
            "parking_disk": self.parking_disk,
            # Absolute: it is opened at each parking, and the current directory may change.
            "parking_dir": None if parking_dir is None else Path(parking_dir).absolute(),
        }


class _ContextOptions(TypedDict, total=False):
    n_ctx: int | Literal["auto"]
    n_seq_max: int
    n_threads: int | None
    n_threads_batch: int | None
    n_batch: int
    n_ubatch: int
    flash_attention: Literal["auto"] | bool
    kv_type: KvType
    kv_layout: KvLayout
    swa_full: bool
    offload_kqv: bool
    gc_threshold: float
    parking_ram: int
    parking_disk: int
    parking_dir: str | os.PathLike[str] | None
    rope_freq_base: float | None
    rope_freq_scale: float | None


class RunnerOptions(_ContextOptions, total=False):
    """The keywords of LlamaRunner: the fields of ModelParams and ContextParams."""

    n_gpu_layers: int
    split_mode: SplitMode
    main_gpu: int
    load_mode: LoadMode
    repack: bool
    vocab_only: bool
    check_tensors: bool


def runner_params(
    options: RunnerOptions, others: Sequence[str] = ()
) -> tuple[ModelParams, ContextParams]:
    """Split the keywords of a runner into those of the model and those of its context.

    Args:
        options: The keywords.
        others: Further keywords that the caller accepts. They are suggested for misspelled ones
            too.

    Raises:
        InvalidParameterError: A keyword is unknown or a value is out of range.
    """
    refuse_unknown(options, ModelParams, ContextParams, others=others)
    given: dict[str, Any] = dict(options)
    for_context = {k: v for k, v in given.items() if k in ContextParams.model_fields}
    for_model = {k: v for k, v in given.items() if k not in for_context}
    return ModelParams(**for_model), ContextParams(**for_context)
